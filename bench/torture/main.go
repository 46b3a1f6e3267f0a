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
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	opts, bad, err := parse()
	if err != nil {
		log.Print(err)
		os.Exit(2)
	}
	if needsOfNetwork() == "" {
		status, inside, err := enterNamespace()
		if err != nil {
			log.Fatal(err)
		}
		if !inside {
			os.Exit(status)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := tortureAndTell
	if bad != "" {
		run = func(ctx context.Context, opts options) error {
			return selftest(ctx, opts, strings.TrimPrefix(bad, "all"))
		}
	}
	if err := run(ctx, opts); err != nil {
		log.Fatal(err)
	}
}

// parse reads the flags; bad is the known-bad build to catch, "all", or empty.
func parse() (opts options, bad string, err error) {
	opts.out = os.Stdout
	var only, replay, server string
	var minutes float64
	flag.StringVar(&opts.binary, "binary", "./ostraka", "the ostraka executable")
	flag.StringVar(&opts.dir, "dir", "data/torture", "directory of data, logs and artefacts; what is in it is removed")
	flag.IntVar(&opts.nodes, "nodes", 3, "nodes")
	flag.IntVar(&opts.shards, "shards", 3, "shards; 0: the binary's default")
	flag.Uint64Var(&opts.seed, "seed", 0, "seed of the script; 0: a new one, which is printed")
	flag.Float64Var(&minutes, "minutes", 5, "length of the load")
	flag.StringVar(&only, "only", "", "faults to inject, by name and separated by commas; empty: all that this machine can; \"none\" lists them")
	flag.StringVar(&replay, "replay", "", "script to repeat, as a run leaves it in its directory")
	flag.BoolVar(&opts.untilBad, "until-bad", false, "end at the first violation")
	flag.StringVar(&opts.ledger, "ledger", "", "Markdown file that a line about the run is added to")
	flag.StringVar(&server, "server", "", "more arguments of every node, separated by spaces")
	flag.StringVar(&bad, "selftest", "", "\"all\", or the known-bad build that must be caught; the binary must have been built with -tags knownbad")
	flag.Int64Var(&opts.diskBytes, "disk-bytes", 512<<20, "size of each node's disk")
	flag.Parse()
	opts.length = time.Duration(minutes * float64(time.Minute))
	opts.server = strings.Fields(server)
	if only == "none" {
		for _, f := range faults {
			fmt.Println(f.name)
		}
		os.Exit(0)
	}
	if only != "" {
		opts.only = strings.Split(only, ",")
		for _, name := range opts.only {
			if faultNamed(name) == nil {
				return opts, bad, fmt.Errorf("there is no fault %q; -only none lists them", name)
			}
		}
	}
	if replay != "" {
		s, err := readScript(replay)
		if err != nil {
			return opts, bad, err
		}
		opts.script, opts.seed, opts.nodes = s, s.Seed, s.Nodes
	}
	if opts.seed == 0 {
		opts.seed = uint64(time.Now().UnixNano())
	}
	if opts.nodes < 1 || opts.nodes > 9 {
		return opts, bad, fmt.Errorf("-nodes %d: want 1 to 9", opts.nodes)
	}
	opts.dir, err = filepath.Abs(opts.dir)
	return opts, bad, err
}

var errViolated = errors.New("promises were broken")

func tortureAndTell(ctx context.Context, opts options) error {
	if _, err := os.Stat(opts.binary); err != nil {
		return fmt.Errorf("%w: make build first", err)
	}
	// The script is read by now, even where it lies in the directory.
	if err := os.RemoveAll(opts.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(opts.dir, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(opts.out, "seed %d, %s\n", opts.seed, opts.length)
	r, err := runTorture(ctx, opts)
	if r != nil {
		r.print(opts.out)
		if opts.ledger != "" {
			if err := r.append(opts.ledger, err); err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	if len(r.violations) > 0 {
		return fmt.Errorf("%w: %d, see %s; -replay %s repeats the script", errViolated, len(r.violations), opts.dir,
			filepath.Join(opts.dir, "script.json"))
	}
	return nil
}
