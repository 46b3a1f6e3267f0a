package storage

import (
	"github.com/hashicorp/raft"
)

// backend is where logs and records are kept: bolt files, or memory for simulation.
type backend interface {
	// openEntries opens a replica's log, made if missing.
	openEntries(identity) (entryStore, error)
	// removeEntries deletes a closed log, durably. A missing one is no error.
	removeEntries(identity) error
	// recordCopies returns the two independent stores that every record is written to, in this order.
	recordCopies() [2]recordStore
	close() error
}

// entryStore is a log as it lies on the disk, without the rules that Log adds. What a returned StoreLogs or
// DeleteRange did is durable.
type entryStore interface {
	FirstIndex() (uint64, error)
	LastIndex() (uint64, error)
	// GetLog returns raft.ErrLogNotFound for what isn't there.
	GetLog(index uint64, entry *raft.Log) error
	StoreLogs(entries []*raft.Log) error
	DeleteRange(from, to uint64) error // inclusive
	Close() error
}

// recordStore keeps small values. A Set that returned is durable.
type recordStore interface {
	// name is the file, for error messages.
	name() string
	// get returns nil for a missing key.
	get(key string) ([]byte, error)
	set(key string, value []byte) error
}
