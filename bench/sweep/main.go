// Command sweep measures a cluster of three real processes on this machine, with several builds at several numbers of shards:
// what they do under load and what processor time that takes, in alternating rounds so that a drifting machine drifts for all
// alike, what they cost while idle, what watchers cost writes, and how long shards take no writes after a node was killed. It is how the default number of shards was chosen
// (docs/decisions/0004-default-shards.md), and how a change is measured against the build before it.
//
//	go run ./bench/sweep -shards 1,2,4,8,16 -rounds 3
//	go run ./bench/sweep -binary ./ostraka,/tmp/ostraka-before -shards 3 -loads writes
//	go run ./bench/sweep -binary ./ostraka,/tmp/ostraka-before -shards 3 -own-client
//	go run ./bench/sweep -shards 1,16,64 -idle 20s
//	go run ./bench/sweep -shards 12 -kills 6
//	go run ./bench/sweep -shards 1,3 -callers 64 -watchers 10000
package main

import (
	"context"
	"errors"
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
	binaries []string
	shards   []int
	loads    []string
	callers  []int
	rounds   int
	duration time.Duration
	// ownClient: each build is driven by its own `ostraka bench`, not by the client that is part of this program.
	ownClient bool
	idle      time.Duration
	kills     int
	watchers  int
	profiles  string // a folder; empty: none are taken
}

// subject is a cluster that is measured.
type subject struct {
	binary string
	shards int
}

// subjects are all builds at all numbers of shards.
func (o options) subjects() []subject {
	var all []subject
	for _, shards := range o.shards {
		for _, binary := range o.binaries {
			all = append(all, subject{binary, shards})
		}
	}
	return all
}

// name is what a table calls a subject.
func (o options) name(s subject) string {
	if len(o.binaries) == 1 {
		return fmt.Sprintf("%d shards", s.shards)
	}
	return fmt.Sprintf("%d shards, %s", s.shards, filepath.Base(s.binary))
}

// load is a kind of work.
type load struct {
	writes float64 // their share
	stale  bool    // of reads
}

var loads = map[string]load{"writes": {writes: 1}, "reads": {}, "stale": {stale: true}}

