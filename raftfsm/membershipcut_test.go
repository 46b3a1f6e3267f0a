package raftfsm

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// A replica is promoted while its answer to an earlier append is still held, waiting for its disk: the answer was no part
// of any majority when the append was sent, and is one when it arrives. What it vouches for must be on its disk by then.
func TestPromotedWithItsAnswerInFlight(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprint("power cut ", cut), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 2, 1, 1, nil)
				lead := c.leader(1)
				fresh := c.others(lead)[0]
				lead.mustSet(1, "before", "v")
				c.converged(1)
				fresh.slow.hold()
				lead.mustSet(1, "alone", "v") // the answer to this one is held
				l := lead.group(1).replica.current.Load()
				id := c.replicaOn(1, fresh.id)
				promoted := l.raft.AddVoter(transport.ServerID(id), transport.Address(fresh.id, id), l.stores.Log.ConfigurationIndex(), 0)
				c.eventually("it is one of two voters", func() bool { return len(l.currentVoters()) == 2 })
				done := lead.writeAsync(1, "k")
				wantPending(t, "one of two disks has it", done)
				if cut {
					fresh.cutPower()
					fresh.restart()
				} else {
					fresh.slow.release()
				}
				err := <-done
				if err == nil != (promoted.Error() == nil) {
					t.Errorf("promoted: %v, the write after it: %v", promoted.Error(), err)
				}
				if !cut && err != nil {
					t.Error(err)
				}
				for _, n := range c.nodes {
					n.cutPower()
				}
				for _, n := range c.nodes {
					n.restart()
				}
				lead = c.leader(1)
				for _, key := range []string{"before", "alone", "k"} {
					_, ok, readErr := lead.get(1, key, Linearizable)
					if readErr != nil || !ok && (key != "k" || err == nil) {
						t.Errorf("%s: %v, %v", key, ok, readErr)
					}
				}
			})
		})
	}
}

// memberChange is a change of a group's members, and who is there before and after.
type memberChange struct {
	nodes, voters int
	// begin starts the change and returns who is to be left.
	begin func(c *memberTest) []shard.NodeID
}

// followerOf is the first node with a voter that does not lead.
func (c *memberTest) followerOf(lead *testNode) *testNode { return c.others(lead)[0] }

var memberChanges = map[string]memberChange{
	"1 to 2": {2, 1, func(c *memberTest) []shard.NodeID {
		c.want("n1", "n2")
		return []shard.NodeID{"n1", "n2"}
	}},
	"2 to 1, a follower leaves": {2, 2, func(c *memberTest) []shard.NodeID {
		lead := c.leader()
		c.want(lead.id)
		return []shard.NodeID{lead.id}
	}},
	"2 to 1, the leader leaves": {2, 2, func(c *memberTest) []shard.NodeID {
		stays := c.followerOf(c.leader())
		c.want(stays.id)
		return []shard.NodeID{stays.id}
	}},
	"3, a lost one replaced": {3, 3, func(c *memberTest) []shard.NodeID {
		lost := c.followerOf(c.leader())
		lost.stop()
		lost.wipe()
		c.replace(lost.id)
		c.restart(lost)
		return []shard.NodeID{"n1", "n2", "n3"}
	}},
	"3, the leader replaced": {3, 3, func(c *memberTest) []shard.NodeID {
		c.replace(c.leader().id)
		return []shard.NodeID{"n1", "n2", "n3"}
	}},
}

// The power of one node, or of all, is cut at moments all over a change of members, while clients
// write. The change is completed nevertheless, and nothing that was acknowledged is gone.
func TestPowerCutDuringAChangeOfMembers(t *testing.T) {
	const until = 1600 * time.Millisecond // all of them are over by then, if nothing happens
	step := 80 * time.Millisecond
	if testing.Short() || raceDetector {
		step = 200 * time.Millisecond
	}
	for name, change := range memberChanges {
		for _, victims := range []string{"the leader", "another", "all"} {
			t.Run(name+", "+victims, func(t *testing.T) {
				t.Parallel()
				acknowledged := 0
				for moment := time.Duration(0); moment <= until; moment += step {
					synctest.Test(t, func(t *testing.T) { acknowledged += cutDuring(t, change, victims, moment) })
					if t.Failed() {
						t.Fatalf("with the cut after %s", moment)
					}
				}
				if acknowledged == 0 {
					t.Error("nothing was acknowledged: the runs prove nothing")
				}
			})
		}
	}
}

// cutDuring returns how many writes were acknowledged.
func cutDuring(t *testing.T, change memberChange, victims string, moment time.Duration) int {
	c := newMemberTest(t, change.nodes, change.voters, func(cfg *Config) {
		cfg.Snapshots = SnapshotConfig{LogBytes: 4000, TrailingEntries: 1, CheckEvery: 300 * time.Millisecond}
	})
	defer c.describe()
	acknowledged := c.writeOn(2, 5*time.Millisecond)
	c.mustSet("k0")
	left := change.begin(c)
	for end := time.Now().Add(moment); time.Now().Before(end); {
		c.follow()
		time.Sleep(10 * time.Millisecond) // virtual
	}
	lead := c.lead()
	hit := slices.DeleteFunc(slices.Clone(c.nodes), func(n *testNode) bool {
		return n.host == nil || victims == "the leader" && n != lead || victims == "another" && n == lead
	})
	if victims == "another" && len(hit) > 0 {
		hit = hit[:1]
	}
	for _, n := range hit {
		n.cutPower()
	}
	time.Sleep(700 * time.Millisecond)
	for _, n := range hit {
		c.restart(n)
	}
	c.eventually(fmt.Sprintf("the state has voters on %v", left), func() bool {
		c.follow()
		members, _ := c.State().Members(1)
		return len(members) == len(left) && !slices.ContainsFunc(members, func(m Member) bool { return !m.Voter || !slices.Contains(left, m.Node) })
	})
	acked := acknowledged()
	c.settledOn(left...)
	c.mustSet("k1")
	c.mustHold(2)
	c.mustHoldAll(acked)
	for _, n := range c.nodes {
		if err := n.failure(); err != nil {
			t.Errorf("%s: %v", n.id, err)
		}
	}
	return len(acked)
}
