package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/bench/failover"
)

const benchFailoverLong = `Runs a cluster of its own on this machine, of real processes with their data in a temporary directory, and ends the
node that leads most shards, again and again: with SIGKILL, or with SIGTERM and --gently. A key of each shard is
written every few milliseconds. What is printed is how long the shard that fared worst had no write acknowledged, and
how many calls failed after all that their client tried.

It never touches a cluster that runs already.`

// failoverFlags are those of bench failover.
type failoverFlags struct {
	kills, nodes, shards int
	gently, json         bool
}

func (a *app) benchFailoverCommand() *cobra.Command {
	var f failoverFlags
	cmd := &cobra.Command{
		Use:   "failover [-- SERVER FLAGS]",
		Short: "Measure how long writes stand still when a leader's process ends",
		Long:  benchFailoverLong,
		Example: `  ostraka bench failover
  ostraka bench failover --kills 100 --shards 12 --json
  ostraka bench failover --gently -- --election-timeout 300ms`,
		Args: serverFlagsOnly,
	}
	flags := cmd.Flags()
	flags.IntVar(&f.kills, "kills", 20, "how often a process is ended")
	flags.IntVar(&f.nodes, "nodes", 3, "number of nodes")
	flags.IntVar(&f.shards, "shards", 0, "number of shards; 0: what cluster bootstrap takes by default")
	flags.BoolVar(&f.gently, "gently", false, "end processes with SIGTERM, which hands leaderships over")
	addJSON(cmd, &f.json)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.benchFailover(cmd.Context(), f, args) }
	return cmd
}

func (a *app) benchFailover(ctx context.Context, f failoverFlags, serverArgs []string) (failed error) {
	switch {
	case f.kills < 1:
		return usagef("--kills must be at least 1")
	case f.nodes < 3:
		return usagef("--nodes must be at least 3: fewer can't do without one")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ostraka-failover-")
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, os.RemoveAll(dir)) }()
	started, cancel := context.WithTimeout(ctx, devReadyWithin)
	defer cancel()
	c, err := cluster.Start(started, cluster.Options{Binary: self, Dir: dir, Nodes: f.nodes, Shards: f.shards, ServerArgs: serverArgs})
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, c.Close()) }()
	o, err := failover.ForOstraka(started, c)
	if err != nil {
		return err
	}
	defer o.Close()
	var samples []failover.Sample
	for i := range f.kills {
		s, err := failover.Once(ctx, o, f.gently)
		if err != nil {
			return fmt.Errorf("%d of %d: %w", i+1, f.kills, err)
		}
		samples = append(samples, s)
		a.sayFailover(i+1, f.kills, s)
	}
	summary := failover.Summarize(samples)
	if f.json {
		return a.printJSON(summary)
	}
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "processes ended\t%d, %d shards\n", summary.Ends, o.Groups())
	fmt.Fprintf(t, "failed calls\t%d\n", summary.Failed)
	for _, row := range []struct {
		name string
		ms   float64
	}{{"p50", summary.GapMS.P50}, {"p90", summary.GapMS.P90}, {"p99", summary.GapMS.P99}, {"max", summary.GapMS.Max}} {
		fmt.Fprintf(t, "longest gap %s\t%.1f ms\n", row.name, row.ms)
	}
	return t.Flush()
}

// sayFailover is a line of progress for each sample.
func (a *app) sayFailover(n, of int, s failover.Sample) {
	failed := ""
	if s.FirstError != nil {
		failed = fmt.Sprintf(", %d calls failed, one so: %v", s.Failed, s.FirstError)
	}
	a.say("%d of %d: %s, writes stood still for %s%s", n, of, s.Node, s.Gap.Round(100*time.Microsecond), failed)
}
