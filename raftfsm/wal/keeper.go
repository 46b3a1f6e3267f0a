package wal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
)

// spareRetry is how often a spare is tried again while there is no room for it.
const spareRetry = time.Second

// cleanSlackSegments may lie around before anything is copied to free one.
const cleanSlackSegments = 4

// tend is the keeper's goroutine: it makes the next segment before it is needed, removes old ones that nobody needs, and
// copies what holds up the oldest one.
func (l *Log) tend() {
	retry := time.NewTimer(0)
	<-retry.C
	defer retry.Stop()
	for {
		select {
		case <-l.keep:
		case <-retry.C:
		case <-l.ctx.Done():
			return
		}
		full, err := l.tidy()
		if full {
			retry.Reset(spareRetry)
		}
		if errors.Is(err, ErrClosed) {
			return
		}
		if err != nil && l.ctx.Err() == nil {
			l.fail(fmt.Errorf("keeping the log's segments: %w", err))
			return
		}
	}
}

// tidy is one turn of the keeper. full: there is no room for another segment.
func (l *Log) tidy() (full bool, err error) {
	// While somebody waits for a segment, purging can wait; else it may yield one.
	if !l.inHurry() {
		if err := l.purge(); err != nil {
			return false, err
		}
	}
	err = l.prepare()
	if disk.IsNoSpace(err) {
		l.outOfSpace(err)
		return true, l.yield()
	}
	if err == nil {
		err = l.purge()
	}
	if err == nil {
		err = l.clean()
	}
	return false, err
}

// yieldPart of a segment is the most of the oldest one that is copied to free it while there is no room for another: votes and their
// like, which may be all that is needed of it. More would take the room that is kept for what can't be refused.
const yieldPart = 32

// yield makes a spare of segments that are needed no more, or of which next to nothing is, while there is no room for one.
func (l *Log) yield() error {
	l.mu.Lock()
	turns := len(l.segments) - 1 // no segment twice, nor what was copied
	l.mu.Unlock()
	for range turns {
		if err := l.prepareOfPurged(); err != nil {
			return err
		}
		l.mu.Lock()
		oldest := l.segments[0]
		worth := l.noSpace != nil && len(l.segments) > 1 && oldest.sealed && !oldest.stuck && oldest.live <= l.cfg.SegmentBytes/yieldPart
		l.mu.Unlock()
		if !worth {
			return nil
		}
		if err := l.vacate(oldest); err != nil {
			return err
		}
	}
	return l.prepareOfPurged()
}

// prepareOfPurged makes a spare of the room that purging gives, if there is any.
func (l *Log) prepareOfPurged() error {
	if err := l.purge(); err != nil || len(l.retired) == 0 {
		return err
	}
	l.mu.Lock()
	large := l.wanted > l.cfg.SegmentBytes
	l.mu.Unlock()
	if large { // a file of the usual size is none, but takes its room
		if err := l.dropRetired(); err != nil {
			return err
		}
	}
	if err := l.prepare(); !disk.IsNoSpace(err) {
		return err
	}
	return nil
}

func (l *Log) inHurry() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wanted > 0
}

// nextHeadLocked is the head of the segment behind the tail.
func (l *Log) nextHeadLocked() segmentHead {
	tail := l.segments[len(l.segments)-1]
	return segmentHead{seed: seed{tail.sequence + 1, newSalt()}, bytes: max(l.cfg.SegmentBytes, int64(padded(int(l.wanted))))}
}

// prepare makes a spare if there is none, or only one that is too small. Where there is no room that one stays.
func (l *Log) prepare() error {
	l.mu.Lock()
	small := l.spare
	if small != nil && small.bytes >= l.wanted {
		l.noSpace = nil // it was for a larger one, for which nobody waits any more
		l.short.Store(false)
		l.mu.Unlock()
		return nil
	}
	l.spare = nil // the new one takes its place, also in the directory
	head := l.nextHeadLocked()
	hurry := l.wanted > 0
	l.mu.Unlock()
	s, err := l.reservedSegment(head, !hurry)
	switch {
	case err == nil:
		l.setSpare(s)
	case disk.IsNoSpace(err) && small != nil:
		l.mu.Lock()
		l.spare = small
		l.mu.Unlock()
		return err
	}
	if small != nil {
		err = errors.Join(err, small.take().Close())
	}
	return err
}

