package bench

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// latencyMax is the longest latency told apart, in microseconds; longer ones are counted as this.
	latencyMax = int64(10 * time.Minute / time.Microsecond)
	// latencyDigits of precision.
	latencyDigits = 3
	// stripesMax bounds the histograms that callers share: each takes some 200 KB.
	stripesMax = 16
)

// load is one phase of calls against a target.
type load struct {
	cfg      *Config
	target   Target
	phase    Phase
	duration time.Duration

	start time.Time
	// calls counts the places of an open loop's timetable that callers have taken.
	calls atomic.Int64

	ops, failed atomic.Int64
	firstError  atomic.Pointer[error]
	stripes     []stripe
	elapsed     time.Duration // set at the end of run
}

// stripe is a histogram shared by some of the callers, so that they seldom wait for each other.
type stripe struct {
	mu        sync.Mutex
	latencies *hdrhistogram.Histogram // microseconds
}

func newLoad(cfg *Config, target Target, phase Phase, duration time.Duration) *load {
	l := &load{
		cfg: cfg, target: target, phase: phase, duration: duration,
		stripes: make([]stripe, min(cfg.Clients, stripesMax)),
	}
	for i := range l.stripes {
		l.stripes[i].latencies = hdrhistogram.New(1, latencyMax, latencyDigits)
	}
	return l
}

// run starts the callers and returns when the phase is over and all calls have been answered.
func (l *load) run(ctx context.Context) {
	l.start = time.Now()
	defer report(l.cfg.Progress, l.progress)()
	var callers sync.WaitGroup
	for i := range l.cfg.Clients {
		callers.Go(func() {
			c := newCaller(l, i)
			if l.cfg.Rate > 0 {
				c.openLoop(ctx)
			} else {
				c.closedLoop(ctx)
			}
		})
	}
	callers.Wait()
	l.elapsed = time.Since(l.start)
	if l.cfg.Rate > 0 && ctx.Err() == nil {
		l.countUnbegun()
	}
}

// due is the moment at which the nth call of an open loop is to be made, n from 0.
func (l *load) due(n int64) time.Duration {
	callsPerSecond := l.cfg.Rate / float64(l.cfg.Batch)
	return time.Duration(float64(n) / callsPerSecond * float64(time.Second))
}

// errUnbegun stands for calls that were due in the measured time and could not begin in it.
var errUnbegun = errors.New("bench: due, but all callers were still waiting for earlier answers")

// countUnbegun accounts for the calls of the timetable that were due and that no caller came to make: each
// failed, after at least the wait from when it was due to the end. Without them, a target that stands still
// until the end would look good.
func (l *load) countUnbegun() {
	for n := l.calls.Load(); l.due(n) < l.duration; n++ {
		l.record(int(n), l.elapsed-l.due(n), l.cfg.Batch, errUnbegun)
	}
}

// record counts one call. caller chooses the stripe.
func (l *load) record(caller int, latency time.Duration, failed int, err error) {
	l.ops.Add(int64(l.cfg.Batch - failed))
	if failed > 0 {
		l.failed.Add(int64(failed))
		if err != nil {
			first := err // a variable of its own, so that calls without one cost no memory
			l.firstError.CompareAndSwap(nil, &first)
		}
	}
	s := &l.stripes[caller%len(l.stripes)]
	s.mu.Lock()
	defer s.mu.Unlock()
	// Cannot fail: the value is within the histogram's range.
	_ = s.latencies.RecordValue(min(max(latency.Microseconds(), 1), latencyMax))
}

func (l *load) progress() Progress {
	return Progress{
		Phase: l.phase, Elapsed: time.Since(l.start), Total: l.duration,
		Ops: l.ops.Load(), Errors: l.failed.Load(),
	}
}

