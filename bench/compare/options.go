package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ostraka-db/ostraka/bench"
)

// options are what the command line says.
type options struct {
	systems   []string
	workloads []string
	callers   []int
	rounds    int
	// duration of a measurement, and of the same load before it that does not count.
	duration, warmUp time.Duration
	keys, valueSize  int
	seed             uint64
	// noiseMax is how much others on the machine may use during a measurement, in cores.
	noiseMax float64

	dir      string
	keepData bool
	json     string
	plot     string

	binary          string
	shards          int
	ostrakaArgs     []string
	etcdConnections int
	etcdEndpoints   string
	// failovers is how often the leader is killed, instead of load; 0: load.
	failovers   int
	redisServer string
	redisClient string
}

// keySize in bytes.
const keySize = 16

// callersMax is Redis's default maxclients less some for others.
const callersMax = 9000

// The workloads, as --workloads takes them.
const (
	writes = "writes"
	reads  = "reads"
)

var workloadNames = []string{writes, reads}

// usageError is a command line that cannot be.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

const usageText = `Usage: compare [flags]

Measures etcd, Redis and Ostraka side by side on this machine, three nodes of each, and prints a table. Starts and ends
all of them by itself. Exit status: 0 done, 1 error, 2 wrong usage.

`

// parseOptions returns flag.ErrHelp where help was asked for and printed, a *usageError for what cannot be.
func parseOptions(args []string, stdout io.Writer) (*options, error) {
	opts := options{}
	set := flag.NewFlagSet("compare", flag.ContinueOnError)
	set.SetOutput(io.Discard) // errors are for our caller to print, once
	systems := set.String("systems", strings.Join(systemNames, ","), "`list` of systems")
	workloads := set.String("workloads", strings.Join(workloadNames, ","), "`list` of workloads")
	callers := set.String("callers", "64,256,1024", "`list` of numbers of concurrent callers")
	set.IntVar(&opts.rounds, "rounds", 5, "rounds; medians are printed")
	set.DurationVar(&opts.duration, "duration", 5*time.Second, "length of one measurement")
	set.DurationVar(&opts.warmUp, "warm-up", time.Second, "length of the same load before it, not counted")
	set.IntVar(&opts.keys, "keys", 100_000, "number of different keys")
	set.IntVar(&opts.valueSize, "value-size", 128, "`bytes` of a value; a key has 16")
	set.Uint64Var(&opts.seed, "seed", 1, "of the random choices")
	set.Float64Var(&opts.noiseMax, "noise-max", 0.2, "measure again, twice at most, what everything else on the machine disturbed with more than so many `cores`")
	set.StringVar(&opts.dir, "dir", "", "`directory` for the systems' data, on the disk to be measured; empty: the system's temporary one")
	set.BoolVar(&opts.keepData, "keep-data", false, "leave data and logs of the systems where they are")
	set.StringVar(&opts.json, "json", "", "`file` for everything measured")
	set.StringVar(&opts.plot, "plot", "", "`file` for the figures as a picture (SVG)")
	set.StringVar(&opts.binary, "binary", "", "the ostraka `executable`; empty: built from this repository")
	set.IntVar(&opts.shards, "shards", 0, "shards of Ostraka; 0: its default")
	set.Func("ostraka-arg", "an `argument` for every ostraka server, such as --election-timeout=2s; may be repeated", func(arg string) error {
		opts.ostrakaArgs = append(opts.ostrakaArgs, arg)
		return nil
	})
	set.IntVar(&opts.etcdConnections, "etcd-connections", 1, "etcd clients, each with a connection")
	set.StringVar(&opts.etcdEndpoints, "etcd-endpoints", etcdLeader, "what they connect to: the leader, or all members in turn")
	set.StringVar(&opts.redisServer, "redis-server", "redis-server", "the Redis `executable`")
	set.StringVar(&opts.redisClient, "redis-client", redisPerCaller, "per-caller: a connection for each; joined: callers share round trips on a few")
	set.IntVar(&opts.failovers, "failovers", 0, "kill the leader of etcd and of Ostraka so often, in turn, and measure how long writes stand still, instead of load")
	quick := set.Bool("quick", false, "a smoke test: one short round at 64 callers, over 1000 keys, unless other flags say more")

	if err := set.Parse(args); err != nil {
		if err == flag.ErrHelp {
			fmt.Fprint(stdout, usageText)
			set.SetOutput(stdout)
			set.PrintDefaults()
			return nil, err
		}
		return nil, usagef("%v", err)
	}
	if set.NArg() > 0 {
		return nil, usagef("%q is not a flag", set.Arg(0))
	}
	if *quick {
		given := make(map[string]bool)
		set.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, value := range map[string]string{
			"rounds": "1", "duration": "500ms", "warm-up": "200ms", "callers": "64", "keys": "1000"} {
			if !given[name] {
				if err := set.Set(name, value); err != nil {
					return nil, err
				}
			}
		}
	}
	var err error
	if opts.systems, err = names("systems", *systems, systemNames); err != nil {
		return nil, err
	}
	if opts.workloads, err = names("workloads", *workloads, workloadNames); err != nil {
		return nil, err
	}
	if opts.callers, err = counts("callers", *callers); err != nil {
		return nil, err
	}
	if opts.dir == "" {
		opts.dir = os.TempDir()
	}
	return &opts, opts.validate()
}

