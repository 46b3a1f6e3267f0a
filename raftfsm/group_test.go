package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// PreVote is silently off in raft unless the transport has it (raft.md).
var _ raft.WithPreVote = (*transport.Facade)(nil)

func TestWriteAndRead(t *testing.T) {
	for _, voters := range []int{1, 2, 3, 5} {
		t.Run(fmt.Sprint(voters, " voters"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, voters, voters, 2, nil)
				for _, id := range c.shards {
					lead := c.leader(id)
					// A key of one of the shard's own slots; another's is refused.
					key := keyOf(c, id)
					lead.mustSet(id, key, "1")
					if got, ok, err := lead.get(id, key, Linearizable); err != nil || !ok || got != "1" {
						t.Errorf("shard %d: %q, %v, %v", id, got, ok, err)
					}
					if _, _, err := lead.get(id, keyOf(c, 3-id), Linearizable); !errors.Is(err, shard.ErrStaleEpoch) {
						t.Errorf("a key of another shard: %v", err)
					}
					if keys := c.converged(id); keys != 1 {
						t.Errorf("%d keys", keys)
					}
				}
			})
		})
	}
}

// keyOf finds a key that a shard owns.
func keyOf(c *testCluster, id shard.ID) string {
	for i := 0; ; i++ {
		key := fmt.Sprint("key", i)
		if c.slotsOf(id)[0].Contains(shard.SlotOf([]byte(key))) {
			return key
		}
	}
}

func TestFollowersNameTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead := c.leader(1)
		f := c.follower(1)
		err := f.set(1, "k", "v")
		var notLeader *NotLeaderError
		if !errors.As(err, &notLeader) || notLeader.Leader != lead.id {
			t.Errorf("write on a follower: %v, want the leader %s named", err, lead.id)
		}
		if _, _, err := f.get(1, "k", Linearizable); !errors.Is(err, ErrNotLeader) {
			t.Errorf("linearizable read on a follower: %v", err)
		}
		lead.mustSet(1, "k", "v")
		c.converged(1)
		if got, ok, err := f.get(1, "k", Stale); err != nil || !ok || got != "v" {
			t.Errorf("stale read on a follower: %q, %v, %v", got, ok, err)
		}
	})
}

// A leader that is cut off neither acknowledges writes nor serves linearizable reads once others have gone on,
// and becomes equal to them afterwards.
func TestPartitionedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		old := c.leader(1)
		old.mustSet(1, "k", "old")
		c.isolate(old.id)
		// Before it notices: reads must already fail, for nobody confirms them.
		if got, _, err := old.get(1, "k", Linearizable); err == nil {
			t.Errorf("the cut-off leader answered a linearizable read: %q", got)
		}
		err := old.set(1, "k", "minority")
		if err == nil {
			t.Error("the cut-off leader acknowledged a write")
		}
		lead := c.leader(1, old.id)
		lead.mustSet(1, "k", "new")
		if got, _, err := old.get(1, "k", Linearizable); err == nil {
			t.Errorf("the cut-off leader answered a linearizable read: %q", got)
		}
		c.heal()
		c.converged(1)
		if got, _, err := c.leader(1).get(1, "k", Linearizable); err != nil || got != "new" {
			t.Errorf("after healing: %q, %v", got, err)
		}
	})
}

func TestRestartFromLogAndSnapshot(t *testing.T) {
	for _, snapshots := range []bool{false, true} {
		t.Run(fmt.Sprint("snapshots ", snapshots), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 3, 3, 1, func(cfg *Config) {
					if snapshots {
						cfg.Snapshots = SnapshotConfig{LogBytes: 2000, TrailingEntries: 5}
					}
				})
				for i := range 200 {
					c.leader(1).mustSet(1, fmt.Sprint("k", i), "v")
					if i%10 == 0 {
						time.Sleep(time.Second) // virtual: lets the snapshot job run
					}
				}
				c.converged(1)
				if snapshots {
					for _, n := range c.nodes {
						if s := n.group(1).Status(); s.Snapshot == 0 {
							t.Errorf("%s took no snapshot", n.id)
						}
					}
				}
				for _, n := range c.nodes {
					n.stop()
				}
				for _, n := range c.nodes {
					n.restart()
				}
				c.leader(1)
				if keys := c.converged(1); keys != 200 {
					t.Errorf("%d keys after the restart", keys)
				}
				c.leader(1).mustSet(1, "k200", "v")
				if keys := c.converged(1); keys != 201 {
					t.Errorf("%d keys", keys)
				}
			})
		})
	}
}

