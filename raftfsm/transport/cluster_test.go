package transport

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// listFSM keeps the commands it was given.
type listFSM struct {
	mu       sync.Mutex
	commands [][]byte
}

func (l *listFSM) Apply(entry *raft.Log) any {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commands = append(l.commands, entry.Data)
	return nil
}

func (l *listFSM) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, c := range l.commands {
		all = append(all, string(c))
	}
	return all
}

func (l *listFSM) Snapshot() (raft.FSMSnapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return listSnapshot(bytes.Join(l.commands, []byte{0})), nil
}

func (l *listFSM) Restore(snapshot io.ReadCloser) error {
	defer snapshot.Close()
	all, err := io.ReadAll(snapshot)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commands = nil
	if len(all) > 0 {
		l.commands = bytes.Split(all, []byte{0})
	}
	return nil
}

type listSnapshot []byte

func (s listSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return err
	}
	return sink.Close()
}

func (s listSnapshot) Release() {}

// raftReplica is a real raft over a Facade.
type raftReplica struct {
	facade *Facade
	raft   *raft.Raft
	fsm    *listFSM
	log    *raft.InmemStore
}

// startRaft starts one replica. members are all replicas of the group, its own among them.
func startRaft(t *testing.T, f *Facade, members []raft.Server, adjust ...func(*raft.Config)) *raftReplica {
	t.Helper()
	r := &raftReplica{facade: f, fsm: &listFSM{}, log: raft.NewInmemStore()}
	cfg := raft.DefaultConfig()
	cfg.LocalID = ServerID(f.replica)
	cfg.Logger = hclog.NewNullLogger()
	cfg.NoLegacyTelemetry = true
	for _, a := range adjust {
		a(cfg)
	}
	var logs raft.LogStore = r.log
	if gate, ok := f.gate.(*fakeGate); ok {
		logs = gatedStore{r.log, gate}
	}
	snapshots := raft.NewInmemSnapshotStore()
	if err := raft.BootstrapCluster(cfg, logs, r.log, snapshots, f, raft.Configuration{Servers: members}); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.raft, err = raft.NewRaft(cfg, r.fsm, logs, r.log, snapshots, f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r *raftReplica) stop(t *testing.T) {
	shut := r.raft.Shutdown()
	r.facade.Close() // first: raft waits for its calls
	if err := shut.Error(); err != nil {
		t.Error(err)
	}
}

func member(f *Facade) raft.Server {
	return raft.Server{ID: ServerID(f.replica), Address: f.LocalAddr()}
}

func leaderOf(replicas []*raftReplica) *raftReplica {
	for _, r := range replicas {
		if r.raft.State() == raft.Leader {
			return r
		}
	}
	return nil
}

// TestClusterInBubble runs three nodes with several groups, gRPC included, in virtual time: they elect, write, hand a
// leadership over, lose a node, write on, and catch it up by a snapshot when it is back.
func TestClusterInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups = 4
		net := newNetwork(t)
		nodes := []*testNode{net.node("n1"), net.node("n2"), net.node("n3")}
		var shards [groups][]*raftReplica
		for g := range groups {
			var facades []*Facade
			var members []raft.Server
			for i, n := range nodes {
				f := n.open(shard.ID(g), shard.ReplicaID(10*g+i+1))
				facades, members = append(facades, f), append(members, member(f))
			}
			for _, f := range facades {
				shards[g] = append(shards[g], startRaft(t, f, members, func(c *raft.Config) { c.TrailingLogs = 1 }))
			}
		}
		for g := range groups {
			eventuallyVirtual(t, "a leader", func() bool { return leaderOf(shards[g]) != nil })
			write(t, leaderOf(shards[g]), "first")
		}

		leader := leaderOf(shards[0])
		if err := leader.raft.LeadershipTransfer().Error(); err != nil {
			t.Fatalf("hand over: %v", err)
		}
		eventuallyVirtual(t, "another leader", func() bool { l := leaderOf(shards[0]); return l != nil && l != leader })
		write(t, leaderOf(shards[0]), "second")

		// n3 vanishes without a word. What it led is led elsewhere.
		net.isolate("n3")
		for g := range groups {
			rest := shards[g][:2]
			eventuallyVirtual(t, "a leader without n3", func() bool { return leaderOf(rest) != nil })
			l := leaderOf(rest)
			for i := range 20 {
				write(t, l, fmt.Sprintf("without n3, %d", i))
			}
			if err := l.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		net.heal("n3")
		for g := range groups {
			eventuallyVirtual(t, "n3 has caught up", func() bool {
				l := leaderOf(shards[g][:2])
				return l != nil && fmt.Sprint(shards[g][2].fsm.list()) == fmt.Sprint(l.fsm.list())
			})
		}
		if got := shards[1][2].raft.Stats()["last_snapshot_index"]; got == "0" {
			t.Error("n3 caught up without a snapshot")
		}
		if got := len(shards[1][2].fsm.list()); got != 21 {
			t.Errorf("n3 has %d commands of group 1, want 21", got)
		}
	})
}

func write(t *testing.T, leader *raftReplica, command string) {
	t.Helper()
	if err := leader.raft.Apply([]byte(command), 5*time.Second).Error(); err != nil {
		t.Fatalf("write %q: %v", command, err)
	}
}

// eventuallyVirtual lets virtual time pass until a condition holds.
func eventuallyVirtual(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for range 3000 {
		synctest.Wait()
		if condition() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("still not after 30 s: %s", what)
}
