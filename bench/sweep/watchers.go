package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// crowds are what watchers there may be while the load is measured, in the order of the table.
var crowds = []string{"none", "quiet", "busy"}

// watchersAtOnce bounds the watches that are begun side by side.
const watchersAtOnce = 64

// watcherCosts prints what watchers cost writes: none, as many as asked for of keys that nobody writes, and as many of the keys that
// are written, each of which hears of its key's writes. With one shard all of them are on one node. Each round measures the three one
// after the other in the same cluster, every other one in reverse. The load comes from another process, `ostraka bench`.
func watcherCosts(ctx context.Context, opts options) error {
	fmt.Printf("writes a second, p99 in ms, processor time of the nodes for each in µs; medians of %d rounds of %s\n\n", opts.rounds, opts.duration)
	fmt.Printf("| shards, callers | no watchers | %d quiet ones | %d of the keys written | changes that those heard a second | begun in s |\n", opts.watchers, opts.watchers)
	fmt.Println("| --- | --- | --- | --- | --- | --- |")
	for _, s := range opts.subjects() {
		for _, callers := range opts.callers {
			measured := make(map[string][]outcome)
			var heard, begun []float64
			for round := range opts.rounds {
				log.Printf("round %d of %d, %s, %d callers", round+1, opts.rounds, opts.name(s), callers)
				order := slices.Clone(crowds)
				if round%2 == 1 {
					slices.Reverse(order)
				}
				err := withCluster(ctx, opts, s, func(c *cluster.Cluster) error {
					if err := settle(ctx, c); err != nil {
						return err
					}
					// What a young cluster does first is slower, and is not measured.
					if _, _, err := measureCrowd(ctx, opts, c, s, "none", callers); err != nil {
						return err
					}
					for _, crowd := range order {
						o, w, err := measureCrowd(ctx, opts, c, s, crowd, callers)
						if err != nil {
							return err
						}
						log.Printf("  %-5s %.0f/s, p99 %.1f ms, %.1f µs", crowd, o.OpsPerSecond, float64(o.Latency.P99)/1000, o.each(o.nodes))
						measured[crowd] = append(measured[crowd], o)
						if crowd == "busy" {
							heard = append(heard, float64(w.heard.Load())/opts.duration.Seconds())
						}
						if crowd != "none" {
							begun = append(begun, w.took.Seconds())
						}
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
			fmt.Printf("| %s, %d |", opts.name(s), callers)
			for _, crowd := range crowds {
				fmt.Printf(" %.0f, %.1f, %.1f |", median(measured[crowd], func(o outcome) float64 { return o.OpsPerSecond }),
					median(measured[crowd], func(o outcome) float64 { return float64(o.Latency.P99) / 1000 }),
					median(measured[crowd], func(o outcome) float64 { return o.each(o.nodes) }))
			}
			slices.Sort(heard)
			slices.Sort(begun)
			fmt.Printf(" %.0f | %.1f |\n", heard[len(heard)/2], begun[len(begun)/2])
		}
	}
	return nil
}

func measureCrowd(ctx context.Context, opts options, c *cluster.Cluster, s subject, crowd string, callers int) (outcome, *watchers, error) {
	cfg := bench.DefaultConfig()
	cfg.Clients, cfg.Writes, cfg.Keys = callers, 1, max(opts.watchers, 1)
	cfg.WarmUp, cfg.Duration = 0, time.Second
	d := ownClient{binary: s.binary, endpoints: c.Endpoints()}
	w := &watchers{}
	if crowd != "none" {
		cl, err := client.New(ctx, c.Endpoints())
		if err != nil {
			return outcome{}, nil, err
		}
		defer cl.Close()
		prefix := ""
		if crowd == "quiet" {
			prefix = "quiet-"
		}
		if err := w.begin(ctx, cl, prefix, opts.watchers, cfg.KeySize); err != nil {
			return outcome{}, nil, err
		}
		defer w.end()
	}
	if _, _, err := d.run(ctx, cfg, loads["writes"]); err != nil {
		return outcome{}, nil, err
	}
	cfg.Duration = opts.duration
	w.heard.Store(0)
	before, err := nodesTime(c)
	if err != nil {
		return outcome{}, nil, err
	}
	result, clientTime, err := d.run(ctx, cfg, loads["writes"])
	if err != nil {
		return outcome{}, nil, err
	}
	after, err := nodesTime(c)
	if err := errors.Join(err, w.failure()); err != nil {
		return outcome{}, nil, err
	}
	if crowd == "quiet" && w.heard.Load() > 0 {
		return outcome{}, nil, fmt.Errorf("quiet watchers heard of %d changes", w.heard.Load())
	}
	return outcome{result, after - before, clientTime}, w, nil
}

// watchers are watches of one client, each of one key, with a goroutine that reads it.
type watchers struct {
	heard   atomic.Int64
	took    time.Duration // until all had begun
	stop    context.CancelFunc
	reading sync.WaitGroup

	mu     sync.Mutex
	failed error
}

func (w *watchers) begin(ctx context.Context, cl *client.Client, prefix string, n, keyBytes int) error {
	started := time.Now()
	all := make([]*client.Watch, n)
	beginning, beginCtx := errgroup.WithContext(ctx)
	beginning.SetLimit(watchersAtOnce)
	for i := range all {
		beginning.Go(func() (err error) {
			all[i], err = cl.Watch(beginCtx, client.Key(fmt.Appendf(nil, "%s%0*x", prefix, keyBytes, i)))
			return err
		})
	}
	if err := beginning.Wait(); err != nil {
		return err
	}
	w.took = time.Since(started)
	var reading context.Context
	reading, w.stop = context.WithCancel(ctx)
	for _, watch := range all {
		w.reading.Go(func() {
			defer watch.Close()
			for _, err := range watch.Changes(reading) {
				if err != nil {
					if reading.Err() == nil {
						w.fail(err)
					}
					return
				}
				w.heard.Add(1)
			}
		})
	}
	return nil
}

func (w *watchers) end() {
	w.stop()
	w.reading.Wait()
}

func (w *watchers) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = errors.Join(w.failed, err)
}

func (w *watchers) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}
