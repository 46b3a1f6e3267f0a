package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/server"
)

// errNotConfirmed: whoever was asked did not say yes.
var errNotConfirmed = errors.New("not confirmed; nothing was changed")

func (a *app) recoverCommand() *cobra.Command {
	var dirs []string
	var yes, emptyShards, asJSON bool
	cmd := &cobra.Command{
		Use:   "recover --data-dir DIR…",
		Short: "Rebuild a cluster whose majority is lost for good, offline",
		Long: `Rebuilds a cluster from the data directories of the nodes that are left, when so many are lost for good that shards have
no majority any more. It is the last resort: what the lost nodes alone had acknowledged is gone. Where a majority is left, or
comes back, nothing need be done: damaged and wiped nodes are replaced by the others.

Stop every node of the cluster first, and give all data directories that are left, or copies of them, at once: for each
shard the copy that goes furthest goes on. It says what may be lost, and asks. The other directories given become fresh
nodes of the rebuilt cluster, which get everything from those that go on; so do nodes that start with an empty directory
under a lost node's id.

The rebuilt cluster has another id. A node that comes back later with its old data is refused by it; remove that directory.`,
		Example: `  ostraka recover --data-dir /var/lib/ostraka
  ostraka recover --data-dir ./n1 --data-dir ./n4 --yes --json`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&dirs, "data-dir", nil, "data directory of a stopped node that is left; may be repeated")
	flags.BoolVar(&yes, "yes", false, "don't ask")
	flags.BoolVar(&emptyShards, "empty-lost-shards", false, "let shards of which no copy is left begin empty")
	addJSON(cmd, &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (failed error) {
		if len(dirs) == 0 {
			return usagef("--data-dir DIR names what is left of the cluster")
		}
		log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
		r, err := server.OpenRecovery(dirs, emptyShards, log)
		if err != nil {
			return err
		}
		defer func() { failed = errors.Join(failed, r.Close()) }()
		if asJSON {
			err = a.printJSON(r.Report)
		} else {
			err = a.printRecovery(r.Report)
		}
		if err != nil {
			return err
		}
		if !yes {
			a.say("The cluster is going to be rebuilt like this. Is every node of it stopped, and may this be lost? Type yes:")
			line, _ := bufio.NewReader(a.in).ReadString('\n')
			if strings.TrimSpace(line) != "yes" {
				return errNotConfirmed
			}
		}
		if err := r.Run(); err != nil {
			return fmt.Errorf("the recovery was cut off; run it again with the same directories: %w", err)
		}
		a.say("recovered: cluster %s is now %s; start its nodes", r.Report.ClusterID, r.Report.NewClusterID)
		return nil
	}
	return cmd
}

func (a *app) printRecovery(r server.RecoveryReport) error {
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "cluster %s, to be rebuilt as %s\n", r.ClusterID, r.NewClusterID)
	for _, n := range r.Survivors {
		fmt.Fprintf(t, "left: %s in %s\n", n.ID, n.DataDir)
	}
	if len(r.Lost) > 0 {
		fmt.Fprintf(t, "taken for lost: %s\n", strings.Join(r.Lost, ", "))
	}
	fmt.Fprintln(t, "\nSHARD\tGOES ON\tVOTERS LEFT\tLAST TERM\tLAST INDEX\tWRITTEN\tMAY BE LOST")
	for _, g := range r.Groups {
		written := "-"
		if g.Written != nil {
			written = g.Written.Local().Format(time.DateTime)
		}
		loss := "nothing"
		switch g.Loss {
		case server.LossPossible:
			loss = "what others acknowledged after that"
		case server.LossAll:
			loss = "everything: it begins empty"
		}
		fmt.Fprintf(t, "%s\t%s\t%d of %d\t%d\t%d\t%s\t%s\n", shardName(g.Shard), g.Node, g.VotersHere, g.Voters, g.LastTerm, g.LastIndex, written, loss)
	}
	for _, g := range r.Groups {
		for _, why := range g.Unusable {
			fmt.Fprintf(t, "\ncan't be used: %s\n", why)
		}
	}
	return t.Flush()
}
