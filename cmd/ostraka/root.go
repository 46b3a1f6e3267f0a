package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// app is the surroundings of a command: everything that a test replaces.
type app struct {
	in       io.Reader
	out, err io.Writer
	// lookupEnv is os.LookupEnv.
	lookupEnv func(string) (string, bool)
	// progress: stderr is a terminal, so that bars and live lines make sense.
	progress bool
	// connect reaches a cluster.
	connect func(ctx context.Context, c connection) (keyValue, error)
	abort   abort
	// begun: a command's own code runs. An error before that is one of usage.
	begun bool
}

// Groups of commands in the help.
const (
	groupCluster = "cluster"
	groupData    = "data"
	groupTools   = "tools"
)

// run executes a command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.newRoot()
	root.SetArgs(protectNegative(args))
	err := root.ExecuteContext(ctx)
	if err != nil && !a.begun && !errors.Is(err, errUsage) {
		err = errors.Join(errUsage, err)
	}
	return a.report(err)
}

func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "ostraka",
		Short: "A sharded in-memory key-value database, replicated by Raft",
		Long: `Ostraka keeps keys in memory, cut into shards, each replicated by a Raft group of its own. A write that was
acknowledged is on the disks of a majority.

Data goes to stdout, logs and progress to stderr. Exit codes: 0 done, 1 error, 2 usage, 3 key not found,
4 condition not met, 5 not done: unavailable, 6 outcome of a write unknown.

Settings of the server, of dev and of the connection come from flags, else from the environment (OSTRAKA_ENDPOINTS for
--endpoints, and so on), else from the file that --config names, else from the defaults.`,
		Example: `  ostraka dev                                  # a cluster of three nodes on this machine
  ostraka set greeting hello && ostraka get greeting
  ostraka cluster status
  ostraka bench --duration 5s`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          help,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.AddGroup(
		&cobra.Group{ID: groupCluster, Title: "Nodes and clusters:"},
		&cobra.Group{ID: groupData, Title: "Keys and values:"},
		&cobra.Group{ID: groupTools, Title: "Tools:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupCluster, a.serverCommand(), a.devCommand(), a.clusterCommand(), a.hotkeysCommand(), a.recoverCommand())
	add(groupData, a.getCommand(), a.setCommand(), a.delCommand(), a.incrCommand(), a.casCommand(), a.appendCommand(),
		a.ttlCommand(), a.expireCommand(), a.persistCommand(), a.touchCommand(),
		a.mgetCommand(), a.scanCommand(), a.watchCommand(), a.importCommand(), a.exportCommand())
	add(groupTools, a.benchCommand(), a.walCommand(), a.versionCommand())
	root.SetHelpCommandGroupID(groupTools)
	root.SetCompletionCommandGroupID(groupTools)
	a.prepare(root)
	return root
}

// help is what a command that only holds others does.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// prepare lets every command settle its settings before its own code, and marks where that begins.
func (a *app) prepare(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := settle(cmd.Flags(), a.lookupEnv); err != nil {
				return err
			}
			a.begun = true
			return run(cmd, args)
		}
	}
	for _, c := range cmd.Commands() {
		a.prepare(c)
	}
}

// protectNegative lets `incr K -5` mean what it says: without the "--" that it inserts, -5 would be a flag.
func protectNegative(args []string) []string {
	if len(args) < 3 || args[0] != "incr" {
		return args
	}
	last := args[len(args)-1]
	if len(last) < 2 || last[0] != '-' || last[1] < '0' || last[1] > '9' {
		return args
	}
	for _, arg := range args {
		if arg == "--" {
			return args
		}
	}
	return append(append([]string{}, args[:len(args)-1]...), "--", last)
}

// say prints a line for people to stderr.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.err, format+"\n", args...)
}
