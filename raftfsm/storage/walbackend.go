package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

// walEntries is a shard replica's log in the node's write-ahead log. StoreLogs and the deletions return before the disk has
// what they did: whoever answers for it waits by Log.Notify.
type walEntries struct {
	wal     *wal.Log
	replica *wal.Replica
}

func walID(who identity) wal.ID { return wal.ID{Shard: who.group, Replica: who.replica} }

func (e *walEntries) FirstIndex() (uint64, error) {
	first, _ := e.replica.Bounds()
	return first, nil
}

func (e *walEntries) LastIndex() (uint64, error) {
	_, last := e.replica.Bounds()
	return last, nil
}

// GetLog implements entryStore.
func (e *walEntries) GetLog(index uint64, entry *raft.Log) error {
	got, err := e.replica.Get(index)
	switch {
	case errors.Is(err, wal.ErrNotFound):
		return raft.ErrLogNotFound
	case errors.Is(err, wal.ErrDamaged):
		return fmt.Errorf("%w: %w", ErrLogDamaged, err)
	case err != nil:
		return err
	}
	*entry = raft.Log{Index: got.Index, Term: got.Term, Type: raft.LogType(got.Type), Data: got.Data, Extensions: got.Extensions}
	if got.Time != 0 {
		entry.AppendedAt = time.Unix(0, got.Time)
	}
	return nil
}

func (e *walEntries) StoreLogs(entries []*raft.Log) error {
	return e.replica.Append(len(entries), func(i int) wal.Entry {
		l := entries[i]
		entry := wal.Entry{Index: l.Index, Term: l.Term, Type: uint8(l.Type), Data: l.Data, Extensions: l.Extensions}
		if !l.AppendedAt.IsZero() {
			entry.Time = l.AppendedAt.UnixNano()
		}
		return entry
	})
}

func (e *walEntries) compact(_, to uint64) error    { return e.replica.Compact(to) }
func (e *walEntries) truncate(from, _ uint64) error { return e.replica.TruncateSuffix(from) }
func (e *walEntries) clear(_, _ uint64) error       { return e.replica.Clear() }

func (e *walEntries) appended() wal.Sequence { return e.replica.Appended() }

func (e *walEntries) notify(upTo wal.Sequence, done func(error)) bool {
	return e.wal.Notify(upTo, done)
}

func (e *walEntries) wait(upTo wal.Sequence) error {
	return e.wal.WaitDurable(context.Background(), upTo)
}

func (e *walEntries) stalled() bool { return e.wal.Stalled() }
func (e *walEntries) full() error   { return e.wal.Full() }
func (e *walEntries) short() bool   { return e.wal.Short() }

func (e *walEntries) bytesAfter(index uint64) uint64 { return e.replica.BytesAfter(index) }

func (e *walEntries) room(bytes int) error { return e.wal.Room(bytes) }

func (e *walEntries) watched() bool { return true }

func (e *walEntries) configurations() (indexes []uint64) {
	first, last := e.replica.Bounds()
	for index := first; index <= last; index++ {
		if t, ok := e.replica.Type(index); ok && raft.LogType(t) == raft.LogConfiguration {
			indexes = append(indexes, index)
		}
	}
	return indexes
}

// Close implements entryStore. The log of the node goes on, and keeps the replica's: it may be opened again.
func (e *walEntries) Close() error { return nil }

// walRecords is the first copy of the records.
type walRecords struct {
	wal *wal.Log
	dir string
}

func (r walRecords) name() string { return r.dir }

func (r walRecords) get(who identity, name string) ([]byte, error) {
	return r.wal.Replica(walID(who)).Record(name), nil
}

func (r walRecords) set(who identity, name string, value []byte) error {
	return r.wal.Replica(walID(who)).SetRecord(name, value)
}
