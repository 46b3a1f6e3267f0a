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
//	callers ──► queue ──► pack (one goroutine) ──► raft.Apply ──► inFlight ──► finish (one goroutine) ──► receivers
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
	// term is raft's; stamp returns shard time now, never below an applied entry's.
	term  func() uint64
	stamp func() store.Time
	// refused reports each entry that raft answered with a refusal, nil for one it took: the watchdog listens.
	refused func(error)

	mu     sync.Mutex
	closed bool
	// queue holds what nobody has looked at yet, oldest first. queued and queuedBytes count what isn't packed yet: the
	// queue, and what pack holds of it.
	queue       []proposal
	queued      int
	queuedBytes int64
	// wake holds a token when the queue is not empty or the proposer closed.
	wake chan struct{}

	// pack goroutine only: what it took from the queue at once, from next on; and the highest time proposed so far in
	// stampTerm.
	batch     []proposal
	next      int
	stampTerm uint64
	lastStamp store.Time

	// launching holds a token while an entry is handed to raft, and while the proposer is paused. It is a channel
	// and not a mutex because both may take time, which in a simulation passes only while goroutines wait for
	// channels. flying counts the entries that raft has not answered yet; it only grows under launching.
	launching chan struct{}
	flying    sync.WaitGroup

	inFlight chan *flight
	done     sync.WaitGroup
}

// proposal is what waits in the queue: a mutation, or an entry that stands alone.
type proposal struct {
	write *Write
	alone *loneEntry
}

// loneEntry is an entry of its own: own, tick, reap, or one that is another machine's and encoded already. It is
// answered exactly once.
type loneEntry struct {
	entry   *entry
	encoded []byte
	// done has room for the answer.
	done chan loneAnswer
	// taken as in Write.
	taken atomic.Bool
}

type loneAnswer struct {
	response any
	err      error
}

// flight is one entry on its way: mutations in the order of the entry, or a lone entry.
type flight struct {
	future raft.ApplyFuture
	writes []*Write
	alone  *loneEntry
}

// flights are used again, for the sake of their lists.
var flights = sync.Pool{New: func() any { return new(flight) }}

func (f *flight) release() {
	clear(f.writes)
	*f = flight{writes: f.writes[:0]}
	flights.Put(f)
}

func (f *flight) empty() bool { return len(f.writes) == 0 && f.alone == nil }

// fail ends everything in the flight alike.
func (f *flight) fail(err error) {
	if f.alone != nil {
		f.alone.done <- loneAnswer{err: err}
		return
	}
	for _, w := range f.writes {
		w.fail(err)
	}
	giveBack(f.writes)
}

// fail notes an error; that another replica leads is told with its name.
func (w *Write) fail(err error) {
	if w.life != nil && errors.Is(err, ErrNotLeader) {
		err = w.life.notLeader()
	}
	w.Err = err
}

// size is what a proposal takes of the queue.
func (pr proposal) size() int64 {
	if pr.write != nil {
		return int64(encodedSize(&pr.write.Op))
	}
	return int64(opOverhead + len(pr.alone.encoded))
}

func newProposer(cfg ProposerConfig, apply func([]byte, time.Duration) raft.ApplyFuture, term func() uint64,
	stamp func() store.Time, refused func(error)) *proposer {
	p := &proposer{cfg: cfg, apply: apply, term: term, stamp: stamp, refused: refused,
		wake:      make(chan struct{}, 1),
		launching: make(chan struct{}, 1),
		inFlight:  make(chan *flight, cfg.InFlightMax)}
	p.done.Go(p.pack)
	p.done.Go(p.finish)
	return p
}

// close refuses further work and returns when every accepted proposal has its answer.
func (p *proposer) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.signal()
	p.done.Wait()
}

func (p *proposer) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// pause holds back what is queued, and returns once raft has answered everything that was handed to it. Nobody is
// refused meanwhile, except for a full queue. The function it returns ends the pause.
func (p *proposer) pause() (resume func()) {
	p.launching <- struct{}{}
	p.flying.Wait()
	return func() { <-p.launching }
}

