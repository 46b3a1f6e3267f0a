package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/dev"
)

const (
	// devReadyWithin is how long a cluster on one machine may take to be usable.
	devReadyWithin = time.Minute
	// devGrace is how long nodes may take to hand over and drain; longer than their own limit.
	devGrace = 20 * time.Second
	// devNodes is the number of nodes of a new cluster.
	devNodes = 3
)

const devLong = `Runs a cluster of real processes on this machine: node i has its gRPC port at base+10(i-1), HTTP at the next one, and
the one behind that is reserved. When the cluster can be used, its addresses are printed.

Ctrl-C stops all nodes gently, a second Ctrl-C at once. A node that ends by itself, or that you kill to see what
happens, is reported with the command line that starts it again; the others go on.

With --data-dir the cluster is kept, and a later start goes on with it; otherwise its data is in a temporary directory
that is removed at the end. What stands behind -- is handed to every "ostraka server".`

// devFlags are those of dev.
type devFlags struct {
	nodes, shards, basePort int
	dataDir, logLevel       string
	json                    bool
}

func (a *app) devCommand() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use:   "dev [-- SERVER FLAGS]",
		Short: "Run a whole cluster on this machine, to try and to develop with",
		Long:  devLong,
		Example: `  ostraka dev
  ostraka dev --nodes 5 --shards 32 --data-dir ./cluster
  ostraka dev --base-port 9000 -- --pprof --election-timeout 300ms`,
		Args: serverFlagsOnly,
	}
	flags := cmd.Flags()
	flags.IntVar(&f.nodes, "nodes", 0, "number of nodes; 0: those the data directory has, or 3")
	flags.IntVar(&f.shards, "shards", 0, "number of shards; 0: those the data directory has, or what cluster bootstrap takes by default")
	flags.StringVar(&f.dataDir, "data-dir", "", "`directory` to keep the cluster in")
	flags.IntVar(&f.basePort, "base-port", 7400, "gRPC `port` of the first node")
	flags.StringVar(&f.logLevel, "log-level", "warn", "of the nodes: debug, info, warn or error")
	settings(flags, "nodes", "shards", "data-dir", "base-port", "log-level")
	addJSON(cmd, &f.json)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.dev(cmd.Context(), f, args) }
	return cmd
}

// serverFlagsOnly takes no arguments but those behind --, which are for the servers.
func serverFlagsOnly(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
		return fmt.Errorf("unknown argument %q; flags for the servers come after --", args[0])
	}
	return nil
}

func (a *app) dev(ctx context.Context, f devFlags, serverArgs []string) (failed error) {
	dir, temporary := f.dataDir, f.dataDir == ""
	if temporary {
		var err error
		if dir, err = os.MkdirTemp("", "ostraka-dev-"); err != nil {
			return err
		}
		defer func() { failed = errors.Join(failed, os.RemoveAll(dir)) }()
	}
	layout, err := dev.Claim(dir, dev.Layout{Nodes: f.nodes, Shards: f.shards}, devNodes)
	if err != nil {
		return err
	}
	nodes, err := dev.Plan(dir, layout.Nodes, f.basePort)
	if err != nil {
		return err
	}
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	children := &dev.Children{Executable: executable, Args: append([]string{"--log-level", f.logLevel}, serverArgs...), Log: a.err}
	if err := children.Start(nodes); err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, a.stopDev(children)) }()
	if err := a.readyDev(ctx, dir, layout, nodes, children); err != nil {
		if ctx.Err() != nil {
			return nil // a Ctrl-C before the cluster was ready is an order like any other
		}
		return err
	}
	if err := a.printDev(f, dir, temporary, nodes, children); err != nil {
		return err
	}
	return a.watchDev(ctx, children)
}

