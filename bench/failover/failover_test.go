package failover

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// fake takes no writes of its groups for as long as it is told after a node's end.
type fake struct {
	groups   int
	down     time.Duration
	ended    atomic.Pointer[time.Time]
	restarts int
}

var errDown = errors.New("nobody leads")

func (f *fake) Groups() int { return f.groups }

func (f *fake) Write(_ context.Context, group int) error {
	if at := f.ended.Load(); group == f.groups-1 && at != nil && time.Since(*at) < f.down {
		return errDown
	}
	return nil
}

func (f *fake) Settle(context.Context) (string, error) { f.ended.Store(nil); return "n2", nil }

func (f *fake) End(_ context.Context, node string, _ bool) error {
	now := time.Now()
	f.ended.Store(&now)
	return nil
}

func (f *fake) Restart(context.Context, string) error { f.restarts++; return nil }

// The group that fares worst counts, for no less than it took no writes.
func TestOnce(t *testing.T) {
	f := &fake{groups: 3, down: 80 * time.Millisecond}
	for _, gently := range []bool{false, true} {
		s, err := Once(t.Context(), f, gently)
		if err != nil || s.Node != "n2" || s.Gap < f.down || s.Failed == 0 || !errors.Is(s.FirstError, errDown) {
			t.Fatalf("gently %v: %+v, %v", gently, s, err)
		}
	}
	if f.restarts != 2 {
		t.Errorf("restarted %d times", f.restarts)
	}
	f.down = 0
	if s, err := Once(t.Context(), f, false); err != nil || s.Failed != 0 {
		t.Errorf("nothing was down: %+v, %v", s, err)
	}
}

func TestOnceGivesUp(t *testing.T) {
	f := &fake{groups: 1, down: time.Hour}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Once(ctx, f, false); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errDown) {
		t.Errorf("want the deadline and why, got %v", err)
	}
}

func TestSummarize(t *testing.T) {
	var samples []Sample
	for i := range 100 {
		samples = append(samples, Sample{Gap: time.Duration(100-i) * time.Millisecond, Failed: i % 2})
	}
	want := Summary{Ends: 100, Failed: 50, GapMS: Percentiles{50, 90, 99, 100}}
	if got := Summarize(samples); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := Summarize(nil); got != (Summary{}) {
		t.Errorf("of nothing: %+v", got)
	}
}
