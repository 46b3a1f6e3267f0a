package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/shard"
)

// blockingDisk is a filesystem in memory that a test fills up or lets hang.
type blockingDisk struct {
	*disk.Mem
	full atomic.Bool
	// hang, if set, is told of each file that is made, and answers when it may go on.
	hang chan chan struct{}
}

var errDiskFull = errors.New("disk full")

func (d *blockingDisk) Create(path string) (disk.File, error) {
	if d.full.Load() {
		return nil, errDiskFull
	}
	if d.hang != nil {
		goOn := make(chan struct{})
		d.hang <- goOn
		<-goOn
	}
	return d.Mem.Create(path)
}

// identityNode is a node that has read its identity, and does nothing else.
func identityNode(t *testing.T) (*Node, *blockingDisk) {
	t.Helper()
	d := &blockingDisk{Mem: disk.NewMem()}
	if err := disk.MkdirAll(d, "data"); err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{ID: "n1", DataDir: "data", Listen: "127.0.0.1:7400", FS: d, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.openIdentity(); err != nil {
		t.Fatal(err)
	}
	return n, d
}

func stored(t *testing.T, d disk.FS) *identity {
	t.Helper()
	id, err := loadIdentity(d, "data", "n1")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestIdentityCountsOnceSaved: on a full disk a step fails whole; what is believed stays what is on the disk.
func TestIdentityCountsOnceSaved(t *testing.T) {
	n, d := identityNode(t)
	plan := testPlan(t)
	d.full.Store(true)
	if err := n.keepPlan(plan); !errors.Is(err, errDiskFull) {
		t.Fatalf("adopting on a full disk: %v", err)
	}
	if n.ClusterID() != "" || n.Adopting() {
		t.Errorf("acted upon: cluster %q, adopting %v", n.ClusterID(), n.Adopting())
	}
	d.full.Store(false)
	if err := n.keepPlan(plan); err != nil {
		t.Fatal(err)
	}
	d.full.Store(true)
	if err := n.changeIdentity(func(id *identity) error { id.Phase = phaseMember; return nil }); !errors.Is(err, errDiskFull) {
		t.Fatalf("becoming a member on a full disk: %v", err)
	}
	if !n.Adopting() || stored(t, d).Phase != phaseAdopting {
		t.Errorf("adopting: %v, stored as %s", n.Adopting(), stored(t, d).Phase)
	}
	d.full.Store(false)
	if err := n.changeIdentity(func(id *identity) error { id.Phase = phaseMember; return nil }); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, d); n.Adopting() || got.Phase != phaseMember || got.plan.GetClusterId() != plan.GetClusterId() {
		t.Errorf("stored: %+v", got)
	}
}

// TestLearningDoesNotWaitForTheDisk: while the book is being saved to a disk that hangs, handshakes are made and more
// is learnt; what came last is saved at the end.
func TestLearningDoesNotWaitForTheDisk(t *testing.T) {
	n, d := identityNode(t)
	n.book.learnMap(testMap(t))
	<-n.bookChanged
	life, end := context.WithCancel(t.Context())
	n.life = life
	d.hang = make(chan chan struct{})
	n.background.Go(n.keepBook)
	n.book.learn("n2", "first:1", 10)
	goOn := <-d.hang
	n.book.learn("n2", "second:1", 11)
	n.book.learn("n2", "third:1", 12)
	if hs := n.handshake("n2"); hs.GetNodeId() != "n1" || n.ClusterID() != "" {
		t.Errorf("handshake: %v", hs)
	}
	close(goOn)
	close(<-d.hang)
	n.book.learn("n3", "last:1", 1)
	end()
	joined := make(chan struct{})
	go func() { n.background.Wait(); close(joined) }()
	for done := false; !done; { // one more save or two: the end may come before the token or after
		select {
		case goOn := <-d.hang:
			close(goOn)
		case <-joined:
			done = true
		}
	}
	if got, want := stored(t, d.Mem).Book, n.book.snapshot(); !reflect.DeepEqual(got, want) || got["n3"].Address != "last:1" || got["n2"].Address != "third:1" {
		t.Errorf("saved %v, want %v", got, want)
	}
}

func TestIdentityRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":         `{`,
		"newer format":    `{"format": 2, "node": "n1", "phase": "blank"}`,
		"unknown phase":   `{"format": 1, "node": "n1", "phase": "ghost", "cluster_id": "c", "plan": {"cluster_id": "c"}}`,
		"no plan":         `{"format": 1, "node": "n1", "phase": "member", "cluster_id": "c"}`,
		"plan":            `{"format": 1, "node": "n1", "phase": "member", "cluster_id": "c", "plan": {"what": 1}}`,
		"another cluster": `{"format": 1, "node": "n1", "phase": "member", "cluster_id": "c", "plan": {"cluster_id": "d"}}`,
	} {
		d := disk.NewMem()
		if err := errors.Join(disk.MkdirAll(d, "data"), disk.WriteFileAtomic(d, "data/"+identityFile, []byte(text))); err != nil {
			t.Fatal(err)
		}
		if _, err := loadIdentity(d, "data", shard.NodeID("n1")); !errors.Is(err, ErrIdentityDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A node on a full disk can be started, again and again: what it writes then has its room.
func TestIdentityHasRoomOnAFullDisk(t *testing.T) {
	mem := disk.NewMem()
	if err := disk.MkdirAll(mem, "data"); err != nil {
		t.Fatal(err)
	}
	full := false
	d := disk.NewHooked(mem, func(op disk.Op, path string) error {
		info, err := mem.Stat("data/" + identityFile + roomSuffix)
		if kept := err == nil && info.Size > 0; full && kept && (op == disk.OpWrite || op == disk.OpPreallocate) {
			return syscall.ENOSPC
		}
		return nil
	})
	id, err := loadIdentity(d, "data", "n1")
	if err != nil {
		t.Fatal(err)
	}
	for start := range uint64(5) {
		id.Incarnation = start + 1
		if err := id.save(d, "data"); err != nil {
			t.Fatalf("start %d: %v", start+1, err)
		}
		if again, err := loadIdentity(d, "data", "n1"); err != nil || again.Incarnation != start+1 {
			t.Fatalf("start %d: %+v, %v", start+1, again, err)
		}
		if _, err := mem.Stat("data/" + identityFile + roomSuffix); err != nil {
			t.Fatalf("after start %d no room is kept: %v", start+1, err)
		}
		full = true
	}
}
