package raftfsm

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// An InstallSnapshot whose state can't be taken over must not be survived: raft would only log it, with the
// snapshot already its newest on disk. At the start, raft may still try an older one.
func TestFailedInstallStopsTheReplica(t *testing.T) {
	for _, running := range []bool{false, true} {
		var haltedBy error
		f := &fsm{machine: newShardMachine(1, &manualClock{}), halt: func(err error) { haltedBy = err }}
		f.running.Store(running)
		err := f.Restore(io.NopCloser(strings.NewReader("not a snapshot")))
		if !errors.Is(err, ErrBadSnapshot) {
			t.Errorf("running %v: %v", running, err)
		}
		if (haltedBy != nil) != running {
			t.Errorf("running %v: halted by %v", running, haltedBy)
		}
		response := f.Apply(&raft.Log{Index: 1, Type: raft.LogConfiguration})
		if stopped := response == any(halted{ErrStopped}); stopped != running || (f.applied.load() == 1) == running {
			t.Errorf("running %v: applied %d, response %v", running, f.applied.load(), response)
		}
	}
}

func TestAppliedIndexWaits(t *testing.T) {
	var a appliedIndex
	a.set(5)
	if a.reached(5) != nil {
		t.Error("5 is reached")
	}
	six, seven := a.reached(6), a.reached(7)
	forgotten := a.reached(8)
	a.forget(forgotten)
	a.advance(6)
	select {
	case <-six:
	default:
		t.Error("6 is reached and its waiter sleeps")
	}
	select {
	case <-seven:
		t.Error("7 is not reached")
	default:
	}
	a.advance(4) // never back by itself
	if a.load() != 6 {
		t.Errorf("went back to %d", a.load())
	}
	a.set(9)
	<-seven
	if len(a.waiting) != 0 {
		t.Errorf("%d waiters are left", len(a.waiting))
	}
}
