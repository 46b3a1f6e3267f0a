package storage

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

const (
	metaDir = "meta"
	walDir  = "wal"
	snapDir = "snap"
)

// boltLockTimeout bounds the wait for bolt's own file lock. The data directory's lock is held before, so only a
// stray tool can be in the way.
const boltLockTimeout = time.Second

// boltBackend keeps the meta group's log and the second copy of the records.
type boltBackend struct {
	dir    string
	noSync bool
	logger *slog.Logger
	meta   *boltRecords
}

func openBolt(cfg Config) (*boltBackend, error) {
	b := &boltBackend{dir: cfg.Dir, noSync: cfg.NoSync, logger: cfg.Logger}
	path := filepath.Join(cfg.Dir, metaDir, "meta.bolt")
	store, err := b.openStore(path)
	if err != nil {
		return nil, err
	}
	b.meta = &boltRecords{store: store, path: path}
	b.takeRoom(path, recordsRoomBytes)
	return b, nil
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

// takeRoom takes room for a file that is open. Without it the node runs on: whoever asks for room later tries again.
func (b *boltBackend) takeRoom(path string, bytes int64) *boltRoom {
	r := &boltRoom{path: path}
	if err := r.has(bytes); err != nil {
		b.logger.Error("a file has no room to grow", "path", path, "error", err)
	}
	return r
}

func (b *boltBackend) entriesPath(who identity) string {
	return filepath.Join(b.dir, metaDir, fmt.Sprintf("log-%d.bolt", uint64(who.replica)))
}

func (b *boltBackend) openEntries(who identity) (entryStore, error) {
	path := b.entriesPath(who)
	store, err := b.openStore(path)
	if err != nil {
		return nil, err
	}
	return &boltEntries{BoltStore: store, path: path, space: b.takeRoom(path, entriesRoomBytes)}, nil
}

func (b *boltBackend) removeEntries(who identity) error {
	path := b.entriesPath(who)
	if err := disk.RemoveIfThere(disk.OS{}, path); err != nil {
		return err
	}
	return disk.OS{}.SyncDir(filepath.Dir(path))
}

func (b *boltBackend) records() recordStore { return b.meta }

func (b *boltBackend) close() error { return b.meta.store.Close() }

// boltEntries is a log in a bolt file.
type boltEntries struct {
	*raftboltdb.BoltStore
	durable
	path  string
	space *boltRoom
}

func (e *boltEntries) full() error          { return e.space.has(roomMargin) }
func (e *boltEntries) room(bytes int) error { return e.space.has(roomMargin + entryPages*int64(bytes)) }

func (e *boltEntries) compact(first, to uint64) error   { return e.DeleteRange(first, to) }
func (e *boltEntries) truncate(from, last uint64) error { return e.DeleteRange(from, last) }
func (e *boltEntries) clear(first, last uint64) error   { return e.DeleteRange(first, last) }

// FirstIndex implements entryStore.
func (e *boltEntries) FirstIndex() (index uint64, err error) {
	defer guardDamage(e.path, &err)()
	return e.BoltStore.FirstIndex()
}

// LastIndex implements entryStore.
func (e *boltEntries) LastIndex() (index uint64, err error) {
	defer guardDamage(e.path, &err)()
	return e.BoltStore.LastIndex()
}

// StoreLogs implements entryStore.
func (e *boltEntries) StoreLogs(entries []*raft.Log) (err error) {
	defer guardDamage(e.path, &err)()
	return e.BoltStore.StoreLogs(entries)
}

// DeleteRange is that of the BoltStore.
func (e *boltEntries) DeleteRange(from, to uint64) (err error) {
	defer guardDamage(e.path, &err)()
	return e.BoltStore.DeleteRange(from, to)
}

// GetLog implements entryStore. bolt checks nothing that it reads, so an entry at least must say that it is
// the one asked for.
func (e *boltEntries) GetLog(index uint64, entry *raft.Log) (err error) {
	defer guardDamage(e.path, &err)()
	var found raft.Log
	if err := e.BoltStore.GetLog(index, &found); err != nil {
		switch {
		case errors.Is(err, raft.ErrLogNotFound):
			return raft.ErrLogNotFound
		case errors.Is(err, bbolterrors.ErrDatabaseNotOpen):
			return fmt.Errorf("%w: %s", ErrClosed, e.path)
		}
		return fmt.Errorf("%w: %s: entry %d: %w", ErrLogDamaged, e.path, index, err) // it was found, and doesn't decode
	}
	if found.Index != index {
		return fmt.Errorf("%w: %s: entry %d says that it is %d", ErrLogDamaged, e.path, index, found.Index)
	}
	*entry = found
	return nil
}

// boltRecords is the second copy of the records.
type boltRecords struct {
	store *raftboltdb.BoltStore
	path  string
}

func (r *boltRecords) name() string { return r.path }

func (r *boltRecords) get(who identity, name string) (value []byte, err error) {
	defer guardDamage(r.path, &err)()
	value, err = r.store.Get([]byte(recordKey(who, name)))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, nil
	}
	return value, err
}

func (r *boltRecords) set(who identity, name string, value []byte) error {
	return r.store.Set([]byte(recordKey(who, name)), value)
}

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