// A follower that was away for longer than the log reaches back gets a snapshot, goes on from there, and
// survives a restart.
func TestInstallSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, func(cfg *Config) {
			cfg.Snapshots = SnapshotConfig{LogBytes: 1000, TrailingEntries: 3}
		})
		away := c.follower(1)
		away.stop()
		for i := range 100 {
			c.leader(1).mustSet(1, fmt.Sprint("k", i), strings.Repeat("v", 100))
			if i%5 == 0 {
				time.Sleep(1200 * time.Millisecond) // virtual
			}
		}
		away.restart()
		if keys := c.converged(1); keys != 100 {
			t.Errorf("%d keys", keys)
		}
		if s := away.group(1).Status(); s.Snapshot == 0 {
			t.Error("it caught up without a snapshot: the test proves nothing")
		}
		c.leader(1).mustSet(1, "after", "v")
		c.converged(1)
		away.stop()
		away.restart()
		if keys := c.converged(1); keys != 101 {
			t.Errorf("%d keys after its restart", keys)
		}
	})
}

// Shard time follows the log: a key expires when its time has passed by the leader's monotonic clock, whatever
// the wall clocks say, and once seen expired it stays so under the next leader.
func TestExpiryIsDecidedByTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, func(cfg *Config) {
			cfg.Clock = jumpingClock{NewSystemClock()}
			cfg.Reaping.Every = time.Hour // only reads commit ticks here
		})
		lead := c.leader(1)
		ctx, cancel := background()
		defer cancel()
		if _, err := lead.group(1).Write(ctx, &store.Op{Kind: store.OpSet, Key: []byte("k"), Value: []byte("v"), TTL: 5000}, Session{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		if _, ok, err := lead.get(1, "k", Linearizable); err != nil || !ok {
			t.Errorf("after 4 of 5 seconds: %v, %v", ok, err)
		}
		time.Sleep(1100 * time.Millisecond)
		if _, ok, err := lead.get(1, "k", Linearizable); err != nil || ok {
			t.Errorf("after 5 seconds: %v, %v", ok, err)
		}
		// The tick is in the log: every replica's own time has passed the key's end.
		c.converged(1)
		for _, n := range c.nodes {
			if _, ok, err := n.get(1, "k", Stale); err != nil || ok {
				t.Errorf("%s still has it: %v, %v", n.id, ok, err)
			}
		}
		lead.stop()
		next := c.leader(1)
		if _, ok, err := next.get(1, "k", Linearizable); err != nil || ok {
			t.Errorf("it is back under %s: %v, %v", next.id, ok, err)
		}
	})
}

// jumpingClock has a wall clock that is off by hours, in another direction at each look.
type jumpingClock struct{ SystemClock }

func (c jumpingClock) WallMilli() int64 {
	if c.Monotonic()%2 == 0 {
		return c.SystemClock.WallMilli() - 3_600_000
	}
	return c.SystemClock.WallMilli() + 3_600_000
}

func TestReaping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, func(cfg *Config) { cfg.Reaping.KeysMax = 7 })
		lead := c.leader(1)
		ctx, cancel := background()
		defer cancel()
		for i := range 100 {
			op := &store.Op{Kind: store.OpSet, Key: []byte(fmt.Sprint("k", i)), Value: []byte("v"), TTL: 1000}
			if i%4 == 0 {
				op.TTL = 0
			}
			if _, err := lead.group(1).Write(ctx, op, Session{}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if keys := c.converged(1); keys != 25 {
			t.Errorf("%d keys are left, want 25", keys)
		}
	})
}

// A leadership transfer goes to voters only, and the hand-over of a whole node leaves it leading nothing.
func TestTransferLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 2, 1, nil)
		lead := c.leader(1)
		if err := lead.group(1).TransferLeadership("n3"); !errors.Is(err, ErrNotLeader) {
			t.Errorf("transfer to a non-voter: %v", err)
		}
		other := c.follower(1)
		if err := lead.group(1).TransferLeadership(other.id); err != nil {
			t.Fatal(err)
		}
		if next := c.leader(1); next != other {
			t.Errorf("%s leads, want %s", next.id, other.id)
		}
		ctx, cancel := background()
		defer cancel()
		if err := other.host.HandOver(ctx); err != nil {
			t.Error(err)
		}
		if next := c.leader(1); next != lead {
			t.Errorf("%s leads, want %s", next.id, lead.id)
		}
	})
}

