package storage

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// listFSM keeps the commands that it was given.
type listFSM struct {
	mu   sync.Mutex
	list []string
}

func (f *listFSM) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

func (f *listFSM) ApplyBatch(logs []*raft.Log) []any {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, log := range logs {
		if log.Type == raft.LogCommand {
			f.list = append(f.list, string(log.Data))
		}
	}
	return make([]any, len(logs))
}

func (f *listFSM) Snapshot() (raft.FSMSnapshot, error) {
	data, err := json.Marshal(f.commands())
	return listSnapshot(data), err
}

func (f *listFSM) Restore(source io.ReadCloser) error {
	var list []string
	data, err := io.ReadAll(source)
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = list
	return nil
}

func (f *listFSM) commands() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list)
}

type listSnapshot []byte

func (s listSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return err
	}
	return sink.Close()
}

func (listSnapshot) Release() {}

// running is a real raft over a rig's stores.
type running struct {
	t         *testing.T
	raft      *raft.Raft
	fsm       *listFSM
	transport *raft.InmemTransport
	replica   *Replica
}

const soleVoter = "n1/7"

// run starts raft on a replica that Reconcile let pass. A patient one never stands for election by itself.
func run(t *testing.T, r *Replica, patient bool) *running {
	t.Helper()
	must(t, r.Reconcile())
	c := raft.DefaultConfig()
	c.LocalID = "7"
	c.Logger = hclog.NewNullLogger()
	c.TrailingLogs = 0
	c.SnapshotThreshold, c.SnapshotInterval = 1<<40, time.Hour
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	if patient {
		c.HeartbeatTimeout, c.ElectionTimeout = time.Hour, time.Hour
	}
	_, transport := raft.NewInmemTransport(soleVoter)
	has, err := raft.HasExistingState(r.Log, r.Stable, r.Snapshots)
	must(t, err)
	if !has {
		must(t, raft.BootstrapCluster(c, r.Log, r.Stable, r.Snapshots, transport,
			raft.Configuration{Servers: []raft.Server{{ID: "7", Address: soleVoter}}}))
	}
	n := &running{t: t, fsm: new(listFSM), transport: transport, replica: r}
	n.raft, err = raft.NewRaft(c, n.fsm, r.Log, r.Stable, r.Snapshots, transport)
	must(t, err)
	if !patient {
		for !<-n.raft.LeaderCh() {
		}
		must(t, n.raft.Barrier(time.Minute).Error())
	}
	return n
}

func (n *running) stop() {
	n.t.Helper()
	must(n.t, n.raft.Shutdown().Error())
	must(n.t, n.transport.Close())
	must(n.t, n.replica.Close())
}

// apply writes the commands [from, to].
func (n *running) apply(from, to int) {
	n.t.Helper()
	for i := from; i <= to; i++ {
		must(n.t, n.raft.Apply(fmt.Append(nil, i), time.Minute).Error())
	}
}

func (n *running) wantCommands(to int) {
	n.t.Helper()
	var want []string
	for i := 1; i <= to; i++ {
		want = append(want, fmt.Sprint(i))
	}
	if got := n.fsm.commands(); !slices.Equal(got, want) {
		n.t.Fatalf("the FSM has %d commands %v, want 1..%d", len(got), got, to)
	}
}

func TestRaftStartsAgain(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		n := run(t, g.open(), false)
		n.apply(1, 20)
		must(t, n.raft.Snapshot().Error())
		n.apply(21, 30)
		n.stop()
		for range 2 {
			n = run(t, g.restart(), false)
			n.wantCommands(30)
			n.stop()
		}
		if got := g.fatalErrors(); got != nil {
			t.Fatal(got)
		}
	})
}

// raft passes over a damaged newest snapshot to the one before, and panics if the log between them is gone (raft#85). No
// trailing entries here: only the clamped deletion keeps it.
func TestRaftStartsWithoutItsNewestSnapshot(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		n := run(t, g.open(), false)
		n.apply(1, 20)
		must(t, n.raft.Snapshot().Error())
		n.apply(21, 40)
		must(t, n.raft.Snapshot().Error())
		n.apply(41, 50)
		metas, err := n.replica.Snapshots.List()
		must(t, err)
		if len(metas) != 2 {
			t.Fatalf("%d snapshots", len(metas))
		}
		n.stop()
		g.damage(metas[0].ID, badState)
		n = run(t, g.restart(), false)
		n.wantCommands(50)
		n.stop()

		// With the log gone too there is nothing to start from, and raft is not asked.
		r := g.restart()
		must(t, r.Log.Clear())
		r = g.restart()
		wantErr(t, r.Reconcile(), ErrReplicaBehind)
	})
}

