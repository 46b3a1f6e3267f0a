package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// memberTest is a cluster of one shard whose members change. It stands in for what a server does about that: it keeps the
// cluster's state, knows durably which replica each node has taken up, and wipes the old ones.
type memberTest struct {
	*testCluster
	mu    sync.Mutex
	state *ClusterState
	// held is what each node's identity says, which no crash takes.
	held map[shard.NodeID]heldReplica
	// settling, where set, is asked before a node settles.
	settling func(shard.NodeID) error
	// deaf nodes don't answer Standing.
	deaf map[shard.NodeID]bool
}

type heldReplica struct {
	id      shard.ReplicaID
	joining bool
}

// newMemberTest runs nodes of which the first ones hold a voter each: replica 1 on n1 and so on.
func newMemberTest(t *testing.T, nodes, voters int, adjust func(*Config)) *memberTest {
	t.Helper()
	c := &memberTest{testCluster: newTestCluster(t, nodes, voters, 0, adjust), held: make(map[shard.NodeID]heldReplica), deaf: make(map[shard.NodeID]bool)}
	described := shard.Shard{ID: 1, Ranges: shard.FreshRanges(1), Preferred: "n1"}
	var all []shard.Node
	var members []Member
	for i, n := range c.nodes {
		all = append(all, shard.Node{ID: n.id, Address: string(n.id)})
		if i < voters {
			m := Member{Node: n.id, Replica: shard.ReplicaID(i + 1), Voter: true}
			members = append(members, m)
			described.Replicas = append(described.Replicas, shard.Replica{ID: m.Replica, Node: n.id, Voter: true})
		}
	}
	m, err := shard.NewMap(1, all, []shard.Shard{described})
	if err != nil {
		t.Fatal(err)
	}
	c.state = &ClusterState{ClusterID: "test", FormatLevel: 1, Map: m, NextReplica: shard.ReplicaID(voters + 1)}
	for _, m := range members {
		n := c.node(m.Node)
		if err := n.host.Bootstrap(1, m.Replica, members); err != nil {
			t.Fatal(err)
		}
		c.held[n.id] = heldReplica{id: m.Replica}
	}
	for _, n := range c.nodes {
		c.run(n)
	}
	return c
}

func (c *memberTest) node(id shard.NodeID) *testNode {
	return c.nodes[slices.IndexFunc(c.nodes, func(n *testNode) bool { return n.id == id })]
}

// State implements Cluster.
func (c *memberTest) State() *ClusterState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Standing implements Cluster.
func (c *memberTest) Standing(_ context.Context, group shard.ID, m Member) (Standing, error) {
	c.mu.Lock()
	deaf := c.deaf[m.Node]
	c.mu.Unlock()
	h := c.node(m.Node).answering.Load()
	if deaf || h == nil {
		return Standing{}, errors.New("no answer")
	}
	return h.Standing(group, m.Replica), nil
}

// Promoted implements Cluster.
func (c *memberTest) Promoted(_ context.Context, group shard.ID, id shard.ReplicaID) error {
	return c.change(func(s *ClusterState) (*ClusterState, error) {
		return s.withPromoted(&metaEntry{Group: group, Replica: id})
	})
}

