package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"golang.org/x/time/rate"
)

// machine is the state that a group replicates: shardMachine holds keys, metaMachine the cluster's own state.
// All methods but persist run on raft's FSM goroutine.
type machine interface {
	// apply applies one command entry. An error stops the replica: it means that the entry can't be read, not
	// that an operation was refused.
	apply(index uint64, data []byte) (response any, err error)
	// freeze captures the state at index in O(slots) and returns what writes it out beside later applies.
	freeze(index uint64) (frozen, error)
	// restore builds the state of a snapshot aside and swaps it in once all of it was read and checked.
	restore(r io.Reader) (index uint64, err error)
}

// frozen is a machine's state at one index.
type frozen interface {
	persist(w io.Writer) error
	release()
}

// fsm adapts a machine to raft. It keeps the applied index itself, since raft's own moves when entries are
// queued rather than applied (raft.md), and it is where a replica stops that met something it can't apply.
type fsm struct {
	machine machine
	applied appliedIndex
	// halt reports an error after which the replica must not go on. Called once.
	halt func(error)
	// halted is set on the FSM goroutine; after it nothing is applied, so the applied index stays true.
	halted bool
	// running is set once raft has started: a restore is an InstallSnapshot's from then on.
	running atomic.Bool
	// throttle paces the writing of snapshots; shared by all replicas of a node.
	throttle *rate.Limiter
	// installs counts restores of one identical snapshot with nothing applied in between (raft#697).
	installs installCounter
}

// halted answers an entry that was not applied because the replica stopped at it or before.
type halted struct{ error }

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply implements raft.FSM for single entries.
func (f *fsm) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch implements raft.BatchingFSM. It gets commands and configurations; no-ops and barriers never
// reach it, which is why waiting for an index goes through storage's LastVisible.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	for i, log := range logs {
		if f.halted {
			responses[i] = halted{ErrStopped}
			continue
		}
		if log.Type == raft.LogCommand {
			response, err := f.machine.apply(log.Index, log.Data)
			if err != nil {
				f.halted = true
				err = fmt.Errorf("entry %d of term %d: %w", log.Index, log.Term, err)
				f.halt(err)
				responses[i] = halted{err}
				continue
			}
			responses[i] = response
		}
		f.installs.reset()
		f.applied.advance(log.Index)
	}
	return responses
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.halted {
		return nil, ErrStopped
	}
	state, err := f.machine.freeze(f.applied.load())
	if err != nil {
		return nil, err
	}
	return &fsmSnapshot{state: state, throttle: f.throttle}, nil
}

// Restore implements raft.FSM. raft calls it at the start, where it may try an older snapshot after an error,
// and after an InstallSnapshot, where it would only log one and go on with a snapshot on disk that it does not
// hold in memory: there an error stops the replica.
func (f *fsm) Restore(source io.ReadCloser) error {
	defer source.Close()
	if f.halted {
		return ErrStopped
	}
	index, err := f.machine.restore(source)
	if err != nil {
		if f.running.Load() {
			f.halted = true
			f.halt(fmt.Errorf("installed snapshot: %w", err))
		}
		return err
	}
	f.installs.note(index)
	f.applied.set(index)
	return nil
}

// fsmSnapshot implements raft.FSMSnapshot. Persist runs beside later applies.
type fsmSnapshot struct {
	state    frozen
	throttle *rate.Limiter
}

func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.state.persist(throttled{sink, s.throttle}); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// snapshotSliceBytes is what a snapshot may write at once. Between slices others come to the disk and the processor.
const snapshotSliceBytes = 256 << 10

// throttled writes in slices, no faster than the limiter allows.
type throttled struct {
	out   io.Writer
	limit *rate.Limiter
}

func (w throttled) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		slice := p[written:min(len(p), written+snapshotSliceBytes)]
		// Never an error: a slice is within the burst, and the background has no deadline.
		if err := w.limit.WaitN(context.Background(), len(slice)); err != nil {
			return written, err
		}
		n, err := w.out.Write(slice)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (s *fsmSnapshot) Release() { s.state.release() }

// appliedIndex is the index of the last entry that the machine holds, with waiting.
type appliedIndex struct {
	index atomic.Uint64
	mu    sync.Mutex
	// waiting holds those who wait for an index above the current one.
	waiting []appliedWaiter
}

type appliedWaiter struct {
	index uint64
	done  chan struct{}
}

func (a *appliedIndex) load() uint64 { return a.index.Load() }

// advance moves the index on. FSM goroutine only.
func (a *appliedIndex) advance(index uint64) {
	if index > a.index.Load() {
		a.set(index)
	}
}

// set gives the index any value: a restore may rewind it.
func (a *appliedIndex) set(index uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.index.Store(index)
	kept := a.waiting[:0]
	for _, w := range a.waiting {
		if w.index <= index {
			close(w.done)
		} else {
			kept = append(kept, w)
		}
	}
	clear(a.waiting[len(kept):])
	a.waiting = kept
}

// reached returns a channel that is closed once index is applied, or nil if it is already.
func (a *appliedIndex) reached(index uint64) <-chan struct{} {
	if a.index.Load() >= index {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.index.Load() >= index {
		return nil
	}
	done := make(chan struct{})
	a.waiting = append(a.waiting, appliedWaiter{index: index, done: done})
	return done
}

// forget drops a waiter that gave up, so that waits which time out don't pile up.
func (a *appliedIndex) forget(done <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, w := range a.waiting {
		if w.done == done {
			last := len(a.waiting) - 1
			a.waiting[i] = a.waiting[last]
			a.waiting[last] = appliedWaiter{}
			a.waiting = a.waiting[:last]
			return
		}
	}
}

// installCounter counts how often the same snapshot was restored in a row. The watchdog reads it.
type installCounter struct {
	index atomic.Uint64
	count atomic.Uint32
}

func (c *installCounter) note(index uint64) {
	if c.index.Swap(index) != index {
		c.count.Store(0)
	}
	c.count.Add(1)
}

func (c *installCounter) reset() { c.count.Store(0) }
