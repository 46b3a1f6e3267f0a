package storage

import (
	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

// backend is what is kept beside the write-ahead log: the meta group's log, and the second copy of every record. Bolt
// files, or memory for simulation.
type backend interface {
	// openEntries opens a log, made if missing.
	openEntries(identity) (entryStore, error)
	// removeEntries deletes a closed log, durably. A missing one is no error.
	removeEntries(identity) error
	records() recordStore
	close() error
}

// entryStore is a log as it lies on the disk, without the rules that Log adds. Changes are durable when wait returns for
// what appended says.
type entryStore interface {
	FirstIndex() (uint64, error)
	LastIndex() (uint64, error)
	// GetLog returns raft.ErrLogNotFound for what isn't there.
	GetLog(index uint64, entry *raft.Log) error
	StoreLogs(entries []*raft.Log) error
	// The log is [first, last]: compact deletes [first, to], truncate [from, last], clear all.
	compact(first, to uint64) error
	truncate(from, last uint64) error
	clear(first, last uint64) error

	// See wal.Log for these.
	appended() wal.Sequence
	notify(upTo wal.Sequence, done func(error)) (already bool)
	wait(upTo wal.Sequence) error
	stalled() bool
	full() error
	short() bool
	room(bytes int) error
	// bytesAfter is what the entries above an index take; 0 where nobody counts.
	bytesAfter(index uint64) uint64
	// configurations are the indexes of the entries of that type, ascending; none where nothing waits for the disk, and so
	// nobody needs to know who votes.
	configurations() []uint64
	// watched: it ends the process itself when the disk doesn't answer.
	watched() bool

	Close() error
}

// durable is the part of an entryStore that has nothing to wait for: its changes are durable when they return.
type durable struct{}

func (durable) appended() wal.Sequence                    { return 0 }
func (durable) notify(wal.Sequence, func(error)) (b bool) { return true }
func (durable) wait(wal.Sequence) error                   { return nil }
func (durable) stalled() bool                             { return false }
func (durable) full() error                               { return nil }
func (durable) short() bool                               { return false }
func (durable) bytesAfter(uint64) uint64                  { return 0 }
func (durable) room(int) error                            { return nil }
func (durable) configurations() []uint64                  { return nil }
func (durable) watched() bool                             { return false }

// recordStore keeps small values of replicas, by name. A set that returned is durable.
type recordStore interface {
	// name is the file, for error messages.
	name() string
	// get returns nil for a missing one.
	get(who identity, name string) ([]byte, error)
	set(who identity, name string, value []byte) error
}
