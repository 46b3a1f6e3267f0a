package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/shard"
)

// startRotten is startCluster with nodes that flip a bit in memory where a key asks for it (raftfsm/knownbad).
func startRotten(t *testing.T, opts cluster.Options) *cluster.Cluster {
	t.Helper()
	opts.Binary, opts.Dir = filepath.Join(t.TempDir(), "knownbad"), t.TempDir()
	if out, err := exec.Command("go", "build", "-tags", "knownbad", "-o", opts.Binary, "github.com/ostraka-db/ostraka/cmd/ostraka").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv("OSTRAKA_KNOWN_BAD", "memory-bit")
	c, err := cluster.Start(testContext(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	cleanUp(t, c)
	return c
}

// replicaOf finds a shard's replica by its role.
func replicaOf(t *testing.T, s *client.Status, id shard.ID, role string) client.ReplicaStatus {
	t.Helper()
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			if sh.ID == id && r.Role == role {
				return r
			}
		}
	}
	t.Fatalf("shard %d has no %s: %+v", id, role, s.Shards)
	return client.ReplicaStatus{}
}

// rotKey is a key of a shard, on which one replica of it flips a bit of the value. A cluster of three shards that was just made has them in
// three runs of slots.
func rotKey(t *testing.T, s *client.Status, id shard.ID, replica shard.ReplicaID) []byte {
	t.Helper()
	for i := range 10_000 {
		key := fmt.Appendf(nil, "{%d}rot/%d", i, replica)
		for _, sh := range s.Shards {
			for _, run := range sh.Ranges {
				var from, to shard.Slot
				if _, err := fmt.Sscanf(run, "%d-%d", &from, &to); err != nil {
					t.Fatal(err)
				}
				if slot := shard.SlotOf(key); sh.ID == id && slot >= from && slot <= to {
					return key
				}
			}
		}
	}
	t.Fatalf("no key for shard %d", id)
	return nil
}

// A bit flips in the memory of one replica, a follower's and then a leader's, under load. "ostraka cluster verify" names shard, slot and replica and
// ends with 1; the replica is stopped and replaced, also if its node is killed in between; afterwards all are equal, and nothing is lost.
func TestFlippedBitIsFoundAndReplaced(t *testing.T) {
	notWithRace(t)
	c := startRotten(t, cluster.Options{HTTP: true, Shards: 3, ServerArgs: []string{"--election-timeout", "500ms", "--snapshot-log-bytes", "200000"}})
	l := startLoad(t, c, 11)
	l.progress(300)
	endpoints := strings.Join(c.Endpoints(), ",")
	verify := func() (status int, all []client.Verified, stderr string) {
		t.Helper()
		status, stdout, stderr := ostraka(t, "", "cluster", "verify", "--json", "--endpoints", endpoints)
		if err := json.Unmarshal([]byte(stdout), &all); err != nil && status != 5 {
			t.Fatalf("status %d: %v in %q, %s", status, err, stdout, stderr)
		}
		return status, all, stderr
	}
	s := await(t, c, cluster.Healthy)
	if status, all, stderr := verify(); status != 0 || len(all) != 3 || all[0].Slots+all[1].Slots+all[2].Slots != shard.SlotCount || len(all[0].Compared) != 3 {
		t.Fatalf("a sound cluster: status %d, %+v, %s", status, all, stderr)
	}
	cl := connect(t, c)
	for i, role := range []string{"follower", "leader"} {
		id := shard.ID(i + 1)
		rotten := replicaOf(t, s, id, role)
		key := rotKey(t, s, id, rotten.ID)
		if _, err := cl.Set(testContext(t), key, []byte("value")); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		status, all, stderr := verify()
		if status != 1 || len(all) != 3 || len(all[i].Differences) != 1 {
			t.Fatalf("%s: status %d, %+v, %s", role, status, all, stderr)
		}
		d := all[i].Differences[0]
		if shard.Slot(d.Slot) != shard.SlotOf(key) || len(d.Odd) != 1 || d.Odd[0] != rotten.ID || len(d.Fenced) != 1 || d.NotFenced != "" {
			t.Errorf("%s: %+v, want slot %d and replica %d", role, d, shard.SlotOf(key), rotten.ID)
		}
		if i == 0 { // what was found must not be forgotten
			kill(t, c.Node(rotten.Node))
			restart(t, c.Node(rotten.Node))
		}
		s = await(t, c, func(s *client.Status) bool {
			return cluster.Healthy(s) && uint64(rotten.ID) < replicaIDs(s, rotten.Node)[int(id)]
		})
		t.Logf("replica %d on %s, a %s: found, and replaced by %d within %s", rotten.ID, rotten.Node, role, replicaIDs(s, rotten.Node)[int(id)], time.Since(began).Round(time.Millisecond))
		if v, err := cl.Get(testContext(t), key); err != nil || string(v.Value) != "value" {
			t.Errorf("%s: %q, %v", key, v.Value, err)
		}
		l.progress(100)
	}
	if fenced := metricSum(t, c, "ostraka_verify_fenced_total"); fenced == 0 {
		t.Error("nobody counted it")
	}
	l.end(cl)
	await(t, c, func(s *client.Status) bool { return cluster.Healthy(s) && cluster.Converged(s) })
	if status, all, stderr := verify(); status != 0 {
		t.Errorf("afterwards: status %d, %+v, %s", status, all, stderr)
	}
}

// The same is found without anybody asking.
func TestFlippedBitIsFoundInTheBackground(t *testing.T) {
	c := startRotten(t, cluster.Options{HTTP: true, Shards: 3, ServerArgs: []string{"--election-timeout", "500ms", "--verify-every", "100ms"}})
	s := await(t, c, cluster.Healthy)
	rotten := replicaOf(t, s, 2, "follower")
	cl := connect(t, c)
	key := rotKey(t, s, 2, rotten.ID)
	if _, err := cl.Set(testContext(t), key, []byte("value")); err != nil {
		t.Fatal(err)
	}
	// A pass over each shard has begun, perhaps before the write; the next begins after ten minutes. Nodes that start anew begin at once.
	lead := replicaOf(t, s, 2, "leader")
	kill(t, c.Node(lead.Node))
	restart(t, c.Node(lead.Node))
	await(t, c, func(s *client.Status) bool {
		return cluster.Healthy(s) && replicaIDs(s, rotten.Node)[2] > uint64(rotten.ID)
	})
	if v, err := cl.Get(testContext(t), key); err != nil || string(v.Value) != "value" {
		t.Errorf("%q, %v", v.Value, err)
	}
	if fenced := metricSum(t, c, "ostraka_verify_fenced_total"); fenced != 1 {
		t.Errorf("%g replicas were stopped", fenced)
	}
}
