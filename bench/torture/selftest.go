package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// badBuild is a switch of package raftfsm/knownbad and the faults under which it must be caught. A harness that passes such a
// build is worth nothing.
type badBuild struct {
	name   string
	faults []string
	server []string
}

var badBuilds = []badBuild{
	{name: "sync", faults: []string{"power-cut-all", "power-cut-majority"}},
	{name: "follower-gate", faults: []string{"power-cut-majority", "power-cut-all"}},
	{name: "leader-gate", faults: []string{"power-cut-majority", "power-cut-all"}},
	{name: "vote", faults: []string{"kill-all", "kill-majority", "kill-leader"}},
	{name: "confirmation", faults: []string{"pause-leader"}},
	{name: "quorum", faults: []string{"kill-majority", "isolate-leader", "pause-majority"}},
	{name: "apply-order", faults: []string{"kill-one"}},
	{name: "snapshot-key", faults: []string{"kill-one", "kill-all"}, server: []string{"--snapshot-log-bytes", "100000"}},
	{name: "retry-table", faults: []string{"kill-leader", "pause-leader", "kill-all"}},
}

var errNotCaught = errors.New("not caught")

// selftest runs every bad build until it is caught, for opts.length at most, and a good one of the same length with all that
// the bad ones are struck by. The binary must be built with the tag knownbad.
func selftest(ctx context.Context, opts options, only string) error {
	var failed error
	for _, bad := range badBuilds {
		if only != "" && only != bad.name || ctx.Err() != nil {
			continue
		}
		caught, why, err := catch(ctx, opts, bad)
		switch {
		case err != nil:
			return err
		case why == "":
			failed = errors.Join(failed, fmt.Errorf("%w: %s, within %s", errNotCaught, bad.name, opts.length))
			fmt.Fprintf(opts.out, "%-14s not caught within %s\n", bad.name, opts.length)
		default:
			fmt.Fprintf(opts.out, "%-14s caught after %5.1fs: %s\n", bad.name, caught.Seconds(), why)
		}
	}
	return failed
}

// catch runs one bad build; why is empty if it was not caught.
func catch(ctx context.Context, opts options, bad badBuild) (after time.Duration, why string, err error) {
	os.Setenv("OSTRAKA_KNOWN_BAD", bad.name) // the nodes' environment
	defer os.Unsetenv("OSTRAKA_KNOWN_BAD")
	began := time.Now()
	opts.only, opts.untilBad, opts.ledger = bad.faults, true, ""
	opts.server = append(opts.server, bad.server...)
	opts.dir = filepath.Join(opts.dir, bad.name)
	if err := os.MkdirAll(opts.dir, 0o755); err != nil {
		return 0, "", err
	}
	log, err := os.Create(filepath.Join(opts.dir, "torture.log"))
	if err != nil {
		return 0, "", err
	}
	defer log.Close()
	opts.out = log
	r, err := runTorture(ctx, opts)
	if ctx.Err() != nil {
		return 0, "", ctx.Err()
	}
	switch {
	case r != nil && len(r.violations) > 0:
		return time.Since(began), r.violations[0], nil
	case err != nil: // a cluster that can't be run any more is caught too
		return time.Since(began), err.Error(), nil
	}
	return 0, "", nil
}
