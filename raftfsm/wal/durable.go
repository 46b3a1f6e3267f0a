package wal

import "context"

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
	l.waiting.released.add(waiter{sequence, done})
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
	l.waiting.durable.add(waiter{sequence, func(err error) { done <- err }})
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

// waiterHeap has the waiter for the lowest sequence first. container/heap would allocate for each that goes in and out.
type waiterHeap []waiter

func (h *waiterHeap) add(w waiter) {
	*h = append(*h, w)
	for i := len(*h) - 1; i > 0; {
		above := (i - 1) / 2
		if (*h)[above].sequence <= (*h)[i].sequence {
			return
		}
		(*h)[above], (*h)[i] = (*h)[i], (*h)[above]
		i = above
	}
}

func (h *waiterHeap) takeFirst() waiter {
	first, last := (*h)[0], len(*h)-1
	(*h)[0], (*h)[last] = (*h)[last], waiter{}
	*h = (*h)[:last]
	for i := 0; ; {
		least := i
		for below := 2*i + 1; below <= 2*i+2 && below < last; below++ {
			if (*h)[below].sequence < (*h)[least].sequence {
				least = below
			}
		}
		if least == i {
			return first
		}
		(*h)[least], (*h)[i] = (*h)[i], (*h)[least]
		i = least
	}
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
		ready = append(ready, h.takeFirst())
	}
	return ready
}

func (w *waiters) takeAll() waiterHeap {
	all := append(w.released, w.durable...)
	w.released, w.durable = nil, nil
	return all
}
