package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/ostraka-db/ostraka/bench"
)

const (
	// startMax is how long a system may take to serve, verifyMax until its nodes hold the same.
	startMax  = 2 * time.Minute
	verifyMax = time.Minute
	// overtimeMax is how long after its planned end a load may still wait for answers; 100,000 keys are written in it too.
	overtimeMax = time.Minute
	// triesMax is how often a measurement that others disturbed is made.
	triesMax = 3
	// idleTime is over which idle systems are measured.
	idleTime = 3 * time.Second
)

// turn is one step of the plan.
type turn struct {
	cell
	system string
	round  int // from 0
}

// plan alternates: in each round every cell has every system once. Who begins changes with each cell and round, so that
// nobody is always the one that comes after somebody else's load.
func plan(cells []cell, systems []string, rounds int) []turn {
	var turns []turn
	for round := range rounds {
		for i, at := range cells {
			for j := range systems {
				turns = append(turns, turn{at, systems[(round+i+j)%len(systems)], round})
			}
		}
	}
	return turns
}

// running is a system that has been started.
type running struct {
	name string
	system
	idleCores float64
	syncs     syncCount
}

// comparison is one run of the benchmark.
type comparison struct {
	opts   *options
	say    func(format string, args ...any)
	dir    string // of this run
	report *report
	all    []running
}

// run measures and ends all that it started. Where the report is not nil it has what was measured, also beside an error.
func run(ctx context.Context, opts *options, progress io.Writer) (result *report, err error) {
	c := &comparison{opts: opts, say: func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) }}
	if err := os.MkdirAll(opts.dir, 0o755); err != nil {
		return nil, err
	}
	if c.dir, err = os.MkdirTemp(opts.dir, "compare-"); err != nil {
		return nil, err
	}
	if c.dir, err = filepath.Abs(c.dir); err != nil { // nodes run in directories of their own
		return nil, err
	}
	defer func() {
		for _, r := range c.all {
			if stopErr := r.stop(); stopErr != nil {
				err = errors.Join(err, stopErr)
			}
		}
		if opts.keepData {
			c.say("data and logs are in %s", c.dir)
		} else if removeErr := os.RemoveAll(c.dir); removeErr != nil {
			err = errors.Join(err, removeErr)
		}
	}()
	m, err := describeMachine(ctx, c.dir)
	if err != nil {
		return nil, err
	}
	c.report = newReport(opts, m)
	if err := c.startAll(ctx); err != nil {
		return nil, err
	}
	err = c.measureAll(ctx)
	c.report.finish(err == nil)
	return c.report, err
}