func (c *memberTest) change(next func(*ClusterState) (*ClusterState, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := next(c.state)
	if err == nil {
		c.state = s
	}
	return err
}

// replace gives the node's replica a fresh id.
func (c *memberTest) replace(node shard.NodeID) shard.ReplicaID {
	c.t.Helper()
	old, _ := c.State().MemberOn(1, node)
	if err := c.change(func(s *ClusterState) (*ClusterState, error) {
		return s.withReplaced(&metaEntry{Group: 1, Replica: old.Replica})
	}); err != nil {
		c.t.Fatal(err)
	}
	fresh, _ := c.State().MemberOn(1, node)
	return fresh.Replica
}

// want says which nodes are to hold the shard: those that do keep their replica, the others get a fresh one.
func (c *memberTest) want(nodes ...shard.NodeID) {
	c.t.Helper()
	err := c.change(func(s *ClusterState) (*ClusterState, error) {
		next := s.change()
		described := next.shard(1)
		next.changed[1] = true
		var replicas []shard.Replica
		for _, id := range nodes {
			r, ok := s.Map.ReplicaOn(1, id)
			if !ok {
				r = shard.Replica{ID: next.fresh(), Node: id}
			}
			replicas = append(replicas, r)
		}
		described.Replicas = replicas
		described.Preferred = next.leastPreferred(described)
		return next.done()
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// take makes a running node hold what the state wants of it, as a server does: what it held goes on until its group has let
// go of it, unless it is lost. The error is that of starting what it holds.
func (c *memberTest) take(n *testNode) error {
	c.mu.Lock()
	held := c.held[n.id]
	c.mu.Unlock()
	var lost error
	if _, runs := n.host.Group(1); !runs && held.id != 0 {
		lost = c.start(n, held)
		if lost != nil && !MustBeReplaced(lost) {
			return lost
		}
	}
	want, wanted := c.State().MemberOn(1, n.id)
	if want.Replica == held.id || c.stillMember(n) || lost != nil && !wanted {
		return lost
	}
	if err := n.host.Drop(1); err != nil {
		return err
	}
	if held.id != 0 {
		if err := n.disks.Remove(1, held.id); err != nil {
			return err
		}
	}
	fresh := heldReplica{id: want.Replica, joining: true}
	c.mu.Lock()
	if wanted {
		c.held[n.id] = fresh
	} else {
		delete(c.held, n.id)
	}
	c.mu.Unlock()
	if !wanted {
		return nil
	}
	return c.start(n, fresh)
}

func (c *memberTest) start(n *testNode, held heldReplica) error {
	spec := GroupSpec{Shard: 1, Replica: held.id, Ranges: shard.FreshRanges(1)}
	if !held.joining {
		_, err := n.host.StartGroup(spec)
		return err
	}
	_, err := n.host.StartJoiner(spec, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.settling != nil {
			if err := c.settling(n.id); err != nil {
				return err
			}
		}
		if c.held[n.id].id == held.id {
			c.held[n.id] = heldReplica{id: held.id}
		}
		return nil
	})
	return err
}

// stillMember: what the node runs is not wanted any more, but its group has not let go of it yet, and may need it to do so.
func (c *memberTest) stillMember(n *testNode) bool {
	g, runs := n.host.Group(1)
	want, _ := c.State().MemberOn(1, n.id)
	if !runs || want.Replica == g.spec.Replica {
		return false
	}
	lead := c.lead()
	if lead == nil {
		return true
	}
	member, err := lead.host.HasMember(1, g.spec.Replica)
	return err != nil || member
}

func (c *memberTest) run(n *testNode) {
	c.t.Helper()
	n.host.SetCluster(c)
	if err := c.take(n); err != nil {
		c.t.Fatalf("%s: %v", n.id, err)
	}
}

// follow lets every running node take up what is wanted.
func (c *memberTest) follow() {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.host == nil {
			continue
		}
		if err := c.take(n); err != nil {
			c.t.Fatalf("%s: %v", n.id, err)
		}
	}
}

func (c *memberTest) restart(n *testNode) {
	c.t.Helper()
	n.open()
	c.run(n)
}

// lead returns a node that leads; nil while there is none.
func (c *memberTest) lead() *testNode {
	for _, n := range c.nodes {
		if n.host == nil {
			continue
		}
		if g, ok := n.host.Group(1); ok && g.IsLeader() {
			return n
		}
	}
	return nil
}

func (c *memberTest) leader() *testNode {
	c.t.Helper()
	var lead *testNode
	c.eventually("there is a leader", func() bool { lead = c.lead(); return lead != nil })
	return lead
}

// mustSet writes by whoever leads; what was lost with a leadership is written again.
func (c *memberTest) mustSet(key string) {
	c.t.Helper()
	c.eventually("a write of "+key, func() bool {
		lead := c.lead()
		return lead != nil && lead.set(1, key, "v") == nil
	})
}

// settledOn waits until the shard's voters, in the leader's configuration and in the state, are exactly on these nodes, and
// all replicas are equal.
func (c *memberTest) settledOn(nodes ...shard.NodeID) {
	c.t.Helper()
	last := ""
	defer func() {
		if c.t.Failed() {
			c.t.Log(last)
		}
	}()
	c.eventually(fmt.Sprintf("voters on %v", nodes), func() bool {
		c.follow()
		lead := c.lead()
		if lead == nil {
			last = "no leader"
			return false
		}
		members, _ := c.State().Members(1)
		configured := lead.group(1).replica.current.Load().raft.GetConfiguration().Configuration().Servers
		last = fmt.Sprintf("wanted %v, configured %v", members, configured)
		var on []shard.NodeID
		for _, m := range members {
			if m.Voter && slices.ContainsFunc(configured, func(s raft.Server) bool {
				return s.ID == transport.ServerID(m.Replica) && s.Suffrage == raft.Voter
			}) {
				on = append(on, m.Node)
			}
		}
		slices.Sort(on)
		if !slices.Equal(on, nodes) || len(configured) != len(nodes) {
			return false
		}
		first := lead.group(1).Status()
		for _, id := range nodes {
			g, ok := c.node(id).host.Group(1)
			if !ok {
				return false
			}
			s := g.Status()
			if s.Applied != first.Applied || s.Checksum != first.Checksum {
				last = fmt.Sprintf("%s: %+v, the leader: %+v", id, s, first)
				return false
			}
		}
		return true
	})
}

// describe logs, of a test that failed, who believes to be a member of what.
func (c *memberTest) describe() {
	if !c.t.Failed() {
		return
	}
	members, _ := c.State().Members(1)
	c.t.Logf("wanted: %v", members)
	for _, n := range c.nodes {
		if n.host == nil {
			c.t.Logf("%s is down", n.id)
			continue
		}
		if g, ok := n.host.Group(1); ok {
			c.t.Logf("%s: %+v", n.id, g.Status())
			if l := g.replica.current.Load(); l != nil {
				c.t.Logf("%s: configuration at %d: %v", n.id, l.stores.Log.ConfigurationIndex(), l.raft.GetConfiguration().Configuration().Servers)
			}
		}
	}
}

func (c *memberTest) mustHold(keys int) {
	c.t.Helper()
	lead := c.leader()
	for i := range keys {
		if _, ok, err := lead.get(1, fmt.Sprint("k", i), Linearizable); err != nil || !ok {
			c.t.Fatalf("k%d: %v, %v", i, ok, err)
		}
	}
}

// A group grows from one voter to three and shrinks to one again, leaders leave it, and nothing is lost. Once with power
// cuts of every node between all steps, which a group of one or two voters must survive too.
func TestGroupGrowsAndShrinks(t *testing.T) {
	for _, cuts := range []bool{false, true} {
		t.Run(fmt.Sprint("power cuts ", cuts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newMemberTest(t, 3, 1, func(cfg *Config) {
					cfg.Snapshots = SnapshotConfig{LogBytes: 1000, TrailingEntries: 1, CheckEvery: time.Second}
				})
				keys := 0
				write := func(n int) {
					for range n {
						c.mustSet(fmt.Sprint("k", keys))
						keys++
					}
				}
				write(20)
				for _, nodes := range [][]shard.NodeID{{"n1", "n2"}, {"n1", "n2", "n3"}, {"n2", "n3"}, {"n3"}, {"n1", "n3"}, {"n1"}} {
					c.want(nodes...)
					c.follow()
					write(10)
					if cuts {
						for _, n := range c.nodes {
							n.cutPower()
						}
						for _, n := range c.nodes {
							c.restart(n)
						}
						write(10)
					}
					c.settledOn(nodes...)
					write(10)
					c.mustHold(keys)
				}
			})
		})
	}
}

