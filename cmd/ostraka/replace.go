package main

import (
	"fmt"
	"math"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
)

func (a *app) replaceCommand() *cobra.Command {
	var c connection
	var node string
	var shards []uint
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "replace --node ID",
		Short: "Give a node's replicas fresh ids, and their data anew from the others",
		Long: `Gives the place of a node's replicas to fresh ones on the same node. Each begins empty and without a vote, gets the data
from the others of its shard, and then a vote; what the old ones hold is wiped. With --shard it is about that shard alone.

Damaged replicas, and nodes whose data directory is gone, are replaced without this command. It is for replicas that run
but can't be trusted, after a disk was exchanged or a backup put back. It is refused where a shard can't do without the
replica: a majority of its other voters must be up and have all that was acknowledged. Nothing is done then.

The node need not run; its replicas begin anew when it does. Watch them in ` + "`ostraka cluster status`" + `.`,
		Example: `  ostraka cluster replace --node n3
  ostraka cluster replace --node n3 --shard 2`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd, "the answer")
	cmd.Flags().StringVar(&node, "node", "", "the node")
	cmd.Flags().UintSliceVar(&shards, "shard", nil, "only the replica of this shard; 0: that of the cluster's own state; may be repeated")
	addJSON(cmd, &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if node == "" {
			return usagef("--node ID names the node")
		}
		ids := make([]uint32, len(shards))
		for i, s := range shards {
			if s > math.MaxUint32 {
				return usagef("--shard %d: no such shard", s)
			}
			ids[i] = uint32(s)
		}
		ctx, cancel := c.bounded(cmd.Context())
		defer cancel()
		admin, err := client.NewAdmin(c.endpoints)
		if err != nil {
			return err
		}
		defer admin.Close()
		replaced, err := admin.Replace(ctx, node, ids...)
		if err != nil {
			return err
		}
		if asJSON {
			return a.printJSON(replaced)
		}
		t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "SHARD\tOLD REPLICA\tFRESH REPLICA")
		for _, r := range replaced {
			fmt.Fprintf(t, "%s\t%d\t%d\n", shardName(uint32(r.Shard)), r.Old, r.Fresh)
		}
		return t.Flush()
	}
	return cmd
}
