// Package bench is the load generator behind `ostraka bench`: it drives a Target with a mix of reads and
// writes, and reports throughput and latencies.
//
// A closed loop (Config.Rate 0) has a fixed number of callers, each of which sends its next call when the last
// was answered: it finds the most that the target can do. It hides stalls, since a target that stands still is
// also asked nothing. An open loop (Config.Rate above 0) has a timetable instead: calls are due at fixed
// intervals whatever the target does, and a latency counts from the moment the call was due, so that a stall
// of a second shows in all the calls that were due meanwhile ("coordinated omission" is what leaving them out
// is called).
//
// The package refuses to know what a Target is; ForClient makes one of an Ostraka client, and others can be
// driven alike for comparison. Run owns its goroutines: the callers and one for progress, all ended when it
// returns. Read Run first, then load.go.
package bench

import (
	"context"
	"fmt"
	"time"
)

// Target is what is measured. Its methods are called by many goroutines; keys and values are valid during the
// call only. They return how many of the keys failed, and one of the errors.
type Target interface {
	// Read reads the keys in one call. A key that does not exist is no failure.
	Read(ctx context.Context, keys [][]byte) (failed int, err error)
	// Write sets each key to the value of the same index, in one call.
	Write(ctx context.Context, keys, values [][]byte) (failed int, err error)
}

// Config describes a load. Start from DefaultConfig.
type Config struct {
	// Clients is the number of concurrent callers. In an open loop it bounds the calls in flight: calls that
	// are due while all callers wait are late, and their latencies say so.
	Clients int
	// Duration of the measurement, and of the same load before it that is not measured.
	Duration, WarmUp time.Duration
	// Keys is the number of different keys, drawn uniformly.
	Keys int
	// KeySize and ValueSize in bytes. Keys are hexadecimal numbers, so that KeySize bounds Keys.
	KeySize, ValueSize int
	// Writes is the share of calls that write, 0..1; the others read.
	Writes float64
	// Batch is the number of keys in each call.
	Batch int
	// Rate is the number of keys a second to be asked for in an open loop; 0: a closed loop.
	Rate float64
	// Seed makes the sequence of keys, values and kinds of each caller repeatable.
	Seed uint64
	// Preload writes every key once before the load, so that reads find something.
	Preload bool
	// Progress is called about once a second, from one goroutine, while Run runs; nil: never.
	Progress func(Progress)
}

// DefaultConfig is the load that Ostraka's figures are stated for.
func DefaultConfig() Config {
	return Config{
		Clients:   64,
		Duration:  10 * time.Second,
		WarmUp:    time.Second,
		Keys:      100_000,
		KeySize:   16,
		ValueSize: 128,
		Writes:    1,
		Batch:     1,
		Seed:      1,
	}
}

// ConfigError names the field of a Config that cannot be.
type ConfigError struct{ Field, Message string }

func (e *ConfigError) Error() string { return fmt.Sprintf("bench: %s: %s", e.Field, e.Message) }

// Validate returns a *ConfigError for the first field that cannot be, as Run would.
func (c *Config) Validate() error {
	rules := []struct {
		bad            bool
		field, message string
	}{
		{c.Clients < 1, "clients", "must be at least 1"},
		{c.Duration <= 0, "duration", "must be positive"},
		{c.WarmUp < 0, "warm-up", "must not be negative"},
		{c.Keys < 1, "keys", "must be at least 1"},
		{c.KeySize < 1, "key size", "must be at least 1"},
		{c.KeySize >= 1 && c.KeySize < 15 && c.Keys > 1<<(4*c.KeySize), "key size", "too small for so many different keys"},
		{c.ValueSize < 0, "value size", "must not be negative"},
		{!(c.Writes >= 0 && c.Writes <= 1), "writes", "must be in 0..1"},
		{c.Batch < 1, "batch", "must be at least 1"},
		{!(c.Rate >= 0), "rate", "must not be negative"},
	}
	for _, r := range rules {
		if r.bad {
			return &ConfigError{r.field, r.message}
		}
	}
	return nil
}

// Phase is a part of a run.
type Phase string

// The phases of a run, in order.
const (
	PhasePreload Phase = "preload"
	PhaseWarmUp  Phase = "warm-up"
	PhaseMeasure Phase = "measure"
)

// Progress is a glance at a run under way.
type Progress struct {
	Phase Phase
	// Elapsed and Total of the phase; Total is 0 for the preload, whose end is a number of keys.
	Elapsed, Total time.Duration
	// Ops and Errors are keys done and failed since the phase began.
	Ops, Errors int64
	// OpsPerSecond since the last call of Progress.
	OpsPerSecond float64
}

// Result is a measurement, in the form that `ostraka bench --json` prints. The latency of a call of several
// keys is one latency.
type Result struct {
	// Ops and Errors are numbers of keys: done, and failed or never begun.
	Ops    int64 `json:"ops"`
	Errors int64 `json:"errors"`
	// Seconds from the first call to the last answer.
	Seconds      float64 `json:"seconds"`
	OpsPerSecond float64 `json:"ops_per_second"`
	Latency      Latency `json:"latency_us"`
	// FirstError is an example of what went wrong; nil: nothing did.
	FirstError error `json:"-"`
}

// Latency is a distribution in microseconds, failed calls included. In an open loop it counts from the moment
// a call was due.
type Latency struct {
	P50  int64 `json:"p50"`
	P90  int64 `json:"p90"`
	P99  int64 `json:"p99"`
	P999 int64 `json:"p999"`
	Max  int64 `json:"max"`
}

// Run drives the target through preload, warm-up and measurement. If ctx ends during the measurement, it
// returns what was measured until then, and ctx's error. A failed preload is an error; failed calls of the
// measurement are counted in the result.
func Run(ctx context.Context, cfg Config, target Target) (Result, error) {
	if err := cfg.Validate(); err != nil {
		return Result{}, err
	}
	if cfg.Preload {
		if err := preload(ctx, &cfg, target); err != nil {
			return Result{}, fmt.Errorf("bench: preload: %w", err)
		}
	}
	if cfg.WarmUp > 0 {
		warmUp := newLoad(&cfg, target, PhaseWarmUp, cfg.WarmUp)
		warmUp.run(ctx)
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
	}
	measured := newLoad(&cfg, target, PhaseMeasure, cfg.Duration)
	measured.run(ctx)
	return measured.result(), ctx.Err()
}
