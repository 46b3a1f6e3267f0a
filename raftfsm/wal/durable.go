package wal

import (
	"container/heap"
	"context"
)

// Notify calls done once, from the writer's goroutine or from here, when everything up to a sequence is durable (nil) or
// never will be (why not); done must not block. If it is durable already, Notify returns true and never calls done.
func (l *Log) Notify(sequence Sequence, done func(error)) (already bool) {
	if Sequence(l.released.Load()) >= sequence {
		return true
	}
	l.mu.Lock()
	switch err := l.endedLocked(); {
	case Sequence(l.released.Load()) >= sequence:
		l.mu.Unlock()
		return true
	case err != nil:
		l.mu.Unlock()
		done(err)
		return false
	}
	heap.Push(&l.waiting.released, waiter{sequence, done})
	l.mu.Unlock()
	return false
}

// WaitDurable waits until everything up to a sequence was synced, whatever the mode. Errors: the context's cause, why the
// log has ended.
func (l *Log) WaitDurable(ctx context.Context, sequence Sequence) error {
	done := make(chan error, 1)
	l.mu.Lock()
	if l.durable >= sequence {
		l.mu.Unlock()
		return nil
	}
	if err := l.endedLocked(); err != nil {
		l.mu.Unlock()
		return err
	}
	heap.Push(&l.waiting.durable, waiter{sequence, func(err error) { done <- err }})
	l.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// endedLocked is why nothing will become durable any more.
func (l *Log) endedLocked() error {
	if l.failure == nil && l.ctx.Err() != nil {
		return ErrClosed
	}
	return l.failure
}

// waiter waits for a sequence.
type waiter struct {
	sequence Sequence
	done     func(error)
}

type waiterHeap []waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].sequence < h[j].sequence }
func (h waiterHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *waiterHeap) Push(x any)        { *h = append(*h, x.(waiter)) }
func (h *waiterHeap) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = waiter{}
	*h = (*h)[:last]
	return w
}

// tell answers waiters that were taken out.
func (h waiterHeap) tell(err error) {
	for _, w := range h {
		w.done(err)
	}
}

// waiters are those of the log, by what they wait for.
type waiters struct{ released, durable waiterHeap }

// take takes out those whose time has come, in order.
func (h *waiterHeap) take(upTo Sequence) (ready waiterHeap) {
	for len(*h) > 0 && (*h)[0].sequence <= upTo {
		ready = append(ready, heap.Pop(h).(waiter))
	}
	return ready
}

func (w *waiters) takeAll() waiterHeap {
	all := append(w.released, w.durable...)
	w.released, w.durable = nil, nil
	return all
}