// readyDev makes a new cluster of the nodes and waits until every shard has a leader.
func (a *app) readyDev(ctx context.Context, dir string, layout dev.Layout, nodes []dev.Node, children *dev.Children) error {
	ctx, cancel := context.WithTimeoutCause(ctx, devReadyWithin, fmt.Errorf("%w: the cluster is not ready after %s", client.ErrUnavailable, devReadyWithin))
	defer cancel()
	// A node that ends now would leave everybody waiting for it.
	ctx, release := children.WhileAllRun(ctx)
	defer release()
	admin, err := client.NewAdmin(dev.Endpoints(nodes))
	if err != nil {
		return err
	}
	defer admin.Close()
	if !layout.Bootstrapped {
		if err := bootstrapDev(ctx, admin, layout, nodes); err != nil {
			return causeOf(ctx, err)
		}
		layout.Bootstrapped = true
		if err := layout.Save(dir); err != nil {
			return err
		}
	}
	for {
		status, err := admin.Status(ctx)
		if err == nil && ready(status, len(nodes)) {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return causeOf(ctx, err)
		}
	}
}

func bootstrapDev(ctx context.Context, admin *client.Admin, layout dev.Layout, nodes []dev.Node) error {
	spec := client.BootstrapSpec{Shards: layout.Shards}
	for _, n := range nodes {
		spec.Nodes = append(spec.Nodes, client.NodeSpec{ID: n.ID, Address: n.Address})
	}
	_, err := admin.Bootstrap(ctx, spec)
	return err
}

// causeOf is why ctx ended, if it did, else err.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// ready: every node is up, and every shard has a leader.
func ready(s *client.Status, nodes int) bool {
	up := 0
	for _, n := range s.Nodes {
		if n.State == "up" {
			up++
		}
	}
	leaderless := slices.ContainsFunc(s.Shards, func(sh client.ShardStatus) bool { return sh.Leader == "" })
	return up == nodes && len(s.Shards) > 0 && !leaderless
}

// printDev tells where the cluster is and what to do with it.
func (a *app) printDev(f devFlags, dir string, temporary bool, nodes []dev.Node, children *dev.Children) error {
	endpoints := dev.Endpoints(nodes)
	if f.json {
		return a.printJSON(struct {
			Endpoints []string       `json:"endpoints"`
			DataDir   string         `json:"data_dir"`
			Nodes     []dev.NodeLine `json:"nodes"`
		}{endpoints, dir, children.Lines()})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "A cluster of %d nodes is ready.\n\n", len(nodes))
	for _, l := range children.Lines() {
		fmt.Fprintf(&b, "  %-4s %s   http://%s/metrics   pid %d\n", l.ID, l.Address, l.HTTP, l.PID)
	}
	kept := "kept there for the next start"
	if temporary {
		kept = "removed at the end; --data-dir keeps it"
	}
	fmt.Fprintf(&b, "\nData: %s (%s)\n\nTry, in another terminal:\n\n", dir, kept)
	if f.basePort != 7400 {
		fmt.Fprintf(&b, "  export OSTRAKA_ENDPOINTS=%s\n", strings.Join(endpoints, ","))
	}
	fmt.Fprintf(&b, `  ostraka set greeting hello
  ostraka get greeting
  ostraka cluster status
  ostraka bench --duration 5s
  kill -9 %d   # a node dies, the others go on

Ctrl-C stops the cluster.
`, children.Lines()[0].PID)
	_, err := fmt.Fprint(a.out, b.String())
	return err
}

// watchDev reports nodes that end, until ctx does or no node is left.
func (a *app) watchDev(ctx context.Context, children *dev.Children) error {
	for children.Running() > 0 {
		select {
		case <-ctx.Done():
			return nil
		case e := <-children.Ended():
			a.say("%s ended (%s), the others go on; this starts it again:\n  %s", e.Node.ID, e.State, strings.Join(children.Command(e.Node), " "))
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return errors.New("no node is left")
}

// stopDev ends all nodes. A second signal cuts their grace short.
func (a *app) stopDev(children *dev.Children) error {
	a.say("stopping %d nodes; once more stops them at once", children.Running())
	a.abort.instead(children.Kill)
	killed := children.Stop(devGrace)
	if len(killed) > 0 {
		return fmt.Errorf("killed %s, which did not stop in %s", strings.Join(killed, ", "), devGrace)
	}
	return nil
}
