package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/server"
)

// startOnDisks starts a cluster of which each node has a disk of its own.
func startOnDisks(t *testing.T, bytes int64, opts cluster.Options) (*cluster.Cluster, []*cluster.Disk) {
	t.Helper()
	dir := t.TempDir()
	var disks []*cluster.Disk
	for i := range 3 {
		d, err := cluster.NewDisk(dir, fmt.Sprintf("n%d", i+1), bytes)
		if errors.Is(err, cluster.ErrNoLoopDisks) {
			t.Skipf("not tested here: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		disks = append(disks, d)
	}
	opts.Binary, opts.Dir = binary, dir // whose nodes are n1, n2, n3
	opts.Shards = cmp.Or(opts.Shards, 3)
	ctx, cancel := context.WithTimeout(testContext(t), patience)
	defer cancel()
	c, err := cluster.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	cleanUp(t, c)
	return c, disks
}

// The power of one node, of a majority and of all is cut under load, with the disks' unsynced contents lost: nothing that
// was acknowledged is lost, and what clients saw is linearizable.
func TestPowerCut(t *testing.T) {
	c, disks := startOnDisks(t, 256<<20, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms", "--snapshot-log-bytes", "20000"}})
	l := startLoad(t, c, 3)
	for round, cut := range []int{1, 2, 3, 3, 2, 1} {
		l.progress(300)
		for i := range cut {
			n := (round + i) % 3
			if err := disks[n].CutPower(); err != nil {
				t.Fatal(err)
			}
		}
		for i := range cut {
			n := (round + i) % 3
			kill(t, c.Nodes()[n])
			if err := disks[n].Restore(); err != nil {
				t.Fatal(err)
			}
		}
		for i := range cut {
			restart(t, c.Nodes()[(round+i)%3])
		}
	}
	l.progress(100)
	l.end(connect(t, c))
	await(t, c, cluster.Converged)
}

// With --sync interval, killed processes lose nothing; where the machine's power was cut, replicas that may have forgotten
// something stay stopped (here the same kernel goes on, so only the kill can be shown).
func TestSyncIntervalSurvivesKills(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--sync", "interval", "--election-timeout", "500ms"}})
	l := startLoad(t, c, 4)
	for range 3 {
		l.progress(400)
		for _, p := range c.Nodes() {
			kill(t, p)
		}
		for _, p := range c.Nodes() {
			restart(t, p)
		}
	}
	l.progress(100)
	l.end(connect(t, c))
	s := await(t, c, cluster.Converged)
	for _, n := range s.Nodes {
		if n.Sync != "interval" {
			t.Errorf("%s says that it syncs %q", n.ID, n.Sync)
		}
	}
}

// Full disks refuse writes with a typed error that says so, and serve reads; votes have room, also when a leader is killed, and
// nodes that are killed come back, one or all. Writes are taken again when there is room.
func TestFullDisks(t *testing.T) {
	c, disks := startOnDisks(t, 300<<20, cluster.Options{Shards: 1})
	cl := connect(t, c)
	ctx := testContext(t)
	if _, err := cl.Set(ctx, []byte("before"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	for i, d := range disks {
		if err := d.Fill(); err != nil {
			t.Fatal(err)
		}
		if !c.Nodes()[i].Running() {
			t.Fatalf("%s ended when its disk was full", c.Nodes()[i].ID)
		}
	}
	// Snapshots can't be written either, so the log is not cut and fills its last segment.
	value := bytes.Repeat([]byte("x"), 512<<10)
	var refused error
	for n := 0; refused == nil && n < 1000; n++ {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := cl.Set(call, fmt.Append(nil, "k", n%50), value)
		cancel()
		if errors.Is(err, client.ErrOutcomeUnknown) {
			continue // a follower may be full before its leader: then nobody can tell
		}
		refused = err
	}
	if !errors.Is(refused, client.ErrUnavailable) {
		t.Fatalf("with full disks a write ended as %v", refused)
	}
	if !strings.Contains(refused.Error(), "no space left for the log") {
		t.Errorf("the error does not say why: %v", refused)
	}
	if got, err := cl.Get(ctx, []byte("before")); err != nil || string(got.Value) != "v" {
		t.Errorf("read: %q, %v", got.Value, err)
	}
	running := func(when string) {
		t.Helper()
		for _, p := range c.Nodes() {
			if !p.Running() {
				t.Fatalf("%s ended %s", p.ID, when)
			}
		}
	}
	running("when writes were refused")
	readable := func(when string) {
		t.Helper()
		call, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		for {
			got, err := cl.Get(call, []byte("before"))
			if err == nil && string(got.Value) == "v" {
				return
			}
			if call.Err() != nil {
				t.Fatalf("read %s: %q, %v", when, got.Value, err)
			}
		}
	}
	for range 3 {
		s := await(t, c, cluster.Led)
		leader := c.Node(s.Shards[0].Leader)
		kill(t, leader)
		readable("without its leader")
		restart(t, leader)
		running("when a leader was killed")
	}
	for range 3 {
		for _, p := range c.Nodes() {
			kill(t, p)
		}
		for _, p := range c.Nodes() {
			restart(t, p)
		}
		readable("when all had been killed")
		running("when all had been killed")
	}
	for _, d := range disks {
		if err := d.Free(); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(patience)
	for {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := cl.Set(call, []byte("after"), []byte("v"))
		cancel()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is room again, but writes end as %v", err)
		}
	}
}

// The machine of a node with --sync interval stopped while its log was open, as the log finds by the kernel's boot id: its
// replicas, which may have forgotten what they vouched for, don't come back under their ids but are replaced. Nothing that was
// acknowledged is lost.
func TestUncleanBootIsReplaced(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--sync", "interval", "--election-timeout", "500ms"}})
	l := startLoad(t, c, 8)
	for _, p := range c.Nodes()[:2] {
		l.progress(300)
		before := replicaIDs(await(t, c, cluster.Healthy), p.ID)
		kill(t, p)
		bootAnew(t, p)
		restart(t, p)
		s := await(t, c, func(s *client.Status) bool {
			now := replicaIDs(s, p.ID)
			for id, was := range before {
				if now[id] <= was {
					return false
				}
			}
			return cluster.Healthy(s)
		})
		t.Logf("%s: replicas %v are now %v", p.ID, before, replicaIDs(s, p.ID))
	}
	l.progress(100)
	l.end(connect(t, c))
	await(t, c, cluster.Converged)
}

// bootAnew makes a killed node with --sync interval believe that its machine was started again since.
func bootAnew(t *testing.T, p *cluster.Process) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.DataDir, "wal", "unsynced"), []byte("an earlier start of the machine"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// That befalls all machines at once. No shard has a leader any more, since nobody knows what was acknowledged; a recovery from
// all directories says that their end may be lost, and goes on with what there is. The cluster's own state, which is synced at
// once in any mode, never stops.
func TestUncleanBootOfAllIsRecovered(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--sync", "interval", "--election-timeout", "500ms"}})
	l := startLoad(t, c, 9)
	l.progress(600)
	l.end(connect(t, c))
	await(t, c, func(s *client.Status) bool { return cluster.Healthy(s) && cluster.Converged(s) })
	args := []string{"recover", "--yes", "--json"}
	for _, p := range c.Nodes() {
		kill(t, p)
		bootAnew(t, p)
		args = append(args, "--data-dir", p.DataDir)
	}
	for _, p := range c.Nodes() {
		restart(t, p)
	}
	await(t, c, func(s *client.Status) bool {
		damaged := 0
		for _, sh := range s.Shards {
			for _, r := range sh.Replicas {
				if r.State == "damaged" {
					damaged++
				}
			}
		}
		for _, n := range s.Nodes {
			if n.MetaReplica != "ok" {
				return false
			}
		}
		return len(s.Shards) > 0 && damaged == 3*len(s.Shards)
	})
	for _, p := range c.Nodes() {
		kill(t, p)
	}
	status, stdout, stderr := ostraka(t, "", args...)
	if status != 0 {
		t.Fatalf("status %d, %s", status, stderr)
	}
	var report server.RecoveryReport
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatal(err)
	}
	for _, g := range report.Groups {
		wantHere, wantLoss := 0, server.LossPossible
		if g.Shard == 0 {
			wantHere, wantLoss = 3, server.LossNone
		}
		if g.VotersHere != wantHere || g.Loss != wantLoss || g.LastIndex == 0 {
			t.Errorf("%+v", g)
		}
	}
	for _, p := range c.Nodes() {
		restart(t, p)
	}
	await(t, c, func(s *client.Status) bool {
		return s.ClusterID == report.NewClusterID && cluster.Healthy(s) && cluster.Converged(s)
	})
	l.checkAcknowledged(connect(t, c)) // the kernel ran on, so nothing was lost in truth
}

// A disk that holds some segments and no more goes on taking writes, for ever: where there is no room left for a segment, snapshots are
// taken and all goes that can, whatever was to call for snapshots.
func TestSmallDisks(t *testing.T) {
	notWithRace(t)
	c, _ := startOnDisks(t, 240<<20, cluster.Options{Shards: 1, ServerArgs: []string{"--snapshot-log-bytes", "1000000000"}})
	ctx := testContext(t)
	cl := connect(t, c)
	value := bytes.Repeat([]byte("x"), 256<<10)
	for written := 0; written < 400<<20; written += len(value) {
		call, cancel := context.WithTimeout(ctx, patience)
		_, err := cl.Set(call, fmt.Append(nil, "k", written%40), value)
		cancel()
		if err != nil && !errors.Is(err, client.ErrOutcomeUnknown) {
			t.Fatalf("after %d MiB: %v", written>>20, err)
		}
	}
	await(t, c, cluster.Converged)
}
