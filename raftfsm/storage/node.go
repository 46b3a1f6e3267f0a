package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/raftfsm/wal"
	"github.com/ostraka-db/ostraka/shard"
)

var (
	// ErrClosed means that the node or the replica was closed.
	ErrClosed = errors.New("storage: closed")
	// ErrStalled means that the disk did not answer a write within Config.StallMax.
	ErrStalled = errors.New("storage: the disk does not answer")
	// ErrReplicaOpen means that a replica is open already, or still.
	ErrReplicaOpen = errors.New("storage: replica is open")
	// ErrReplicaRemoved means that a replica was wiped. Its id is never used again: a replica that forgot what it
	// vouched for must not come back under the name it vouched by.
	ErrReplicaRemoved = errors.New("storage: replica was removed")
	// ErrOldLayout means a data directory of a build that kept its logs in other files.
	ErrOldLayout = errors.New("storage: data directory of an older layout")
)

// Config is what a Node needs. Zero numbers take the defaults named at each field.
type Config struct {
	// Dir is the data directory. Required. The caller holds its lock.
	Dir string
	// FS holds the write-ahead log and the snapshots. Default disk.OS. The files in meta/ are bolt's, which are always
	// on the real filesystem, unless Memory is set.
	FS disk.FS
	// Memory, when set, stands in for the files in meta/: whole groups can run under testing/synctest. A Node opened
	// later with the same Memory finds what the former one left.
	Memory *Memory
	// Sync says when the logs of shards count as durable. Default wal.SyncAlways.
	Sync wal.SyncMode
	// SegmentBytes is the size of the write-ahead log's files. Default 32 MiB, or 1 MiB with Memory.
	SegmentBytes int64
	// Progress, if set, hears while the write-ahead log is read at open: bytes of so many.
	Progress func(done, total int64)
	// Fatal is called once, when a log or record write failed or stalled. In production it ends the process. When
	// it returns, all later writes of the node fail. Required.
	Fatal func(error)
	// StallMax is how long a log or record write may take before Fatal is called. Default 10 s.
	StallMax time.Duration
	// TailCacheBytes bounds the memory per replica for the newest log entries, which replication reads.
	// Default 4 MiB; all replicas together have 32 times that.
	TailCacheBytes int
	// SnapshotsKept is how many snapshots each replica keeps. Default 2. One more costs its size, and the log back
	// to it.
	SnapshotsKept int
	// TrustUnclean opens replicas too of which an unclean boot (wal.ErrUncleanBoot) may have taken the last entries: for
	// recoveries, which say so, and settle it by Replica.Trust.
	TrustUnclean bool
	// NoSync leaves out the syncs of bolt files. For tests only: a power cut loses acknowledged writes.
	NoSync bool
	// Logger is required.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.FS == nil {
		c.FS = disk.OS{}
	}
	if c.StallMax == 0 {
		c.StallMax = 10 * time.Second
	}
	if c.TailCacheBytes == 0 {
		c.TailCacheBytes = 4 << 20
	}
	if c.SegmentBytes == 0 && c.Memory != nil {
		c.SegmentBytes = 1 << 20
	}
	if c.SnapshotsKept == 0 {
		c.SnapshotsKept = 2
	}
	switch {
	case c.Dir == "":
		return c, errors.New("storage: Config.Dir is empty")
	case c.Fatal == nil || c.Logger == nil:
		return c, errors.New("storage: Config needs Fatal and Logger")
	case c.StallMax < 0 || c.TailCacheBytes < 0 || c.SnapshotsKept < 0:
		return c, errors.New("storage: Config has a negative number")
	}
	return c, nil
}

// identity names one replica.
type identity struct {
	group   shard.ID
	replica shard.ReplicaID
}

func (id identity) String() string {
	return fmt.Sprintf("replica %d of shard %d", id.replica, id.group)
}

// Node holds the stores of all replicas of one process.
type Node struct {
	cfg     Config
	wal     *wal.Log
	backend backend
	// copies are the two independent stores that every record is written to, in this order.
	copies [2]recordStore

	// openCount is the size of open.
	openCount atomic.Int32

	// failed is set once, by the first failed or stalled write.
	failed atomic.Pointer[error]

	mu     sync.Mutex
	open   map[identity]*Replica
	closed bool
}

// Open opens the stores in cfg.Dir, making the directory where it is missing.
func Open(cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{metaDir, walDir, snapDir} {
		if err := disk.MkdirAll(cfg.FS, filepath.Join(cfg.Dir, sub)); err != nil {
			return nil, err
		}
	}
	if err := refuseOldLayout(cfg); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, open: make(map[identity]*Replica)}
	if cfg.Memory != nil {
		n.backend = cfg.Memory
	} else if n.backend, err = openBolt(cfg); err != nil {
		return nil, err
	}
	n.wal, err = wal.Open(wal.Config{Dir: filepath.Join(cfg.Dir, walDir), FS: cfg.FS, SegmentBytes: cfg.SegmentBytes, Sync: cfg.Sync,
		StallMax: cfg.StallMax, SlowMax: min(cfg.StallMax, walSlowMax), Fatal: func(err error) { n.fail(err) }, Progress: cfg.Progress, Logger: cfg.Logger})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the write-ahead log: %w", err), n.backend.close())
	}
	n.copies = [2]recordStore{walRecords{wal: n.wal, dir: filepath.Join(cfg.Dir, walDir)}, n.backend.records()}
	return n, nil
}

// walSlowMax is how long a write may take before the replicas here stop leading and following: see Log.Stalled.
const walSlowMax = 2 * time.Second

