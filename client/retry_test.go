package client

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Against a plain set of the numbers still waited for.
func TestSession(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSession()
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
	c := f.client(WithRetryBudget(50, 1), WithTimeout(300*time.Millisecond))
	f.lead(1, "")
	if _, err := c.Set(t.Context(), []byte("k"), nil); err == nil {
		t.Fatal("set without a leader")
	}
	// One at once, 15 more in 300 ms, and the burst. Without a budget the pauses allow many more only if they
	// are drawn short, so several callers make sure.
	done := make(chan struct{})
	for range 20 {
		go func() {
			_, _ = c.Set(t.Context(), []byte("k"), nil)
			done <- struct{}{}
		}()
	}
	for range 20 {
		<-done
	}
	f.node("n1").mu.Lock()
	defer f.node("n1").mu.Unlock()
	if sent := len(f.node("n1").seen); sent > 21+2*16+5 {
		t.Errorf("%d requests were sent for 21 calls and some 30 retries", sent)
	}
}
