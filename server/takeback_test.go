package server

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// soon waits until a condition holds.
func soon(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}

// startMembers runs a cluster of three nodes and one shard that has taken a write.
func startMembers(t *testing.T) ([]*bootstrapNode, *ostrakapb.BootstrapRequest) {
	t.Helper()
	nodes, req := startBlank(t, 3)
	if _, err := nodes[0].bootstrap(req); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, nodes)
	return nodes, req
}

// state is the newest state of the cluster that a node knows; nil: none.
func (n *bootstrapNode) state() *raftfsm.ClusterState {
	if part := n.node.membership.Load(); part != nil {
		return part.state()
	}
	return nil
}

// metaLeader waits for a node that leads the meta group.
func metaLeader(t *testing.T, nodes []*bootstrapNode) (lead *bootstrapNode) {
	t.Helper()
	soon(t, "somebody leads the meta group", func() bool {
		for _, n := range nodes {
			if meta := n.node.Host().Meta(); meta != nil && meta.IsLeader() {
				lead = n
				return true
			}
		}
		return false
	})
	return lead
}

// allVote holds once every node runs the replica that the state names, and all vote.
func allVote(nodes []*bootstrapNode) bool {
	for _, n := range nodes {
		state := n.state()
		if state == nil {
			return false
		}
		for _, group := range state.GroupsOn(n.node.NodeID()) {
			m, _ := state.MemberOn(group, n.node.NodeID())
			if st := n.node.Host().Standing(group, m.Replica); !m.Voter || !st.Voter || st.Joining {
				return false
			}
		}
	}
	return true
}

// TestWipedNodeIsTakenBack: it gets fresh replicas in another life, a repeated bootstrap confirms what there is, and after
// a restart it is what it was.
func TestWipedNodeIsTakenBack(t *testing.T) {
	nodes, req := startMembers(t)
	before := nodes[0].state()
	lost := nodes[1]
	lost.wipe()
	soon(t, "all vote", func() bool { return allVote(nodes) })
	after := nodes[0].state()
	for _, group := range before.GroupsOn("n2") {
		old, _ := before.MemberOn(group, "n2")
		fresh, _ := after.MemberOn(group, "n2")
		if fresh.Replica < before.NextReplica || fresh.Replica == old.Replica {
			t.Errorf("shard %d: replica %d after %d", group, fresh.Replica, old.Replica)
		}
	}
	if got := lost.node.Incarnation(); shard.Life(got) < 1 { // more, where an answer came so late that it was taken back again
		t.Errorf("incarnation %#x", got)
	}
	for _, asked := range nodes {
		if made, err := asked.bootstrap(req); err != nil || !made.GetAlready() {
			t.Errorf("bootstrap again, by %s: %v, %v", asked.spec.GetId(), made, err)
		}
	}
	held := lost.node.identity.Load().Replicas
	lost.restart()
	soon(t, "all vote after a restart", func() bool { return allVote(nodes) })
	for group, was := range held {
		if now := lost.node.identity.Load().Replicas[group]; now.ID != was.ID || now.Joining {
			t.Errorf("shard %d: %+v, was %+v", group, now, was)
		}
	}
	mustWrite(t, nodes)
}