func main() {
	log.SetFlags(0)
	binaries := flag.String("binary", "./ostraka", "ostraka executables to compare")
	shards := flag.String("shards", "1,2,4,8,16", "numbers of shards to compare")
	kinds := flag.String("loads", "writes,reads", "kinds of load: writes, reads, which are linearizable, stale ones")
	callers := flag.String("callers", "64,256", "numbers of concurrent callers")
	rounds := flag.Int("rounds", 3, "rounds; medians are printed")
	duration := flag.Duration("duration", 5*time.Second, "length of one measurement")
	ownClient := flag.Bool("own-client", false, "load each build with its own `ostraka bench`, for changes of the client")
	idle := flag.Duration("idle", 0, "measure what an idle cluster costs over this time, instead of load")
	kills := flag.Int("kills", 0, "measure how long shards take no writes after this many kills of a node, instead of load")
	watchers := flag.Int("watchers", 0, "measure what so many watchers cost writes, instead of load")
	profiles := flag.String("profile", "", "a folder for profiles of each node's processor time; taking them costs some")
	flag.Parse()
	opts := options{binaries: strings.Split(*binaries, ","), shards: numbers(*shards), loads: strings.Split(*kinds, ","), callers: numbers(*callers),
		rounds: *rounds, duration: *duration, ownClient: *ownClient, idle: *idle, kills: *kills, watchers: *watchers, profiles: *profiles}
	for _, l := range opts.loads {
		if _, ok := loads[l]; !ok {
			log.Fatalf("-loads %s: there are writes, reads and stale", l)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := sweep
	switch {
	case opts.idle > 0:
		run = idleCosts
	case opts.kills > 0:
		run = failovers
	case opts.watchers > 0:
		run = watcherCosts
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
	subject subject
}

// outcome is what was measured once.
type outcome struct {
	bench.Result
	// Processor time.
	nodes, client time.Duration
}

// sweep runs every combination once per round, a fresh cluster for each subject.
func sweep(ctx context.Context, opts options) error {
	measured := make(map[cell][]outcome)
	for round := range opts.rounds {
		for _, s := range opts.subjects() {
			log.Printf("round %d of %d, %s", round+1, opts.rounds, opts.name(s))
			err := withCluster(ctx, opts, s, func(c *cluster.Cluster) error { return measure(ctx, opts, c, s, measured) })
			if err != nil {
				return err
			}
		}
	}
	for _, l := range opts.loads {
		fmt.Printf("\n%s: keys a second, p99 in ms, processor time of the nodes and of the client for each in µs; medians of %d rounds\n\n| callers |", l, opts.rounds)
		for _, s := range opts.subjects() {
			fmt.Printf(" %s |", opts.name(s))
		}
		fmt.Printf("\n|%s\n", strings.Repeat(" --- |", len(opts.subjects())+1))
		for _, callers := range opts.callers {
			fmt.Printf("| %d |", callers)
			for _, s := range opts.subjects() {
				outcomes := measured[cell{l, callers, s}]
				fmt.Printf(" %.0f, %.1f, %.1f + %.1f |",
					median(outcomes, func(o outcome) float64 { return o.OpsPerSecond }),
					median(outcomes, func(o outcome) float64 { return float64(o.Latency.P99) / 1000 }),
					median(outcomes, func(o outcome) float64 { return o.each(o.nodes) }), median(outcomes, func(o outcome) float64 { return o.each(o.client) }))
			}
			fmt.Println()
		}
	}
	return nil
}

// each is a time in µs for each key.
func (o outcome) each(all time.Duration) float64 {
	return float64(all.Microseconds()) / float64(max(1, o.Ops))
}

func measure(ctx context.Context, opts options, c *cluster.Cluster, s subject, into map[cell][]outcome) error {
	var d driver = ownClient{binary: s.binary, endpoints: c.Endpoints()}
	if !opts.ownClient {
		cl, err := client.New(ctx, c.Endpoints())
		if err != nil {
			return err
		}
		defer cl.Close()
		d = linkedClient{cl}
	}
	for _, l := range opts.loads {
		for _, callers := range opts.callers {
			cfg := bench.DefaultConfig()
			cfg.Clients, cfg.Writes, cfg.Keys = callers, loads[l].writes, keys
			// Warming up is a run of its own, so that the processor time is the measured run's.
			cfg.Duration, cfg.WarmUp, cfg.Preload = time.Second, 0, cfg.Writes < 1
			if _, _, err := d.run(ctx, cfg, loads[l]); err != nil {
				return err
			}
			cfg.Duration, cfg.Preload = opts.duration, false
			profiled := profile(ctx, opts, c, fmt.Sprintf("%s-%d-%s", l, callers, fileName(s)), opts.duration)
			before, err := nodesTime(c)
			if err != nil {
				return err
			}
			result, clientTime, err := d.run(ctx, cfg, loads[l])
			if err != nil {
				return err
			}
			after, err := nodesTime(c)
			if err := errors.Join(err, profiled()); err != nil {
				return err
			}
			if result.Errors > 0 {
				log.Printf("%s, %d callers, %s: %d errors", l, callers, opts.name(s), result.Errors)
			}
			at := cell{l, callers, s}
			into[at] = append(into[at], outcome{result, after - before, clientTime})
		}
	}
	return nil
}

func median(outcomes []outcome, of func(outcome) float64) float64 {
	values := make([]float64, len(outcomes))
	for i, o := range outcomes {
		values[i] = of(o)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func withCluster(ctx context.Context, opts options, s subject, use func(*cluster.Cluster) error) error {
	dir, err := os.MkdirTemp("", "ostraka-sweep-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	started, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	binary, err := filepath.Abs(s.binary)
	if err != nil {
		return err
	}
	var args []string
	if opts.profiles != "" {
		args = append(args, "--pprof")
	}
	c, err := cluster.Start(started, cluster.Options{Binary: binary, Dir: dir, Shards: s.shards, HTTP: true, ServerArgs: args})
	if err != nil {
		return err
	}
	defer c.Close()
	return use(c)
}
