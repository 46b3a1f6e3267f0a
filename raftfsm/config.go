package raftfsm

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// Config is what a Host needs. Zero numbers take the defaults named at each field.
type Config struct {
	Node      shard.NodeID
	Storage   *storage.Node
	Transport *transport.Transport
	Clock     Clock
	Logger    *slog.Logger
	// Fatal reports what a node can't survive: a replica that met an unknown entry or could not swap in a
	// snapshot. In production it ends the process. It may return in tests.
	Fatal func(error)

	// HistoryBytes bounds the latest changes that each shard's replica keeps in memory, previous values included, for those who
	// watch it; see store.History. A watcher that is further behind has to begin again. Default 8 MiB; negative: none are kept.
	HistoryBytes int

	Timing    Timing
	Proposer  ProposerConfig
	Snapshots SnapshotConfig
	Reaping   ReapConfig
	Verify    VerifyConfig
	// MaxMemory bounds, in bytes, what the stores of all replicas here take: at it, leaders with a voter here refuse growth. What else a
	// process needs (queues, the log's tail, a snapshot being installed beside the old state) comes on top. Default 0: no limit.
	MaxMemory int64
}

// Timing holds raft's timers.
type Timing struct {
	// Election is the time without a word from the leader after which a follower asks for pre-votes (drawn from
	// [Election, 2 × Election)), and a candidate's patience. Default 1 s. Less means faster failover and more
	// false alarms under load.
	Election time.Duration
	// LeaderLease is how long a leader goes on without answers from a majority. Default Election: nobody else is elected before. It
	// must leave room for the time between two heartbeats, up to 0.45 × Election. No read relies on it.
	LeaderLease time.Duration
	// Commit is how long a follower that was just restarted may not know what an idle shard has committed, up to twice this;
	// others learn it with the next heartbeat. Default 1 s; it costs a message per follower each time.
	Commit time.Duration
}

// ProposerConfig bounds one group's writes on their way to the log.
type ProposerConfig struct {
	// QueueOpsMax is how many writes may wait; one more is ErrOverloaded. Default 4096.
	QueueOpsMax int
	// QueueBytesMax bounds the bytes of what waits; a single larger write is still let in. Default 64 MiB.
	QueueBytesMax int64
	// EntryBytesMax caps what is packed into one entry; a larger operation goes alone. Default 128 KiB.
	EntryBytesMax int
	// EntryOpsMax caps the operations of an entry. Default 1024.
	EntryOpsMax int
	// InFlightMax is how many entries are on their way at once. Default 4.
	InFlightMax int
	// EnqueueTimeout bounds the wait for raft to take an entry. Default 2 s.
	EnqueueTimeout time.Duration
}

// SnapshotConfig says when a replica's log is cut.
type SnapshotConfig struct {
	// LogBytes appended since the last snapshot call for another. Default 64 MiB.
	LogBytes uint64
	// LogEntries since the last snapshot call for one too: small ones take more memory and time than bytes. Default 200,000.
	// A disk without room for another segment of the log calls for snapshots of all.
	LogEntries uint64
	// TrailingEntries are kept before the snapshot at least. Default 100: what spares a slow follower a snapshot is that the
	// log is kept back to the snapshot before the last, so between one and two times LogBytes.
	TrailingEntries uint64
	// BytesPerSecond bounds the writing of snapshots on the whole node, so that the log has the disk and the callers the
	// processor. Default 64 MiB.
	BytesPerSecond int
	// Parallel is how many replicas of a node are written at once. Default 1.
	Parallel int
	// CheckEvery is the scheduler's beat. Default 1 s.
	CheckEvery time.Duration
}

// ReapConfig bounds the removal of expired keys.
type ReapConfig struct {
	// Every is the beat of the leaders' search for expired keys. Default 100 ms.
	Every time.Duration
	// KeysMax is how many keys one entry removes at most. Default 256.
	KeysMax int
	// Share is the part of a core, in percent, that removing may take on the node, of the shards led here. Default 10.
	Share int
}

