package wal

import (
	"errors"
	"fmt"
	"path/filepath"
)

// replay builds the replicas from the frames of all segments, in order.
//
// A replica's frames are numbered, and each segment begins with every replica's number, so that what is missing is noticed
// and whom it concerns: after rot, a replica is whole if its next frame, or the next segment's summary, goes on with its
// count; one that neither names again may have lost something, and counts as damaged too. Places that were judged so at an
// earlier open are not judged again: whom they concern is recorded, and by now less may be left to tell the others by.
//
// Frames are read in order of writing, but copies (kindMoved) come later than what was appended after their originals,
// which may be gone. They are kept aside until the end:
//
//	written   1 2 3 │ 4 5 │ moved 1 2 3 │ 6
//	kept              4 5   moved 1 2 3   6      4 5 6, and then 3 2 1 in front of them
type replay struct {
	log      *Log
	replicas map[ID]*replaying
	// judged are places whose damage is recorded already.
	judged map[place]bool
	// places are all those where something was lost.
	places []place
	// rot is the first damage found that isn't judged; nil: none.
	rot error
	// pardon: a judged place was passed.
	pardon bool
	// begun: a summary was met.
	begun bool
	// total counts the frames of replicas that were written, as far as it is known that they were: met, or missing between
	// two that were met; noTotal: from where is not known.
	total uint64
	// next is the sequence of the next segment; 0: any.
	next uint64
	// report, if set, is told about every damage.
	report func(damage *DamagedError, judged bool)
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
	// pardon: a judged place was passed since its count was last met, so that a gap in it is no news.
	pardon bool
	// damage is why something is missing.
	damage error
	// frames is the size of its frames that were met.
	frames int64
}

func newReplay(l *Log, judged map[place]bool) *replay {
	return &replay{log: l, replicas: make(map[ID]*replaying), judged: judged, total: noTotal}
}

// noTotal is in place of a total that is not known.
const noTotal = 1<<64 - 1

func (rp *replay) of(id ID) *replaying {
	r := rp.replicas[id]
	if r == nil {
		r = &replaying{Replica: rp.log.replicaLocked(id), moved: make(map[uint64]position)}
		rp.replicas[id] = r
	}
	return r
}