// startAll starts the systems, fills them with keys, and looks at what they do while idle.
func (c *comparison) startAll(ctx context.Context) error {
	for _, name := range c.opts.systems {
		if err := c.start(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(c.all) == 0 {
		return fmt.Errorf("none of %s could be started: nothing to measure", strings.Join(c.opts.systems, ", "))
	}
	if err := c.measureIdle(ctx); err != nil {
		return err
	}
	for i, r := range c.all {
		var err error
		if c.all[i].syncs, err = countSyncs(ctx, r.system, c.opts, filepath.Join(c.dir, r.name)); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		c.report.Systems = append(c.report.Systems, systemReport{Name: r.name, facts: r.facts(), IdleCores: r.idleCores, Syncs: c.all[i].syncs})
	}
	return nil
}

func (c *comparison) start(ctx context.Context, name string) error {
	began := time.Now()
	dir := filepath.Join(c.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	s := newSystem(name, c.opts)
	started, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	err := s.start(started, dir)
	if errors.Is(err, errMissing) {
		c.say("%s: %v; going on without it", name, err)
		c.report.Missing = append(c.report.Missing, missing{name, err.Error()})
		return nil
	}
	if err != nil {
		return err
	}
	c.all = append(c.all, running{name: name, system: s})
	cfg := c.opts.load(cell{Workload: reads, Callers: 64}, 0)
	cfg.Preload = true
	cfg.WarmUp, cfg.Duration = 0, time.Millisecond // the keys are what matters
	result, err := c.drive(ctx, cfg, s)
	if err != nil {
		return err
	}
	if result.FirstError != nil {
		return result.FirstError
	}
	c.say("%s %s is up with %d keys after %s", title(name), s.facts().Version, c.opts.keys, time.Since(began).Round(10*time.Millisecond))
	return nil
}

// measureIdle looks at all systems at once, while none has anything to do.
func (c *comparison) measureIdle(ctx context.Context) error {
	if _, err := awaitQuiet(ctx); err != nil {
		return err
	}
	before, err := sampleCPU()
	if err != nil {
		return err
	}
	if err := rest(ctx, min(idleTime, c.opts.duration)); err != nil {
		return err
	}
	after, err := sampleCPU()
	if err != nil {
		return err
	}
	for i := range c.all {
		c.all[i].idleCores = after.since(before, c.all[i].pids(), nil).Server
	}
	return nil
}

// pids are those of all systems but one.
func (c *comparison) pids(except string) []int {
	var pids []int
	for _, r := range c.all {
		if r.name != except {
			pids = append(pids, r.pids()...)
		}
	}
	return pids
}

// measureAll carries out the plan, and looks at the end whether all nodes hold the same.
func (c *comparison) measureAll(ctx context.Context) error {
	var names []string
	for _, r := range c.all {
		names = append(names, r.name)
	}
	turns := plan(c.opts.cells(), names, c.opts.rounds)
	began := time.Now()
	repeats := len(turns) // so that a noisy machine at most doubles the time
	for i, t := range turns {
		m, err := c.measure(ctx, t)
		for try := 1; err == nil && m.CPU.Others > c.opts.noiseMax && try < triesMax && repeats > 0; try++ {
			c.say("%s at %d callers, %s: others used %.1f cores meanwhile, once more", t.Workload, t.Callers, title(t.system), m.CPU.Others)
			repeats--
			c.report.Repeated++
			var again measurement
			// Less noise decides which one counts, and nothing else.
			if again, err = c.measure(ctx, t); again.CPU.Others < m.CPU.Others {
				m = again
			}
		}
		if err != nil {
			return fmt.Errorf("%s, %s at %d callers, round %d: %w", t.system, t.Workload, t.Callers, t.round+1, err)
		}
		c.report.Measurements = append(c.report.Measurements, m)
		left := time.Since(began) / time.Duration(i+1) * time.Duration(len(turns)-i-1)
		c.say("%d/%d, %s left: round %d, %s at %d callers: %s %.0f/s, p99 %s ms%s", i+1, len(turns), left.Round(time.Second),
			t.round+1, t.Workload, t.Callers, title(t.system), m.OpsPerSecond, millis(float64(m.Latency.P99)/1000), failures(m.Errors, m.Error))
	}
	for _, r := range c.all {
		verified, cancel := context.WithTimeout(ctx, verifyMax)
		err := r.verify(verified)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: its nodes do not hold the same after the load: %w", r.name, err)
		}
	}
	c.report.Verified = true
	return nil
}

func failures(n int64, example string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d FAILED, one of them so: %s", n, firstLine(example))
}

// measure is one turn.
func (c *comparison) measure(ctx context.Context, t turn) (measurement, error) {
	r := c.all[slices.IndexFunc(c.all, func(r running) bool { return r.name == t.system })]
	m := measurement{cell: t.cell, System: t.system, Round: t.round + 1}
	var err error
	if m.Quiet, err = awaitQuiet(ctx); err != nil {
		return m, err
	}
	cfg := c.opts.load(t.cell, t.round)
	if cfg.WarmUp > 0 {
		// A run of its own, with other random choices, so that the CPU samples stand around what counts.
		warmUp := cfg
		warmUp.Duration, warmUp.WarmUp, warmUp.Seed = cfg.WarmUp, 0, ^cfg.Seed
		if _, err := c.drive(ctx, warmUp, r); err != nil {
			return m, err
		}
	}
	cfg.WarmUp = 0
	runtime.GC() // nobody pays for the garbage of the system before
	before, err := sampleCPU()
	if err != nil {
		return m, err
	}
	if m.Result, err = c.drive(ctx, cfg, r); err != nil {
		return m, err
	}
	after, err := sampleCPU()
	if err != nil {
		return m, err
	}
	m.CPU = after.since(before, r.pids(), c.pids(t.system))
	if m.FirstError != nil {
		m.Error = m.FirstError.Error()
	}
	return m, nil
}

// drive runs a load, and gives up on a system that does not answer or whose nodes have ended.
func (c *comparison) drive(ctx context.Context, cfg bench.Config, s system) (bench.Result, error) {
	driven, cancel := context.WithTimeout(ctx, cfg.WarmUp+cfg.Duration+overtimeMax)
	defer cancel()
	result, err := bench.Run(driven, cfg, s.target())
	if ctx.Err() != nil { // we were told to stop
		return result, ctx.Err()
	}
	return result, errors.Join(err, s.alive())
}