// Leaderships go to where the map prefers them.
func TestBalance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 6, nil)
		var nodes []shard.Node
		for _, n := range c.nodes {
			nodes = append(nodes, shard.Node{ID: n.id, Address: string(n.id)})
		}
		var shards []shard.Shard
		for i, id := range c.shards {
			s := shard.Shard{ID: id, Ranges: c.slotsOf(id), Preferred: c.nodes[i%3].id}
			for _, m := range c.members(id) {
				s.Replicas = append(s.Replicas, shard.Replica{ID: m.Replica, Node: m.Node, Voter: true})
			}
			shards = append(shards, s)
		}
		m, err := shard.NewMap(1, nodes, shards)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range c.nodes {
			n.host.SetPreferred(func() *shard.Map { return m })
		}
		c.eventually("every shard is led where it should be", func() bool {
			for _, s := range shards {
				for _, n := range c.nodes {
					if n.id == s.Preferred && !n.group(s.ID).IsLeader() {
						return false
					}
				}
			}
			return true
		})
	})
}

// raft#696: a leader whose transfer flag is stuck refuses every write for ever. The watchdog restarts the
// group inside the process; nothing is lost.
func TestWatchdogRestartsStuckTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead := c.leader(1)
		lead.mustSet(1, "k", "v")
		l := lead.group(1).replica.current.Load()
		// What proposals would report while the flag is stuck, from a moment long ago on.
		l.noteRefusal(raft.ErrLeadershipTransferInProgress)
		time.Sleep(2 * time.Second)
		if l != lead.group(1).replica.current.Load() {
			t.Fatal("restarted after less than three election timeouts")
		}
		c.eventually("the group was restarted", func() bool { return lead.group(1).Status().Restarts == 1 })
		if got, _, err := c.leader(1).get(1, "k", Linearizable); err != nil || got != "v" {
			t.Errorf("after the restart: %q, %v", got, err)
		}
		// A refusal that ends is no reason.
		now := c.leader(1)
		l = now.group(1).replica.current.Load()
		l.noteRefusal(raft.ErrLeadershipTransferInProgress)
		now.mustSet(1, "k", "w")
		time.Sleep(10 * time.Second)
		if got := now.group(1).replica.current.Load(); got != l {
			t.Error("restarted although writes go through")
		}
	})
}

// raft#697: the same snapshot installed again and again.
func TestWatchdogRestartsRepeatedInstall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		c.leader(1).mustSet(1, "k", "v")
		c.converged(1)
		f := c.follower(1)
		l := f.group(1).replica.current.Load()
		for range identicalInstallsMax + 1 {
			l.fsm.installs.note(42)
		}
		c.eventually("the group was restarted", func() bool { return f.group(1).Status().Restarts == 1 })
		c.converged(1)
	})
}

// A replica that meets an entry it can't read stops rather than guess, and says so.
func TestUnknownEntryStopsTheReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1, 1, 1, nil)
		lead := c.leader(1)
		lead.mustSet(1, "k", "v")
		l := lead.group(1).replica.current.Load()
		before := l.fsm.applied.load()
		l.raft.Apply([]byte{0x93, 0x63, 0x01, 0x01}, time.Second).Error() // format 99
		if err := lead.failure(); !errors.Is(err, ErrUnknownEntry) {
			t.Errorf("Fatal was told: %v", err)
		}
		if err := lead.set(1, "k", "w"); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("a write after it: %v", err)
		}
		if l.fsm.applied.load() != before {
			t.Error("the applied index moved on")
		}
	})
}

// What a leader has not applied yet of earlier terms must not be missing from a linearizable read: no-ops and
// barriers, which the machine never sees, must neither be waited for nor hide entries.
func TestReadAfterElections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		for i := range 8 {
			lead := c.leader(1)
			lead.mustSet(1, "k", fmt.Sprint(i))
			if err := lead.group(1).replica.handOver(); err != nil {
				t.Fatal(err)
			}
			next := c.leader(1, lead.id)
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			r, err := next.group(1).Read(ctx, Linearizable)
			if err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			if value, _, _, err := r.Get([]byte("k"), nil); err != nil || string(value) != fmt.Sprint(i) {
				t.Errorf("round %d: %q, %v", i, value, err)
			}
			cancel()
		}
	})
}

// A crash between a first configuration's two writes is finished by repeating the bootstrap.
func TestBootstrapIsRepeatable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1, 1, 1, nil)
		n := c.nodes[0]
		const id, replica = shard.ID(9), shard.ReplicaID(901)
		stores, err := n.disks.Open(id, replica)
		if err != nil {
			t.Fatal(err)
		}
		if err := stores.Stable.SetUint64([]byte("CurrentTerm"), 1); err != nil { // all that the crash left
			t.Fatal(err)
		}
		if err := stores.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := n.host.Bootstrap(id, replica, []Member{{Node: n.id, Replica: replica, Voter: true}}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := n.host.StartGroup(GroupSpec{Shard: id, Replica: replica, Ranges: c.slotsOf(1)}); err != nil {
			t.Fatal(err)
		}
		c.eventually("it leads itself", n.group(id).IsLeader)
	})
}