// leader plays a leader towards a real follower.
type leader struct {
	t         *testing.T
	transport *raft.InmemTransport
	term      uint64
}

func newLeader(n *running, term uint64) *leader {
	_, transport := raft.NewInmemTransport("n2/8")
	transport.Connect(soleVoter, n.transport)
	n.t.Cleanup(func() { must(n.t, transport.Close()) })
	return &leader{t: n.t, transport: transport, term: term}
}

func (l *leader) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("8"), Addr: []byte("n2/8")}
}

// commands makes the entries [from, to], whose commands are their indices, starting at 2: index 1 is the configuration.
func (l *leader) commands(from, to uint64) []*raft.Log {
	var logs []*raft.Log
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: l.term, Data: fmt.Append(nil, i-1)})
	}
	return logs
}

func (l *leader) append(prev, prevTerm, commit uint64, logs []*raft.Log) bool {
	l.t.Helper()
	var answer raft.AppendEntriesResponse
	must(l.t, l.transport.AppendEntries("7", soleVoter, &raft.AppendEntriesRequest{RPCHeader: l.header(), Term: l.term,
		PrevLogEntry: prev, PrevLogTerm: prevTerm, LeaderCommitIndex: commit, Entries: logs}, &answer))
	return answer.Success
}

// install sends a snapshot at index, which holds the commands 1..index-1.
func (l *leader) install(index uint64) {
	l.t.Helper()
	var list []string
	for i := uint64(1); i < index; i++ {
		list = append(list, fmt.Sprint(i))
	}
	data, err := json.Marshal(list)
	must(l.t, err)
	configuration := raft.Configuration{Servers: []raft.Server{{ID: "7", Address: soleVoter}}}
	var answer raft.InstallSnapshotResponse
	source, sink := io.Pipe()
	go func() { _, err := sink.Write(data); sink.CloseWithError(err) }()
	must(l.t, l.transport.InstallSnapshot("7", soleVoter, &raft.InstallSnapshotRequest{RPCHeader: l.header(), SnapshotVersion: 1,
		Term: l.term, LastLogIndex: index, LastLogTerm: l.term, Configuration: raft.EncodeConfiguration(configuration),
		ConfigurationIndex: 1, Size: int64(len(data))}, &answer, source))
	if !answer.Success {
		l.t.Fatal("the install was refused")
	}
}

// waitCommands waits for what raft's FSM goroutine applies after the answer.
func (n *running) waitCommands(to int) {
	n.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(n.fsm.commands()) < to && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	n.wantCommands(to)
}

// After an install the answer to the first append may be lost. The leader sends it again, with the snapshot as
// the entry before: that must be known.
func TestRaftTakesARetryAfterAnInstall(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		n := run(t, g.open(), true)
		l := newLeader(n, 2)
		if !l.append(1, 1, 1, l.commands(2, 10)) {
			t.Fatal("append refused")
		}
		l.install(50)
		for range 2 {
			if !l.append(50, 2, 52, l.commands(51, 52)) {
				t.Fatal("append after the install refused")
			}
		}
		n.waitCommands(51)
		n.stop()
		n = run(t, g.restart(), true)
		n.wantCommands(49) // a restarted follower hasn't heard of later commits
		l = newLeader(n, 3)
		if !l.append(52, 2, 52, nil) {
			t.Fatal("append after the restart refused")
		}
		n.waitCommands(51)
		n.stop()
	})
}

// A snapshot that comes late, after the entries behind it, must not empty the log: raft keeps its own last index and
// commit index, and dies at the next commit when an entry is missing.
func TestRaftSurvivesALateInstall(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		n := run(t, g.open(), true)
		l := newLeader(n, 2)
		if !l.append(1, 1, 60, l.commands(2, 60)) {
			t.Fatal("append refused")
		}
		n.waitCommands(59)
		l.install(40)
		if !l.append(60, 2, 61, l.commands(61, 61)) {
			t.Fatal("append after the late install refused")
		}
		n.waitCommands(60)
		wantBounds(t, n.replica, "[1, 61]")
		n.stop()
	})
}
