package wal

import (
	"errors"
	"fmt"
)

// appendLocked puts a frame into the open chunk, or a new one. It waits while too much is pending, or for a
// spare segment. r is nil for a frame of the log's own.
func (l *Log) appendLocked(r *Replica, f *frame) (position, error) {
	if payload := len(f.extensions) + len(f.data); payload > PayloadBytesMax {
		return position{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, payload, PayloadBytesMax)
	}
	if err := l.makeRoomLocked(f.size()); err != nil {
		return position{}, err
	}
	return l.placeLocked(r, f), nil
}

// makeRoomLocked makes sure that the open chunk's segment has room for a frame. Errors: why the log has ended. Not for the
// keeper, who would wait for itself.
func (l *Log) makeRoomLocked(size int) error {
	starved := false
	defer func() { l.starvedLocked(&starved, false) }()
	for {
		if err := l.roomLocked(size); !errors.Is(err, errNoSpare) {
			return err
		}
		l.starvedLocked(&starved, true)
		l.wantLocked(l.neededLocked(size))
		l.wakeWriter()
		l.changed.Wait()
	}
}

// errNoSpare: there is no spare segment, or only one that is too small.
var errNoSpare = errors.New("wal: no spare segment")

// roomLocked is makeRoomLocked without waiting for a spare segment, the lack of which is errNoSpare.
func (l *Log) roomLocked(size int) error {
	for {
		switch {
		case l.failure != nil:
			return l.failure
		case l.closing:
			return ErrClosed
		case l.pending >= l.cfg.PendingBytesMax:
			l.wakeWriter()
			l.changed.Wait()
		case l.fitsLocked(size):
			return nil
		case l.spare != nil && l.spare.bytes >= l.neededLocked(size):
			l.rotateLocked()
		default:
			return errNoSpare
		}
	}
}

// fitsLocked tells whether the last segment has room for a frame, with the mark of a new chunk if there is none, and a
// seal behind it.
func (l *Log) fitsLocked(size int) bool {
	if l.open == nil {
		size += frameBytes
	}
	tail := l.segments[len(l.segments)-1]
	return tail.end+int64(size)+frameBytes <= tail.bytes
}

// neededLocked is the size of a new segment in which a frame is the first.
func (l *Log) neededLocked(size int) int64 {
	return headBytes + frameBytes + int64(l.summaryBytesLocked()) + int64(size) + frameBytes
}

// summaryBytesLocked is at most what a summary's frame takes.
func (l *Log) summaryBytesLocked() int { return frameBytes + padded(len(l.replicas)*summaryItemBytes) }

// rotateLocked makes the spare the segment to append to. It begins with every replica's count.
func (l *Log) rotateLocked() {
	if l.open == nil { // an empty one, which takes no room but that of the seal
		tail := l.segments[len(l.segments)-1]
		l.open = &chunk{segment: tail, offset: tail.end, end: l.appended}
	}
	l.open.seals, l.open.total = true, l.total
	l.queue = append(l.queue, l.open)
	l.open = nil
	l.segments = append(l.segments, l.spare)
	l.spare = nil
	signal(l.keep)
	l.summarizeLocked()
}

// summarizeLocked writes every replica's count, at the beginning of a segment.
func (l *Log) summarizeLocked() {
	items := make([]summaryItem, 0, len(l.replicas))
	for id, r := range l.replicas {
		if r.count > 0 {
			items = append(items, summaryItem{id: id, count: r.count})
		}
	}
	l.placeLocked(nil, &frame{kind: kindSummary, count: l.total, data: appendSummary(nil, items)})
}

// noMark holds the place of a mark.
var noMark [frameBytes]byte

func (l *Log) openChunkLocked() {
	tail := l.segments[len(l.segments)-1]
	l.open = &chunk{segment: tail, offset: tail.end, buf: append(takeBuffer(), noMark[:]...), totalBefore: l.total}
	l.advanceLocked(tail, frameBytes)
}

// placeLocked numbers a frame and encodes it at the end of the log. There is room.
func (l *Log) placeLocked(r *Replica, f *frame) position {
	if l.open == nil {
		l.openChunkLocked()
	}
	if r != nil {
		r.count++
		f.count = r.count
		l.total++
	}
	c := l.open
	at := c.segment.end
	c.buf = appendFrame(c.buf, c.segment.seed, at, f)
	size := f.size()
	l.advanceLocked(c.segment, size)
	if r != nil {
		r.appended.Store(uint64(l.appended))
		if r.chunk != c {
			r.chunk = c
			c.replicas++
		}
	}
	return position{segment: c.segment, offset: uint32(at), size: uint32(size), entryType: f.entryType}
}

// advanceLocked counts size bytes more in the open chunk.
func (l *Log) advanceLocked(s *segment, size int) {
	s.end += int64(size)
	l.pending += size
	l.appended += Sequence(size)
	l.open.end = l.appended
}
