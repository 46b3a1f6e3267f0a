package e2e

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/server"
)

// replicaIDs are the ids of a node's replicas by shard.
func replicaIDs(s *client.Status, node string) map[int]uint64 {
	ids := make(map[int]uint64)
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			if r.Node == node {
				ids[int(sh.ID)] = uint64(r.ID)
			}
		}
	}
	return ids
}

// Whole data directories are removed, of one node after the other, under load: each node is taken back with fresh replicas,
// which get everything from the others, and a vote. Nothing that was acknowledged is lost.
func TestWipedNodesRejoin(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms", "--snapshot-log-bytes", "20000"}})
	l := startLoad(t, c, 5)
	l.progress(300)
	for _, p := range c.Nodes() {
		before := replicaIDs(await(t, c, cluster.Healthy), p.ID)
		kill(t, p)
		if err := os.RemoveAll(p.DataDir); err != nil {
			t.Fatal(err)
		}
		l.progress(30)
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
		l.progress(100)
	}
	l.end(connect(t, c))
	await(t, c, func(s *client.Status) bool { return cluster.Healthy(s) && cluster.Converged(s) })
}

// A bit flips in the log of a stopped node, under load, for one node and shard after the other: the replica that it may
// concern is replaced by itself, and only that one.
func TestDamagedReplicasAreReplaced(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms"}})
	l := startLoad(t, c, 6)
	l.progress(300)
	for i, p := range c.Nodes() {
		rotten := uint32(i + 1)
		before := replicaIDs(await(t, c, cluster.Healthy), p.ID)
		kill(t, p)
		rotEntry(t, p.DataDir, rotten)
		l.progress(30)
		restart(t, p)
		s := await(t, c, func(s *client.Status) bool {
			return cluster.Healthy(s) && replicaIDs(s, p.ID)[int(rotten)] > before[int(rotten)]
		})
		now := replicaIDs(s, p.ID)
		t.Logf("%s: replicas %v are now %v", p.ID, before, now)
		for id, was := range before {
			if uint32(id) != rotten && now[id] != was {
				t.Errorf("shard %d on %s: replica %d was whole, and was replaced", id, p.ID, was)
			}
		}
		l.progress(100)
	}
	l.end(connect(t, c))
	await(t, c, func(s *client.Status) bool { return cluster.Healthy(s) && cluster.Converged(s) })
}

// A replica, and then all of a node's, are replaced by command, while everything is well; and it is refused while the others
// are no majority.
func TestReplaceByCommand(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms"}})
	l := startLoad(t, c, 7)
	l.progress(300)
	endpoints := strings.Join(c.Endpoints(), ",")
	before := replicaIDs(await(t, c, cluster.Healthy), "n2")
	status, stdout, stderr := ostraka(t, "", "cluster", "replace", "--node", "n2", "--shard", "2", "--endpoints", endpoints, "--json")
	if status != 0 {
		t.Fatalf("status %d, %s", status, stderr)
	}
	var replaced []client.ReplacedReplica
	if err := json.Unmarshal([]byte(stdout), &replaced); err != nil || len(replaced) != 1 || uint64(replaced[0].Old) != before[2] || replaced[0].Shard != 2 {
		t.Errorf("%s: %v", stdout, err)
	}
	s := await(t, c, func(s *client.Status) bool {
		return cluster.Healthy(s) && replicaIDs(s, "n2")[2] == uint64(replaced[0].Fresh)
	})
	// Now the leader of most, whole.
	lead, _ := cluster.MostLeading(s)
	before = replicaIDs(s, lead)
	if status, _, stderr = ostraka(t, "", "cluster", "replace", "--node", lead, "--endpoints", endpoints); status != 0 {
		t.Fatalf("status %d, %s", status, stderr)
	}
	s = await(t, c, func(s *client.Status) bool {
		for id, now := range replicaIDs(s, lead) {
			if now <= before[id] {
				return false
			}
		}
		return cluster.Healthy(s)
	})
	l.progress(100)
	l.end(connect(t, c))

	away := "n1"
	if lead == "n1" {
		away = "n2"
	}
	kill(t, c.Node(away))
	await(t, c, func(s *client.Status) bool { return cluster.Led(s) && s.MetaLeader != "" && s.MetaLeader != away })
	status, _, stderr = ostraka(t, "", "cluster", "replace", "--node", lead, "--endpoints", endpoints)
	if status != 5 || !strings.Contains(stderr, "can't do without") {
		t.Errorf("with one node away: status %d, %s", status, stderr)
	}
	if status, _, stderr = ostraka(t, "", "cluster", "replace", "--node", "n9", "--endpoints", endpoints); status != 2 || !strings.Contains(stderr, "n9") {
		t.Errorf("an unknown node: status %d, %s", status, stderr)
	}
	restart(t, c.Node(away))
	if now := replicaIDs(await(t, c, cluster.Healthy), lead); !maps.Equal(now, replicaIDs(s, lead)) {
		t.Errorf("refused, and yet: %v, was %v", now, replicaIDs(s, lead))
	}
}

