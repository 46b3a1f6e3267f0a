package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// raceDetector is set in builds with -race.
var raceDetector bool

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testConfig(t testing.TB, fsys disk.FS) Config {
	return Config{Dir: "/wal", FS: fsys, SegmentBytes: 8 << 10, Logger: slog.New(slog.DiscardHandler),
		BootID: func() (string, error) { return "boot", nil },
		Fatal:  func(err error) { t.Errorf("fatal: %v", err) }}
}

func newMem(t testing.TB) *disk.Mem {
	m := disk.NewMem()
	must(t, disk.MkdirAll(m, "/wal"))
	return m
}

func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	must(t, err)
	return l
}

func one(index, term uint64, size int) Entry {
	data := fmt.Appendf(nil, "%d/%d", index, term)
	for len(data) < size {
		data = append(data, byte(index))
	}
	return Entry{Index: index, Term: term, Type: uint8(index % 3), Data: data}
}

func appendTo(r *Replica, entries ...Entry) error {
	return r.Append(len(entries), func(i int) Entry { return entries[i] })
}

func TestAppendReopen(t *testing.T) {
	m := newMem(t)
	cfg := testConfig(t, m)
	l := open(t, cfg)
	model := map[ID][]Entry{}
	rng := rand.New(rand.NewPCG(1, 2))
	for step := range 3000 {
		id := ID{1, 1}
		if rng.IntN(3) > 0 {
			id = ID{2, 7}
		}
		r := l.Replica(id)
		log := model[id]
		switch rng.IntN(40) {
		case 0:
			must(t, r.Clear())
			log = nil
		case 1:
			if len(log) > 2 {
				cut := 1 + rng.IntN(len(log)-1)
				must(t, r.TruncateSuffix(log[cut].Index))
				log = log[:cut]
			}
		case 2, 3, 4, 5:
			if len(log) > 2 {
				cut := 1 + rng.IntN(len(log)-1)
				must(t, r.Compact(log[cut-1].Index))
				log = append([]Entry{}, log[cut:]...)
			}
		case 6:
			must(t, r.SetRecord("term", fmt.Appendf(nil, "%d", step)))
		default:
			next := uint64(step*10 + 1)
			if len(log) > 0 {
				next = log[len(log)-1].Index + 1
			}
			var es []Entry
			for range 1 + rng.IntN(4) {
				es = append(es, one(next, uint64(step), rng.IntN(300)))
				next++
			}
			must(t, appendTo(r, es...))
			log = append(log, es...)
		}
		model[id] = log
		if rng.IntN(300) == 0 {
			must(t, l.Close())
			l = open(t, cfg)
		}
		if rng.IntN(20) == 0 {
			for id, log := range model {
				check(t, l.Replica(id), log)
			}
		}
	}
	must(t, l.Close())
	l = open(t, cfg)
	for id, log := range model {
		check(t, l.Replica(id), log)
	}
	must(t, l.Close())
}

func check(t testing.TB, r *Replica, want []Entry) {
	t.Helper()
	must(t, r.Damage())
	first, last := r.Bounds()
	if len(want) == 0 {
		if first != 0 || last != 0 {
			t.Fatalf("%s: [%d, %d], want none", r.id, first, last)
		}
		return
	}
	if first != want[0].Index || last != want[len(want)-1].Index {
		t.Fatalf("%s: [%d, %d], want [%d, %d]", r.id, first, last, want[0].Index, want[len(want)-1].Index)
	}
	for _, w := range want {
		got, err := r.Get(w.Index)
		must(t, err)
		if got.Term != w.Term || string(got.Data) != string(w.Data) || got.Type != w.Type {
			t.Fatalf("%s: %v, want %v", r.id, got, w)
		}
	}
}

// What an empty replica is asked for is not there, index 0 least of all.
func TestEmptyReplica(t *testing.T) {
	l := open(t, testConfig(t, newMem(t)))
	r := l.Replica(victim)
	nothing := func() {
		t.Helper()
		for _, index := range []uint64{0, 1, math.MaxUint64} {
			if _, err := r.Get(index); !errors.Is(err, ErrNotFound) {
				t.Errorf("entry %d: %v", index, err)
			}
			if _, ok := r.Type(index); ok {
				t.Errorf("entry %d has a type", index)
			}
		}
	}
	nothing()
	must(t, appendTo(r, one(7, 1, 10)))
	nothing()
	must(t, r.Clear())
	nothing()
	must(t, l.Close())
}

// A pause is worth its time only where others have lately shared a write and aren't there yet.
func TestCompany(t *testing.T) {
	var c company
	for i, step := range []struct {
		replicas, present int
		want              bool
	}{
		{1, 1, false}, // alone
		{3, 1, true},  // two more were there
		{1, 2, false}, // now one more is expected, and is here
		{1, 1, false}, // all have gone
		{4, 4, false},
		{2, 0, false}, // nothing to write
	} {
		c.note(step.replicas)
		if got := c.worthWaiting(step.present); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}
