package transport

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// gatedGroup is a group of real rafts, each over a log whose disk the test holds.
type gatedGroup struct {
	t        *testing.T
	replicas []*raftReplica
}

// newGatedGroup starts a group of voters, and of replicas that don't vote.
func newGatedGroup(t *testing.T, voters, others int) *gatedGroup {
	net := newNetwork(t)
	g := &gatedGroup{t: t}
	var facades []*Facade
	var members []raft.Server
	for i := 1; i <= voters+others; i++ {
		f := net.node(shard.NodeID(fmt.Sprint("n", i))).openGated(7, shard.ReplicaID(i), &fakeGate{voteless: i > voters})
		m := member(f)
		if i > voters {
			m.Suffrage = raft.Nonvoter
		}
		facades, members = append(facades, f), append(members, m)
	}
	for _, f := range facades {
		g.replicas = append(g.replicas, startRaft(t, f, members))
	}
	return g
}

func (r *raftReplica) gate() *fakeGate { return r.facade.gate.(*fakeGate) }

// leader waits for one, and until everybody has what it has.
func (g *gatedGroup) leader() *raftReplica {
	g.t.Helper()
	eventuallyVirtual(g.t, "a leader", func() bool { return leaderOf(g.replicas) != nil })
	lead := leaderOf(g.replicas)
	write(g.t, lead, "first")
	eventuallyVirtual(g.t, "all are equal", func() bool {
		for _, r := range g.replicas {
			if r.raft.LastIndex() != lead.raft.LastIndex() || len(r.fsm.list()) != 1 {
				return false
			}
		}
		return true
	})
	return lead
}

// others returns all but one, voters first.
func (g *gatedGroup) others(than *raftReplica) []*raftReplica {
	var rest []*raftReplica
	for _, r := range g.replicas {
		if r != than {
			rest = append(rest, r)
		}
	}
	return rest
}

// propose starts a write.
func (r *raftReplica) propose(command string) <-chan error {
	return start(func() error { return r.raft.Apply([]byte(command), 0).Error() })
}

// pending fails if a write is answered, or applied anywhere, within a while that is shorter than an election.
func (g *gatedGroup) pending(why, command string, done <-chan error) {
	g.t.Helper()
	time.Sleep(400 * time.Millisecond) // virtual
	wantHeld(g.t, why, done)
	for _, r := range g.replicas {
		if got := r.fsm.list(); strings.Contains(fmt.Sprint(got), command) {
			g.t.Fatalf("%s, and replica %d applied it: %v", why, r.facade.replica, got)
		}
	}
}

// TestLeadersDiskIsWaitedFor: nothing commits by the followers' copies alone, though both have it.
func TestLeadersDiskIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGatedGroup(t, 3, 0)
		lead := g.leader()
		lead.gate().hold()
		done := lead.propose("second")
		g.pending("the leader's disk does not have it", "second", done)
		lead.gate().settle()
		wantSuccess(t, done)
	})
}

// TestFollowersDisksAreWaitedFor: one follower's disk is enough, none is not.
func TestFollowersDisksAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGatedGroup(t, 3, 0)
		lead := g.leader()
		followers := g.others(lead)
		followers[0].gate().hold()
		wantSuccess(t, lead.propose("second")) // by the other
		followers[1].gate().hold()
		done := lead.propose("third")
		g.pending("no follower's disk has it", "third", done)
		followers[0].gate().settle()
		wantSuccess(t, done)
		followers[1].gate().settle()
	})
}

// TestNonVoterIsHeld: its answers count for nothing, until it is promoted while one is on its way. Two voters, the second of
// which has not got the entry on its disk; the replica that is promoted has not either.
func TestNonVoterIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGatedGroup(t, 2, 1)
		lead := g.leader()
		voter, other := g.others(lead)[0], g.replicas[2]
		voter.gate().hold()
		other.gate().hold()
		done := lead.propose("second")
		g.pending("the voter's disk does not have it", "second", done)
		held := other.gate().heldNow()
		promoted := start(func() error {
			return lead.raft.AddVoter(ServerID(other.facade.replica), other.facade.LocalAddr(), 0, 0).Error()
		})
		g.pending("neither of the others' disks has it", "second", done)
		other.gate().settle()
		wantSuccess(t, done)
		wantSuccess(t, promoted)
		voter.gate().settle()
		if held == 0 {
			t.Error("the non-voter's answer was not held: the test proves nothing")
		}
	})
}

// TestStalledLeaderIsReplaced: a leader whose disk hangs with nothing of this group under way keeps sending heartbeats and
// appends without entries, and its followers would be content (raft#503, #666).
func TestStalledLeaderIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGatedGroup(t, 3, 0)
		lead := g.leader()
		lead.gate().stalled.Store(true)
		rest := g.others(lead)
		eventuallyVirtual(t, "another leader", func() bool { return leaderOf(rest) != nil })
		write(t, leaderOf(rest), "second")
		eventuallyVirtual(t, "the old leader has stepped down", func() bool { return lead.raft.State() != raft.Leader })
	})
}

// TestStalledFollowersAreNoMajority: answers without entries are no sign of life of a node whose disk hangs.
func TestStalledFollowersAreNoMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGatedGroup(t, 3, 0)
		lead := g.leader()
		for _, r := range g.others(lead) {
			r.gate().stalled.Store(true)
		}
		eventuallyVirtual(t, "the leader has stepped down", func() bool { return lead.raft.State() != raft.Leader })
	})
}
