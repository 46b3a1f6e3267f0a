package storage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

func TestReplicaLife(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		r := g.open()
		has, err := raft.HasExistingState(r.Log, r.Stable, r.Snapshots)
		if has || err != nil {
			t.Fatalf("a new replica has state: %v, %v", has, err)
		}
		_, err = g.node.Open(testGroup, testReplica)
		wantErr(t, err, ErrReplicaOpen)
		wantErr(t, g.node.Remove(testGroup, testReplica), ErrReplicaOpen)

		// A group restarted inside the process finds everything again.
		setTerm(t, r, 2)
		must(t, r.Log.StoreLogs(entries(1, 30, 2)))
		takeSnapshot(t, r, 20, 2)
		must(t, r.Close())
		must(t, r.Close())
		r = g.open()
		must(t, r.Reconcile())
		wantBounds(t, r, "[1, 30]")
		wantListed(t, r, "20@2 ")
		if has, err := raft.HasExistingState(r.Log, r.Stable, r.Snapshots); !has || err != nil {
			t.Fatalf("no state: %v, %v", has, err)
		}
		must(t, g.node.Close())
		must(t, g.node.Close())
		_, err = g.node.Open(testGroup, testReplica)
		wantErr(t, err, ErrClosed)
		wantErr(t, g.node.Remove(testGroup, testReplica), ErrClosed)
	})
}

func TestRemove(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		fill := func(id shard.ReplicaID) {
			r, err := g.node.Open(testGroup, id)
			must(t, err)
			setTerm(t, r, 2)
			must(t, r.Log.StoreLogs(entries(1, 30, 2)))
			takeSnapshot(t, r, 20, 2)
			must(t, r.Close())
		}
		fill(testReplica)
		fill(testReplica + 1)
		for range 2 {
			must(t, g.node.Remove(testGroup, testReplica+1))
			_, err := g.node.Open(testGroup, testReplica+1)
			wantErr(t, err, ErrReplicaRemoved)
			must(t, g.node.Close())
			g.start()
		}
		infos, err := g.node.cfg.FS.ReadDir(g.node.snapshotDir(testGroup))
		must(t, err)
		if len(infos) != 1 {
			t.Fatalf("snapshots left: %v", infos)
		}
		r := g.open()
		must(t, r.Reconcile())
		wantBounds(t, r, "[1, 30]")
		must(t, g.node.Remove(testGroup, 99)) // that never was
	})
}

// A replica with damaged records can still be wiped.
func TestRemoveDamaged(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	setTerm(t, r, 2)
	must(t, r.Close())
	g.cfg.Memory.meta.values["3/7/"+recordTerm][3] ^= 1
	_, err := g.node.Open(testGroup, testReplica)
	wantErr(t, err, ErrVoteRecordDamaged)
	must(t, g.node.Remove(testGroup, testReplica))
	_, err = g.node.Open(testGroup, testReplica)
	wantErr(t, err, ErrReplicaRemoved)
}

func TestLayout(t *testing.T) {
	g := newRig(t, Config{Dir: filepath.Join(t.TempDir(), "data"), NoSync: true})
	g.open()
	meta, err := g.node.Open(shard.MetaGroup, 1)
	must(t, err)
	must(t, meta.Log.StoreLogs(entries(1, 1, 1)))
	id := takeSnapshot(t, meta, 1, 1)
	for _, file := range []string{"meta/meta.bolt", "meta/log-1.bolt", "wal/0000000000000001.wal", "snap/0/" + id + ".snap", "snap/3"} {
		if _, err := os.Stat(filepath.Join(g.cfg.Dir, file)); err != nil {
			t.Error(err)
		}
	}
	must(t, meta.Close())
	must(t, g.node.Remove(shard.MetaGroup, 1))
	if _, err := os.Stat(filepath.Join(g.cfg.Dir, "meta/log-1.bolt")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// What a build before the write-ahead log left is refused, and the error says what to do.
func TestOldLayout(t *testing.T) {
	g := newRig(t, Config{Dir: t.TempDir(), NoSync: true})
	must(t, g.node.Close())
	writeTestFile(t, filepath.Join(g.cfg.Dir, walDir, "votes.bolt"), nil)
	_, err := Open(g.cfg)
	wantErr(t, err, ErrOldLayout)
}

// A second process can't come in by bolt's lock either, and what isn't a bolt file is an error that names it.
func TestUnusableFiles(t *testing.T) {
	dir := t.TempDir()
	newRig(t, Config{Dir: dir, NoSync: true})
	second := Config{Dir: dir, Logger: newMemoryRig(t).cfg.Logger, Fatal: func(error) {}}
	if _, err := Open(second); err == nil {
		t.Fatal("opened twice")
	}

	other := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(other, metaDir), 0o700))
	path := filepath.Join(other, metaDir, "meta.bolt")
	writeTestFile(t, path, make([]byte, 100_000))
	second.Dir = other
	if _, err := Open(second); err == nil || !errorNames(err, path) {
		t.Fatalf("rubbish for a bolt file: %v", err)
	}
}

func TestConfig(t *testing.T) {
	good := newMemoryRig(t).cfg
	for name, change := range map[string]func(*Config){
		"no directory":  func(c *Config) { c.Dir = "" },
		"no Fatal":      func(c *Config) { c.Fatal = nil },
		"no logger":     func(c *Config) { c.Logger = nil },
		"negative keep": func(c *Config) { c.SnapshotsKept = -1 },
	} {
		c := good
		change(&c)
		if _, err := Open(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
