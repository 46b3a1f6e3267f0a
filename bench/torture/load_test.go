package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/history"
)

// violations collects what a checker reports.
type violations []string

func (v *violations) report(format string, args ...any) {
	*v = append(*v, fmt.Sprintf(format, args...))
}

func TestCounterChecks(t *testing.T) {
	for _, tc := range []struct {
		name     string
		returned []int64
		unknown  int
		end      int64
		good     bool
	}{
		{"all acknowledged", []int64{1, 2, 3}, 0, 3, true},
		{"unknown ones done", []int64{1, 3, 4}, 2, 5, true},
		{"unknown ones not done", []int64{1, 2, 3}, 2, 3, true},
		{"one lost", []int64{1, 2, 3}, 0, 2, false},
		{"one done twice", []int64{1, 2, 4}, 0, 4, false},
		{"the same value twice", []int64{1, 2, 2}, 1, 3, false},
		{"more than was asked for", []int64{1, 2}, 1, 4, false},
		{"a value that is gone", []int64{1, 9}, 1, 3, false},
	} {
		var bad violations
		var c counter
		for _, value := range tc.returned {
			c.note(acknowledged, value, bad.report)
		}
		for range tc.unknown {
			c.note(unknown, 0, bad.report)
		}
		c.note(notDone, 0, bad.report)
		c.check(tc.end, bad.report)
		if (len(bad) == 0) != tc.good {
			t.Errorf("%s: %q", tc.name, bad)
		}
	}
}

func TestSetChecks(t *testing.T) {
	elements := func(names string) (all []element) {
		for _, name := range strings.Fields(names) {
			plain := strings.TrimSuffix(name, "?")
			all = append(all, element{plain, plain == name})
		}
		return all
	}
	for _, tc := range []struct {
		name, appended, value string
		good                  bool
	}{
		{"all there", "1 2 3", "1,2,3,", true},
		{"nothing was done", "", "", true},
		{"unknown one there", "1 2? 3", "1,2,3,", true},
		{"unknown one missing", "1 2? 3", "1,3,", true},
		{"unknown one late", "1 2? 3", "1,3,2,", true},
		{"acknowledged one missing", "1 2 3", "1,3,", false},
		{"twice", "1 2 3", "1,2,2,3,", false},
		{"unknown one twice", "1 2? 3", "1,2,3,2,", false},
		{"out of order", "1 2 3", "1,3,2,", false},
		{"from nowhere", "1 2", "1,2,7,", false},
	} {
		var bad violations
		s := &set{key: "s", elements: elements(tc.appended)}
		s.check(tc.value, bad.report)
		if (len(bad) == 0) != tc.good {
			t.Errorf("%s: %q", tc.name, bad)
		}
	}
}

func TestPeriodsAreChecked(t *testing.T) {
	for _, good := range []bool{true, false} {
		var bad violations
		p := newPeriods(bad.report, t.TempDir())
		for n := range 3 * periodOperations {
			piece := p.enter()
			call := piece.recorder.Now()
			in, out := history.Input{Kind: history.Write, Key: "k", Value: fmt.Sprint(n)}, history.Output{}
			if !good && n == periodOperations+10 {
				in, out = history.Input{Kind: history.Read, Key: "k"}, history.Output{Found: true, Value: "never written"}
			}
			piece.recorder.Add(1, call, in, out)
			p.leave(piece)
		}
		p.end()
		if (len(bad) == 0) != good {
			t.Errorf("good %t: %q", good, bad)
		}
		want := int64(3 * periodOperations)
		if !good {
			want -= periodOperations
		}
		if got := p.checkedOperations(); got != want {
			t.Errorf("%d operations were checked, want %d", got, want)
		}
	}
}

func TestProbesMeasureGaps(t *testing.T) {
	var p probes
	began := time.Now()
	for i := range probeKeys {
		p.succeeded(i)
	}
	if !p.since(began) || p.since(time.Now()) {
		t.Error("since is wrong")
	}
	p.last[3] = began.Add(-5 * time.Second)
	if p.since(began) {
		t.Error("one probe has not succeeded since")
	}
	p.succeeded(3)
	if worst := p.reset(); worst < 5*time.Second || worst > 6*time.Second {
		t.Errorf("the worst gap was %s", worst)
	}
	if worst := p.reset(); worst != 0 {
		t.Errorf("after a reset the worst gap was %s", worst)
	}
}
