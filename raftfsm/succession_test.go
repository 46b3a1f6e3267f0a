package raftfsm

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// leaderAfter waits until others than the old node lead a shard, and says how long that took.
func leaderAfter(c *testCluster, old *testNode) (took time.Duration) {
	c.t.Helper()
	began := time.Now()
	for time.Since(began) < time.Minute {
		for _, n := range c.nodes {
			if n != old && n.host != nil {
				if _, err := n.group(1).replica.current.Load().leading(); err == nil {
					return time.Since(began)
				}
			}
		}
		time.Sleep(time.Millisecond) // virtual
	}
	c.t.Fatal("nobody leads")
	return 0
}

// The process of a leader ends, and its kernel says so: the others don't wait for the election timeout, which is a second.
func TestALeadersEndIsNoticedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		for range 5 {
			lead := c.leader(1)
			lead.mustSet(1, "k", "v")
			time.Sleep(3 * time.Second)
			lead.server.Stop() // its sockets close
			lead.stop()
			if took := leaderAfter(c, lead); took > 500*time.Millisecond {
				t.Errorf("another leader after %s", took)
			}
			lead.restart()
			c.converged(1)
		}
	})
}

// The disk of a leader hangs: once it has had the two seconds it may take, the leader says so, and no election timeout passes. Now and then
// the first two who stand fail, one for its log and one for the other's vote, and one passes after all: the median counts.
func TestAHungDiskIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		var all []time.Duration
		for range 9 {
			lead := c.leader(1)
			lead.mustSet(1, "k", "v")
			time.Sleep(3 * time.Second)
			lead.slow.hold()
			done := lead.writeAsync(1, "held")
			took := leaderAfter(c, lead)
			if took < 2*time.Second {
				t.Errorf("another leader after %s", took)
			}
			all = append(all, took)
			lead.slow.release()
			<-done
			c.converged(1)
		}
		slices.Sort(all)
		if median := all[len(all)/2]; median > 2700*time.Millisecond {
			t.Errorf("another leader after %s at the median: %s", median, all)
		}
	})
}

// A leader that is cut off may live on: nobody is told that it has ended, and the election timeout passes.
func TestSilenceIsNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead := c.leader(1)
		time.Sleep(3 * time.Second)
		c.isolate(lead.id)
		if took := leaderAfter(c, lead); took < 600*time.Millisecond { // a second from the last heartbeat, a third of one before
			t.Errorf("another leader after %s: who stood before the timeout was over?", took)
		}
	})
}

// The voter whose turn is first lacks what was committed without it: the next one is elected.
func TestWhoLacksEntriesDoesNotSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead := c.leader(1)
		var others []*testNode
		for _, n := range c.nodes {
			if n != lead {
				others = append(others, n)
			}
		}
		// The first of the others is cut off from the leader alone, so that it misses writes, and hears of the end from the other.
		c.isolate(others[0].id)
		time.Sleep(100 * time.Millisecond)
		for range 20 {
			lead.mustSet(1, "k", "v")
		}
		c.rejoin(others[0].id)
		lead.server.Stop()
		lead.stop()
		leaderAfter(c, lead)
		if _, err := others[1].group(1).replica.current.Load().leading(); err != nil {
			t.Errorf("who has all entries does not lead: %v", err)
		}
		if value, ok, err := others[1].get(1, "k", Linearizable); err != nil || !ok || string(value) != "v" {
			t.Errorf("%q, %v, %v", value, ok, err)
		}
	})
}
