package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/store"
)

// proposer turns concurrent writes to one shard into few log entries.
//
//	callers ──► queue ──► pack (one goroutine) ──► raft.Apply ──► inFlight ──► finish (one goroutine) ──► callers
//
// pack takes all that waits, up to EntryBytesMax, and never waits for more: while InFlightMax entries are on
// their way the queue fills, and that is what makes entries large under load. finish takes futures in log
// order, the order in which raft completes them.
//
// Both goroutines live from newProposer to close. close first refuses new work, then answers what is queued
// with ErrStopped and waits for what is in flight; the raft instance must still run then, since raft answers
// every accepted entry only while its main loop turns.
type proposer struct {
	cfg   ProposerConfig
	apply func(data []byte, timeout time.Duration) raft.ApplyFuture
	// stamp returns shard time now; never below an applied entry's.
	stamp func() store.Time
	// refused reports each entry that raft answered with a refusal, nil for one it took: the watchdog listens.
	refused func(error)

	mu sync.RWMutex
	// closed is set before queue is closed; writers hold mu for reading while they send.
	closed bool
	queue  chan *proposal

	// launching is held while an entry is handed to raft, and by whoever pauses the proposer. flying counts the
	// entries that raft has not answered yet; it only grows under launching.
	launching sync.Mutex
	flying    sync.WaitGroup

	inFlight chan *flight
	done     sync.WaitGroup
	// lastStamp is the highest time proposed so far. pack goroutine only.
	lastStamp store.Time
}

// proposal is one caller's entry or operation. Exactly one answer is sent to done, which has room for it.
type proposal struct {
	// op is set for a mutation, whole for an entry that stands alone (own, tick, reap).
	op    *sessionOp
	whole *entry
	done  chan proposed
	// taken settles who may answer: pack takes a proposal into an entry, or a caller that gives up takes it
	// away; the later of the two finds it taken.
	taken atomic.Bool
}

type proposed struct {
	result   store.Result
	response any
	err      error
}

// flight is one entry on its way and the proposals packed into it, in order.
type flight struct {
	future  raft.ApplyFuture
	callers []*proposal
}

func newProposer(cfg ProposerConfig, apply func([]byte, time.Duration) raft.ApplyFuture,
	stamp func() store.Time, refused func(error)) *proposer {
	p := &proposer{cfg: cfg, apply: apply, stamp: stamp, refused: refused,
		queue:    make(chan *proposal, cfg.QueueOpsMax),
		inFlight: make(chan *flight, cfg.InFlightMax)}
	p.done.Go(p.pack)
	p.done.Go(p.finish)
	return p
}

// close refuses further work and returns when every accepted proposal has its answer.
func (p *proposer) close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.queue)
	}
	p.mu.Unlock()
	p.done.Wait()
}

// pause holds back what is queued, and returns once raft has answered everything that was handed to it. Nobody is
// refused meanwhile, except for a full queue. The function it returns ends the pause.
func (p *proposer) pause() (resume func()) {
	p.launching.Lock()
	p.flying.Wait()
	return p.launching.Unlock
}

// write proposes one mutation and waits for its result or the context's end. Ended before the operation was
// packed it is ErrDeadline (not done, and never will be), afterwards ErrOutcomeUnknown.
func (p *proposer) write(ctx context.Context, op *sessionOp) (store.Result, error) {
	got := p.submit(ctx, &proposal{op: op, done: make(chan proposed, 1)})
	return got.result, got.err
}

// entry proposes an entry that stands alone, and returns the machine's response.
func (p *proposer) entry(ctx context.Context, ent *entry) (any, error) {
	got := p.submit(ctx, &proposal{whole: ent, done: make(chan proposed, 1)})
	return got.response, got.err
}

func (p *proposer) submit(ctx context.Context, pr *proposal) proposed {
	if ctx.Err() != nil {
		return proposed{err: ErrDeadline}
	}
	if err := p.enqueue(pr); err != nil {
		return proposed{err: err}
	}
	select {
	case got := <-pr.done:
		return got
	case <-ctx.Done():
	}
	if pr.taken.CompareAndSwap(false, true) {
		return proposed{err: ErrDeadline}
	}
	select {
	case got := <-pr.done: // it came at the same moment
		return got
	default:
		return proposed{err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())}
	}
}

func (p *proposer) enqueue(pr *proposal) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return ErrStopped
	}
	select {
	case p.queue <- pr:
		return nil
	default:
		return ErrOverloaded
	}
}

// pack is the first goroutine: queue → entries → raft.
func (p *proposer) pack() {
	defer close(p.inFlight)
	encoder := newEntryEncoder()
	var held *proposal // taken from the queue, but did not fit into the entry before
	for {
		first := held
		held = nil
		if first == nil {
			var open bool
			if first, open = <-p.queue; !open {
				return
			}
		}
		var f *flight
		var ent *entry
		f, ent, held = p.gather(first)
		if ent == nil {
			continue
		}
		p.launch(encoder, f, ent)
	}
}

// gather packs first and what waits behind it. It returns no entry if every caller had given up, and the
// proposal that it took but that belongs into the next entry.
func (p *proposer) gather(first *proposal) (f *flight, ent *entry, held *proposal) {
	f = &flight{}
	size := 0
	for next := first; next != nil; {
		switch {
		case next.whole != nil:
			if ent != nil {
				return f, ent, next
			}
			if !next.taken.CompareAndSwap(false, true) {
				break
			}
			f.callers = append(f.callers, next)
			return f, next.whole, nil
		default:
			opSize := encodedSize(&next.op.Op)
			if ent != nil && size+opSize > p.cfg.EntryBytesMax {
				return f, ent, next
			}
			if !next.taken.CompareAndSwap(false, true) {
				break // its caller gave up
			}
			if ent == nil {
				ent = &entry{Kind: entryOps}
			}
			size += opSize
			ent.Ops = append(ent.Ops, *next.op)
			f.callers = append(f.callers, next)
		}
		if len(f.callers) == p.cfg.EntryOpsMax {
			return f, ent, nil
		}
		select {
		case next = <-p.queue: // nil once the queue is closed and empty
		default:
			next = nil
		}
	}
	return f, ent, nil
}

// launch stamps, encodes and hands an entry to raft, waiting for a place in flight.
func (p *proposer) launch(encoder *entryEncoder, f *flight, ent *entry) {
	p.lastStamp = max(p.lastStamp, ent.Time, p.stamp())
	ent.Time = p.lastStamp
	data, err := encoder.encode(ent)
	if err != nil {
		f.answer(proposed{err: err})
		return
	}
	p.launching.Lock()
	p.flying.Add(1)
	f.future = p.apply(data, p.cfg.EnqueueTimeout)
	p.launching.Unlock()
	p.inFlight <- f
}

// finish is the second goroutine: raft's futures → callers.
func (p *proposer) finish() {
	for f := range p.inFlight {
		err := f.future.Error()
		p.flying.Done()
		p.refused(err)
		if err != nil {
			f.answer(proposed{err: applyError(err)})
			continue
		}
		switch response := f.future.Response().(type) {
		case error: // the replica halted
			f.answer(proposed{err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, response)})
		case opResults:
			for i, caller := range f.callers {
				caller.done <- proposed{result: response[i]}
			}
		default:
			f.answer(proposed{response: response})
		}
	}
}

func (f *flight) answer(with proposed) {
	for _, caller := range f.callers {
		caller.done <- with
	}
}

// applyError sorts raft's answer to an entry into the two kinds of failure.
func applyError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	case notDone(err):
		return fmt.Errorf("%w: %w", ErrOverloaded, err)
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}