// reservedSegment makes a segment that the reserve is large enough for.
func (l *Log) reservedSegment(head segmentHead, zeroed bool) (*segment, error) {
	before := l.reserved
	err := l.reserve(head.bytes)
	if err == nil {
		var s *segment
		if s, err = l.newSegment(head, zeroed); err == nil {
			return s, nil
		}
	}
	if disk.IsNoSpace(err) && l.reserved > before { // what it has grown by is better used for an ordinary segment
		err = errors.Join(err, l.dropReserve(), l.reserve(before))
	}
	return nil, err
}

// newSegment makes a segment, of a retired file if there is one.
func (l *Log) newSegment(head segmentHead, zeroed bool) (*segment, error) {
	if len(l.retired) == 0 || head.bytes != l.cfg.SegmentBytes {
		return l.createSegment(head, zeroed)
	}
	last := len(l.retired) - 1
	r := l.retired[last]
	l.retired = l.retired[:last]
	l.stats.recycled.Add(1)
	return l.reviveSegment(r, head)
}

// dropRetired removes the files that were kept for another life.
func (l *Log) dropRetired() error {
	var errs []error
	for _, r := range l.retired {
		errs = append(errs, r.file.Close(), l.cfg.FS.Remove(r.path))
	}
	l.retired = nil
	return errors.Join(errs...)
}

func (l *Log) setSpare(s *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spare, l.noSpace = s, nil
	l.short.Store(false)
	if l.wanted <= s.bytes {
		l.wanted = 0
	}
	l.changed.Broadcast()
}

// purge removes segments that nobody needs, the oldest first: a newer one may hold what deletes things in an older. What
// emptied a segment is durable first.
func (l *Log) purge() error {
	for {
		l.mu.Lock()
		at := l.purgeableLocked()
		if at < 0 {
			l.mu.Unlock()
			return nil
		}
		s := l.segments[at]
		if s.emptied > l.durable && !knownbad.PurgeSync {
			until := s.emptied
			l.mu.Unlock()
			if err := l.WaitDurable(l.ctx, until); err != nil {
				return err
			}
			continue
		}
		l.segments = slices.Concat(l.segments[:at], l.segments[at+1:])
		l.stats.purged.Add(1)
		l.mu.Unlock()
		if err := l.dispose(s); err != nil {
			return err
		}
	}
}

// purgeableLocked is the segment that can go next: the oldest, if nobody needs it; -1: none.
func (l *Log) purgeableLocked() int {
	for i, s := range l.segments[:len(l.segments)-1] {
		if s.sealed && s.live == 0 {
			return i
		}
		if !knownbad.PurgeOrder {
			break
		}
	}
	return -1
}

// retiredMax is how many purged files are kept for another life: writing over what the disk holds already is what a sync is
// cheapest for, and a new file's zeros cost as much writing as the log itself.
const retiredMax = 2

func (l *Log) dispose(s *segment) error {
	if s.bytes == l.cfg.SegmentBytes && len(l.retired) < retiredMax {
		r, err := l.retireSegment(s)
		if err == nil {
			l.retired = append(l.retired, r)
		}
		return err
	}
	if err := s.take().Close(); err != nil {
		return err
	}
	if err := l.cfg.FS.Remove(s.path); err != nil {
		return err
	}
	return l.cfg.FS.SyncDir(filepath.Dir(s.path))
}

