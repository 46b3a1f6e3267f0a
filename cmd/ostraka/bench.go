package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/client"
)

func (a *app) benchCommand() *cobra.Command {
	var c connection
	var readLevel string
	var asJSON bool
	cfg := bench.DefaultConfig()
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure throughput and latency",
		Long: `Drives the cluster with writes and reads of random keys, and prints throughput and latencies. Without --rate each of
the clients sends its next call when the last was answered, which finds the most that the cluster can do, and hides
stalls. With --rate calls are due by a timetable, and latency counts from the moment a call was due.

Keys are hexadecimal numbers and stay in the cluster. Where reads are part of the load, all keys are written first.`,
		Example: `  ostraka bench
  ostraka bench --clients 256 --writes 0.1 --duration 30s
  ostraka bench --rate 20000 --writes 0.5 --json`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(a.benchFailoverCommand())
	c.flags(cmd, "each call")
	flags := cmd.Flags()
	flags.IntVar(&cfg.Clients, "clients", cfg.Clients, "concurrent callers")
	flags.DurationVar(&cfg.Duration, "duration", cfg.Duration, "time to measure")
	flags.DurationVar(&cfg.WarmUp, "warm-up", cfg.WarmUp, "time of the same load before it")
	flags.IntVar(&cfg.Keys, "keys", cfg.Keys, "number of different keys")
	flags.IntVar(&cfg.KeySize, "key-size", cfg.KeySize, "`bytes` of a key")
	flags.IntVar(&cfg.ValueSize, "value-size", cfg.ValueSize, "`bytes` of a value")
	flags.Float64Var(&cfg.Writes, "writes", cfg.Writes, "share of calls that write, 0 to 1")
	flags.StringVar(&readLevel, "read-level", "linearizable", "linearizable or stale")
	flags.IntVar(&cfg.Batch, "batch", cfg.Batch, "keys in a call")
	flags.Float64Var(&cfg.Rate, "rate", cfg.Rate, "keys a second by a timetable; 0: as fast as they are answered")
	flags.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "of the random choices, which the same seed repeats")
	addJSON(cmd, &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if readLevel != "linearizable" && readLevel != "stale" {
			return usagef("--read-level is linearizable or stale, not %q", readLevel)
		}
		cfg.Preload = cfg.Writes < 1
		return a.bench(cmd.Context(), c, cfg, readLevel == "stale", asJSON)
	}
	return cmd
}

func (a *app) bench(ctx context.Context, c connection, cfg bench.Config, stale, asJSON bool) error {
	if err := cfg.Validate(); err != nil { // before anything is asked of a cluster
		return err
	}
	cl, err := client.New(ctx, c.endpoints, client.WithTimeout(c.timeout))
	if err != nil {
		return err
	}
	defer cl.Close()
	if a.progress {
		cfg.Progress = a.showBench
	}
	result, err := bench.Run(ctx, cfg, bench.ForClient(cl, stale))
	if a.progress {
		fmt.Fprint(a.err, clearLine)
	}
	if result.Ops+result.Errors == 0 {
		return err // not measured at all
	}
	if result.FirstError != nil {
		a.say("%d keys failed, one of them so: %v", result.Errors, result.FirstError)
	}
	print := a.printBench
	if asJSON {
		print = func(r bench.Result) error { return a.printJSON(r) }
	}
	if printErr := print(result); printErr != nil {
		return printErr
	}
	if err == nil && result.Ops == 0 {
		return result.FirstError
	}
	return err
}

// clearLine is what a terminal needs to forget the line under way.
const clearLine = "\r\x1b[K"

// showBench draws the live line.
func (a *app) showBench(p bench.Progress) {
	of := ""
	if p.Total > 0 {
		of = " of " + p.Total.String()
	}
	fmt.Fprintf(a.err, "%s%s %s%s: %.0f/s, %d done, %d failed", clearLine, p.Phase, p.Elapsed.Round(time.Second), of, p.OpsPerSecond, p.Ops, p.Errors)
}

func (a *app) printBench(r bench.Result) error {
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "operations\t%d in %.2f s\n", r.Ops, r.Seconds)
	fmt.Fprintf(t, "throughput\t%.0f a second\n", r.OpsPerSecond)
	fmt.Fprintf(t, "failed\t%d\n", r.Errors)
	for _, row := range []struct {
		name   string
		micros int64
	}{{"p50", r.Latency.P50}, {"p90", r.Latency.P90}, {"p99", r.Latency.P99}, {"p99.9", r.Latency.P999}, {"max", r.Latency.Max}} {
		fmt.Fprintf(t, "latency %s\t%s\n", row.name, time.Duration(row.micros)*time.Microsecond)
	}
	return t.Flush()
}
