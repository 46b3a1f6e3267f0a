package transport

import (
	"context"
	"fmt"
	"sync"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// limit is what ends a call's waiting: whichever of the two comes first.
type limit struct {
	ctx      context.Context
	deadline <-chan time.Time // ErrTimeout; nil: none
}

// waiter is a call's place to wait at: room for its one answer, and its deadline. Contexts would do the same for five
// allocations a call.
type waiter[T any] struct {
	answer chan T
	timer  *time.Timer
}

func (w *waiter[T]) limit(ctx context.Context) limit { return limit{ctx, w.timer.C} }

// waiters are kept for further calls. A waiter may be put back only when nobody can answer it any more.
type waiters[T any] struct{ pool sync.Pool }

func (p *waiters[T]) get(timeout time.Duration) *waiter[T] {
	if w, ok := p.pool.Get().(*waiter[T]); ok {
		w.timer.Reset(timeout)
		return w
	}
	return &waiter[T]{answer: make(chan T, 1), timer: time.NewTimer(timeout)}
}

func (p *waiters[T]) put(w *waiter[T]) {
	w.timer.Stop()
	select { // one that came after the caller had given up
	case <-w.answer:
	default:
	}
	p.pool.Put(w)
}

// dialed is the requesting end of a pipe: it numbers requests and finds the caller for each answer.
type dialed struct {
	pipe *pipe

	mu       sync.Mutex
	calls    map[uint64]*waiter[*ostrakapb.Envelope] // answered under mu, so that who is not in here will not be
	lastCall uint64
	rounds   rounds // of heartbeats
	stall    stallNotice
	ended    error // why heartbeats are refused; nil while the pipe runs
}

func newDialed(p *pipe) *dialed {
	d := &dialed{pipe: p, calls: make(map[uint64]*waiter[*ostrakapb.Envelope])}
	d.rounds.sent = make(map[uint64]*round)
	p.handle, p.outbox.board = d.settle, d.board
	return d
}

// settle hands answers to their callers; one that nobody waits for any more is dropped.
func (d *dialed) settle(frame *ostrakapb.Frame) error {
	d.pipe.hearMemory(frame)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, answer := range frame.Envelopes {
		if w := d.calls[answer.GetCall()]; w != nil {
			delete(d.calls, answer.GetCall())
			w.answer <- answer
		}
	}
	for _, replies := range frame.HeartbeatReplies {
		if err := d.settleHeartbeats(replies); err != nil {
			return err
		}
	}
	return nil
}

// submit numbers a request and puts it into the queue.
func (d *dialed) submit(request *ostrakapb.Envelope, w *waiter[*ostrakapb.Envelope]) error {
	d.mu.Lock()
	d.lastCall++
	request.Call = d.lastCall
	d.calls[request.Call] = w
	d.mu.Unlock()
	err := d.pipe.outbox.push(request, request.Unhurried)
	if err != nil {
		d.forget(request)
	}
	return err
}

func (d *dialed) forget(request *ostrakapb.Envelope) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.calls, request.Call)
}

// wait returns the answer to a submitted request. A refusal comes back as a *RemoteError.
func (d *dialed) wait(until limit, request *ostrakapb.Envelope, w *waiter[*ostrakapb.Envelope]) (*ostrakapb.Envelope, error) {
	var over error
	select {
	case e := <-w.answer:
		if e.Error != "" {
			return nil, &RemoteError{Node: d.pipe.peer.node, Text: e.Error}
		}
		return e, nil
	case <-d.pipe.done:
		over = fmt.Errorf("%w: %w", ErrLinkDown, d.pipe.err)
	case <-until.deadline:
		over = ErrTimeout
	case <-until.ctx.Done():
		over = context.Cause(until.ctx)
	}
	d.forget(request)
	d.pipe.outbox.withdraw(request)
	return nil, over
}

// channels are kept for further use: each had room for one value, and that was received.
type channels[T any] struct{ pool sync.Pool }

func (c *channels[T]) get() chan T {
	if kept, ok := c.pool.Get().(chan T); ok {
		return kept
	}
	return make(chan T, 1)
}

func (c *channels[T]) put(received chan T) { c.pool.Put(received) }
