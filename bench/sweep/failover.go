package main

import (
	"context"
	"fmt"
	"log"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// writeEvery is how often a shard without a leader is tried, and attemptMax the longest single try.
const (
	writeEvery  = 5 * time.Millisecond
	attemptMax  = 100 * time.Millisecond
	failoverMax = 30 * time.Second
)

// failovers prints how long shards take no writes after their leader's process was killed.
func failovers(ctx context.Context, opts options) error {
	fmt.Printf("from a leader's kill -9 to the next write that a client gets done, %d kills for each\n\n", opts.kills)
	fmt.Println("| shards | samples | p50 ms | p90 ms | p99 ms | max ms |")
	fmt.Println("| --- | --- | --- | --- | --- | --- |")
	took := make(map[subject][]time.Duration)
	for _, s := range opts.subjects() {
		log.Print(opts.name(s))
		err := withCluster(ctx, opts, s, func(c *cluster.Cluster) error {
			for kill := range opts.kills {
				if err := settle(ctx, c); err != nil {
					return err
				}
				victim := c.Nodes()[kill%len(c.Nodes())]
				gaps, err := killAndWait(ctx, c, victim)
				if err != nil {
					return err
				}
				took[s] = append(took[s], gaps...)
				if err := victim.Start(); err != nil {
					return err
				}
				if err := victim.AwaitListening(ctx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		all := took[s]
		slices.Sort(all)
		at := func(share float64) float64 { return float64(all[int(share*float64(len(all)-1))].Microseconds()) / 1000 }
		fmt.Printf("| %s | %d | %.0f | %.0f | %.0f | %.0f |\n", strings.Replace(opts.name(s), " shards", "", 1), len(all), at(0.5), at(0.9), at(0.99), at(1))
	}
	return nil
}

// killAndWait kills a node, and returns for each shard that it led how long no write was done.
func killAndWait(ctx context.Context, c *cluster.Cluster, victim *cluster.Process) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, failoverMax)
	defer cancel()
	status, err := c.AwaitStatus(ctx, func(*client.Status) bool { return true })
	if err != nil {
		return nil, err
	}
	cl, err := client.New(ctx, c.Endpoints(), client.WithAttemptTimeout(attemptMax))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	var keys [][]byte
	for _, sh := range status.Shards {
		if sh.Leader == victim.ID {
			keys = append(keys, keyOf(cl, sh))
		}
	}
	for _, key := range keys { // so that the connections stand
		if _, err := cl.Set(ctx, key, []byte("before")); err != nil {
			return nil, err
		}
	}
	if err := victim.Kill(); err != nil {
		return nil, err
	}
	killed := time.Now()
	gaps := make([]time.Duration, len(keys))
	var all sync.WaitGroup
	for i, key := range keys {
		all.Go(func() {
			for ctx.Err() == nil {
				tried, cancel := context.WithTimeout(ctx, attemptMax)
				_, err := cl.Set(tried, key, []byte("after"))
				cancel()
				if err == nil {
					gaps[i] = time.Since(killed)
					return
				}
				time.Sleep(writeEvery)
			}
		})
	}
	all.Wait()
	return gaps, ctx.Err()
}

// keyOf finds a key of a shard.
func keyOf(cl *client.Client, sh client.ShardStatus) []byte {
	for i := 0; ; i++ {
		key := []byte(fmt.Sprint("failover", i))
		if cl.ShardOf(key) == sh.ID {
			return key
		}
	}
}
