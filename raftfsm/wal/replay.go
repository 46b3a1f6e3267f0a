package wal

import (
	"errors"
	"fmt"
)

// replay builds the replicas from the frames of all segments, in order.
//
// A replica's frames are numbered, and each segment begins with every replica's number, so that what is missing is noticed
// and whom it concerns: after rot, a replica is whole if its next frame, or the next segment's summary, goes on with its
// count; one that neither names again may have lost something, and counts as damaged too.
//
// Frames are read in order of writing, but copies (kindMoved) come later than what was appended after their originals,
// which may be gone. They are kept aside until the end:
//
//	written   1 2 3 │ 4 5 │ moved 1 2 3 │ 6
//	kept              4 5   moved 1 2 3   6      4 5 6, and then 3 2 1 in front of them
type replay struct {
	log      *Log
	replicas map[ID]*replaying
	// rot is the first damage found so far; nil: none.
	rot error
	// segments counts those replayed.
	segments int
}

// damagedReplica was found damaged at this open.
type damagedReplica struct {
	replica *Replica
	reason  error
}

// replaying is a replica during the replay.
type replaying struct {
	*Replica
	moved map[uint64]position
	// known: its count is.
	known bool
	// doubt is damage in which something of it may have been; nil: nothing can be missing.
	doubt error
	// damage is why something is missing.
	damage error
}

func newReplay(l *Log) *replay { return &replay{log: l, replicas: make(map[ID]*replaying)} }

func (rp *replay) of(id ID) *replaying {
	r := rp.replicas[id]
	if r == nil {
		r = &replaying{Replica: rp.log.replicaLocked(id), moved: make(map[uint64]position)}
		rp.replicas[id] = r
	}
	return r
}

// lost notes that something is missing from here on.
func (rp *replay) lost(why error) {
	rp.log.cfg.Logger.Error("the log is damaged", "error", why)
	if rp.rot == nil {
		rp.rot = why
	}
	for _, r := range rp.replicas {
		if r.doubt == nil {
			r.doubt = why
		}
	}
}

func (r *replaying) damagedBy(why error) {
	if r.damage == nil {
		r.damage = why
	}
}

// segment replays one segment.
func (rp *replay) segment(s *segment, c contents) {
	gaps := c.gaps
	meet := func(i int) { // the gaps in front of frame i
		for len(gaps) > 0 && gaps[0].before == i {
			rp.lost(s.damaged(gaps[0].from, fmt.Sprintf("%d bytes do not check", gaps[0].to-gaps[0].from)))
			gaps = gaps[1:]
		}
	}
	for i := range c.frames {
		meet(i)
		f := &c.frames[i]
		switch {
		case f.kind == kindSummary:
			rp.summary(s, f)
		case f.kind.ofReplica():
			rp.frame(s, f)
		}
	}
	meet(len(c.frames))
	rp.segments++
}

func (rp *replay) summary(s *segment, f *placed) {
	items, err := decodeSummary(f.data)
	if err != nil {
		rp.lost(s.damaged(f.offset, err.Error()))
		return
	}
	first := rp.segments == 0 && rp.rot == nil
	listed := make(map[ID]bool, len(items))
	for _, it := range items {
		listed[it.id] = true
		r := rp.of(it.id)
		if r.known && r.count == it.count || !r.known && first {
			r.doubt = nil
		} else {
			r.damagedBy(rp.reason(s.damaged(f.offset, fmt.Sprintf("%s had written %d frames, %d are there", it.id, it.count, r.count))))
		}
		r.known, r.count = true, it.count
	}
	for id, r := range rp.replicas {
		if r.known && !listed[id] {
			r.damagedBy(rp.reason(s.damaged(f.offset, fmt.Sprintf("%s is not known there, but has written before", id))))
		}
	}
}

// reason is the damage found before, if there is any: it says where to look better than what follows from it.
func (rp *replay) reason(consequence error) error {
	if rp.rot != nil {
		return rp.rot
	}
	return consequence
}

func (rp *replay) frame(s *segment, f *placed) {
	r := rp.of(f.id)
	switch {
	case r.known && f.count == r.count+1:
		r.doubt = nil
	case r.known:
		r.damagedBy(rp.reason(s.damaged(f.offset, fmt.Sprintf("frame %d of %s follows frame %d", f.count, f.id, r.count))))
	case rp.rot != nil && f.count != 1:
		r.damagedBy(rp.rot)
	}
	r.known, r.count = true, f.count
	at := position{segment: s, offset: uint32(f.offset), size: uint32(f.size), entryType: f.entryType}
	if err := r.apply(&f.frame, at); err != nil {
		r.damagedBy(rp.reason(s.damaged(f.offset, err.Error())))
	}
}