// refuseOldLayout recognises the logs of builds before there was a write-ahead log.
func refuseOldLayout(cfg Config) error {
	old := filepath.Join(cfg.Dir, walDir, "votes.bolt")
	if _, err := cfg.FS.Stat(old); err == nil {
		return fmt.Errorf("%w: %s is there; export with the build that wrote it, and import into a new cluster", ErrOldLayout, old)
	}
	return nil
}

// openEntries opens a replica's log: the meta group's is a file of its own, those of shards lie in the write-ahead log.
func (n *Node) openEntries(who identity) (entryStore, error) {
	replica := n.wal.Replica(walID(who))
	err := replica.Damage()
	// The meta group's log is not in there, but synced at once.
	if errors.Is(err, wal.ErrUncleanBoot) && (n.cfg.TrustUnclean || who.group == shard.MetaGroup) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLogDamaged, err)
	}
	if who.group == shard.MetaGroup {
		return n.backend.openEntries(who)
	}
	entries := &walEntries{wal: n.wal, replica: replica}
	if knownbad.IndexWatermark {
		return &indexWatermark{walEntries: entries}, nil
	}
	return entries, nil
}

// removeEntries deletes a closed log and what the write-ahead log has of the replica, durably.
func (n *Node) removeEntries(who identity) error {
	if who.group == shard.MetaGroup {
		if err := n.backend.removeEntries(who); err != nil {
			return err
		}
	}
	replica := n.wal.Replica(walID(who))
	if err := replica.Forget(); err != nil {
		return err
	}
	return n.wal.WaitDurable(context.Background(), replica.Appended())
}

// tailShares is how many replicas can have the whole of Config.TailCacheBytes.
const tailShares = 32

// tailBytesMax is what each replica may keep in memory of its log.
func (n *Node) tailBytesMax() int {
	return n.cfg.TailCacheBytes * tailShares / max(tailShares, int(n.openCount.Load()))
}

// Open opens a replica's stores, empty ones if there are none yet. Call Reconcile before giving them to raft.
// It fails with ErrVoteRecordDamaged where the replica can't know any more whom it voted for, with
// ErrReplicaRemoved after Remove, with ErrReplicaOpen while it is open.
func (n *Node) Open(group shard.ID, id shard.ReplicaID) (*Replica, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	who := identity{group, id}
	if n.closed {
		return nil, ErrClosed
	}
	if n.open[who] != nil {
		return nil, fmt.Errorf("%w: %s", ErrReplicaOpen, who)
	}
	r, err := n.openReplica(who)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", who, err)
	}
	n.open[who] = r
	n.openCount.Store(int32(len(n.open)))
	return r, nil
}

// Remove wipes a closed replica's log and snapshots, and marks its id as used up. It is safe to repeat, and goes on
// where a crash cut it off.
func (n *Node) Remove(group shard.ID, id shard.ReplicaID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	who := identity{group, id}
	if n.closed {
		return ErrClosed
	}
	if n.open[who] != nil {
		return fmt.Errorf("%w: %s", ErrReplicaOpen, who)
	}
	if err := n.markRemoved(who); err != nil {
		return fmt.Errorf("removing %s: %w", who, err)
	}
	if err := n.removeEntries(who); err != nil {
		return fmt.Errorf("removing the log of %s: %w", who, err)
	}
	if err := removeSnapshots(n.cfg.FS, n.snapshotDir(group), id); err != nil {
		return fmt.Errorf("removing the snapshots of %s: %w", who, err)
	}
	return nil
}

// Close closes all replicas that are still open, and the files. raft must have been shut down before.
func (n *Node) Close() error {
	n.mu.Lock()
	replicas := make([]*Replica, 0, len(n.open))
	for _, r := range n.open {
		replicas = append(replicas, r)
	}
	wasClosed := n.closed
	n.closed = true
	n.mu.Unlock()
	if wasClosed {
		return nil
	}
	var errs []error
	for _, r := range replicas {
		errs = append(errs, r.Close())
	}
	failed := n.failure()
	if err := n.wal.Close(); failed == nil { // else it has been told
		errs = append(errs, err)
	}
	return errors.Join(append(errs, n.backend.close())...)
}

func (n *Node) forget(who identity) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.open, who)
	n.openCount.Store(int32(len(n.open)))
}

func (n *Node) snapshotDir(group shard.ID) string {
	return filepath.Join(n.cfg.Dir, snapDir, fmt.Sprint(uint32(group)))
}

// write runs a log or record write, and ends the node if it takes too long.
func (n *Node) write(what string, do func() error) error {
	return n.checked(what, func() error {
		watchdog := time.AfterFunc(n.cfg.StallMax, func() {
			n.fail(fmt.Errorf("%w: %s has taken over %s", ErrStalled, what, n.cfg.StallMax))
		})
		defer watchdog.Stop()
		return do()
	})
}

// checked runs a write whose time is watched elsewhere. After a failed sync the kernel may have dropped the pages and call
// the next sync a success, so no write is tried again: the node fails for good.
func (n *Node) checked(what string, do func() error) error {
	if err := n.failure(); err != nil {
		return err
	}
	if err := do(); err != nil {
		return n.fail(fmt.Errorf("%s: %w", what, err))
	}
	// A write that came back after the watchdog had given up must not be answered either.
	return n.failure()
}

func (n *Node) failure() error {
	if err := n.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fail makes err, if it is the first, the end of the node, and returns it.
func (n *Node) fail(err error) error {
	if n.failed.CompareAndSwap(nil, &err) {
		n.cfg.Fatal(err)
	}
	return err
}
