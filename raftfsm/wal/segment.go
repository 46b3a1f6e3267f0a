package wal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

const (
	segmentSuffix = ".wal"
	// asideSuffix marks a file that is being made; it is removed at open.
	asideSuffix = ".aside"
	// retiredSuffix marks a purged segment that waits for its next life; an open takes it for a file that was being made.
	retiredSuffix = ".retired" + asideSuffix
)

func segmentName(sequence uint64) string { return fmt.Sprintf("%016x%s", sequence, segmentSuffix) }

func parseSegmentName(name string) (sequence uint64, ok bool) {
	if n, err := fmt.Sscanf(name, "%016x"+segmentSuffix, &sequence); n != 1 || err != nil {
		return 0, false
	}
	return sequence, segmentName(sequence) == name
}

// segment is one file of the log. Segments follow each other by sequence; the last is the one that is written.
type segment struct {
	segmentHead
	path string

	// use is held for reading while the file is read, and for writing when it is taken away.
	use  sync.RWMutex
	file disk.File // nil once it was taken away; guarded by use

	// written is the offset up to which the file holds the frames; behind it they are in chunks.
	written atomic.Int64

	// The rest is guarded by Log.mu.

	// end is the offset behind the last frame: headBytes <= written <= end <= bytes.
	end int64
	// live is the size of the frames that are still needed.
	live int64
	// sealed: nothing will be written any more, and all of it is durable.
	sealed bool
	// stuck: what is live in it can't be read, so that it can't be copied.
	stuck bool
	// emptied is the log's sequence when live last fell.
	emptied Sequence
}

// errGone: the segment was purged; the frame may have been moved.
var errGone = errors.New("wal: segment was purged")

// read reads a frame of the file.
func (s *segment) read(offset int64, size int) (frame, error) {
	s.use.RLock()
	defer s.use.RUnlock()
	if s.file == nil {
		return frame{}, errGone
	}
	b := make([]byte, size)
	if n, err := s.file.ReadAt(b, offset); n < size {
		if err == nil || errors.Is(err, io.EOF) {
			return frame{}, s.damaged(offset, "the file ends within a frame")
		}
		return frame{}, fmt.Errorf("%w: %s at offset %d: %w", ErrUnreadable, s.path, offset, err)
	}
	f, _, err := decodeFrame(b, s.seed, offset)
	if err != nil {
		return frame{}, s.damaged(offset, "a frame does not check")
	}
	return f, nil
}

// take ends all reading and gives the file to the caller.
func (s *segment) take() disk.File {
	s.use.Lock()
	defer s.use.Unlock()
	f := s.file
	s.file = nil
	return f
}

func (s *segment) damaged(offset int64, reason string) *DamagedError {
	return &DamagedError{Path: s.path, Offset: offset, Reason: reason}
}

// createSegment makes a new file of a segment under its final name. Its whole length is zeros on the disk already if
// zeroed: overwriting is what a sync is cheapest for.
func (l *Log) createSegment(head segmentHead, zeroed bool) (*segment, error) {
	path := filepath.Join(l.cfg.Dir, segmentName(head.sequence))
	aside := path + asideSuffix
	file, err := l.cfg.FS.Create(aside)
	if err != nil {
		return nil, err
	}
	err = file.Preallocate(head.bytes)
	if err == nil && zeroed {
		err = l.zero(file, head.bytes)
	}
	if err == nil {
		err = l.name(file, head, aside, path)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close(), disk.RemoveIfThere(l.cfg.FS, aside))
	}
	return segmentOf(head, path, file), nil
}

// retireSegment takes a purged segment's file out of the log, durably, but keeps it for another life.
func (l *Log) retireSegment(s *segment) (retired, error) {
	r := retired{file: s.take(), path: filepath.Join(l.cfg.Dir, segmentName(s.sequence)+retiredSuffix)}
	err := l.cfg.FS.Rename(s.path, r.path)
	if err == nil {
		err = l.cfg.FS.SyncDir(l.cfg.Dir)
	}
	if err != nil {
		return r, errors.Join(err, r.file.Close())
	}
	return r, nil
}

// retired is the file of a purged segment.
type retired struct {
	file disk.File
	path string
}

// reviveSegment gives a retired file another life. It is never found under a segment's name with another one's head,
// wherever a crash cuts this off.
func (l *Log) reviveSegment(r retired, head segmentHead) (*segment, error) {
	path := filepath.Join(l.cfg.Dir, segmentName(head.sequence))
	if err := l.name(r.file, head, r.path, path); err != nil {
		return nil, errors.Join(err, r.file.Close(), disk.RemoveIfThere(l.cfg.FS, r.path))
	}
	return segmentOf(head, path, r.file), nil
}

// name writes a file's head and gives it its name, durably.
func (l *Log) name(file disk.File, head segmentHead, aside, path string) error {
	if _, err := file.WriteAt(head.encode(), 0); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := l.cfg.FS.Rename(aside, path); err != nil {
		return err
	}
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}

func segmentOf(head segmentHead, path string, file disk.File) *segment {
	s := &segment{segmentHead: head, path: path, file: file, end: headBytes}
	s.written.Store(headBytes)
	return s
}

// zeroStepBytes is what zero writes at once. It stops between steps when the log is closed, or somebody waits for the segment.
const zeroStepBytes = 1 << 20

func (l *Log) zero(file disk.File, bytes int64) error {
	step := make([]byte, zeroStepBytes)
	for at := int64(headBytes); at < bytes; at += zeroStepBytes {
		if l.ctx.Err() != nil {
			return ErrClosed
		}
		if l.inHurry() {
			return nil // the rest is zeros that the filesystem makes up
		}
		if _, err := file.WriteAt(step[:min(zeroStepBytes, bytes-at)], at); err != nil {
			return err
		}
	}
	return nil
}
