package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/shard"
)

const (
	metaDir = "meta"
	walDir  = "wal"
	snapDir = "snap"
)

// boltLockTimeout bounds the wait for bolt's own file lock. The data directory's lock is held before, so only a
// stray tool can be in the way.
const boltLockTimeout = time.Second

// boltBackend keeps one bolt file per log and one per copy of the records.
type boltBackend struct {
	dir    string
	noSync bool
	votes  *boltRecords
	meta   *boltRecords
}

func openBolt(dir string, noSync bool) (*boltBackend, error) {
	b := &boltBackend{dir: dir, noSync: noSync}
	var err error
	if b.votes, err = b.openRecords(filepath.Join(dir, walDir, "votes.bolt")); err != nil {
		return nil, err
	}
	if b.meta, err = b.openRecords(filepath.Join(dir, metaDir, "meta.bolt")); err != nil {
		return nil, errors.Join(err, b.votes.store.Close())
	}
	return b, nil
}

func (b *boltBackend) openRecords(path string) (*boltRecords, error) {
	store, err := b.openStore(path)
	if err != nil {
		return nil, err
	}
	return &boltRecords{store: store, path: path}, nil
}

// openStore opens a bolt file and makes its name durable, which bolt doesn't.
func (b *boltBackend) openStore(path string) (store *raftboltdb.BoltStore, err error) {
	defer guardDamage(path, &err)()
	store, err = raftboltdb.New(raftboltdb.Options{
		Path:        path,
		NoSync:      b.noSync,
		BoltOptions: &bbolt.Options{Timeout: boltLockTimeout, FreelistType: bbolt.FreelistMapType, NoSync: b.noSync},
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if b.noSync {
		return store, nil
	}
	if err := (disk.OS{}).SyncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}

func (b *boltBackend) entriesPath(who identity) string {
	if who.group == shard.MetaGroup {
		return filepath.Join(b.dir, metaDir, fmt.Sprintf("log-%d.bolt", uint64(who.replica)))
	}
	return filepath.Join(b.dir, walDir, fmt.Sprintf("shard-%d-%d.bolt", uint32(who.group), uint64(who.replica)))
}

func (b *boltBackend) openEntries(who identity) (entryStore, error) {
	path := b.entriesPath(who)
	store, err := b.openStore(path)
	if err != nil {
		return nil, err
	}
	return &boltEntries{BoltStore: store, path: path}, nil
}

func (b *boltBackend) removeEntries(who identity) error {
	path := b.entriesPath(who)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return disk.OS{}.SyncDir(filepath.Dir(path))
}

func (b *boltBackend) recordCopies() [2]recordStore { return [2]recordStore{b.votes, b.meta} }

func (b *boltBackend) close() error {
	return errors.Join(b.votes.store.Close(), b.meta.store.Close())
}

// boltEntries is a log in a bolt file.
type boltEntries struct {
	*raftboltdb.BoltStore
	path string
}

// GetLog implements entryStore. bolt checks nothing that it reads, so an entry at least must say that it is
// the one asked for.
func (e *boltEntries) GetLog(index uint64, entry *raft.Log) (err error) {
	defer guardDamage(e.path, &err)()
	var found raft.Log
	if err := e.BoltStore.GetLog(index, &found); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return raft.ErrLogNotFound
		}
		return fmt.Errorf("%s: entry %d: %w", e.path, index, err)
	}
	if found.Index != index {
		return fmt.Errorf("%w: %s: entry %d says that it is %d", ErrLogDamaged, e.path, index, found.Index)
	}
	*entry = found
	return nil
}

// boltRecords is one copy of the records.
type boltRecords struct {
	store *raftboltdb.BoltStore
	path  string
}

func (r *boltRecords) name() string { return r.path }

func (r *boltRecords) get(key string) (value []byte, err error) {
	defer guardDamage(r.path, &err)()
	value, err = r.store.Get([]byte(key))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, nil
	}
	return value, err
}

func (r *boltRecords) set(key string, value []byte) error { return r.store.Set([]byte(key), value) }

// guardDamage turns a panic, or a fault, into an error that names the file: bolt asserts what it finds in its pages
// and follows what they say into its memory map, and rot is no reason to die without a word about where. Defer what
// it returns.
func guardDamage(path string, err *error) func() {
	faults := debug.SetPanicOnFault(true) // this goroutine's
	return func() {
		debug.SetPanicOnFault(faults)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %s: %v", ErrLogDamaged, path, p)
		}
	}
}