// result is for the time after run.
func (l *load) result() Result {
	all := hdrhistogram.New(1, latencyMax, latencyDigits)
	for i := range l.stripes {
		all.Merge(l.stripes[i].latencies)
	}
	r := Result{
		Ops:     l.ops.Load(),
		Errors:  l.failed.Load(),
		Seconds: l.elapsed.Seconds(),
		Latency: Latency{
			P50:  all.ValueAtQuantile(50),
			P90:  all.ValueAtQuantile(90),
			P99:  all.ValueAtQuantile(99),
			P999: all.ValueAtQuantile(99.9),
			Max:  all.Max(),
		},
	}
	if r.Seconds > 0 {
		r.OpsPerSecond = float64(r.Ops) / r.Seconds
	}
	if err := l.firstError.Load(); err != nil {
		r.FirstError = *err
	}
	return r
}

// caller is one of the concurrent callers. It makes its keys and values in buffers of its own, so that the
// generator costs little beside what it measures.
type caller struct {
	load         *load
	index        int
	random       *rand.Rand
	keys, values [][]byte
	// noise is what values are cut from: the value of a call begins at a random place.
	noise []byte
}

func newCaller(l *load, index int) *caller {
	c := &caller{load: l, index: index, random: rand.New(rand.NewPCG(l.cfg.Seed, uint64(index)))}
	c.keys = make([][]byte, l.cfg.Batch)
	c.values = make([][]byte, l.cfg.Batch)
	for i := range c.keys {
		c.keys[i] = make([]byte, l.cfg.KeySize)
	}
	c.noise = make([]byte, 2*l.cfg.ValueSize+64)
	for i := range c.noise {
		c.noise[i] = byte(c.random.Uint32())
	}
	return c
}

func (c *caller) closedLoop(ctx context.Context) {
	for ctx.Err() == nil {
		begin := time.Now()
		if begin.Sub(c.load.start) >= c.load.duration {
			return
		}
		failed, err := c.call(ctx)
		c.load.record(c.index, time.Since(begin), failed, err)
	}
}

func (c *caller) openLoop(ctx context.Context) {
	for {
		n, ok := c.takePlace()
		if !ok || !sleepUntil(ctx, c.load.start.Add(c.load.due(n))) {
			return
		}
		failed, err := c.call(ctx)
		c.load.record(c.index, time.Since(c.load.start)-c.load.due(n), failed, err)
	}
}

// takePlace takes the next place of the timetable; false: the phase is over, in plan or in time. A place is
// only taken if its call will be made, so that those not taken are those not made.
func (c *caller) takePlace() (int64, bool) {
	for {
		n := c.load.calls.Load()
		if c.load.due(n) >= c.load.duration || time.Since(c.load.start) >= c.load.duration {
			return 0, false
		}
		if c.load.calls.CompareAndSwap(n, n+1) {
			return n, true
		}
	}
}

func (c *caller) call(ctx context.Context) (failed int, err error) {
	cfg := c.load.cfg
	for i := range c.keys {
		putKey(c.keys[i], uint64(c.random.IntN(cfg.Keys)))
	}
	if c.random.Float64() >= cfg.Writes {
		return c.load.target.Read(ctx, c.keys)
	}
	for i := range c.values {
		at := c.random.IntN(len(c.noise) - cfg.ValueSize)
		c.values[i] = c.noise[at : at+cfg.ValueSize]
	}
	return c.load.target.Write(ctx, c.keys, c.values)
}

// putKey writes a number's hexadecimal digits, with leading zeros to the length of key.
func putKey(key []byte, number uint64) {
	const digits = "0123456789abcdef"
	for i := len(key) - 1; i >= 0; i-- {
		key[i] = digits[number&15]
		number >>= 4
	}
}

// sleepUntil reports false if ctx ended first.
func sleepUntil(ctx context.Context, t time.Time) bool {
	wait := time.Until(t)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// report starts the goroutine that calls show once a second, and returns the function that ends it and waits.
func report(show func(Progress), look func() Progress) (stop func()) {
	if show == nil {
		return func() {}
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		last := Progress{}
		for {
			select {
			case <-ticker.C:
			case <-ended:
				return
			}
			p := look()
			if span := (p.Elapsed - last.Elapsed).Seconds(); span > 0 {
				p.OpsPerSecond = math.Round(float64(p.Ops-last.Ops) / span)
			}
			last = p
			show(p)
		}
	})
	return func() {
		close(ended)
		wg.Wait()
	}
}