// TestWipedNodeElsewhere: with --peers it is taken back at another address, and the others learn that.
func TestWipedNodeElsewhere(t *testing.T) {
	nodes, _ := startMembers(t)
	lost := nodes[2]
	lost.stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lost.spec.Address = l.Addr().String()
	l.Close()
	lost.dir = filepath.Join(t.TempDir(), "elsewhere")
	lost.peers = []string{nodes[0].spec.GetAddress()}
	conn, err := grpc.NewClient("passthrough:///"+lost.spec.GetAddress(), insecureCredentials, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	lost.conn = conn
	lost.start()
	soon(t, "all vote", func() bool { return allVote(nodes) })
	for _, n := range nodes[:2] {
		if got, _ := n.node.Address("n3"); got != lost.spec.GetAddress() {
			t.Errorf("%s finds n3 at %s, not %s", n.spec.GetId(), got, lost.spec.GetAddress())
		}
	}
}

// TestEarlierLifeIsRefused: the directory that was lost turns up again, after the node was taken back without it. Nobody
// speaks to it; it says so, and serves nothing.
func TestEarlierLifeIsRefused(t *testing.T) {
	nodes, _ := startMembers(t)
	lost := nodes[1]
	lost.stop()
	misplaced := filepath.Join(t.TempDir(), "misplaced")
	if err := os.Rename(lost.dir, misplaced); err != nil {
		t.Fatal(err)
	}
	lost.start()
	soon(t, "all vote", func() bool { return allVote(nodes) })
	lost.stop()
	lost.dir, misplaced = misplaced, lost.dir
	lost.start()
	soon(t, "it knows", func() bool { return lost.node.Superseded() })
	if lost.node.health.serving.Load() {
		t.Error("it serves")
	}
	for _, n := range []*bootstrapNode{nodes[0], nodes[2]} {
		if n.node.transport.Stats()["n2"].Connected {
			t.Errorf("%s speaks to it", n.spec.GetId())
		}
	}
	mustWrite(t, []*bootstrapNode{nodes[0], nodes[2]})
	lost.stop()
	lost.dir = misplaced
	lost.start()
	soon(t, "all vote again", func() bool { return allVote(nodes) })
}

// TestReplacedWhileAway: a node that was down while all its replicas were replaced finds out, though its own replica of the
// meta group is a member of nothing any more, and begins the fresh ones.
func TestReplacedWhileAway(t *testing.T) {
	nodes, _ := startMembers(t)
	soon(t, "all vote", func() bool { return allVote(nodes) })
	away := nodes[1]
	away.stop()
	others := []*bootstrapNode{nodes[0], nodes[2]}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var answer *ostrakapb.ReplaceResponse
	whenLed(ctx, t, func() (err error) {
		answer, err = ostrakapb.NewAdminClient(metaLeader(t, others).conn).Replace(ctx, &ostrakapb.ReplaceRequest{Node: "n2"})
		return err
	})
	if len(answer.GetReplaced()) != 2 {
		t.Fatalf("replaced: %v", answer)
	}
	soon(t, "the old ones are removed", func() bool {
		for _, r := range answer.GetReplaced() {
			gone := false
			for _, n := range others {
				member, err := n.node.Host().HasMember(shard.ID(r.GetShard()), shard.ReplicaID(r.GetOld()))
				gone = gone || err == nil && !member
			}
			if !gone {
				return false
			}
		}
		return true
	})
	away.start()
	soon(t, "all vote again, it by its fresh replicas", func() bool {
		for _, r := range answer.GetReplaced() {
			held := away.node.identity.Load().Replicas[shard.ID(r.GetShard())]
			if uint64(held.ID) != r.GetFresh() || held.Joining {
				return false
			}
		}
		return allVote(nodes)
	})
	mustWrite(t, nodes)
}

// TestBlankStrangersAreNotTakenBack: a blank node with the id of one that is here, or of none, stays blank.
func TestBlankStrangersAreNotTakenBack(t *testing.T) {
	nodes, _ := startMembers(t)
	soon(t, "all are connected", func() bool { return nodes[0].node.hearsAll() && nodes[1].node.hearsAll() && nodes[2].node.hearsAll() })
	epoch := nodes[0].state().Map.Epoch()
	strangers, _ := startBlank(t, 4)
	for _, s := range []*bootstrapNode{strangers[2], strangers[3]} { // n3, which is here, and n4
		s.peers = []string{nodes[0].spec.GetAddress(), nodes[1].spec.GetAddress(), nodes[2].spec.GetAddress()}
		s.restart()
	}
	lead := metaLeader(t, nodes)
	part := lead.node.membership.Load()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, s := range []*bootstrapNode{strangers[2], strangers[3]} {
		// Straight, without waiting for the two to find each other.
		if err := lead.node.takeBack(ctx, part, part.host.Meta(), s.node.NodeID(), s.spec.GetAddress()); err == nil {
			t.Errorf("%s was taken back", s.spec.GetId())
		}
		// A plan that was made up does not get past a member either.
		if _, err := ostrakapb.NewMembersClient(nodes[2].conn).Rejoin(ctx, &ostrakapb.RejoinRequest{From: lead.node.handshake("n3"),
			Plan: planOf(part.state(), lead.node.identity.Load().plan), Incarnation: shard.NextLife(1)}); err == nil {
			t.Error("a member took itself for blank")
		}
		if s.phase() != phaseBlank {
			t.Errorf("%s is %s", s.spec.GetId(), s.phase())
		}
	}
	if now := nodes[0].state().Map.Epoch(); now != epoch {
		t.Errorf("the state changed: epoch %d after %d", now, epoch)
	}
}

// TestReportsAreChecked: whoever reaches the port can report a replica as lost; its node is asked whether it is.
func TestReportsAreChecked(t *testing.T) {
	nodes, _ := startMembers(t)
	epoch := nodes[0].state().Map.Epoch()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	lead := metaLeader(t, nodes)
	for _, from := range nodes {
		held, _ := lead.state().MemberOn(1, from.node.NodeID())
		_, err := ostrakapb.NewMembersClient(lead.conn).Report(ctx, &ostrakapb.ReportRequest{From: from.node.handshake(lead.node.NodeID()), Group: 1,
			Replica: uint64(held.Replica), Event: ostrakapb.ReplicaEvent_REPLICA_EVENT_LOST})
		wantReason(t, err, ostrakapb.Reason_REASON_INVALID)
	}
	if now := nodes[0].state().Map.Epoch(); now != epoch {
		t.Errorf("the state changed: epoch %d after %d", now, epoch)
	}
}

// TestLevelBeforeTheMetaGroup: a node that has just started, and whose meta group has no majority, knows its cluster's level: it may
// have to lead a shard before it hears more.
func TestLevelBeforeTheMetaGroup(t *testing.T) {
	nodes, _ := startMembers(t)
	soon(t, "all vote", func() bool { return allVote(nodes) })
	for _, n := range nodes {
		n.stop()
	}
	alone := nodes[0]
	alone.start()
	soon(t, "it runs", func() bool { return alone.node.Host() != nil && alone.node.Host().Meta() != nil })
	if level := alone.node.FormatLevel(); level != FormatLevel {
		t.Errorf("level %d, want %d", level, FormatLevel)
	}
	if alone.state() != nil {
		t.Log("its replica of the meta group knew more by then: a snapshot was taken")
	}
	for _, n := range nodes[1:] {
		n.start()
	}
	soon(t, "all vote again", func() bool { return allVote(nodes) })
}