// submit queues mutations, which come back to their receivers. It returns how many it took, the first ones; the others
// were refused with the error, and nothing of them was done.
func (p *proposer) submit(writes []*Write) (accepted int, err error) {
	p.mu.Lock()
	for _, w := range writes {
		if err = p.pushLocked(proposal{write: w}); err != nil {
			break
		}
		accepted++
	}
	p.mu.Unlock()
	if accepted > 0 {
		p.signal()
	}
	return accepted, err
}

func (p *proposer) pushLocked(pr proposal) error {
	if p.closed {
		return ErrStopped
	}
	size := pr.size()
	if p.queued == p.cfg.QueueOpsMax || p.queued > 0 && p.queuedBytes+size > p.cfg.QueueBytesMax {
		return ErrOverloaded
	}
	p.queued++
	p.queuedBytes += size
	p.queue = append(p.queue, pr)
	return nil
}

// write proposes one mutation and waits for its result or the context's end. Ended before the operation was
// packed it is ErrDeadline (not done, and never will be), afterwards ErrOutcomeUnknown.
func (p *proposer) write(ctx context.Context, w *Write) (store.Result, error) {
	if ctx.Err() != nil {
		return store.Result{}, ErrDeadline
	}
	done := make(waiter, 1)
	w.To = done
	if _, err := p.submit([]*Write{w}); err != nil {
		return store.Result{}, err
	}
	select {
	case <-done:
		return w.Result, w.Err
	case <-ctx.Done():
	}
	if w.Withdraw() {
		return store.Result{}, ErrDeadline
	}
	select {
	case <-done: // it came at the same moment
		return w.Result, w.Err
	default:
		return store.Result{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	}
}

// entry proposes an entry that stands alone, and returns the machine's response.
func (p *proposer) entry(ctx context.Context, ent *entry) (any, error) {
	return p.lone(ctx, &loneEntry{entry: ent, done: make(chan loneAnswer, 1)})
}

// encoded proposes an entry that is encoded already and carries no shard time, and returns the machine's response.
func (p *proposer) encoded(ctx context.Context, data []byte) (any, error) {
	return p.lone(ctx, &loneEntry{encoded: data, done: make(chan loneAnswer, 1)})
}

// lone proposes an entry and waits for its answer or the context's end, as write does.
func (p *proposer) lone(ctx context.Context, l *loneEntry) (any, error) {
	if ctx.Err() != nil {
		return nil, ErrDeadline
	}
	p.mu.Lock()
	err := p.pushLocked(proposal{alone: l})
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p.signal()
	select {
	case got := <-l.done:
		return got.response, got.err
	case <-ctx.Done():
	}
	if l.taken.CompareAndSwap(false, true) {
		return nil, ErrDeadline
	}
	select {
	case got := <-l.done: // it came at the same moment
		return got.response, got.err
	default:
		return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	}
}

// pack is the first goroutine: queue → entries → raft.
func (p *proposer) pack() {
	defer close(p.inFlight)
	encoder := new(entryEncoder)
	for p.await() {
		f := flights.Get().(*flight)
		if p.gather(f); f.empty() {
			f.release() // all had given up
			continue
		}
		p.launch(encoder, f)
	}
}

// await waits until there is something to pack; false: the proposer is closed and all is packed.
func (p *proposer) await() bool {
	for !p.more() {
		p.mu.Lock()
		over := p.closed && len(p.queue) == 0
		p.mu.Unlock()
		if over {
			return false
		}
		<-p.wake
	}
	return true
}

// more reports whether there is something to pack. It takes the queue as a whole, which costs callers and pack one
// lock for all that waits.
func (p *proposer) more() bool {
	if p.next < len(p.batch) {
		return true
	}
	clear(p.batch)
	p.mu.Lock()
	p.batch, p.queue = p.queue, p.batch[:0]
	p.mu.Unlock()
	p.next = 0
	return len(p.batch) > 0
}

// gather fills a flight with what waits: as many mutations as fit into an entry, or one lone entry.
func (p *proposer) gather(f *flight) {
	size, looked, lookedBytes := int64(0), 0, int64(0)
	now := time.Now()
	for p.more() {
		pr := p.batch[p.next]
		n := pr.size()
		if len(f.writes) > 0 && (pr.alone != nil || size+n > int64(p.cfg.EntryBytesMax) || len(f.writes) == p.cfg.EntryOpsMax) {
			break // it belongs into the next entry
		}
		p.next++
		looked++
		lookedBytes += n
		if pr.alone != nil {
			if pr.alone.taken.CompareAndSwap(false, true) {
				f.alone = pr.alone
				break
			}
			continue // its caller gave up
		}
		if w := pr.write; w.pack(now) {
			f.writes = append(f.writes, w)
			size += n
		}
	}
	p.mu.Lock()
	p.queued -= looked
	p.queuedBytes -= lookedBytes
	p.mu.Unlock()
}

// pack takes a write into an entry, unless its time is up or its submitter gave up.
func (w *Write) pack(now time.Time) bool {
	if !w.taken.CompareAndSwap(false, true) {
		return false
	}
	if !w.Deadline.IsZero() && now.After(w.Deadline) {
		w.Err = ErrDeadline
		giveBack([]*Write{w})
		return false
	}
	return true
}

// launch stamps and encodes an entry and hands it to raft, waiting for a place in flight.
func (p *proposer) launch(encoder *entryEncoder, f *flight) {
	p.launching <- struct{}{}
	data, err := p.encode(encoder, f)
	if err != nil {
		<-p.launching
		f.fail(err)
		f.release()
		return
	}
	p.flying.Add(1)
	f.future = p.apply(data, p.cfg.EnqueueTimeout)
	<-p.launching
	p.inFlight <- f
}

// encode returns the entry's bytes, which are raft's from then on.
func (p *proposer) encode(encoder *entryEncoder, f *flight) ([]byte, error) {
	if f.alone != nil && f.alone.entry == nil {
		return f.alone.encoded, nil
	}
	at := p.now()
	if f.alone == nil {
		return encoder.encodeWrites(at, f.writes), nil
	}
	f.alone.entry.Time = at
	return encoder.encode(f.alone.entry)
}

// now is the time of the next entry. Within a term it never goes back, though stamp may, by as much as it took to apply an
// entry. Nothing is kept beyond the term: a deposed leader that was paused goes on stamping entries that are never committed,
// and its successors' time may be behind the clock (docs/decisions/0005). Leading again with the old stamp, it would have moved
// time on by all of that at once, and keys would have expired early.
func (p *proposer) now() store.Time {
	if term := p.term(); term != p.stampTerm {
		p.stampTerm, p.lastStamp = term, 0
	}
	p.lastStamp = max(p.lastStamp, p.stamp())
	return p.lastStamp
}

// finish is the second goroutine: raft's futures → receivers.
func (p *proposer) finish() {
	for f := range p.inFlight {
		err := f.future.Error()
		p.flying.Done()
		p.refused(err)
		if err != nil {
			f.fail(applyError(err))
		} else {
			f.deliver(f.future.Response())
		}
		f.release()
	}
}

// deliver hands out the machine's response to an entry that was committed.
func (f *flight) deliver(response any) {
	if stopped, ok := response.(halted); ok {
		f.fail(fmt.Errorf("%w: %w", ErrOutcomeUnknown, stopped))
		return
	}
	if f.alone != nil {
		f.alone.done <- loneAnswer{response: response}
		return
	}
	r := response.(opResults)
	for i, w := range f.writes {
		w.Result, w.Err = r.results[i], r.err(i, w.Session.Attempt)
	}
	giveBack(f.writes)
}

// applyError sorts raft's answer to an entry into the two kinds of failure. The first four are refusals before the
// entry could reach any log. Everything else leaves the outcome open: leadership lost, aborted by a restore, shutdown,
// and any error of the log store (raft.md "Errors").
func applyError(err error) error {
	switch {
	case errors.Is(err, ErrNoSpace): // never raft's
		return err
	case errors.Is(err, raft.ErrNotLeader):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrOverloaded, err)
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}
