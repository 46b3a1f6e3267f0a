package wal

import (
	"fmt"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
)

// buffersMax bounds the size of a buffer that is kept for the next chunk.
const buffersMax = 4 << 20

var buffers = sync.Pool{New: func() any { return new([]byte) }}

func takeBuffer() []byte { return (*buffers.Get().(*[]byte))[:0] }

func giveBuffer(b []byte) {
	if cap(b) > 0 && cap(b) <= buffersMax {
		buffers.Put(&b)
	}
}

// write is the writer's goroutine: it takes chunk after chunk, writes and syncs it, and wakes who waits for it. What is
// appended meanwhile becomes the next chunk: that is the group commit.
func (l *Log) write() {
	beat := time.NewTimer(0)
	<-beat.C
	defer beat.Stop()
	unsynced := false // something was written and not synced, with SyncInterval
	for {
		select {
		case <-l.wake:
		case <-beat.C:
			if err := l.guarded(l.syncTail); err != nil {
				l.fail(err)
				return
			}
			unsynced = false
		case <-l.ctx.Done():
			return
		}
		for c := l.next(); c != nil; c = l.next() {
			err := l.guarded(func() error { return l.put(c) })
			if err != nil {
				l.fail(err)
				return
			}
			if l.wrote(c) && !unsynced {
				beat.Reset(l.cfg.SyncEvery)
				unsynced = true
			}
		}
		if l.finished() {
			if err := l.guarded(l.finish); err != nil {
				l.fail(err)
			}
			l.cancel(ErrClosed)
			return
		}
	}
}

// guarded runs what asks the disk while the watchdog looks. What comes back after it has struck is an error too.
func (l *Log) guarded(do func() error) error {
	l.busySince.Store(l.clock())
	err := do()
	l.busySince.Store(0)
	if err == nil && l.ctx.Err() != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.failure
	}
	return err
}

// watchParts is how often within Config.StallMax the watchdog looks, and how exact it is.
const watchParts = 10

// watch is the watchdog's goroutine: it ends a log whose disk doesn't answer. A timer for each write would cost more than
// the rest of the write's bookkeeping.
func (l *Log) watch() {
	beat := time.NewTicker(l.cfg.StallMax / watchParts)
	defer beat.Stop()
	var w lookout
	for {
		select {
		case <-beat.C:
		case <-l.ctx.Done():
			return
		}
		if w.look(l.busySince.Load()) {
			l.fail(fmt.Errorf("%w: a write has taken over %s", ErrStalled, l.cfg.StallMax))
			return
		}
	}
}

// lookout counts how often the same write was seen. It goes by its own looks, not by the time: a process that was stopped
// for a minute, with a write under way, has not waited a minute for its disk.
type lookout struct {
	seen  int64
	looks int
}

// look tells whether what has been under way since then, 0: nothing, has been so for too many looks.
func (w *lookout) look(since int64) (stalled bool) {
	if since == 0 || since != w.seen {
		w.seen, w.looks = since, 0
		return false
	}
	w.looks++
	return w.looks >= watchParts
}

// next takes the next chunk, after a pause for others to join the last one if that seems worth it.
func (l *Log) next() *chunk {
	l.gather()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failure != nil:
		return nil
	case len(l.queue) > 0:
		l.writing = l.queue[0]
		l.queue = append(l.queue[:0], l.queue[1:]...)
	case l.open != nil:
		l.writing, l.open = l.open, nil
	default:
		return nil
	}
	l.company.note(l.writing.replicas)
	return l.writing
}

// put writes a chunk, syncs it if it must be, and seals its segment if it is the last.
func (l *Log) put(c *chunk) error {
	s := c.segment
	l.mu.Lock()
	known := l.durableAt
	l.mu.Unlock()
	end := c.offset + int64(len(c.buf))
	if len(c.buf) > 0 {
		appendFrame(c.buf[:0], s.seed, c.offset, &frame{kind: kindMark, term: known.segment, index: uint64(known.offset), count: c.totalBefore})
		if _, err := s.file.WriteAt(c.buf, c.offset); err != nil {
			return fmt.Errorf("writing %s at offset %d: %w", s.path, c.offset, err)
		}
		s.written.Store(end)
		l.stats.written(len(c.buf))
	}
	if knownbad.SyncOrder {
		return l.overtake(func() error { return l.harden(c, end) }, c.seals)
	}
	return l.harden(c, end)
}