// apply makes the replica follow a frame.
func (r *replaying) apply(f *frame, at position) error {
	switch f.kind {
	case kindEntry:
		r.dropFrom(f.index)
		if last := r.lastLocked(); last != 0 && f.index != last+1 {
			return fmt.Errorf("entry %d of %s follows entry %d", f.index, r.id, last)
		}
		if len(r.positions) == 0 {
			r.first = f.index
		}
		r.positions = append(r.positions, at)
		at.segment.live += int64(at.size)
	case kindMoved:
		if f.index >= r.first && f.index <= r.lastLocked() {
			old := &r.positions[f.index-r.first]
			old.segment.live -= int64(old.size)
			*old = at
		} else {
			if old, ok := r.moved[f.index]; ok {
				old.segment.live -= int64(old.size)
			}
			r.moved[f.index] = at
		}
		at.segment.live += int64(at.size)
	case kindTruncate:
		r.dropFrom(f.index)
	case kindCompact:
		r.dropUpTo(f.index)
	case kindClear:
		r.dropFrom(0)
	case kindForget:
		r.dropFrom(0)
		for _, rec := range r.records {
			rec.at.segment.live -= int64(rec.at.size)
		}
		clear(r.records)
		r.damage, r.doubt = nil, nil // whatever was lost before is of no use any more
	case kindRecord:
		name := string(f.extensions)
		if old, ok := r.records[name]; ok {
			old.at.segment.live -= int64(old.at.size)
		}
		r.records[name] = recordAt{value: append([]byte{}, f.data...), at: at}
		at.segment.live += int64(at.size)
	}
	return nil
}

// dropFrom deletes the entries from an index on.
func (r *replaying) dropFrom(index uint64) {
	for last := r.lastLocked(); last != 0 && last >= index; last = r.lastLocked() {
		r.drop(len(r.positions) - 1)
		r.positions = r.positions[:len(r.positions)-1]
	}
	if len(r.positions) == 0 {
		r.first = 0
	}
	r.dropMoved(func(i uint64) bool { return i >= index })
}

// dropUpTo deletes the entries up to an index.
func (r *replaying) dropUpTo(index uint64) {
	for len(r.positions) > 0 && r.first <= index {
		r.drop(0)
		r.positions = r.positions[1:]
		r.first++
	}
	if len(r.positions) == 0 {
		r.first = 0
	}
	r.dropMoved(func(i uint64) bool { return i <= index })
}

func (r *replaying) drop(i int) {
	at := r.positions[i]
	at.segment.live -= int64(at.size)
}

func (r *replaying) dropMoved(gone func(uint64) bool) {
	for i, at := range r.moved {
		if gone(i) {
			at.segment.live -= int64(at.size)
			delete(r.moved, i)
		}
	}
}

// join puts the copies in front of what was appended after their originals.
func (r *replaying) join() error {
	if len(r.moved) == 0 {
		return nil
	}
	if len(r.positions) == 0 {
		for i := range r.moved {
			r.first = max(r.first, i+1)
		}
	}
	count := 0
	for {
		if _, ok := r.moved[r.first-1-uint64(count)]; !ok {
			break
		}
		count++
	}
	joined := make([]position, 0, count+len(r.positions))
	for i := r.first - uint64(count); i < r.first; i++ {
		joined = append(joined, r.moved[i])
		delete(r.moved, i)
	}
	r.positions = append(joined, r.positions...)
	r.first -= uint64(count)
	if len(r.positions) == 0 {
		r.first = 0
	}
	for i := range r.moved {
		return fmt.Errorf("entry %d of %s is there, but not what lies between it and %d", i, r.id, r.first)
	}
	return nil
}

// errUnclean is why replicas of a log that is synced at intervals are not to be trusted.
var errUnclean = errors.New("the machine stopped while the log was open, and it is synced at intervals only: what was acknowledged last may be lost")

// finish completes the replicas and returns the damaged ones.
func (rp *replay) finish(unclean bool) (damaged []damagedReplica) {
	for _, r := range rp.replicas {
		if err := r.join(); err != nil {
			r.damagedBy(rp.reason(err))
		}
		switch {
		case r.Damage() != nil: // known since an earlier open
		case unclean:
			damaged = append(damaged, damagedReplica{r.Replica, errUnclean})
		case r.damage != nil:
			damaged = append(damaged, damagedReplica{r.Replica, r.damage})
		case r.doubt != nil:
			damaged = append(damaged, damagedReplica{r.Replica, r.doubt})
		}
	}
	return damaged
}
