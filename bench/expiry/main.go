// Command expiry measures how much a million keys that expire in the same second disturb everybody else: a cluster of three processes is
// filled with them, an open loop of reads and writes of other keys runs for as long before that second as after it, and the percentiles of both
// are printed side by side, with how long it took until the expired keys were gone.
//
//	make build && go run ./bench/expiry -binary ./ostraka
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

type options struct {
	binary  string
	keys    int
	rate    float64
	clients int
	window  time.Duration
	life    time.Duration
	shards  int
}

func main() {
	log.SetFlags(log.Ltime)
	var o options
	flag.StringVar(&o.binary, "binary", "./ostraka", "the ostraka executable")
	flag.IntVar(&o.keys, "keys", 1_000_000, "keys that expire in the same second")
	flag.Float64Var(&o.rate, "rate", 2000, "reads and writes a second of other keys, half of each")
	flag.IntVar(&o.clients, "clients", 64, "callers")
	flag.DurationVar(&o.window, "window", 15*time.Second, "how long to measure before the keys expire, and after")
	flag.DurationVar(&o.life, "life", 60*time.Second, "from the first of the keys to when they expire: writing them, and the window before, must fit in")
	flag.IntVar(&o.shards, "shards", 0, "shards; 0: the default")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, o options) (failed error) {
	dir, err := os.MkdirTemp("", "ostraka-expiry-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := cluster.Start(ctx, cluster.Options{Binary: o.binary, Dir: dir, HTTP: true, Shards: o.shards})
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, c.Close()) }()
	cl, err := client.New(ctx, c.Endpoints())
	if err != nil {
		return err
	}
	defer cl.Close()

	load := bench.DefaultConfig()
	load.Clients, load.Rate, load.Writes, load.Keys = o.clients, o.rate, 0.5, 10_000
	load.WarmUp, load.Duration, load.Preload = time.Second, time.Second, true
	target := bench.ForClient(cl, false)
	if _, err := bench.Run(ctx, load, target); err != nil {
		return err
	}
	due := time.Now().Add(o.life)
	if err := fill(ctx, cl, o.keys, due); err != nil {
		return err
	}
	log.Printf("%d keys are written, %s before they expire", o.keys, time.Until(due).Round(time.Second))
	load.Preload = false
	before, err := expiring(ctx, c)
	if err != nil {
		return err
	}
	if err := until(ctx, due.Add(-o.window-load.WarmUp)); err != nil {
		return err
	}
	load.Duration = o.window
	calm, err := bench.Run(ctx, load, target)
	if err != nil {
		return err
	}
	load.WarmUp = 0
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	gone := make(chan string, 1)
	go func() { gone <- watch(watched, c, due, before) }()
	stormy, err := bench.Run(ctx, load, target)
	if err != nil {
		return err
	}
	fmt.Printf("\n%.0f calls a second, %d errors before and %d after; ms\n\n|  | p50 | p90 | p99 | p99.9 | most |\n| --- | --- | --- | --- | --- | --- |\n", o.rate, calm.Errors, stormy.Errors)
	for _, row := range []struct {
		name string
		of   bench.Latency
	}{{"before", calm.Latency}, {"while they expire", stormy.Latency}} {
		ms := func(µs int64) float64 { return float64(µs) / 1000 }
		fmt.Printf("| %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n", row.name, ms(row.of.P50), ms(row.of.P90), ms(row.of.P99), ms(row.of.P999), ms(row.of.Max))
	}
	fmt.Printf("\np99 is %.2f times what it was; ", float64(stormy.Latency.P99)/float64(max(calm.Latency.P99, 1)))
	select {
	case said := <-gone:
		fmt.Println(said)
	case <-time.After(2 * time.Minute):
		return errors.New("the expired keys don't go")
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// fill writes keys that all expire at the same time.
func fill(ctx context.Context, cl *client.Client, keys int, due time.Time) error {
	const batch = 500
	var next atomic.Int64
	var writers sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	value := make([]byte, 128)
	for range 16 {
		writers.Go(func() {
			for ctx.Err() == nil {
				from := int(next.Add(batch)) - batch
				if from >= keys {
					return
				}
				items := make([]client.SetItem, 0, batch)
				for i := from; i < min(from+batch, keys); i++ {
					items = append(items, client.SetItem{Key: fmt.Appendf(nil, "expires%09d", i), Value: value, TTL: time.Until(due)})
				}
				for _, err := range cl.MultiSet(ctx, items) {
					if err != nil {
						cancel(err)
					}
				}
			}
		})
	}
	writers.Wait()
	return context.Cause(ctx)
}

func until(ctx context.Context, t time.Time) error {
	if time.Until(t) < 0 {
		return errors.New("writing the keys took too long: give more -life, or fewer -keys")
	}
	select {
	case <-time.After(time.Until(t)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// figures are those of all nodes together.
type figures struct{ expiring, removed, seconds float64 }

func expiring(ctx context.Context, c *cluster.Cluster) (sum figures, err error) {
	for _, p := range c.Nodes() {
		err := p.Metrics(ctx, func(name, _ string, value float64) {
			switch name {
			case "ostraka_replica_expiring_keys":
				sum.expiring += value
			case "ostraka_expired_keys_removed_total":
				sum.removed += value
			case "ostraka_expired_keys_seconds_total":
				sum.seconds += value
			}
		})
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// watch waits until no key with an expiry time is left, and says when that was.
func watch(ctx context.Context, c *cluster.Cluster, due time.Time, before figures) string {
	for {
		now, err := expiring(ctx, c)
		if err != nil {
			return err.Error()
		}
		if now.expiring == 0 {
			removed, took := now.removed-before.removed, now.seconds-before.seconds
			return fmt.Sprintf("all were gone %.1f s after they had expired; removing %.0f took leaders %.2f s, %.2f µs a key", time.Since(due).Seconds(),
				removed, took, 1e6*took/removed)
		}
		if until(ctx, time.Now().Add(500*time.Millisecond)) != nil {
			return "interrupted"
		}
	}
}
