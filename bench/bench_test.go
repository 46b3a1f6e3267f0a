package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeTarget counts what it is asked, and takes a while for it. All tests with it run in virtual time.
type fakeTarget struct {
	mu            sync.Mutex
	reads, writes int
	keys          map[string]bool
	values        map[int]bool // lengths
	calls         map[int]bool // lengths
	// delay is how long a call takes that begins now.
	delay func() time.Duration
	// fail is how many keys of a call fail.
	fail func(call int) int
}

func newFakeTarget(delay time.Duration) *fakeTarget {
	return &fakeTarget{
		keys: map[string]bool{}, values: map[int]bool{}, calls: map[int]bool{},
		delay: func() time.Duration { return delay }, fail: func(int) int { return 0 },
	}
}

var errFake = errors.New("the fake refuses")

func (f *fakeTarget) call(ctx context.Context, keys [][]byte, count *int) (int, error) {
	f.mu.Lock()
	*count++
	f.calls[len(keys)] = true
	for _, k := range keys {
		f.keys[string(k)] = true
	}
	failed, delay := f.fail(f.reads+f.writes), f.delay()
	f.mu.Unlock()
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return len(keys), ctx.Err()
	}
	if failed > 0 {
		return failed, errFake
	}
	return 0, nil
}

func (f *fakeTarget) Read(ctx context.Context, keys [][]byte) (int, error) {
	return f.call(ctx, keys, &f.reads)
}

func (f *fakeTarget) Write(ctx context.Context, keys, values [][]byte) (int, error) {
	f.mu.Lock()
	for _, v := range values {
		f.values[len(v)] = true
	}
	f.mu.Unlock()
	return f.call(ctx, keys, &f.writes)
}

// quick is a load of one virtual second without a warm-up.
func quick() Config {
	cfg := DefaultConfig()
	cfg.Duration, cfg.WarmUp, cfg.Clients, cfg.Keys = time.Second, 0, 4, 50
	return cfg
}

func TestClosedLoopCountsExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget(10 * time.Millisecond)
		r, err := Run(t.Context(), quick(), target)
		if err != nil {
			t.Fatal(err)
		}
		if r.Ops != 400 || r.Errors != 0 || target.writes != 400 || target.reads != 0 {
			t.Errorf("%d ops and %d errors for %d calls; 4 callers of 10 ms make 400 in a second", r.Ops, r.Errors, target.writes)
		}
		if r.Seconds != 1 || r.OpsPerSecond != 400 {
			t.Errorf("%v ops/s in %v s", r.OpsPerSecond, r.Seconds)
		}
		if l := r.Latency; l.P50 < 10_000 || l.Max > 10_010 {
			t.Errorf("latencies %+v for calls of 10 ms", l)
		}
		if len(target.keys) != 50 || len(target.values) != 1 || !target.values[128] {
			t.Errorf("%d keys, value sizes %v", len(target.keys), target.values)
		}
		for k := range target.keys {
			if len(k) != 16 {
				t.Errorf("key %q", k)
			}
		}
	})
}

// stall answers in a millisecond, except that nothing begun in the second second ends before its end.
func stall(target *fakeTarget) {
	start := time.Now()
	target.delay = func() time.Duration {
		if at := time.Since(start); at >= time.Second && at < 2*time.Second {
			return 2*time.Second - at
		}
		return time.Millisecond
	}
}

// The same stall under both loops: the closed one asks nothing while it lasts and reports nearly nothing of
// it; the open one reports all the calls that were due meanwhile.
func TestOpenLoopReportsAStallThatClosedLoopHides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		cfg.Duration = 3 * time.Second
		target := newFakeTarget(0)
		stall(target)
		closed, err := Run(t.Context(), cfg, target)
		if err != nil {
			t.Fatal(err)
		}
		if closed.Latency.P99 > 1_100 || closed.Latency.Max < 990_000 {
			t.Errorf("closed loop: %+v; its p99 should hide the stall", closed.Latency)
		}

		cfg.Rate = 1000
		target = newFakeTarget(0)
		stall(target)
		open, err := Run(t.Context(), cfg, target)
		if err != nil {
			t.Fatal(err)
		}
		if open.Ops != 3000 || open.Errors != 0 {
			t.Errorf("open loop: %d ops, %d errors, want all 3000 of the timetable", open.Ops, open.Errors)
		}
		// A third of all calls was due in the stall, and waited half of it on average.
		if l := open.Latency; l.P90 < 500_000 || l.P99 < 900_000 {
			t.Errorf("open loop: %+v; a stall of 1 s in 3 s is missing", l)
		}
	})
}

func TestOpenLoopKeepsItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		cfg.Rate, cfg.Batch = 500, 5
		target := newFakeTarget(time.Millisecond)
		r, err := Run(t.Context(), cfg, target)
		if err != nil || r.Ops != 500 || target.writes != 100 || !target.calls[5] || len(target.calls) != 1 {
			t.Errorf("%d ops in %d calls of %v keys, %v; want 500 in 100 of 5", r.Ops, target.writes, target.calls, err)
		}
		if r.Latency.Max > 1_010 {
			t.Errorf("latencies %+v for calls of 1 ms", r.Latency)
		}
	})
}