// lost notes that something is missing from here on. If it is a place that was judged at an earlier open, the replicas that
// miss something are known; else all are in doubt.
func (rp *replay) lost(p place, why *DamagedError) {
	judged := rp.judged[p]
	rp.places = append(rp.places, p)
	if rp.report != nil {
		rp.report(why, judged)
	}
	if judged {
		rp.pardon = true
		for _, r := range rp.replicas {
			r.pardon = r.doubt == nil
		}
		return
	}
	rp.log.cfg.Logger.Error("the log is damaged", "error", why)
	if rp.rot == nil {
		rp.rot = why
	}
	for _, r := range rp.replicas {
		r.pardon = false
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

// segment replays what was found in one file. s is nil if its head doesn't check.
func (rp *replay) segment(s *segment, f *found) {
	if rp.next != 0 && f.sequence != rp.next {
		rp.lost(place{segment: rp.next, to: int64(f.sequence - rp.next)},
			&DamagedError{Path: filepath.Join(filepath.Dir(f.path), segmentName(rp.next)), Reason: fmt.Sprintf("missing, with all before %s", segmentName(f.sequence))})
	}
	rp.next = f.sequence + 1
	if f.unreadable != nil {
		rp.lost(place{segment: f.sequence}, f.unreadable)
		return
	}
	gaps := f.gaps
	for i := range f.contents.frames {
		for len(gaps) > 0 && gaps[0].before == i {
			rp.lost(place{s.sequence, gaps[0].from, gaps[0].to}, s.damaged(gaps[0].from, fmt.Sprintf("%d bytes do not check", gaps[0].to-gaps[0].from)))
			gaps = gaps[1:]
		}
		switch fr := &f.contents.frames[i]; {
		case fr.kind == kindSummary:
			rp.summary(s, fr)
		case fr.kind == kindLost:
			rp.lost(place{s.sequence, fr.offset, fr.offset + int64(fr.size)},
				&DamagedError{Path: s.path + damagedSuffix, Offset: int64(fr.index), Reason: string(fr.data)})
		case fr.kind.ofReplica():
			rp.frame(s, fr)
		default:
			rp.accountFor(fr.count)
		}
	}
	if why := f.noEnd(); why != "" {
		rp.lost(place{s.sequence, f.end, f.end}, s.damaged(f.end, why))
		if f.closed {
			rp.accountFor(f.total)
		}
	}
}

// noEnd says why there should be a seal where there is none.
func (f *found) noEnd() string {
	switch {
	case f.sealed():
		return ""
	case f.closed:
		return "the log was closed, but it has no end"
	case !f.last:
		return "the segment has no end"
	}
	return ""
}

func (rp *replay) summary(s *segment, f *placed) {
	items, err := decodeSummary(f.data)
	if err != nil {
		rp.lost(place{s.sequence, f.offset, f.offset + int64(f.size)}, s.damaged(f.offset, err.Error()))
		return
	}
	first := !rp.begun
	rp.begun = true
	listed := make(map[ID]bool, len(items))
	for _, it := range items {
		listed[it.id] = true
		r := rp.of(it.id)
		switch {
		case !r.known && first && rp.rot == nil:
		case !rp.goesOn(r, it.count):
			r.damagedBy(rp.reason(s.damaged(f.offset, fmt.Sprintf("%s had written %d frames, %d are there", it.id, it.count, r.count))))
		}
		r.known, r.count = true, it.count
	}
	for id, r := range rp.replicas {
		if r.known && !listed[id] {
			r.damagedBy(rp.reason(s.damaged(f.offset, fmt.Sprintf("%s is not known there, but has written before", id))))
		}
	}
	rp.total = f.count
}

// accountFor compares how many frames of replicas had been written at a mark or seal. If those that were met, and those that
// are missing between others, are all, then nobody else misses any.
func (rp *replay) accountFor(total uint64) {
	switch {
	case rp.total == noTotal && len(rp.places) == 0:
		rp.total = total
	case total == rp.total && total != noTotal:
		for _, r := range rp.replicas {
			r.doubt = nil
		}
	}
}

// goesOn tells whether a replica can have written so many frames and have nothing missing, or nothing that isn't recorded.
func (rp *replay) goesOn(r *replaying, count uint64) bool {
	pardon := r.pardon
	r.pardon = false
	switch {
	case r.known && r.count == count:
		r.doubt = nil
		return true
	case r.known:
		return pardon && count > r.count
	default: // a log may begin with frames that a summary follows: see Log.begin
		return count == 0 || rp.rot == nil && (rp.pardon || !rp.begun)
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
	switch missing := f.count - 1 - r.count; {
	case rp.total == noTotal:
	case !r.known && f.count > 1 || f.count <= r.count:
		rp.total = noTotal
	default:
		rp.total += missing + 1
	}
	if !rp.goesOn(r, f.count-1) {
		r.damagedBy(rp.reason(s.damaged(f.offset, fmt.Sprintf("frame %d of %s follows frame %d", f.count, f.id, r.count))))
	}
	r.known, r.count = true, f.count
	r.frames += int64(f.size)
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
		r.damage, r.doubt = nil, nil // whatever was lost before is not needed any more
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

// ended notes that the log ends here.
func (rp *replay) ended(dir string, closed closing) {
	if closed.segment != 0 && closed.segment >= rp.next {
		missing := max(rp.next, 1)
		rp.lost(place{segment: missing, to: int64(closed.segment + 1 - missing)},
			&DamagedError{Path: filepath.Join(dir, segmentName(closed.segment)), Reason: "missing: the log was closed at its end"})
		rp.next = closed.segment + 1
	}
}

// finish completes the replicas and returns the damaged ones.
func (rp *replay) finish(unclean bool) (damaged []damagedReplica) {
	for _, r := range rp.replicas {
		if err := r.join(); err != nil {
			r.damagedBy(rp.reason(err))
		}
		known := r.Damage() // since an earlier open
		switch {
		case known != nil && !errors.Is(known, ErrUncleanBoot):
		case r.damage != nil:
			damaged = append(damaged, damagedReplica{r.Replica, r.damage})
		case r.doubt != nil:
			damaged = append(damaged, damagedReplica{r.Replica, r.doubt})
		case unclean && known == nil: // last, as it can be forgiven: see Replica.Trust
			damaged = append(damaged, damagedReplica{r.Replica, ErrUncleanBoot})
		}
	}
	return damaged
}
