package raftfsm

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// A voter that lost its data must not come back under its old id: it would vote for a leader that lacks what it had
// acknowledged.
func TestReplicaWithoutItsDataDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		c.leader(1).mustSet(1, "k", "v")
		c.converged(1)
		n := c.follower(1)
		n.stop()
		n.memory, n.files = storage.NewMemory(), disk.NewMem()
		n.open()
		_, err := n.host.StartGroup(GroupSpec{Shard: 1, Replica: c.replicaOn(1, n.id), Ranges: c.slotsOf(1)})
		if !errors.Is(err, storage.ErrReplicaBehind) {
			t.Errorf("it started: %v", err)
		}
	})
}

// A transfer to a peer that has not lately acknowledged anything is refused at once, and writes go on.
func TestTransferNeedsACaughtUpTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead := c.leader(1)
		target := c.follower(1)
		c.isolate(target.id)
		time.Sleep(10 * time.Second)
		for range 3 {
			began := time.Now()
			if err := lead.group(1).TransferLeadership(target.id); !errors.Is(err, errNotCaughtUp) || time.Since(began) > 0 {
				t.Errorf("transfer: %v after %s", err, time.Since(began))
			}
			lead.mustSet(1, "k", "v")
		}
		c.heal()
		c.eventually("it can take over once it has caught up", func() bool {
			return lead.group(1).TransferLeadership(target.id) == nil
		})
	})
}

// The preferred leader comes back after a long outage: leadership returns to it without a write being refused for
// longer than a transfer takes, and without a restart.
func TestBalanceAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		c.leader(1)
		preferred := c.follower(1)
		var nodes []shard.Node
		for _, n := range c.nodes {
			nodes = append(nodes, shard.Node{ID: n.id, Address: string(n.id)})
		}
		s := shard.Shard{ID: 1, Ranges: c.slotsOf(1), Preferred: preferred.id}
		for _, m := range c.members(1) {
			s.Replicas = append(s.Replicas, shard.Replica{ID: m.Replica, Node: m.Node, Voter: true})
		}
		m, err := shard.NewMap(1, nodes, []shard.Shard{s})
		if err != nil {
			t.Fatal(err)
		}
		c.isolate(preferred.id)
		for range 300 {
			c.leader(1, preferred.id).mustSet(1, "k", "v")
			time.Sleep(time.Second)
		}
		for _, n := range c.nodes {
			n.host.SetPreferred(func() *shard.Map { return m })
		}
		c.heal()
		c.eventually("the preferred node leads", preferred.group(1).IsLeader)
		for _, n := range c.nodes {
			if restarts := n.group(1).Status().Restarts; restarts > 0 {
				t.Errorf("%s was restarted %d times", n.id, restarts)
			}
		}
		preferred.mustSet(1, "k", "w")
	})
}

// The flag of raft#696 outlives a term: a leader elected with it never gets past its barrier, so nobody proposes
// anything that could be refused. Its barrier's refusal must count for the watchdog.
func TestRefusedBarrierIsNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead, target := c.leader(1), c.follower(1)
		c.isolate(target.id)
		time.Sleep(200 * time.Millisecond)
		lead.mustSet(1, "k", "something that the target lacks")
		l := lead.group(1).replica.current.Load()
		id := c.replicaOn(1, target.id)
		transfer := l.raft.LeadershipTransferToServer(transport.ServerID(id), transport.Address(target.id, id))
		synctest.Wait() // raft refuses entries until it has given the transfer up
		if err := l.becomeReady(); !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			t.Fatalf("the barrier was not refused: %v", err)
		}
		if l.refusing.Load() == 0 {
			t.Error("the watchdog does not hear of it")
		}
		if err := transfer.Error(); err == nil {
			t.Error("the transfer succeeded")
		}
	})
}