// A target that stops for good must not look good: what was due and never begun is counted.
func TestOpenLoopCountsWhatNeverBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		cfg.Rate = 1000
		target := newFakeTarget(5 * time.Second)
		r, err := Run(t.Context(), cfg, target)
		if err != nil || r.Ops != 4 || r.Errors != 996 || !errors.Is(r.FirstError, errUnbegun) {
			t.Errorf("%d ops, %d errors, %v, %v; 4 callers wait 5 s and 996 calls are never made", r.Ops, r.Errors, r.FirstError, err)
		}
		if r.Latency.P50 < 4_000_000 {
			t.Errorf("latencies %+v", r.Latency)
		}
	})
}

func TestMixBatchesAndErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		cfg.Writes, cfg.Batch, cfg.Clients = 0.25, 10, 100
		target := newFakeTarget(10 * time.Millisecond)
		target.fail = func(call int) int {
			if call%100 == 0 {
				return 3
			}
			return 0
		}
		r, err := Run(t.Context(), cfg, target)
		if err != nil {
			t.Fatal(err)
		}
		calls := target.reads + target.writes
		if calls != 10_000 || r.Ops != 100_000-300 || r.Errors != 300 || !errors.Is(r.FirstError, errFake) {
			t.Errorf("%d calls, %d ops, %d errors, first %v", calls, r.Ops, r.Errors, r.FirstError)
		}
		if share := float64(target.writes) / float64(calls); share < 0.23 || share > 0.27 {
			t.Errorf("%.3f of the calls wrote, want 0.25", share)
		}
	})
}

func TestTheSeedRepeatsTheLoad(t *testing.T) {
	run := func(seed uint64) string {
		var keys string
		synctest.Test(t, func(t *testing.T) {
			cfg := quick()
			cfg.Clients, cfg.Duration, cfg.Keys, cfg.Seed = 1, 20*time.Millisecond, 1000, seed
			target := newFakeTarget(time.Millisecond)
			if _, err := Run(t.Context(), cfg, target); err != nil {
				t.Fatal(err)
			}
			keys = fmt.Sprint(target.keys)
		})
		return keys
	}
	first := run(1)
	if run(1) != first {
		t.Error("the same seed made different keys")
	}
	if run(2) == first {
		t.Error("different seeds made the same keys")
	}
}

func TestPreloadWritesEveryKeyAndWarmUpIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		cfg.Preload, cfg.WarmUp, cfg.Writes, cfg.Keys = true, 2500*time.Millisecond, 0, 1234
		phases := map[Phase]int{}
		cfg.Progress = func(p Progress) {
			phases[p.Phase]++
			if p.Phase == PhaseWarmUp && (p.OpsPerSecond < 390 || p.OpsPerSecond > 410) { // 400, but for the calls that end with the tick
				t.Errorf("progress %+v", p)
			}
		}
		target := newFakeTarget(10 * time.Millisecond)
		target.fail = func(call int) int {
			if call == 3 { // one lost message is written again
				return 1
			}
			return 0
		}
		r, err := Run(t.Context(), cfg, target)
		if err != nil || r.Ops != 400 || target.reads != 400+1000 {
			t.Errorf("%d ops, %d reads, %v", r.Ops, target.reads, err)
		}
		if len(target.keys) != 1234 || target.writes != 14 {
			t.Errorf("%d keys in %d messages were preloaded, want 1234 in 13 and a repetition", len(target.keys), target.writes)
		}
		if phases[PhaseWarmUp] != 2 {
			t.Errorf("progress was called %v", phases)
		}
	})
}

func TestPreloadThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		cfg.Preload = true
		target := newFakeTarget(time.Millisecond)
		target.fail = func(int) int { return 1 }
		if _, err := Run(t.Context(), cfg, target); !errors.Is(err, errFake) {
			t.Errorf("error %v", err)
		}
	})
}

func TestCancelledRunReportsWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rate := range []float64{0, 400} {
			ctx, cancel := context.WithTimeout(t.Context(), 505*time.Millisecond)
			cfg := quick()
			cfg.Duration, cfg.Rate = time.Hour, rate
			r, err := Run(ctx, cfg, newFakeTarget(10*time.Millisecond))
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || r.Ops < 190 || r.Ops > 210 || r.Seconds > 0.6 {
				t.Errorf("rate %v: %+v, %v", rate, r, err)
			}
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	for field, spoil := range map[string]func(*Config){
		"clients":    func(c *Config) { c.Clients = 0 },
		"duration":   func(c *Config) { c.Duration = 0 },
		"warm-up":    func(c *Config) { c.WarmUp = -1 },
		"keys":       func(c *Config) { c.Keys = 0 },
		"key size":   func(c *Config) { c.KeySize = 4 }, // 65,536 keys, not 100,000
		"value size": func(c *Config) { c.ValueSize = -1 },
		"writes":     func(c *Config) { c.Writes = 1.1 },
		"batch":      func(c *Config) { c.Batch = 0 },
		"rate":       func(c *Config) { c.Rate = -1 },
	} {
		cfg := DefaultConfig()
		spoil(&cfg)
		_, err := Run(t.Context(), cfg, newFakeTarget(0))
		var bad *ConfigError
		if !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// Scripts rely on these names.
func TestResultAsJSON(t *testing.T) {
	got, err := json.Marshal(Result{Ops: 1, Errors: 2, Seconds: 3.5, OpsPerSecond: 4.5, Latency: Latency{5, 6, 7, 8, 9}, FirstError: errFake})
	want := `{"ops":1,"errors":2,"seconds":3.5,"ops_per_second":4.5,"latency_us":{"p50":5,"p90":6,"p99":7,"p999":8,"max":9}}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
}
