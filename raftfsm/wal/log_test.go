package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
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
