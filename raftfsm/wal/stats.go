package wal

import (
	"sync/atomic"
	"time"
)

// stats counts what the writer did.
type stats struct {
	writes, bytes, syncs atomic.Uint64
	syncNanos            atomic.Uint64
	// moved counts frames, purged and recycled count segments.
	moved, purged, recycled atomic.Uint64
}

func (s *stats) written(bytes int) {
	s.writes.Add(1)
	s.bytes.Add(uint64(bytes))
}

func (s *stats) synced(took time.Duration) {
	s.syncs.Add(1)
	s.syncNanos.Add(uint64(took))
}

// Stats tells what a log has done since it was opened, and what it holds.
type Stats struct {
	// Writes, the bytes written by them, and syncs.
	Writes, Bytes, Syncs uint64
	// Syncing is the time spent in syncs.
	Syncing time.Duration
	// Moved is how many frames were copied to the end of the log so that their segment can go, Purged how many segments
	// went, Recycled how many files of those got another life.
	Moved, Purged, Recycled uint64
	// Segments of the log, their size, and the bytes in them that are still needed.
	Segments           int
	SegmentBytes, Live int64
	// Pending is the bytes that wait for the disk.
	Pending int
	// Replicas that the log knows.
	Replicas int
}

// Stats returns the counters.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Stats{Writes: l.stats.writes.Load(), Bytes: l.stats.bytes.Load(), Syncs: l.stats.syncs.Load(),
		Syncing: time.Duration(l.stats.syncNanos.Load()), Segments: len(l.segments), Pending: l.pending, Replicas: len(l.replicas)}
	st.Moved, st.Purged, st.Recycled = l.stats.moved.Load(), l.stats.purged.Load(), l.stats.recycled.Load()
	for _, s := range l.segments {
		st.SegmentBytes += s.bytes
		st.Live += s.live
	}
	return st
}
