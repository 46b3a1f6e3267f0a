package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

var silent = slog.New(slog.NewTextHandler(io.Discard, nil))

// copyDirs copies data directories.
func copyDirs(t *testing.T, dirs ...string) []string {
	t.Helper()
	var copies []string
	for _, dir := range dirs {
		to := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, to)
	}
	return copies
}

// mustRecover rebuilds a cluster from data directories, of which it runs only the first steps if some are named.
func mustRecover(t *testing.T, steps int, dirs ...string) *Recovery {
	t.Helper()
	r, err := OpenRecovery(dirs, false, silent)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range r.steps() {
		if i == steps {
			break
		}
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return r
}

const allSteps = -1

// mustRead wants the key that startMembers wrote.
func mustRead(t *testing.T, nodes ...*bootstrapNode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	whenLed(ctx, t, func() (err error) {
		for _, n := range nodes {
			var got *ostrakapb.GetResponse
			if got, err = ostrakapb.NewKVClient(n.conn).Get(ctx, &ostrakapb.GetRequest{Key: []byte("k")}); err == nil {
				if string(got.GetValue()) != "v" {
					t.Errorf("got %v", got)
				}
				return nil
			}
		}
		return err
	})
}

// TestRecoveryCutOffAnywhere: no node starts on a directory in the middle of a recovery; run again, it is finished, with the
// same id for the rebuilt cluster as at first, and the nodes of the directories are its nodes.
func TestRecoveryCutOffAnywhere(t *testing.T) {
	nodes, _ := startMembers(t)
	soon(t, "all vote", func() bool { return allVote(nodes) })
	was := nodes[0].node.ClusterID()
	for _, n := range nodes {
		n.stop()
	}
	originals := []string{nodes[0].dir, nodes[1].dir}
	whole := mustRecover(t, 0, copyDirs(t, originals...)...)
	steps := len(whole.steps())
	if steps < 8 {
		t.Fatalf("%d steps", steps)
	}
	for cut := range steps + 1 {
		t.Run(fmt.Sprint("after ", cut), func(t *testing.T) {
			dirs := copyDirs(t, originals...)
			begun := mustRecover(t, cut, dirs...)
			for i, dir := range dirs {
				err := refuseUnfinishedRecovery(begun.files, dir)
				if under := cut > i && cut <= steps-len(dirs)+i; under != errors.Is(err, ErrRecoveryUnfinished) {
					t.Errorf("node %d: %v", i, err)
				}
			}
			if cut < steps {
				done := mustRecover(t, allSteps, dirs...)
				if cut > 0 && done.Report.NewClusterID != begun.Report.NewClusterID {
					t.Errorf("cluster %s, and at first %s", done.Report.NewClusterID, begun.Report.NewClusterID)
				}
			}
			for i, dir := range dirs {
				nodes[i].dir = dir
				nodes[i].start()
				defer nodes[i].stop()
			}
			soon(t, "both vote", func() bool { return allVote(nodes[:2]) })
			mustRead(t, nodes[:2]...)
			mustWrite(t, nodes[:2])
			if now := nodes[0].node.ClusterID(); now == was || nodes[1].node.ClusterID() != now {
				t.Errorf("clusters %s and %s, it was %s", now, nodes[1].node.ClusterID(), was)
			}
		})
	}
}

// TestRecoveryRefused: directories that can't make a cluster are left as they are.
func TestRecoveryRefused(t *testing.T) {
	nodes, _ := startMembers(t)
	others, _ := startMembers(t)
	blank, _ := startBlank(t, 1)
	if _, err := OpenRecovery([]string{nodes[0].dir}, false, silent); err == nil {
		t.Error("the node runs")
	}
	for _, n := range append(append(nodes, others...), blank...) {
		n.stop()
	}
	for name, dirs := range map[string][]string{
		"none":         nil,
		"one twice":    {nodes[0].dir, copyDirs(t, nodes[0].dir)[0]},
		"two clusters": {nodes[0].dir, others[1].dir},
		"a blank node": {blank[0].dir},
	} {
		if _, err := OpenRecovery(dirs, false, silent); !errors.Is(err, ErrRecovery) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenRecovery([]string{t.TempDir()}, false, silent); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
	for _, n := range nodes {
		n.start()
	}
	mustRead(t, nodes...)
}

// TestRecoverAShardWithoutACopy: of four nodes the one that is left holds nothing of a shard. It begins empty where that is
// wanted, on a node that is left.
func TestRecoverAShardWithoutACopy(t *testing.T) {
	nodes, req := startBlank(t, 4)
	req.Shards = 4
	if _, err := nodes[0].bootstrap(req); err != nil {
		t.Fatal(err)
	}
	var missing shard.ID
	left := nodes[0]
	m := left.node.Map()
	for _, n := range nodes {
		for _, s := range m.Shards() {
			if _, ok := m.ReplicaOn(s.ID, n.node.NodeID()); !ok {
				missing, left = s.ID, n
			}
		}
	}
	if missing == 0 {
		t.Fatal("every node holds every shard")
	}
	mustWrite(t, nodes)
	soon(t, "the node that is left has the cluster's state", func() bool { return left.node.Host().Meta().State() != nil })
	for _, n := range nodes {
		n.stop()
	}
	if _, err := OpenRecovery([]string{left.dir}, false, silent); !errors.Is(err, ErrRecovery) {
		t.Fatalf("a shard would be empty: %v", err)
	}
	r, err := OpenRecovery([]string{left.dir}, true, silent)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Run(), r.Close()); err != nil {
		t.Fatal(err)
	}
	empty := 0
	for _, g := range r.Report.Groups {
		if g.Loss == LossAll {
			empty++
		}
	}
	if empty == 0 {
		t.Errorf("%+v", r.Report)
	}
	left.start()
	soon(t, "it leads all shards", func() bool {
		if left.node.Host() == nil {
			return false
		}
		groups := left.node.Host().Groups()
		return len(groups) == 4 && !slices.ContainsFunc(groups, func(g *raftfsm.Group) bool { return !g.IsLeader() })
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i := range 200 { // keys of every shard
		key := fmt.Append(nil, "k", i)
		whenLed(ctx, t, func() error {
			_, err := ostrakapb.NewKVClient(left.conn).Set(ctx, &ostrakapb.SetRequest{Key: key, Value: []byte("v")})
			return err
		})
	}
	// Nodes with empty directories take the places of the lost.
	for _, n := range nodes {
		if n != left {
			n.wipe()
		}
	}
	soon(t, "all vote", func() bool { return allVote(nodes) })
}
