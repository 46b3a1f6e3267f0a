package raftfsm

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestFirstWriteAfterRest: what a shard at rest tells its followers waits for what other shards have to say, and a write must
// not wait behind it. Of two voters both are needed, and one in fifteen writes would find such a message waiting.
func TestFirstWriteAfterRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2, 2, 1, nil)
		lead := c.leader(1)
		slow := 0
		for i := range 200 {
			time.Sleep(500*time.Millisecond + time.Duration(i%50)*5*time.Millisecond)
			began := time.Now()
			lead.mustSet(1, fmt.Sprint("k", i), "v")
			if time.Since(began) > 0 { // virtual
				slow++
			}
		}
		if slow > 0 {
			t.Errorf("%d of 200 writes waited", slow)
		}
	})
}

// TestFollowersLearnOfTheLastWrite with the next heartbeat: raft would tell them by its next append, a second or two later.
func TestFollowersLearnOfTheLastWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead := c.leader(1)
		for i := range 20 {
			time.Sleep(3 * time.Second)
			key := fmt.Sprint("k", i)
			lead.mustSet(1, key, "v")
			time.Sleep(500 * time.Millisecond)
			for _, n := range c.nodes {
				if _, ok, err := n.get(1, key, Stale); err != nil || !ok {
					t.Errorf("%s does not have %s yet (%v)", n.id, key, err)
				}
			}
		}
	})
}

// TestLeadersBeatHalfAsOften as raft would, and do so again only once they lead; one that stopped leading has a follower's
// patience.
func TestLeadersBeatHalfAsOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		election := c.nodes[0].host.cfg.Timing.Election
		paced := func(lead *testNode) {
			t.Helper()
			for _, n := range c.nodes {
				want := election
				if n == lead {
					want = 2 * election
				}
				c.eventually("each has its timeout", func() bool {
					got := n.group(1).replica.current.Load().raft.ReloadableConfig()
					return got.HeartbeatTimeout == want && got.ElectionTimeout == want
				})
			}
		}
		lead := c.leader(1)
		paced(lead)
		peer := c.follower(1)
		before := lead.transport.Stats()[peer.id].Sent.Heartbeats
		time.Sleep(time.Minute)
		beats := lead.transport.Stats()[peer.id].Sent.Heartbeats - before
		if beats < 60*2 || beats > 60*4 {
			t.Errorf("%d heartbeats in a minute", beats)
		}
		if err := lead.group(1).TransferLeadership(peer.id); err != nil {
			t.Fatal(err)
		}
		paced(c.leader(1, lead.id))
		c.isolate(c.leader(1).id)
		paced(c.leader(1, c.leader(1).id))
	})
}
