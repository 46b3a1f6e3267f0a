package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const (
	exitError = 1
	exitUsage = 2
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == etcdNodeArgument {
		if err := runEtcdNode(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitError)
		}
		return
	}
	// The first signal ends loads and nodes in order, the second one this process, and with it all nodes.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	os.Exit(compare(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// compare is the command; it returns the exit status.
func compare(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, err := parseOptions(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil && opts.failovers > 0 {
		return exitStatus(ctx, compareFailovers(ctx, opts, stdout, stderr), stderr)
	}
	var result *report
	if err == nil {
		result, err = run(ctx, opts, stderr)
	}
	if result != nil {
		err = errors.Join(err, show(result, opts, stdout))
	}
	return exitStatus(ctx, err, stderr)
}

// exitStatus says what went wrong.
func exitStatus(ctx context.Context, err error, stderr io.Writer) int {
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "compare: %s\nRun it with -help for all flags.\n", usage.message)
		return exitUsage
	case err != nil && ctx.Err() != nil:
		fmt.Fprintf(stderr, "compare: interrupted (%v); all nodes have been ended\n", context.Cause(ctx))
		return exitError
	case err != nil:
		fmt.Fprintf(stderr, "compare: %v\n", err)
		return exitError
	}
	return 0
}

// show prints the tables and writes the files that were asked for.
func show(r *report, opts *options, stdout io.Writer) error {
	if err := writeTables(stdout, r); err != nil {
		return err
	}
	if opts.json != "" {
		if err := r.writeJSON(opts.json); err != nil {
			return err
		}
	}
	if opts.plot != "" && len(r.Summaries) > 0 {
		return os.WriteFile(opts.plot, drawPlot(r), 0o644)
	}
	return nil
}
