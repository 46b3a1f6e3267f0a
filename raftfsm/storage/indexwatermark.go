package storage

import (
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

// indexWatermark is how not to do it, for known-bad builds: it remembers the highest index that was ever durable.
type indexWatermark struct {
	*walEntries
	durable atomic.Uint64
}

func (e *indexWatermark) StoreLogs(entries []*raft.Log) error {
	if err := e.walEntries.StoreLogs(entries); err != nil {
		return err
	}
	last := entries[len(entries)-1].Index
	reached := func(error) { e.durable.Store(max(e.durable.Load(), last)) }
	if e.walEntries.notify(e.walEntries.appended(), reached) {
		reached(nil)
	}
	return nil
}

func (e *indexWatermark) appended() wal.Sequence {
	_, last := e.replica.Bounds()
	return wal.Sequence(last)
}

func (e *indexWatermark) notify(upTo wal.Sequence, done func(error)) (already bool) {
	return e.durable.Load() >= uint64(upTo) || e.walEntries.notify(e.walEntries.appended(), done)
}

func (e *indexWatermark) wait(wal.Sequence) error { return e.walEntries.wait(e.walEntries.appended()) }