// wipe takes a stopped node's disk.
func (n *testNode) wipe() { n.memory, n.files = storage.NewMemory(), disk.NewMem() }

// A replica without its data doesn't start; under a fresh id it comes back without a vote, gets the data by log or by
// snapshot, and then a vote.
func TestReplacedInPlace(t *testing.T) {
	for _, snapshots := range []bool{false, true} {
		t.Run(fmt.Sprint("snapshots ", snapshots), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newMemberTest(t, 3, 3, func(cfg *Config) {
					if snapshots {
						cfg.Snapshots = SnapshotConfig{LogBytes: 1000, TrailingEntries: 1, CheckEvery: time.Second}
					}
				})
				for i := range 50 {
					c.mustSet(fmt.Sprint("k", i))
					time.Sleep(100 * time.Millisecond)
				}
				lost := c.node("n3")
				lost.stop()
				lost.wipe()
				lost.open()
				lost.host.SetCluster(c)
				if err := c.take(lost); !MustBeReplaced(err) {
					t.Fatalf("the old id: %v", err)
				}
				fresh := c.replace("n3")
				c.follow()
				c.settledOn("n1", "n2", "n3")
				if got := lost.host.Standing(1, fresh); !got.Running || !got.Voter || got.Joining {
					t.Errorf("the fresh one: %+v", got)
				}
				if got := lost.host.Standing(1, 3); got.Running {
					t.Errorf("the old one: %+v", got)
				}
				c.mustHold(50)
				// It is a voter like any other: with it alone beside the leader, writes go on.
				lead := c.leader()
				for _, n := range c.nodes {
					if n != lead && n != lost {
						n.stop()
						break
					}
				}
				c.mustSet("k50")
			})
		})
	}
}