// harden syncs a chunk that was written, if it must be, and seals its segment if it is the last.
func (l *Log) harden(c *chunk, end int64) error {
	if l.cfg.Sync == SyncAlways || c.urgent || c.seals {
		if err := l.sync(c.segment); err != nil {
			return err
		}
	}
	if c.seals {
		return l.seal(c.segment, end, c.total)
	}
	return nil
}

// overtake is for known-bad builds: the last sync of a segment ends after the next one, which is taken for all before.
func (l *Log) overtake(harden func() error, last bool) error {
	before := l.overtaken
	if l.overtaken = nil; last {
		l.overtaken, harden = harden, nil
	}
	for _, do := range []func() error{harden, before} {
		if do == nil {
			continue
		}
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) sync(s *segment) error {
	if knownbad.Sync {
		return nil
	}
	began := time.Now()
	if err := s.file.Datasync(); err != nil {
		return fmt.Errorf("syncing %s: %w", s.path, err)
	}
	l.stats.synced(time.Since(began))
	return nil
}

// seal ends a segment all of which is durable up to end. Once it is durable itself, the next one may be begun: that is how
// a reader knows that all of this one was.
func (l *Log) seal(s *segment, end int64, total uint64) error {
	b := appendFrame(nil, s.seed, end, &frame{kind: kindSeal, term: s.sequence, index: uint64(end), count: total})
	if _, err := s.file.WriteAt(b, end); err != nil {
		return fmt.Errorf("sealing %s: %w", s.path, err)
	}
	return l.sync(s)
}

// wrote counts a chunk as released or durable, wakes who waited for that, and says if it is yet to be synced.
func (l *Log) wrote(c *chunk) (unsynced bool) {
	unsynced = l.cfg.Sync == SyncInterval && !c.urgent && !c.seals
	l.mu.Lock()
	l.writing, l.lastWritten = nil, c.segment
	l.pending -= len(c.buf)
	if !unsynced {
		l.durable = c.end
		l.durableAt = mark{c.segment.sequence, c.offset + int64(len(c.buf))}
	}
	if c.seals {
		c.segment.sealed = true
		signal(l.keep)
	}
	l.released.Store(uint64(c.end))
	ready := append(l.waiting.released.take(c.end), l.waiting.durable.take(l.durable)...)
	l.changed.Broadcast()
	l.mu.Unlock()
	giveBuffer(c.buf)
	ready.tell(nil)
	return unsynced
}

// syncTail syncs what was written and not synced.
func (l *Log) syncTail() error {
	l.mu.Lock()
	if l.durable >= Sequence(l.released.Load()) {
		l.mu.Unlock()
		return nil
	}
	// Between chunks, all that was released is written. Before the last segment written it is synced: by its seal.
	s, end := l.lastWritten, Sequence(l.released.Load())
	at := mark{s.sequence, s.written.Load()}
	l.mu.Unlock()
	if err := l.sync(s); err != nil {
		return err
	}
	l.mu.Lock()
	l.durable, l.durableAt = end, at
	ready := l.waiting.durable.take(end)
	l.changed.Broadcast()
	l.mu.Unlock()
	ready.tell(nil)
	return nil
}

// finished tells that the log is being closed and all is written.
func (l *Log) finished() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing && l.failure == nil && l.open == nil && len(l.queue) == 0
}

// finish syncs and seals the tail at a clean close, and says that it is one.
func (l *Log) finish() error {
	if err := l.syncTail(); err != nil {
		return err
	}
	l.mu.Lock()
	total := l.total // nothing more comes
	l.mu.Unlock()
	if err := l.seal(l.lastWritten, l.lastWritten.written.Load(), total); err != nil {
		return err
	}
	if err := writeClosed(l.cfg.FS, l.cfg.Dir, closing{l.lastWritten.sequence, total}); err != nil {
		return err
	}
	return l.cleanClose()
}
