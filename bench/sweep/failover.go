package main

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/bench/failover"
)

// failovers prints how long writes stand still when the process that leads most shards is killed.
func failovers(ctx context.Context, opts options) error {
	fmt.Printf("longest time without an acknowledged write, of the shard that fared worst, around %d kill -9 of a leader\n\n", opts.kills)
	fmt.Println("| shards | p50 ms | p90 ms | p99 ms | max ms |")
	fmt.Println("| --- | --- | --- | --- | --- |")
	for _, s := range opts.subjects() {
		log.Print(opts.name(s))
		var samples []failover.Sample
		err := withCluster(ctx, opts, s, func(c *cluster.Cluster) error {
			o, err := failover.ForOstraka(ctx, c)
			if err != nil {
				return err
			}
			defer o.Close()
			for range opts.kills {
				sample, err := failover.Once(ctx, o, false)
				if err != nil {
					return err
				}
				samples = append(samples, sample)
			}
			return nil
		})
		if err != nil {
			return err
		}
		gap := failover.Summarize(samples).GapMS
		fmt.Printf("| %s | %.0f | %.0f | %.0f | %.0f |\n", strings.Replace(opts.name(s), " shards", "", 1), gap.P50, gap.P90, gap.P99, gap.Max)
	}
	return nil
}