// Two of three nodes are gone for good. What is left says so, is rebuilt from the third, and takes nodes with empty
// directories for the lost ones. One of those that comes back with its old data is refused.
func TestRecoverFromALostMajority(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms", "--snapshot-log-bytes", "20000"}})
	l := startLoad(t, c, 8)
	l.progress(600)
	l.end(connect(t, c))
	await(t, c, func(s *client.Status) bool { return cluster.Healthy(s) && cluster.Converged(s) })
	left, wiped, stale := c.Nodes()[0], c.Nodes()[1], c.Nodes()[2]

	if status, _, stderr := ostraka(t, "", "recover", "--data-dir", left.DataDir, "--yes"); status != 1 || !strings.Contains(stderr, "is locked") {
		t.Errorf("while it runs: status %d, %s", status, stderr)
	}
	for _, p := range c.Nodes() {
		kill(t, p)
	}
	if err := os.RemoveAll(wiped.DataDir); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := ostraka(t, "no\n", "recover", "--data-dir", left.DataDir); status != 1 || !strings.Contains(stderr, "nothing was changed") {
		t.Errorf("not confirmed: status %d, %s", status, stderr)
	}
	status, stdout, stderr := ostraka(t, "", "recover", "--data-dir", left.DataDir, "--yes", "--json")
	if status != 0 {
		t.Fatalf("status %d, %s", status, stderr)
	}
	var report server.RecoveryReport
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Survivors) != 1 || !slices.Equal(report.Lost, []string{wiped.ID, stale.ID}) || len(report.Groups) != 4 {
		t.Errorf("%s", stdout)
	}
	for _, g := range report.Groups {
		if g.Node != left.ID || g.Voters != 3 || g.VotersHere != 1 || g.Loss != server.LossPossible || g.LastIndex == 0 {
			t.Errorf("%+v", g)
		}
	}
	restart(t, left)
	await(t, c, func(s *client.Status) bool { return cluster.Led(s) && s.ClusterID == report.NewClusterID })
	cl := connect(t, c)
	l.checkAcknowledged(cl)
	if _, err := cl.Set(testContext(t), []byte("after"), []byte("v")); err != nil {
		t.Error(err)
	}
	restart(t, stale)
	restart(t, wiped)
	await(t, c, func(s *client.Status) bool {
		back := 0
		for _, sh := range s.Shards {
			for _, r := range sh.Replicas {
				if r.Node == wiped.ID && r.Voter && r.State == "ok" {
					back++
				}
				if r.Node == stale.ID {
					t.Errorf("%s is back with its old data: %+v", stale.ID, r)
				}
			}
		}
		return s.ClusterID == report.NewClusterID && back == len(s.Shards)
	})
	kill(t, stale)
	if err := os.RemoveAll(stale.DataDir); err != nil {
		t.Fatal(err)
	}
	restart(t, stale)
	await(t, c, func(s *client.Status) bool {
		return s.ClusterID == report.NewClusterID && cluster.Healthy(s) && cluster.Converged(s)
	})
	l.checkAcknowledged(cl)

	// With a majority of directories nothing can be lost, and it says so.
	for _, p := range c.Nodes() {
		kill(t, p)
	}
	status, stdout, stderr = ostraka(t, "", "recover", "--data-dir", left.DataDir, "--data-dir", wiped.DataDir, "--yes", "--json")
	if status != 0 {
		t.Fatalf("status %d, %s", status, stderr)
	}
	var again server.RecoveryReport
	if err := json.Unmarshal([]byte(stdout), &again); err != nil {
		t.Fatal(err)
	}
	for _, g := range again.Groups {
		if g.Loss != server.LossNone || g.VotersHere != 2 {
			t.Errorf("%+v", g)
		}
	}
	if err := os.RemoveAll(stale.DataDir); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Nodes() {
		restart(t, p)
	}
	await(t, c, func(s *client.Status) bool {
		return s.ClusterID == again.NewClusterID && cluster.Healthy(s) && cluster.Converged(s)
	})
	l.checkAcknowledged(connect(t, c))
}

// garble overwrites what is used of a file, from an offset on.
func garble(t *testing.T, path string, from int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(b, "\x00")) // the rest may be room that was taken beforehand
	for i := from; i < used; i++ {
		b[i] ^= 0x5a
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// theFiles are those that match a pattern in a node's data directory; none is a failure.
func theFiles(t *testing.T, p *cluster.Process, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.DataDir, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s in %s: %v, %v", pattern, p.DataDir, found, err)
	}
	return found
}

// The replica of the cluster's own state is rotten, or gone, and so are the snapshots of a shard: the node runs on without
// them, and each is replaced by itself.
func TestOtherDamageIsReplaced(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms", "--snapshot-log-bytes", "20000", "--snapshot-trailing-entries", "20"}})
	l := startLoad(t, c, 9)
	l.progress(1500)
	for i, damage := range []func(*cluster.Process){
		func(p *cluster.Process) {
			garble(t, theFiles(t, p, "meta/log-*.bolt")[0], 2*os.Getpagesize()) // all but the pages that bolt begins with
		},
		func(p *cluster.Process) {
			if err := os.Remove(theFiles(t, p, "meta/log-*.bolt")[0]); err != nil {
				t.Fatal(err)
			}
		},
		func(p *cluster.Process) {
			for _, path := range theFiles(t, p, "snap/1/*.snap") {
				garble(t, path, 256)
			}
		},
	} {
		p := c.Nodes()[i]
		before := replicaIDs(await(t, c, cluster.Healthy), p.ID)
		old := theFiles(t, p, "meta/log-*.bolt")
		kill(t, p)
		damage(p)
		restart(t, p)
		s := await(t, c, func(s *client.Status) bool {
			if i < 2 { // a fresh id has a file of its own, and the old one's is gone
				files, err := filepath.Glob(filepath.Join(p.DataDir, "meta/log-*.bolt"))
				return cluster.Healthy(s) && err == nil && len(files) == 1 && !slices.Equal(files, old)
			}
			return cluster.Healthy(s) && replicaIDs(s, p.ID)[1] > before[1]
		})
		if now := replicaIDs(s, p.ID); i < 2 && !maps.Equal(now, before) {
			t.Errorf("shards' replicas %v are now %v", before, now)
		}
		l.progress(100)
	}
	l.end(connect(t, c))
	await(t, c, func(s *client.Status) bool { return cluster.Healthy(s) && cluster.Converged(s) })
}
