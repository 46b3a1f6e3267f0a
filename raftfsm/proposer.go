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
// Both goroutines live from newProposer to close. close first refuses new work, then proposes what is queued and
// waits for its answers; the raft instance must still run then, since raft answers every accepted entry only while
// its main loop turns.
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
	// queuedBytes is the size of what waits in queue.
	queuedBytes atomic.Int64

	// launching holds a token while an entry is handed to raft, and while the proposer is paused. It is a channel
	// and not a mutex because both may take time, which in a simulation passes only while goroutines wait for
	// channels. flying counts the entries that raft has not answered yet; it only grows under launching.
	launching chan struct{}
	flying    sync.WaitGroup

	inFlight chan *flight
	done     sync.WaitGroup
	// lastStamp is the highest time proposed so far. pack goroutine only.
	lastStamp store.Time
}

// proposal is one caller's entry or operation. It is answered exactly once.
type proposal struct {
	// op is set for a mutation, whole for an entry that stands alone (own, tick, reap), encoded for one that is
	// another machine's.
	op      *sessionOp
	whole   *entry
	encoded []byte
	// One of these two takes the answer: done has room for it, then must not block.
	done chan proposed
	then func(proposed)
	// deadline, if set, is when nobody waits any more: what isn't packed by then is not done.
	deadline time.Time
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
	// ent is what is to be proposed, unless data is that already.
	ent  *entry
	data []byte
}

func (pr *proposal) answer(with proposed) {
	if pr.then != nil {
		pr.then(with)
		return
	}
	pr.done <- with
}

// size is what a proposal takes of the queue.
func (pr *proposal) size() int64 {
	if pr.op != nil {
		return int64(encodedSize(&pr.op.Op))
	}
	return int64(opOverhead + len(pr.encoded))
}

func newProposer(cfg ProposerConfig, apply func([]byte, time.Duration) raft.ApplyFuture,
	stamp func() store.Time, refused func(error)) *proposer {
	p := &proposer{cfg: cfg, apply: apply, stamp: stamp, refused: refused,
		queue:     make(chan *proposal, cfg.QueueOpsMax),
		launching: make(chan struct{}, 1),
		inFlight:  make(chan *flight, cfg.InFlightMax)}
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
	p.launching <- struct{}{}
	p.flying.Wait()
	return func() { <-p.launching }
}

// write proposes one mutation and waits for its result or the context's end. Ended before the operation was
// packed it is ErrDeadline (not done, and never will be), afterwards ErrOutcomeUnknown.
func (p *proposer) write(ctx context.Context, op *sessionOp) (store.Result, error) {
	got := p.wait(ctx, &proposal{op: op, done: make(chan proposed, 1)})
	return got.result, got.err
}

// submit proposes one mutation without waiting. then is called once, from the proposer's goroutines, and must not block;
// or never, if submit returns an error: then nothing was done. What isn't packed by the deadline ends as ErrDeadline.
func (p *proposer) submit(op *sessionOp, deadline time.Time, then func(store.Result, error)) error {
	return p.enqueue(&proposal{op: op, deadline: deadline, then: func(got proposed) { then(got.result, got.err) }})
}

// entry proposes an entry that stands alone, and returns the machine's response.
func (p *proposer) entry(ctx context.Context, ent *entry) (any, error) {
	got := p.wait(ctx, &proposal{whole: ent, done: make(chan proposed, 1)})
	return got.response, got.err
}

// encoded proposes an entry that is encoded already and carries no shard time, and returns the machine's response.
func (p *proposer) encoded(ctx context.Context, data []byte) (any, error) {
	got := p.wait(ctx, &proposal{encoded: data, done: make(chan proposed, 1)})
	return got.response, got.err
}

// wait enqueues a proposal and waits for its answer or the context's end.
func (p *proposer) wait(ctx context.Context, pr *proposal) proposed {
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
	size := pr.size()
	if queued := p.queuedBytes.Add(size); queued > p.cfg.QueueBytesMax && queued > size {
		p.queuedBytes.Add(-size)
		return ErrOverloaded
	}
	select {
	case p.queue <- pr:
		return nil
	default:
		p.queuedBytes.Add(-size)
		return ErrOverloaded
	}
}

// took counts a proposal out of the queue. Nil, from a queue that is closed and empty, is fine.
func (p *proposer) took(pr *proposal) *proposal {
	if pr != nil {
		p.queuedBytes.Add(-pr.size())
	}
	return pr
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
			if first = p.took(<-p.queue); first == nil {
				return // closed and empty
			}
		}
		var f *flight
		if f, held = p.gather(first); len(f.callers) > 0 {
			p.launch(encoder, f)
		}
	}
}

// gather packs first and what waits behind it. The flight has no callers if all had given up. held is a proposal
// that was taken but belongs into the next entry.
func (p *proposer) gather(first *proposal) (f *flight, held *proposal) {
	f = &flight{}
	size := int64(0)
	now := time.Now()
	for next := first; next != nil; {
		alone := next.op == nil
		if len(f.callers) > 0 && (alone || size+next.size() > int64(p.cfg.EntryBytesMax)) {
			return f, next
		}
		switch {
		case !next.taken.CompareAndSwap(false, true): // its caller gave up
		case !next.deadline.IsZero() && now.After(next.deadline):
			next.answer(proposed{err: ErrDeadline})
		default:
			f.add(next)
			size += next.size()
			if alone || len(f.callers) == p.cfg.EntryOpsMax {
				return f, nil
			}
		}
		select {
		case next = <-p.queue:
			next = p.took(next)
		default:
			next = nil
		}
	}
	return f, nil
}

func (f *flight) add(pr *proposal) {
	f.callers = append(f.callers, pr)
	switch {
	case pr.encoded != nil:
		f.data = pr.encoded
	case pr.whole != nil:
		f.ent = pr.whole
	default:
		if f.ent == nil {
			f.ent = &entry{Kind: entryOps}
		}
		f.ent.Ops = append(f.ent.Ops, *pr.op)
	}
}

// launch stamps and encodes an entry and hands it to raft, waiting for a place in flight.
func (p *proposer) launch(encoder *entryEncoder, f *flight) {
	p.launching <- struct{}{}
	if f.data == nil {
		p.lastStamp = max(p.lastStamp, f.ent.Time, p.stamp())
		f.ent.Time = p.lastStamp
		var err error
		if f.data, err = encoder.encode(f.ent); err != nil {
			<-p.launching
			f.answer(proposed{err: err})
			return
		}
	}
	p.flying.Add(1)
	f.future = p.apply(f.data, p.cfg.EnqueueTimeout)
	<-p.launching
	f.ent, f.data = nil, nil // raft's log has its own reference
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
		case halted:
			f.answer(proposed{err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, response)})
		case opResults:
			for i, caller := range f.callers {
				caller.answer(proposed{result: response[i]})
			}
		default:
			f.answer(proposed{response: response})
		}
	}
}

func (f *flight) answer(with proposed) {
	for _, caller := range f.callers {
		caller.answer(with)
	}
}

// applyError sorts raft's answer to an entry into the two kinds of failure. The first three are refusals before the
// entry could reach any log. Everything else leaves the outcome open: leadership lost, aborted by a restore, shutdown,
// and any error of the log store (raft.md "Errors").
func applyError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrOverloaded, err)
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}
