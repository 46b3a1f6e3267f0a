package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// Replicas are audited at a mark, which the leader puts into the log (verify.go). Each replica that applies it begins an audit of the slots that
// it names, at exactly that index, and counts them in its own time; then the leader asks for what it counted:
//
//	log     … write write MARK slots [0,2000) write write …
//	                       │ applied
//	machine                └─► capture (a view of those slots) ─► auditor, one for the node ─► sums, until they are asked for
//
// A mark is a reap of no keys: a build that knows nothing of marks does nothing with it.

// markEntry is the mark for the slots [from, to).
func markEntry(from, to uint16) *entry {
	return &entry{Kind: entryReap, Slot: from, Cutoff: store.Time(to), Limit: 0}
}

func (ent *entry) isMark() bool { return ent.Kind == entryReap && ent.Limit == 0 }

// SlotSum is what a replica says of a slot at a mark: what it had kept up with its writes, and what it counted in memory. They differ
// where memory has changed by itself.
type SlotSum struct {
	Slot          uint16
	Kept, Counted store.Stats
}

// ErrNoAudit: the replica has no audit of that index: it began another since, or came to its state by a snapshot.
var ErrNoAudit = errors.New("the replica has no audit of that index")

// capture is an audit on its way.
type capture struct {
	index uint64
	audit *store.Audit
	begun time.Time
	phase atomic.Int32

	done chan struct{}
	// Constant once done is closed. sums are without slots that are empty and always were said to be.
	sums []SlotSum
	err  error
}

// Phases of a capture. It is closed by whoever takes it out of captureWaits.
const (
	captureWaits int32 = iota
	captureCounts
	captureGivenUp
)

// giveUp ends a capture that nobody will ask for any more. From any goroutine.
func (c *capture) giveUp() {
	if c.phase.CompareAndSwap(captureWaits, captureGivenUp) {
		c.end(ErrNoAudit)
		return
	}
	c.phase.CompareAndSwap(captureCounts, captureGivenUp) // the auditor looks at it, and ends it
}

func (c *capture) end(err error) {
	c.audit.Close()
	c.err = err
	close(c.done)
}

// mark begins an audit at an entry. FSM goroutine.
func (m *shardMachine) mark(index uint64, from uint16, to store.Time) {
	c := &capture{index: index, audit: m.store.Load().Audit(from, uint16(min(max(to, 0), store.SlotCount))), begun: time.Now(), done: make(chan struct{})}
	if old := m.capture.Swap(c); old != nil {
		old.giveUp()
	}
	m.auditor.add(c)
}

// VerifyConfig bounds what it costs to compare replicas with each other.
type VerifyConfig struct {
	// Every is the beat at which a node looks at a few slots of one of the shards led here. Default 10 s; negative: never by itself.
	Every time.Duration
	// PassEvery is the time from the beginning of a look at all of a shard's slots to that of the next, at least. Default 10 min.
	PassEvery time.Duration
	// Share is the part of a core that counting may take, in percent, of all replicas of the node together. Default 5.
	Share int
	// ShareAsked is the same while somebody waits for it: `ostraka cluster verify`. Default 50.
	ShareAsked int
	// KeysMax, BytesMax and SlotsMax bound what is looked at at once; a single slot may be more. Defaults 65,536, 32 MiB and 2,048.
	KeysMax, BytesMax int64
	SlotsMax          int
}

// auditor counts captures, one after the other: it is the node's one goroutine for that.
type auditor struct {
	cfg VerifyConfig
	// askedUntil is until when somebody waits, in nanoseconds since began.
	askedUntil atomic.Int64
	began      time.Time
	keys       atomic.Uint64 // counted so far

	mu      sync.Mutex
	waiting []*capture // at most one of each replica that was not given up
	wake    chan struct{}
}

func newAuditor(cfg VerifyConfig) *auditor {
	return &auditor{cfg: cfg, began: time.Now(), wake: make(chan struct{}, 1)}
}

func (a *auditor) add(c *capture) {
	a.mu.Lock()
	a.waiting = slices.DeleteFunc(a.waiting, func(c *capture) bool { return c.phase.Load() == captureGivenUp })
	a.waiting = append(a.waiting, c)
	a.mu.Unlock()
	token(a.wake)
}

