package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
)

var (
	// errDiffers: replicas differ.
	errDiffers = errors.New("replicas differ")
	// errNotCompared: a replica said nothing.
	errNotCompared = fmt.Errorf("%w: not every replica was compared", client.ErrUnavailable)
)

func (a *app) verifyCommand() *cobra.Command {
	var c connection
	var shards []uint
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the replicas of all shards, by what each has in memory",
		Long: `Compares the replicas of each shard at one and the same index of its log, a few slots at a time, by checksums that each counts
anew in its memory: so replicas that have come to differ are found, and bits that have flipped. Nodes do the same by themselves in the
background; this command does it now, with up to half a core of each node. Clients may go on.

A replica that differs from a majority of its shard's voters, twice in a row, is stopped and replaced by a fresh one, if the others
can do without it. Where there is no such majority nobody can tell who is right: it is only reported.

Exit status: 0: all were compared, and are equal; 1: some differ; 5: none differ, but some could not be compared.`,
		Example: `  ostraka cluster verify
  ostraka cluster verify --shard 3 --json | jq '.[].differences'`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd, "each few slots")
	cmd.Flags().UintSliceVar(&shards, "shard", nil, "only this shard; may be repeated")
	addJSON(cmd, &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		admin, err := client.NewAdmin(c.endpoints, client.WithTimeout(c.timeout))
		if err != nil {
			return err
		}
		defer admin.Close()
		return a.verify(cmd.Context(), admin, shards, asJSON)
	}
	return cmd
}

func (a *app) verify(ctx context.Context, admin *client.Admin, only []uint, asJSON bool) error {
	status, err := admin.Status(ctx)
	if err != nil {
		return err
	}
	var wanted []client.ShardStatus
	bytes := int64(0)
	for _, sh := range status.Shards {
		if len(only) == 0 || slices.Contains(only, uint(sh.ID)) {
			wanted = append(wanted, sh)
			bytes += int64(sh.Bytes)
		}
	}
	switch {
	case len(status.Shards) == 0:
		return fmt.Errorf("%w: it has no shards to compare", client.ErrNotBootstrapped)
	case len(only) > len(wanted):
		return usagef("--shard names a shard that isn't there; `ostraka cluster status` shows them")
	}
	bar := a.newProgress("comparing replicas", max(bytes, 1))
	defer bar.end()
	all := make([]client.Verified, 0, len(wanted))
	doneBytes, doneKeys := int64(0), int64(0)
	for _, sh := range wanted {
		v, err := admin.Verify(ctx, sh.ID, func(now client.Verified) { bar.at(doneBytes+now.Bytes, doneKeys+now.Keys) })
		if err != nil {
			return fmt.Errorf("shard %d: %w", sh.ID, err)
		}
		doneBytes, doneKeys = doneBytes+v.Bytes, doneKeys+v.Keys
		all = append(all, v)
	}
	bar.end()
	if err := a.printVerified(all, asJSON); err != nil {
		return err
	}
	return verdict(all)
}

// verdict is what the exit status says of it.
func verdict(all []client.Verified) (err error) {
	for _, v := range all {
		switch {
		case len(v.Differences) > 0:
			return fmt.Errorf("%w: shard %d, %s", errDiffers, v.Shard, v.Differences[0].Text)
		case len(v.Silent) > 0 && err == nil:
			err = fmt.Errorf("%w: shard %d, replica %d on %s: %s", errNotCompared, v.Shard, v.Silent[0].Replica, v.Silent[0].Node, v.Silent[0].Reason)
		}
	}
	return err
}

func (a *app) printVerified(all []client.Verified, asJSON bool) error {
	if asJSON {
		return a.printJSON(all)
	}
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SHARD\tSLOTS\tKEYS\tBYTES\tREPLICAS\tRESULT")
	for _, v := range all {
		result := []string{"equal"}
		if len(v.Silent) > 0 {
			result[0] = "equal as far as compared"
		}
		if len(v.Differences) > 0 {
			result = nil
		}
		for _, d := range v.Differences {
			text := d.Text
			if d.NotFenced != "" {
				text += " (" + d.NotFenced + ")"
			}
			result = append(result, text)
		}
		for _, s := range v.Silent {
			result = append(result, fmt.Sprintf("replica %d on %s: %s", s.Replica, s.Node, s.Reason))
		}
		fmt.Fprintf(t, "%d\t%d\t%d\t%s\t%d\t%s\n", v.Shard, v.Slots, v.Keys, readableBytes(uint64(v.Bytes)), len(v.Compared), strings.Join(result, "; "))
	}
	return t.Flush()
}
