package transport

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// durable is the Gate of a log whose StoreLogs waits for the disk.
type durable struct{}

func (durable) Appended() uint64                { return 0 }
func (durable) Notify(uint64, func(error)) bool { return true }
func (durable) Stalled() bool                   { return false }
func (durable) Room(int) error                  { return nil }

// fakeGate is a log's durability as a test wants it.
type fakeGate struct {
	stalled  atomic.Bool
	voteless bool // by the committed configuration, for a known-bad build

	mu       sync.Mutex
	appended uint64
	durable  uint64
	holding  bool // what is appended becomes durable by settle only
	failure  error
	full     error
	asked    []int // what room was asked for
	waiting  []heldAnswer
}

type heldAnswer struct {
	sequence uint64
	done     func(error)
}

func (g *fakeGate) Appended() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.appended
}

func (g *fakeGate) Notify(sequence uint64, done func(error)) (already bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case sequence <= g.durable:
		return true
	case g.failure != nil:
		go done(g.failure)
	default:
		g.waiting = append(g.waiting, heldAnswer{sequence, done})
	}
	return false
}

func (g *fakeGate) Stalled() bool { return g.stalled.Load() }

func (g *fakeGate) Votes() bool { return !g.voteless }

func (g *fakeGate) Room(bytes int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, bytes)
	return g.full
}

// change notes one change of the log.
func (g *fakeGate) change() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.appended++
	if !g.holding {
		g.durable = g.appended
	}
}

func (g *fakeGate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = true
}

// settle makes everything durable, and holds no more.
func (g *fakeGate) settle() {
	g.mu.Lock()
	g.holding = false
	appended := g.appended
	g.mu.Unlock()
	g.settleTo(appended)
}

// settleTo makes durable what was appended up to a sequence. Who waits is told latest first: the order is not promised.
func (g *fakeGate) settleTo(sequence uint64) {
	g.mu.Lock()
	g.durable = max(g.durable, sequence)
	g.mu.Unlock()
	g.release(nil)
}

// fail ends the log: what is not durable will never be.
func (g *fakeGate) fail() {
	g.mu.Lock()
	g.failure = errDisk
	g.mu.Unlock()
	g.release(errDisk)
}

var errDisk = errors.New("the disk is broken")

func (g *fakeGate) release(err error) {
	g.mu.Lock()
	var ready, left []heldAnswer
	for _, w := range slices.Backward(g.waiting) {
		if err != nil || w.sequence <= g.durable {
			ready = append(ready, w)
		} else {
			left = append(left, w)
		}
	}
	slices.Reverse(left)
	g.waiting = left
	g.mu.Unlock()
	for _, w := range ready {
		w.done(err)
	}
}

// heldNow is how many answers wait.
func (g *fakeGate) heldNow() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting)
}

// gatedStore is a log whose StoreLogs does not wait for its disk, which the gate stands for.
type gatedStore struct {
	*raft.InmemStore
	gate *fakeGate
}

func (s gatedStore) StoreLogs(logs []*raft.Log) error {
	err := s.InmemStore.StoreLogs(logs)
	s.gate.change()
	return err
}

func (s gatedStore) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

func (s gatedStore) DeleteRange(from, to uint64) error {
	err := s.InmemStore.DeleteRange(from, to)
	s.gate.change()
	return err
}
