package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
)

// bootstrapTimeout is longer than that of other commands: all nodes take part and write to their disks.
const bootstrapTimeout = 30 * time.Second

func (a *app) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cluster",
		Short:   "Make a cluster, and look at one",
		Example: "  ostraka cluster bootstrap --nodes n1=10.0.0.1:7400,n2=10.0.0.2:7400,n3=10.0.0.3:7400\n  ostraka cluster status",
		Args:    cobra.NoArgs,
		RunE:    help,
	}
	cmd.AddCommand(a.bootstrapCommand(), a.statusCommand(), a.replaceCommand(), a.verifyCommand(), a.slotsCommand())
	return cmd
}

func (a *app) bootstrapCommand() *cobra.Command {
	var nodes, zones []string
	var spec client.BootstrapSpec
	var timeout time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "bootstrap --nodes ID=HOST:PORT,…",
		Short: "Make a cluster of blank nodes",
		Long: `Makes one cluster of nodes that run and belong to none yet. Addresses are those under which the nodes reach each
other. It is refused if a node already belongs to a cluster, and safe to repeat with the same arguments: what was begun
is finished, what is done is confirmed.`,
		Example: `  ostraka cluster bootstrap --nodes n1=10.0.0.1:7400,n2=10.0.0.2:7400,n3=10.0.0.3:7400
  ostraka cluster bootstrap --nodes n1=a:7400,n2=b:7400,n3=c:7400 --zones n1=east,n2=west,n3=north --shards 16`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&nodes, "nodes", nil, "`id=host:port` of each node, comma-separated")
	flags.StringSliceVar(&zones, "zones", nil, "`id=zone` of nodes, so that copies are spread over zones")
	flags.IntVar(&spec.Shards, "shards", 0, "shards to cut the keys into, 1 to 256, for good; 0: as few as give each node equally much, 1 for three nodes")
	flags.IntVar(&spec.Replicas, "replicas", 0, "copies of each shard, 1 to 7; 0: 3, or the number of nodes where that is less")
	flags.DurationVar(&timeout, "timeout", bootstrapTimeout, "longest wait for all nodes")
	addJSON(cmd, &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if spec.Nodes, err = nodeSpecs(nodes, zones); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		return a.bootstrap(ctx, spec, asJSON)
	}
	return cmd
}

// nodeSpecs reads "n1=host:port" and "n1=zone".
func nodeSpecs(nodes, zones []string) ([]client.NodeSpec, error) {
	if len(nodes) == 0 {
		return nil, usagef("--nodes n1=HOST:PORT,… names the nodes of the cluster")
	}
	at := make(map[string]int)
	var specs []client.NodeSpec
	for _, text := range nodes {
		id, address, ok := strings.Cut(text, "=")
		if !ok || id == "" || address == "" {
			return nil, usagef("--nodes %q: want id=host:port", text)
		}
		if _, twice := at[id]; twice {
			return nil, usagef("--nodes names %s twice", id)
		}
		at[id] = len(specs)
		specs = append(specs, client.NodeSpec{ID: id, Address: address})
	}
	for _, text := range zones {
		id, zone, ok := strings.Cut(text, "=")
		i, known := at[id]
		switch {
		case !ok:
			return nil, usagef("--zones %q: want id=zone", text)
		case !known:
			return nil, usagef("--zones names %s, which is not among --nodes", id)
		}
		specs[i].Zone = zone
	}
	return specs, nil
}

func (a *app) bootstrap(ctx context.Context, spec client.BootstrapSpec, asJSON bool) error {
	endpoints := make([]string, len(spec.Nodes))
	for i, n := range spec.Nodes {
		endpoints[i] = n.Address
	}
	admin, err := client.NewAdmin(endpoints)
	if err != nil {
		return err
	}
	defer admin.Close()
	made, err := admin.Bootstrap(ctx, spec)
	switch {
	case err != nil:
		return err
	case asJSON:
		return a.printJSON(made)
	case made.Already:
		return a.print(fmt.Sprintf("cluster %s was made before: %d nodes, %d shards, %d replicas each", made.ClusterID, len(spec.Nodes), made.Shards, made.Replicas))
	}
	return a.print(fmt.Sprintf("cluster %s: %d nodes, %d shards, %d replicas each", made.ClusterID, len(spec.Nodes), made.Shards, made.Replicas))
}

