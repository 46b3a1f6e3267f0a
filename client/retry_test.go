package client

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/stats"
	"pgregory.net/rapid"
)

// Against a plain set of the numbers still waited for.
func TestSession(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSession(1, 1)
		var waiting []uint64
		next := uint64(1)
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			if len(waiting) == 0 || rapid.Bool().Draw(t, "begin") {
				if got := s.begin(); got != next {
					t.Fatalf("begin gave %d, want %d", got, next)
				}
				waiting = append(waiting, next)
				next++
			} else {
				i := rapid.IntRange(0, len(waiting)-1).Draw(t, "which")
				s.end(waiting[i])
				waiting = slices.Delete(waiting, i, i+1)
			}
			want := next
			if len(waiting) > 0 {
				want = slices.Min(waiting)
			}
			if got := s.lowestUnanswered(); got != want {
				t.Fatalf("lowest unanswered %d, want %d", got, want)
			}
			if spread := next - want; len(s.answered) != int(spread) {
				t.Fatalf("%d numbers are held for a spread of %d", len(s.answered), spread)
			}
		}
	})
}

func TestBudget(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBudget(10, 3, now)
	draw := func(patience, want time.Duration, wantOK bool) {
		t.Helper()
		if got, ok := b.draw(now, patience); got != want || ok != wantOK {
			t.Errorf("draw = %v, %v, want %v, %v", got, ok, want, wantOK)
		}
	}
	for range 3 { // the burst
		draw(0, 0, true)
	}
	draw(50*time.Millisecond, 0, false) // the next token is 100 ms away; refused, and none taken
	draw(time.Second, 100*time.Millisecond, true)
	draw(time.Second, 200*time.Millisecond, true) // in debt: behind the other
	now = now.Add(400 * time.Millisecond)
	draw(0, 0, true)
	draw(0, 0, true)
	draw(0, 0, false)
	now = now.Add(time.Hour)
	for range 3 { // never more than the burst
		draw(0, 0, true)
	}
	draw(0, 0, false)
}

func TestBackOff(t *testing.T) {
	for attempt := 1; attempt < 100; attempt++ {
		ceiling := pauseMax
		if attempt <= 5 {
			ceiling = pauseFirst << (attempt - 1)
		}
		var longest time.Duration
		for range 200 {
			d := backOff(attempt)
			if d <= 0 || d > ceiling {
				t.Fatalf("attempt %d: pause %v, at most %v allowed", attempt, d, ceiling)
			}
			longest = max(longest, d)
		}
		if longest < ceiling/2 {
			t.Errorf("attempt %d: no pause of 200 was above half of %v", attempt, ceiling)
		}
	}
	for range 100 {
		if d := jitter(time.Second); d < time.Second || d > 1250*time.Millisecond {
			t.Fatalf("jitter made %v of 1s", d)
		}
	}
}

func TestRetriesWaitForTheBudget(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client(WithRetryBudget(20, 1))
	if !c.pause(t.Context(), 0) { // the burst
		t.Fatal("no pause")
	}
	begin := time.Now()
	if !c.pause(t.Context(), time.Millisecond) {
		t.Fatal("no pause")
	}
	if waited := time.Since(begin); waited < 40*time.Millisecond {
		t.Errorf("the second retry waited %v, at 20 a second", waited)
	}
	for range 40 { // a debt of two seconds
		c.budget.draw(time.Now(), time.Hour)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if c.pause(ctx, 0) || ctx.Err() != nil {
		t.Errorf("a retry that its deadline cannot wait for was not refused at once: %v", ctx.Err())
	}
}

// The events of gRPC in the orders that it makes them, and what they mean for a write that then fails.
func TestSendMark(t *testing.T) {
	begin, again, header, payload := &stats.Begin{}, &stats.Begin{IsTransparentRetryAttempt: true}, &stats.OutHeader{}, &stats.OutPayload{}
	for name, row := range map[string]struct {
		events []stats.RPCStats
		sent   bool
	}{
		"no connection":               {[]stats.RPCStats{begin}, false},
		"a stream, but nothing on it": {[]stats.RPCStats{begin, header}, false},
		"sent":                        {[]stats.RPCStats{begin, header, payload}, true},
		"the peer refused, the second try found none": {[]stats.RPCStats{begin, header, payload, again}, false},
		"the peer refused, the second try was sent":   {[]stats.RPCStats{begin, header, payload, again, header, payload}, true},
	} {
		ctx, mark := withSendMark(t.Context())
		for _, e := range row.events {
			sendWatch{}.HandleRPC(ctx, e)
		}
		if mark.sent.Load() != row.sent {
			t.Errorf("%s: sent is %v", name, !row.sent)
		}
	}
	sendWatch{}.HandleRPC(t.Context(), payload) // a call that nobody marked
}