// hurry lets it take more of the processor for a while: somebody waits.
func (a *auditor) hurry() { a.askedUntil.Store(int64(time.Since(a.began) + time.Second)) }

func (a *auditor) share() int {
	if int64(time.Since(a.began)) < a.askedUntil.Load() {
		return a.cfg.ShareAsked
	}
	return a.cfg.Share
}

// run is the goroutine; it ends with ctx.
func (a *auditor) run(ctx context.Context) {
	for {
		a.mu.Lock()
		var next *capture
		if len(a.waiting) > 0 {
			next = a.waiting[0]
			a.waiting = slices.Delete(a.waiting, 0, 1)
		}
		a.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			if next == nil {
				return
			}
			next.giveUp()
		case next != nil:
			if next.phase.CompareAndSwap(captureWaits, captureCounts) {
				next.end(a.count(ctx, next))
			}
		default:
			select {
			case <-a.wake:
			case <-ctx.Done():
			}
		}
	}
}

// sliceTime is how long counting goes on at a stretch, about.
const sliceTime = 500 * time.Microsecond

func (a *auditor) count(ctx context.Context, c *capture) error {
	since := time.Now()
	rest := func() error {
		switch worked := time.Since(since); {
		case c.phase.Load() == captureGivenUp:
			return ErrNoAudit
		case worked >= sliceTime:
			pause := time.NewTimer(worked * time.Duration(100-a.share()) / time.Duration(a.share()))
			defer pause.Stop()
			select {
			case <-pause.C:
			case <-ctx.Done():
				return ErrStopped
			}
			since = time.Now()
		}
		return nil
	}
	for i, slot := range c.audit.Slots() {
		kept, counted, err := c.audit.Count(i, rest)
		if err != nil {
			return err
		}
		if kept != (store.Stats{}) || counted != (store.Stats{}) {
			c.sums = append(c.sums, SlotSum{Slot: slot, Kept: kept, Counted: counted})
			a.keys.Add(uint64(counted.Keys))
		}
		if err := rest(); err != nil {
			return err
		}
	}
	return nil
}

// SlotSums returns what this node's replica of a group counted at the mark of an index, waiting until it has. Slots that are empty are left
// out. asked: somebody waits for it, so that it may take more of the processor. Errors: ErrNoAudit, ErrDeadline, ErrStopped.
func (h *Host) SlotSums(ctx context.Context, group shard.ID, id shard.ReplicaID, index uint64, asked bool) ([]SlotSum, error) {
	g, ok := h.Group(group)
	if !ok || g.replica.id != id {
		return nil, fmt.Errorf("%w: replica %d of shard %d is not here", ErrStopped, id, group)
	}
	l, m, err := g.life()
	if err != nil {
		return nil, err
	}
	if applied := l.fsm.applied.reached(index); applied != nil {
		select {
		case <-applied:
		case <-ctx.Done():
			l.fsm.applied.forget(applied)
			return nil, fmt.Errorf("%w: %w", ErrDeadline, ctx.Err())
		case <-l.ctx.Done():
			l.fsm.applied.forget(applied)
			return nil, ErrStopped
		}
	}
	c := m.capture.Load()
	if c == nil || c.index != index {
		return nil, ErrNoAudit
	}
	hurry := time.NewTicker(500 * time.Millisecond)
	defer hurry.Stop()
	for {
		if asked {
			h.auditor.hurry()
		}
		select {
		case <-c.done:
			return c.sums, c.err
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrDeadline, ctx.Err())
		case <-l.ctx.Done():
			return nil, ErrStopped
		case <-hurry.C:
		}
	}
}

// captureLife is how long sums are kept for who asks.
const captureLife = time.Minute

// forgetCaptures lets go of what nobody has asked for.
func (h *Host) forgetCaptures() {
	for _, g := range h.Groups() {
		_, m, err := g.life()
		if err != nil {
			continue
		}
		if c := m.capture.Load(); c != nil && time.Since(c.begun) > captureLife && m.capture.CompareAndSwap(c, nil) {
			c.giveUp()
		}
	}
}