// clean copies what is still needed of the oldest segment to the end of the log if far more lies around than is needed.
func (l *Log) clean() error {
	l.mu.Lock()
	var total, live int64
	for _, s := range l.segments {
		total += s.bytes
		live += s.live
	}
	oldest := l.segments[0]
	idle := total <= 2*live+cleanSlackSegments*l.cfg.SegmentBytes || !oldest.sealed || oldest.stuck || len(l.segments) == 1
	l.mu.Unlock()
	if idle {
		return nil
	}
	defer signal(l.keep) // there may be more to do; if a spare was missing, it is made first
	return l.vacate(oldest)
}

// vacate copies what is still needed of the oldest segment to the end of the log, as far as there is room for it there.
func (l *Log) vacate(oldest *segment) error {
	l.mu.Lock()
	replicas := make([]*Replica, 0, len(l.replicas))
	for _, r := range l.replicas {
		replicas = append(replicas, r)
	}
	l.mu.Unlock()
	defer l.wakeWriter()
	stuck := false
	for _, r := range replicas {
		err := r.moveOff(oldest)
		if errors.Is(err, ErrDamaged) {
			stuck = true
			err = l.strand(r, err)
		}
		if errors.Is(err, errNoSpare) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest.stuck = stuck
	return nil
}

// strand records that a replica can't be moved, since it can't be read. Its segment stays until it is forgotten.
func (l *Log) strand(r *Replica, why error) error {
	if r.Damage() != nil {
		return nil
	}
	l.cfg.Logger.Error("a segment can't be cleaned", "replica", r.id.String(), "error", why)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.keeperRoomLocked(frameBytes + padded(len(recordDamaged)+len(why.Error()))); err != nil {
		return err
	}
	return r.setRecordLocked(recordDamaged, []byte(why.Error()))
}

// keeperRoomLocked makes room for a frame of the keeper's. It does not wait for a spare, which the keeper itself must make,
// but asks for one and fails with errNoSpare.
func (l *Log) keeperRoomLocked(size int) error {
	err := l.roomLocked(size)
	if errors.Is(err, errNoSpare) {
		l.wanted = max(l.wanted, l.neededLocked(size))
	}
	return err
}

// moveOff copies everything of the replica that lies in a segment to the end of the log.
func (r *Replica) moveOff(s *segment) error {
	r.mu.RLock()
	var indexes []uint64
	for i, at := range r.positions {
		if at.segment == s {
			indexes = append(indexes, r.first+uint64(i))
		}
	}
	var names []string
	for name, rec := range r.records {
		if rec.at.segment == s {
			names = append(names, name)
		}
	}
	r.mu.RUnlock()
	for _, index := range indexes {
		if err := r.moveEntry(index, s); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := r.moveRecord(name, s); err != nil {
			return err
		}
	}
	return nil
}

func (r *Replica) moveEntry(index uint64, s *segment) error {
	e, err := r.Get(index)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	l := r.log
	f := frame{kind: kindMoved, entryType: e.Type, id: r.id, index: index, term: e.Term, time: e.Time, extensions: e.Extensions, data: e.Data}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.keeperRoomLocked(f.size()); err != nil {
		return err
	}
	// Looked at only now: making room may have let go of the lock, and a copy of what has been deleted meanwhile would
	// come back at the next open.
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.hasLocked(index) || r.positions[index-r.first].segment != s {
		return nil
	}
	old := r.positions[index-r.first]
	at := l.placeLocked(r, &f)
	l.stats.moved.Add(1)
	r.positions[index-r.first] = at
	at.segment.live += int64(at.size)
	l.deadLocked(old)
	return nil
}

func (r *Replica) moveRecord(name string, s *segment) error {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	r.mu.RLock()
	size := int(r.records[name].at.size)
	r.mu.RUnlock()
	if err := l.keeperRoomLocked(size); err != nil {
		return err
	}
	// Looked at only now, for the same reason.
	r.mu.RLock()
	rec, ok := r.records[name]
	r.mu.RUnlock()
	if !ok || rec.at.segment != s {
		return nil
	}
	l.stats.moved.Add(1)
	return r.setRecordLocked(name, rec.value)
}
