package client

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Pauses between the attempts of one operation: the nth is drawn from (0, min(pauseFirst << n, pauseMax)).
// The first covers a leader that has only just stepped down; the largest is short against an election.
const (
	pauseFirst = 5 * time.Millisecond
	pauseMax   = 200 * time.Millisecond
	// retryRoom is the least time that a retry must have left. A write sent with less would mostly turn "not
	// done" into "outcome unknown", for want of the time to hear the answer.
	retryRoom = 10 * time.Millisecond
)

// backOff draws the pause before the attempt after the nth, n counted from 1. Full jitter: callers that
// failed together do not come back together.
func backOff(n int) time.Duration {
	ceiling := pauseMax
	if shift := n - 1; shift < 6 {
		ceiling = min(pauseMax, pauseFirst<<shift)
	}
	return time.Duration(rand.Int64N(int64(ceiling))) + 1
}

// jitter stretches a pause that the server asked for by up to a quarter, for the same reason.
func jitter(d time.Duration) time.Duration { return d + time.Duration(rand.Int64N(int64(d)/4+1)) }

// budget is a token bucket that all retries of a client draw from. It may run into debt: who draws then
// waits until the debt is paid, in order of drawing.
type budget struct {
	mu        sync.Mutex
	perSecond float64
	burst     float64
	tokens    float64 // <= burst
	filled    time.Time
}

func newBudget(perSecond float64, burst int, now time.Time) *budget {
	return &budget{perSecond: perSecond, burst: float64(burst), tokens: float64(burst), filled: now}
}

// draw takes a token and returns how long to wait before using it. It takes none and returns false if that
// were longer than patience.
func (b *budget) draw(now time.Time, patience time.Duration) (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.burst, b.tokens+now.Sub(b.filled).Seconds()*b.perSecond)
	b.filled = now
	var wait time.Duration
	if b.tokens < 1 {
		wait = time.Duration((1 - b.tokens) / b.perSecond * float64(time.Second))
	}
	if wait > patience {
		return 0, false
	}
	b.tokens--
	return wait, true
}

// pause waits before a retry, for at least d and for the budget. It reports false at once if the deadline
// would leave too little time after the wait, and false when ctx ends meanwhile.
func (c *Client) pause(ctx context.Context, d time.Duration) bool {
	now := time.Now()
	patience := time.Duration(1<<63 - 1)
	if deadline, ok := ctx.Deadline(); ok {
		patience = deadline.Sub(now) - retryRoom
	}
	wait, ok := c.budget.draw(now, patience)
	if wait = max(wait, d); !ok || wait >= patience {
		return false
	}
	return sleep(ctx, wait)
}

// sleep reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