// Who would be left must be a majority that is there and up to date, without the one that is lost.
func TestLostReplicaStaysWithoutAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemberTest(t, 3, 3, func(cfg *Config) { cfg.Timing.Commit = 300 * time.Millisecond })
		lead := c.leader()
		c.mustSet("k0")
		var lost, other *testNode
		for _, n := range c.nodes {
			switch {
			case n == lead:
			case lost == nil:
				lost = n
			default:
				other = n
			}
		}
		lostID := c.held[lost.id].id
		lost.stop()
		time.Sleep(3 * time.Second)
		if err := lead.host.Spare(1, lostID); err != nil {
			t.Errorf("with both others there: %v", err)
		}
		c.isolate(other.id)
		time.Sleep(300 * time.Millisecond) // the leader still believes that it leads
		c.heal()
		c.leader()

		// A follower that is there, but behind.
		lead = c.leader()
		other = c.others(lead)[0]
		if other == lost {
			other = c.others(lead)[1]
		}
		c.mustSet("k1")
		c.eventually("it has that", func() bool { return other.group(1).Status().Applied == lead.group(1).Status().Applied })
		other.slow.hold()
		done := lead.writeAsync(1, "held")
		timing := lead.host.cfg.Timing
		// Its last acknowledgement is old, the disk is not yet taken for hung. One may have been on its way.
		time.Sleep(timing.Election + 2*timing.Commit + 300*time.Millisecond)
		if err := lead.host.Spare(1, lostID); err == nil {
			t.Error("spared, though the only other voter's disk does not answer")
		}
		other.slow.release()
		<-done
		c.eventually("spared once it keeps up", func() bool {
			lead := c.lead()
			return lead != nil && lead.host.Spare(1, lostID) == nil
		})
		if err := other.host.Spare(1, lostID); c.lead() != other && !errors.Is(err, ErrNotLeader) {
			t.Errorf("asked of a follower: %v", err)
		}
	})
}

// With one of two voters gone there is no leader, so nothing happens by itself; the last of one can't be replaced at all.
func TestTooFewToReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemberTest(t, 2, 2, nil)
		c.mustSet("k0")
		lost := c.node("n2")
		lost.stop()
		lost.wipe()
		time.Sleep(10 * time.Second) // a leader that still leads could go on alone: it has all that was acknowledged
		c.replace("n2")
		c.restart(lost)
		time.Sleep(time.Minute)
		if lead := c.lead(); lead != nil {
			t.Errorf("%s leads", lead.id)
		}
		if s := c.node("n1").group(1).Status(); !s.Voter {
			t.Errorf("%+v", s)
		}
		old, _ := c.State().MemberOn(1, "n1")
		_, err := c.State().withReplaced(&metaEntry{Group: 1, Replica: old.Replica})
		if !errors.Is(err, ErrLastVoter) {
			t.Errorf("the last voter: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := newMemberTest(t, 2, 1, nil)
		if err := c.leader().host.Spare(1, 1); !errors.Is(err, ErrLastVoter) {
			t.Errorf("a group of one: %v", err)
		}
	})
}

// A replica that can't settle gets no vote, since it would start empty again; once it can, it does.
func TestNoVoteBeforeSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemberTest(t, 2, 1, nil)
		broken := errors.New("the disk with the identity is full")
		c.settling = func(shard.NodeID) error { return broken }
		c.mustSet("k0")
		c.want("n1", "n2")
		c.follow()
		c.eventually("it has the data", func() bool { return c.node("n2").group(1).Status().Keys == 1 })
		time.Sleep(30 * time.Second)
		fresh := c.held["n2"].id
		if got := c.node("n2").host.Standing(1, fresh); !got.Joining || got.Voter {
			t.Errorf("before it settled: %+v", got)
		}
		// Its data gone, it starts again: nothing that it said counted.
		n := c.node("n2")
		n.stop()
		n.wipe()
		c.restart(n)
		c.eventually("it has the data again", func() bool { return n.group(1).Status().Keys == 1 })
		c.mu.Lock()
		c.settling = nil
		c.mu.Unlock()
		c.settledOn("n1", "n2")
		// From now on it must not forget.
		n.stop()
		n.wipe()
		n.open()
		if err := c.take(n); !MustBeReplaced(err) {
			t.Errorf("settled, and its data gone: %v", err)
		}
	})
}

