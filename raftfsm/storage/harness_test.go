package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testGroup   = 3
	testReplica = 7
)

// rig is a node whose stores survive being closed and opened again.
type rig struct {
	t    *testing.T
	cfg  Config
	node *Node

	mu    sync.Mutex
	fatal []error
}

// onBothBackends runs a test with logs and records in bolt files and in memory.
func onBothBackends(t *testing.T, test func(*testing.T, *rig)) {
	t.Run("bolt", func(t *testing.T) { test(t, newRig(t, Config{Dir: t.TempDir(), NoSync: true})) })
	t.Run("memory", func(t *testing.T) { test(t, newMemoryRig(t)) })
}

func newMemoryRig(t *testing.T) *rig {
	return newRig(t, Config{Dir: "/data", FS: disk.NewMem(), Memory: NewMemory()})
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	g := &rig{t: t, cfg: cfg}
	if g.cfg.FS == nil {
		g.cfg.FS = disk.OS{}
	}
	g.cfg.Logger = slog.New(slog.DiscardHandler)
	g.cfg.Fatal = func(err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.fatal = append(g.fatal, err)
	}
	g.start()
	t.Cleanup(func() { must(t, g.node.Close()) })
	return g
}

func (g *rig) start() {
	g.t.Helper()
	node, err := Open(g.cfg)
	must(g.t, err)
	g.node = node
}

// restart closes the node and opens it again, with the replica.
func (g *rig) restart() *Replica {
	g.t.Helper()
	must(g.t, g.node.Close())
	g.start()
	return g.open()
}

func (g *rig) open() *Replica {
	g.t.Helper()
	r, err := g.node.Open(testGroup, testReplica)
	must(g.t, err)
	return r
}

func (g *rig) fatalErrors() []error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fatal
}

func (g *rig) wantFatal(target error) {
	g.t.Helper()
	if got := g.fatalErrors(); len(got) != 1 || !errors.Is(got[0], target) {
		g.t.Fatalf("Fatal was called with %v, want once with %v", got, target)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

func entry(index, term uint64) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d of term %d", index, term)}
}

// entries makes the entries [from, to] of a term.
func entries(from, to, term uint64) []*raft.Log {
	var logs []*raft.Log
	for i := from; i <= to; i++ {
		logs = append(logs, entry(i, term))
	}
	return logs
}

var testServers = raft.Configuration{Servers: []raft.Server{
	{Suffrage: raft.Voter, ID: "7", Address: "n1/7"},
	{Suffrage: raft.Nonvoter, ID: "8", Address: "n2/8"},
}}

func createSnapshot(t *testing.T, r *Replica, index, term uint64) raft.SnapshotSink {
	t.Helper()
	sink, err := r.Snapshots.Create(raft.SnapshotVersionMax, index, term, testServers, 1, nil)
	must(t, err)
	return sink
}

// takeSnapshot publishes a snapshot and returns its id.
func takeSnapshot(t *testing.T, r *Replica, index, term uint64) string {
	t.Helper()
	sink := createSnapshot(t, r, index, term)
	_, err := fmt.Fprintf(sink, "state at %d", index)
	must(t, err)
	must(t, sink.Close())
	return sink.ID()
}

// setTerm records a term, as raft does before it writes anything of it.
func setTerm(t *testing.T, r *Replica, term uint64) {
	t.Helper()
	must(t, r.Stable.SetUint64([]byte(keyCurrentTerm), term))
}

func listed(t *testing.T, r *Replica) string {
	t.Helper()
	metas, err := r.Snapshots.List()
	must(t, err)
	text := ""
	for _, m := range metas {
		text += fmt.Sprintf("%d@%d ", m.Index, m.Term)
	}
	return text
}

func bounds(t *testing.T, r *Replica) string {
	t.Helper()
	first, err := r.Log.FirstIndex()
	must(t, err)
	last, err := r.Log.LastIndex()
	must(t, err)
	return fmt.Sprintf("[%d, %d]", first, last)
}

func wantBounds(t *testing.T, r *Replica, want string) {
	t.Helper()
	if got := bounds(t, r); got != want {
		t.Fatalf("the log is %s, want %s", got, want)
	}
}

func wantListed(t *testing.T, r *Replica, want string) {
	t.Helper()
	if got := listed(t, r); got != want {
		t.Fatalf("snapshots %q, want %q", got, want)
	}
}

func wantEntry(t *testing.T, r *Replica, index, term uint64) {
	t.Helper()
	var e raft.Log
	if err := r.Log.GetLog(index, &e); err != nil || e.Index != index || e.Term != term {
		t.Fatalf("GetLog(%d): entry %d of term %d, %v; want term %d", index, e.Index, e.Term, err, term)
	}
}

// wantNoEntry insists on the very value, which raft compares.
func wantNoEntry(t *testing.T, r *Replica, index uint64) {
	t.Helper()
	var e raft.Log
	if err := r.Log.GetLog(index, &e); err != raft.ErrLogNotFound {
		t.Fatalf("GetLog(%d): %+v, %v; want raft.ErrLogNotFound", index, e, err)
	}
}

func readSnapshot(t *testing.T, r *Replica, id string) (string, error) {
	t.Helper()
	meta, source, err := r.Snapshots.Open(id)
	if err != nil {
		return "", err
	}
	defer source.Close()
	data, err := io.ReadAll(source)
	if err == nil && int64(len(data)) != meta.Size {
		t.Fatalf("snapshot %s has %d bytes, its meta says %d", id, len(data), meta.Size)
	}
	return string(data), err
}

func readTestFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}

func writeTestFile(t *testing.T, path string, data []byte) {
	t.Helper()
	must(t, os.WriteFile(path, data, 0o600))
}

// withFormat gives a snapshot file another format, with a head that checks.
func withFormat(file []byte, format uint32) []byte {
	file = bytes.Clone(file)
	binary.BigEndian.PutUint32(file[8:], format)
	head := headFixedBytes + int(binary.BigEndian.Uint32(file[12:]))
	binary.BigEndian.PutUint32(file[head:], crc32.Checksum(file[:head], castagnoli))
	return file
}

func errorNames(err error, path string) bool { return strings.Contains(err.Error(), path) }
