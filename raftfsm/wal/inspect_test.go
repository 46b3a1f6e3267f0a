package wal

import (
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// Walk sees what an open sees, and changes nothing.
func TestWalk(t *testing.T) {
	for _, clean := range []bool{true, false} {
		left, states := smallLog(t, clean)
		before := left.Clone()
		kinds := map[string]int{}
		report, err := Walk(left, "/wal", func(f Frame) error { kinds[f.Kind]++; return nil }, nil)
		must(t, err)
		if report.Rotten() || len(report.Problems) > 0 {
			t.Errorf("clean %v: %+v", clean, report.Problems)
		}
		now := states[len(states)-1]
		for _, r := range report.Replicas {
			want := now[r.ID].entries
			if len(want) > 0 && (r.First != want[0].Index || r.Last != want[len(want)-1].Index) {
				t.Errorf("%s: [%d, %d]", r.ID, r.First, r.Last)
			}
		}
		for _, kind := range []string{"mark", "seal", "summary", "entry", "record"} {
			if kinds[kind] == 0 {
				t.Errorf("no %s among %v", kind, kinds)
			}
		}
		for _, f := range segmentsOf(t, before) {
			old, err := disk.ReadFile(before, f.path)
			must(t, err)
			now, err := disk.ReadFile(left, f.path)
			must(t, err)
			if string(old) != string(now) {
				t.Errorf("%s was changed", f.path)
			}
		}
	}
}

func TestWalkFindsDamage(t *testing.T) {
	left, _ := smallLog(t, true)
	f := segmentsOf(t, left)[0]
	b, _, err := readSegment(left, f.path, f.sequence, nil)
	must(t, err)
	b[headBytes+frameBytes*3] ^= 1
	rewriteFile(t, left, f.path, b)
	report, err := Walk(left, "/wal", nil, nil)
	must(t, err)
	if !report.Rotten() || len(report.Problems) != 1 || report.Problems[0].Path != f.path || report.Problems[0].Torn {
		t.Fatalf("%+v", report)
	}

	torn, _ := smallLog(t, false)
	files := segmentsOf(t, torn)
	last := files[len(files)-1]
	b, head, err := readSegment(torn, last.path, last.sequence, nil)
	must(t, err)
	c := scan(b, head, nil)
	if len(c.frames) == 0 {
		last = files[len(files)-2]
		b, head, err = readSegment(torn, last.path, last.sequence, nil)
		must(t, err)
		c = scan(b, head, nil)
	}
	clear(b[c.end-8:])                              // the last frame's end
	copy(b[c.end:], strings.Repeat("rubbish ", 10)) // and a write that came half way
	rewriteFile(t, torn, last.path, b)
	report, err = Walk(torn, "/wal", nil, nil)
	must(t, err)
	if report.Rotten() {
		t.Fatalf("%+v", report)
	}
}