// What a node knows of the cluster may be old. Then it must not undo what was done since.
func TestOldStateIsNotActedUpon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemberTest(t, 3, 3, nil)
		c.mustSet("k0")
		before := c.State()
		lost := c.node("n3")
		lost.stop()
		lost.wipe()
		c.replace("n3")
		c.restart(lost)
		c.settledOn("n1", "n2", "n3")
		after := c.State()
		c.mu.Lock()
		c.state = before
		c.mu.Unlock()
		time.Sleep(time.Minute)
		l := c.leader().group(1).replica.current.Load()
		if err := l.reconcile(context.Background(), c); !errors.Is(err, errMapBehind) {
			t.Errorf("by an old state: %v", err)
		}
		c.mu.Lock()
		c.state = after
		c.mu.Unlock()
		c.settledOn("n1", "n2", "n3")
	})
}

// A change is made to the configuration that was looked at, or not at all.
func TestChangeOfAnotherConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemberTest(t, 3, 3, nil)
		l := c.leader().group(1).replica.current.Load()
		at := l.stores.Log.ConfigurationIndex()
		if at == 0 {
			t.Fatal("no configuration")
		}
		if err := l.raft.AddNonvoter("77", "n9/77", at, 0).Error(); err != nil {
			t.Fatal(err)
		}
		if err := l.raft.RemoveServer("77", at, 0).Error(); err == nil {
			t.Error("by the index of the configuration before")
		}
		if err := l.raft.RemoveServer("77", l.stores.Log.ConfigurationIndex(), 0).Error(); err != nil {
			t.Error(err)
		}
	})
}

// Replicas lose their data one after the other and are replaced while nodes are cut off, killed and lose power at any
// moment of it, and while clients write. Each replacement ends, and nothing that was acknowledged is lost.
func TestReplacementsUnderFaults(t *testing.T) {
	if raceDetector {
		t.Skip("the detector itself crashes (StackDepot, tsan_rtl.cpp:346) in long bubbles with many timers, Go 1.26; the others run with it")
	}
	rounds := 4
	if testing.Short() {
		rounds = 1
	}
	for _, voters := range []int{3, 4, 5} {
		for range rounds {
			seed := rand.Uint64()
			t.Run(fmt.Sprintf("%d voters, seed %d", voters, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { replaceUnderFaults(t, seed, voters) })
			})
		}
	}
}

func replaceUnderFaults(t *testing.T, seed uint64, voters int) {
	rng := rand.New(rand.NewPCG(seed, 0))
	c := newMemberTest(t, voters, voters, func(cfg *Config) {
		cfg.Snapshots = SnapshotConfig{LogBytes: 4000, TrailingEntries: 1, CheckEvery: 300 * time.Millisecond}
	})
	c.leader()
	defer c.describe()
	acknowledged := c.writeOn(3, 5*time.Millisecond)
	for range 5 {
		lost := c.nodes[rng.IntN(voters)]
		lost.stop()
		lost.wipe()
		fresh := c.replace(lost.id)
		c.restart(lost)
		// While that is under way, somebody else meets with trouble, or the fresh one itself.
		for range 3 {
			time.Sleep(time.Duration(rng.IntN(700)) * time.Millisecond)
			hit := c.nodes[rng.IntN(voters)]
			switch rng.IntN(3) {
			case 0:
				hit.kill()
			case 1:
				hit.cutPower()
			case 2:
				c.isolate(hit.id)
			}
			time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
			c.heal()
			if hit.host == nil {
				hit.open()
				hit.host.SetCluster(c)
				if err := c.take(hit); err != nil {
					t.Fatalf("%s after a crash: %v", hit.id, err)
				}
			}
		}
		c.eventually(fmt.Sprintf("replica %d on %s votes", fresh, lost.id), func() bool {
			m, _ := c.State().MemberOn(1, lost.id)
			return m.Replica == fresh && m.Voter
		})
	}
	acked := acknowledged()
	if len(acked) == 0 {
		t.Error("nothing was acknowledged: the run proves nothing")
	}
	var all []shard.NodeID
	for _, n := range c.nodes {
		all = append(all, n.id)
	}
	c.settledOn(all...)
	c.mustHoldAll(acked)
	for _, n := range c.nodes {
		if err := n.failure(); err != nil {
			t.Errorf("%s: %v", n.id, err)
		}
	}
}

// mustHoldAll wants every acknowledged key on the leader.
func (c *memberTest) mustHoldAll(acked []string) {
	c.t.Helper()
	lead, missing := c.leader(), 0
	for _, key := range acked {
		if _, ok, err := lead.get(1, key, Linearizable); err != nil || !ok {
			missing++
		}
	}
	if missing > 0 {
		c.t.Errorf("%d of %d acknowledged writes are gone", missing, len(acked))
	}
}
