// Command sweep measures a cluster of three real processes on this machine at several numbers of shards: what
// they do under load, in alternating rounds so that a drifting machine drifts for all alike, and what they cost
// while idle. It is how the default number of shards was chosen (docs/decisions/0004-default-shards.md).
//
//	go run ./bench/sweep -binary ./ostraka -shards 1,2,4,8,16 -rounds 3
//	go run ./bench/sweep -binary ./ostraka -shards 1,16,64 -idle 20s
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

type options struct {
	binary   string
	shards   []int
	callers  []int
	rounds   int
	duration time.Duration
	idle     time.Duration
}

// load is one kind of work; its name heads a table.
type load struct {
	name   string
	writes float64
}

var loads = []load{{"writes", 1}, {"linearizable reads", 0}}

func main() {
	log.SetFlags(0)
	binary := flag.String("binary", "./ostraka", "the ostraka executable")
	shards := flag.String("shards", "1,2,4,8,16", "numbers of shards to compare")
	callers := flag.String("callers", "64,256", "numbers of concurrent callers")
	rounds := flag.Int("rounds", 3, "rounds; medians are printed")
	duration := flag.Duration("duration", 5*time.Second, "length of one measurement")
	idle := flag.Duration("idle", 0, "measure what an idle cluster costs over this time, instead of load")
	flag.Parse()
	opts := options{binary: *binary, shards: numbers(*shards), callers: numbers(*callers), rounds: *rounds, duration: *duration, idle: *idle}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := sweep
	if opts.idle > 0 {
		run = idleCosts
	}
	if err := run(ctx, opts); err != nil {
		log.Fatal(err)
	}
}

func numbers(list string) []int {
	var all []int
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			log.Fatalf("%q is not a list of positive numbers", list)
		}
		all = append(all, n)
	}
	return all
}

// cell is one measured combination.
type cell struct {
	load    string
	callers int
	shards  int
}

// sweep runs every combination once per round, a fresh cluster for each number of shards.
func sweep(ctx context.Context, opts options) error {
	measured := make(map[cell][]bench.Result)
	for round := range opts.rounds {
		for _, shards := range opts.shards {
			log.Printf("round %d of %d, %d shards", round+1, opts.rounds, shards)
			err := withCluster(ctx, opts, shards, func(c *cluster.Cluster) error {
				return measure(ctx, opts, c, shards, measured)
			})
			if err != nil {
				return err
			}
		}
	}
	for _, l := range loads {
		fmt.Printf("\n%s, keys a second (p99 in ms), medians of %d rounds\n\n| callers |", l.name, opts.rounds)
		for _, shards := range opts.shards {
			fmt.Printf(" %d shards |", shards)
		}
		fmt.Printf("\n|%s\n", strings.Repeat(" --- |", len(opts.shards)+1))
		for _, callers := range opts.callers {
			fmt.Printf("| %d |", callers)
			for _, shards := range opts.shards {
				results := measured[cell{l.name, callers, shards}]
				fmt.Printf(" %.0f (%.0f) |",
					median(results, func(r bench.Result) float64 { return r.OpsPerSecond }),
					median(results, func(r bench.Result) float64 { return float64(r.Latency.P99) / 1000 }))
			}
			fmt.Println()
		}
	}
	return nil
}

func measure(ctx context.Context, opts options, c *cluster.Cluster, shards int, into map[cell][]bench.Result) error {
	cl, err := client.New(ctx, c.Endpoints())
	if err != nil {
		return err
	}
	defer cl.Close()
	for _, l := range loads {
		for _, callers := range opts.callers {
			cfg := bench.DefaultConfig()
			cfg.Clients, cfg.Duration, cfg.Writes = callers, opts.duration, l.writes
			cfg.Keys = 10_000
			cfg.Preload = l.writes < 1
			result, err := bench.Run(ctx, cfg, bench.ForClient(cl, false))
			if err != nil {
				return err
			}
			if result.Errors > 0 {
				log.Printf("%s, %d callers, %d shards: %d errors", l.name, callers, shards, result.Errors)
			}
			at := cell{l.name, callers, shards}
			into[at] = append(into[at], result)
		}
	}
	return nil
}

func median(results []bench.Result, of func(bench.Result) float64) float64 {
	values := make([]float64, len(results))
	for i, r := range results {
		values[i] = of(r)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func withCluster(ctx context.Context, opts options, shards int, use func(*cluster.Cluster) error) error {
	dir, err := os.MkdirTemp("", "ostraka-sweep-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	started, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	binary, err := filepath.Abs(opts.binary)
	if err != nil {
		return err
	}
	c, err := cluster.Start(started, cluster.Options{Binary: binary, Dir: dir, Shards: shards, HTTP: true})
	if err != nil {
		return err
	}
	defer c.Close()
	return use(c)
}