// names reads a list of which each part is one of known, and none comes twice.
func names(flag, list string, known []string) ([]string, error) {
	var all []string
	for name := range strings.SplitSeq(list, ",") {
		if !slices.Contains(known, name) {
			return nil, usagef("-%s: %q is none of %s", flag, name, strings.Join(known, ", "))
		}
		if slices.Contains(all, name) {
			return nil, usagef("-%s: %s comes twice", flag, name)
		}
		all = append(all, name)
	}
	return all, nil
}

func counts(flag, list string) ([]int, error) {
	var all []int
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || n > callersMax {
			return nil, usagef("-%s: %q is not a number from 1 to %d", flag, field, callersMax)
		}
		if slices.Contains(all, n) {
			return nil, usagef("-%s: %d comes twice", flag, n)
		}
		all = append(all, n)
	}
	return all, nil
}

func (o *options) validate() error {
	for _, rule := range []struct {
		bad     bool
		message string
	}{
		{o.rounds < 1, "-rounds must be at least 1"},
		{!(o.noiseMax >= 0), "-noise-max must not be negative"},
		{o.failovers < 0, "-failovers must not be negative"},
		{o.shards < 0, "-shards must not be negative"},
		{o.etcdConnections < 1, "-etcd-connections must be at least 1"},
		{o.etcdEndpoints != etcdLeader && o.etcdEndpoints != etcdAll, "-etcd-endpoints is leader or all"},
		{o.redisClient != redisPerCaller && o.redisClient != redisJoined, "-redis-client is per-caller or joined"},
	} {
		if rule.bad {
			return &usageError{rule.message}
		}
	}
	cfg := o.load(cell{Workload: writes, Callers: 1}, 0)
	if err := cfg.Validate(); err != nil {
		return &usageError{err.Error()}
	}
	return nil
}

// load is what the harness is told for a cell in a round, from 0. All systems get the same.
func (o *options) load(at cell, round int) bench.Config {
	cfg := bench.DefaultConfig()
	cfg.Clients = at.Callers
	cfg.Duration, cfg.WarmUp = o.duration, o.warmUp
	cfg.Keys, cfg.KeySize, cfg.ValueSize = o.keys, keySize, o.valueSize
	cfg.Writes = 0
	if at.Workload == writes {
		cfg.Writes = 1
	}
	cfg.Seed = o.seed + uint64(round)
	return cfg
}

// cells are all combinations, in the order in which they are measured.
func (o *options) cells() []cell {
	var all []cell
	for _, w := range o.workloads {
		for _, c := range o.callers {
			all = append(all, cell{Workload: w, Callers: c})
		}
	}
	return all
}