func (c *Config) withDefaults() (Config, error) {
	d := *c
	d.HistoryBytes = cmp.Or(d.HistoryBytes, 8<<20)
	d.Timing.Election = cmp.Or(d.Timing.Election, time.Second)
	d.Timing.LeaderLease = cmp.Or(d.Timing.LeaderLease, d.Timing.Election)
	d.Timing.Commit = cmp.Or(d.Timing.Commit, time.Second)
	d.Proposer.QueueOpsMax = cmp.Or(d.Proposer.QueueOpsMax, 4096)
	d.Proposer.QueueBytesMax = cmp.Or(d.Proposer.QueueBytesMax, 64<<20)
	d.Proposer.EntryBytesMax = cmp.Or(d.Proposer.EntryBytesMax, 128<<10)
	d.Proposer.EntryOpsMax = cmp.Or(d.Proposer.EntryOpsMax, 1024)
	d.Proposer.InFlightMax = cmp.Or(d.Proposer.InFlightMax, 4)
	d.Proposer.EnqueueTimeout = cmp.Or(d.Proposer.EnqueueTimeout, 2*time.Second)
	d.Snapshots.LogBytes = cmp.Or(d.Snapshots.LogBytes, 64<<20)
	d.Snapshots.TrailingEntries = cmp.Or(d.Snapshots.TrailingEntries, 100)
	d.Snapshots.LogEntries = cmp.Or(d.Snapshots.LogEntries, 200_000)
	d.Snapshots.BytesPerSecond = cmp.Or(d.Snapshots.BytesPerSecond, 64<<20)
	d.Snapshots.Parallel = cmp.Or(d.Snapshots.Parallel, 1)
	d.Snapshots.CheckEvery = cmp.Or(d.Snapshots.CheckEvery, time.Second)
	d.Reaping.Every = cmp.Or(d.Reaping.Every, 100*time.Millisecond)
	d.Reaping.KeysMax = cmp.Or(d.Reaping.KeysMax, 256)
	d.Reaping.Share = cmp.Or(d.Reaping.Share, 10)
	d.Verify.Every = cmp.Or(d.Verify.Every, 10*time.Second)
	d.Verify.PassEvery = cmp.Or(d.Verify.PassEvery, 10*time.Minute)
	d.Verify.Share = cmp.Or(d.Verify.Share, 5)
	d.Verify.ShareAsked = cmp.Or(d.Verify.ShareAsked, 50)
	d.Verify.KeysMax = cmp.Or(d.Verify.KeysMax, 1<<16)
	d.Verify.BytesMax = cmp.Or(d.Verify.BytesMax, 32<<20)
	d.Verify.SlotsMax = cmp.Or(d.Verify.SlotsMax, 2048)
	if d.Clock == nil {
		d.Clock = NewSystemClock()
	}
	switch {
	case d.Node == "":
		return d, fmt.Errorf("raftfsm: Config.Node is empty")
	case d.Storage == nil || d.Transport == nil || d.Logger == nil || d.Fatal == nil:
		return d, fmt.Errorf("raftfsm: Config needs Storage, Transport, Logger and Fatal")
	case d.Snapshots.BytesPerSecond < snapshotSliceBytes:
		return d, fmt.Errorf("raftfsm: Snapshots.BytesPerSecond %d is below a slice of %d bytes", d.Snapshots.BytesPerSecond, snapshotSliceBytes)
	case d.Reaping.Share < 1 || d.Reaping.Share > 100 || d.Reaping.KeysMax < 1:
		return d, fmt.Errorf("raftfsm: Reaping.Share %d is not within [1, 100], or KeysMax %d is none", d.Reaping.Share, d.Reaping.KeysMax)
	case min(d.Verify.Share, d.Verify.ShareAsked) < 1 || max(d.Verify.Share, d.Verify.ShareAsked) > 100:
		return d, fmt.Errorf("raftfsm: Verify.Share %d and ShareAsked %d are not within [1, 100]", d.Verify.Share, d.Verify.ShareAsked)
	case d.Timing.LeaderLease > d.Timing.Election:
		return d, fmt.Errorf("raftfsm: Timing.LeaderLease %s is over Timing.Election %s", d.Timing.LeaderLease, d.Timing.Election)
	}
	return d, nil
}