func (a *app) statusCommand() *cobra.Command {
	var c connection
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show nodes and shards",
		Long:    "Any node answers, a blank one only for itself. Keys and bytes of a shard are its leader's account.",
		Example: "  ostraka cluster status\n  ostraka cluster status --json | jq '.shards[] | select(.leader == \"\")'",
		Args:    cobra.NoArgs,
	}
	c.flags(cmd, "the answer")
	addJSON(cmd, &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := c.bounded(cmd.Context())
		defer cancel()
		admin, err := client.NewAdmin(c.endpoints)
		if err != nil {
			return err
		}
		defer admin.Close()
		status, err := admin.Status(ctx)
		switch {
		case err != nil:
			return err
		case asJSON:
			return a.printJSON(status)
		}
		return a.printStatus(status)
	}
	return cmd
}

func (a *app) printStatus(s *client.Status) error {
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	if s.ClusterID != "" {
		fmt.Fprintf(t, "cluster %s, epoch %d\n\n", s.ClusterID, s.Epoch)
	}
	fmt.Fprintln(t, "NODE\tADDRESS\tSTATE\tZONE\tLEADS\tMEMORY\tBUILD")
	leads := make(map[string]int)
	for _, sh := range s.Shards {
		leads[sh.Leader]++
	}
	for _, n := range s.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", n.ID, n.Address, n.State, orDash(n.Zone), leads[n.ID], memoryOf(n), orDash(n.Build))
	}
	for _, n := range s.Nodes {
		if n.MetaReplica != "" && n.MetaReplica != "ok" {
			fmt.Fprintf(t, "\nthe cluster's own state on %s is %s\n", n.ID, n.MetaReplica)
		}
		if n.Sync != "" && n.Sync != "always" {
			fmt.Fprintf(t, "\nWARNING: %s runs with --sync %s: a power cut can lose writes that were acknowledged\n", n.ID, n.Sync)
		}
	}
	for _, n := range s.Nodes {
		if n.MemoryOver {
			fmt.Fprintf(t, "\nWARNING: %s is over its memory limit: its shards refuse writes that would take more\n", n.ID)
		}
	}
	if len(s.Shards) > 0 {
		fmt.Fprintln(t, "\nSHARD\tSLOTS\tLEADER\tREPLICAS\tTERM\tKEYS\tBYTES")
	}
	for _, sh := range s.Shards {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%d\t%d\t%s\n", sh.ID, strings.Join(sh.Ranges, ","), orDash(sh.Leader), replicaNames(sh.Replicas), sh.Term, sh.Keys, readableBytes(sh.Bytes))
	}
	for _, sh := range s.Shards {
		if sh.Alarm != "" {
			fmt.Fprintf(t, "\nALARM: shard %d: %s\n", sh.ID, sh.Alarm)
		}
	}
	return t.Flush()
}

// memoryOf is what a node uses of what it may.
func memoryOf(n client.NodeStatus) string {
	switch {
	case n.MemoryLimitBytes > 0:
		return fmt.Sprintf("%s of %s", readableBytes(n.MemoryBytes), readableBytes(n.MemoryLimitBytes))
	case n.MemoryBytes > 0:
		return readableBytes(n.MemoryBytes)
	}
	return "-"
}

// replicaNames lists the nodes of a shard's replicas, marking those that cannot be counted on.
func replicaNames(replicas []client.ReplicaStatus) string {
	names := make([]string, len(replicas))
	for i, r := range replicas {
		names[i] = r.Node
		switch {
		case r.Role == "":
			names[i] += "(away)"
		case r.State != "" && r.State != "ok":
			names[i] += "(" + r.State + ")"
		case !r.Voter:
			names[i] += "(non-voter)"
		case r.Role != "leader" && r.Role != "follower":
			names[i] += "(" + r.Role + ")"
		}
	}
	return strings.Join(names, ",")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
