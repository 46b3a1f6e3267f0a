package wal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
)

// Open reads the log in cfg.Dir and makes it ready to be appended to. It fails if the directory can't be read or written;
// damage is no failure, but stays with the replicas that it may concern: see Replica.Damage. Nothing that bears witness of it
// is taken away before the log says durably whom it concerns.
//
// What is read back is not taken for durable: after a kill it may be in the kernel's memory only, and after a failed sync
// even look clean there and be absent from the disk. Sealed segments that others follow are durable, since the next one
// was begun only after that. The last one that holds anything is copied into a new file, synced and renamed over it; it is
// sealed, and a new segment begins the log's new life.
func Open(cfg Config) (*Log, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, born: time.Now(), replicas: make(map[ID]*Replica), wake: make(chan struct{}, 1), keep: make(chan struct{}, 1), closed: make(chan struct{})}
	l.changed = sync.NewCond(&l.mu)
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	if err := l.recover(); err != nil {
		l.cancel(err)
		for _, s := range l.segments {
			if file := s.take(); file != nil {
				err = errors.Join(err, file.Close())
			}
		}
		return nil, err
	}
	l.goroutines.Go(l.write)
	l.goroutines.Go(l.watch)
	if err := l.settle(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	// Only now: nothing by which damage was found is purged before the damage is recorded.
	l.goroutines.Go(l.tend)
	signal(l.keep)
	return l, nil
}

// settle makes durable what the log begins its new life with.
func (l *Log) settle() error {
	l.mu.Lock()
	l.urgentLocked()
	until := l.appended
	l.mu.Unlock()
	if err := l.WaitDurable(l.ctx, until); err != nil {
		return err
	}
	if err := l.settleDamage(); err != nil {
		return err
	}
	return l.settleBoot()
}

// recordDamageLocked makes the damage that was found a fact that outlives the files it was found in.
func (l *Log) recordDamageLocked() error {
	for _, d := range l.damaged {
		l.cfg.Logger.Error("a replica's log is damaged; it must be replaced", "replica", d.replica.id.String(), "error", d.reason)
		if err := d.replica.setRecordLocked(recordDamaged, []byte(d.reason.Error())); err != nil {
			return err
		}
	}
	return nil
}

// damageBytes is the room that recordDamageLocked needs.
func (l *Log) damageBytes() (bytes int) {
	for _, d := range l.damaged {
		f := frame{extensions: []byte(recordDamaged), data: []byte(d.reason.Error())}
		bytes += f.size()
	}
	return bytes
}

// settleDamage notes what has been judged, once that is recorded, and takes away what can't be used.
func (l *Log) settleDamage() error {
	if err := writeJudged(l.cfg.FS, l.cfg.Dir, l.judged); err != nil {
		return err
	}
	for _, path := range l.unreadable {
		if err := l.cfg.FS.Rename(path, path+damagedSuffix); err != nil {
			return err
		}
	}
	if len(l.unreadable) == 0 {
		return nil
	}
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}

func (l *Log) recover() error {
	if err := l.removeUnfinished(); err != nil {
		return err
	}
	in, err := takeInventory(l.cfg.FS, l.cfg.Dir, l.cfg.Logger)
	if err != nil {
		return err
	}
	unclean, err := l.uncleanBoot()
	if err != nil {
		return err
	}
	if err := l.removeSpares(in); err != nil {
		return err
	}
	rp := newReplay(l, in.judged)
	if err := l.replayFiles(rp, in); err != nil {
		return err
	}
	rp.ended(in.dir, in.closed)
	l.damaged = rp.finish(unclean)
	l.judged = rp.places
	switch l.total = rp.total; {
	case len(rp.places) > 0:
		// What is missing may be anybody's. A total that goes on with what was met would say that nothing is.
		l.total = rand.Uint64() >> 1
	case l.total == noTotal:
		l.total = 0
	}
	// What it says of the end of the log will not be so any more.
	if err := removeDurably(l.cfg.FS, filepath.Join(l.cfg.Dir, closedNote)); err != nil {
		return err
	}
	return l.begin(max(rp.next, 1))
}

// removeUnfinished removes files that were being made.
func (l *Log) removeUnfinished() error {
	infos, err := l.cfg.FS.ReadDir(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, info := range infos {
		if strings.HasSuffix(info.Name, asideSuffix) {
			if err := l.cfg.FS.Remove(filepath.Join(l.cfg.Dir, info.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Log) removeSpares(in *inventory) error {
	for _, spare := range in.spares {
		if err := l.cfg.FS.Remove(spare.path); err != nil {
			return err
		}
	}
	if len(in.spares) == 0 {
		return nil
	}
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}

// replayFiles reads all segments into the replay, and rewrites the last.
func (l *Log) replayFiles(rp *replay, in *inventory) error {
	var done int64
	return in.read(func(f *found) error {
		s, err := l.adopt(f)
		if err != nil {
			return err
		}
		rp.segment(s, f)
		done += f.bytes
		if l.cfg.Progress != nil {
			l.cfg.Progress(done, in.bytes)
		}
		return nil
	})
}

// damagedSuffix is put behind the name of a segment that can't be read, or of a copy of one that is rewritten without what
// can't; it is kept for people to look at.
const damagedSuffix = ".damaged"

// adopt takes a segment into use. The last that can be read is rewritten before, and then f holds what was written.
func (l *Log) adopt(f *found) (*segment, error) {
	if f.gone {
		return nil, fmt.Errorf("%s is gone since the directory was read: is another process using it?", f.path)
	}
	if f.unreadable != nil {
		// It is set aside once the damage is recorded. Until then it bears witness.
		l.unreadable = append(l.unreadable, f.path)
		return nil, nil
	}
	if f.torn.to > f.torn.from {
		l.cfg.Logger.Info("the log was not closed; a torn write is cut off", "path", f.path, "offset", f.torn.from, "bytes", f.torn.to-f.torn.from)
	}
	if f.last && !knownbad.Rewrite {
		if err := l.rewrite(f); err != nil {
			return nil, err
		}
	}
	return l.openSegment(f.path, f.head, f.end)
}

func (l *Log) openSegment(path string, head segmentHead, end int64) (*segment, error) {
	file, err := l.cfg.FS.OpenWrite(path)
	if err != nil {
		return nil, err
	}
	s := segmentOf(head, path, file)
	s.end, s.sealed = end, true
	s.written.Store(end)
	l.segments = append(l.segments, s)
	return s, nil
}

// rewrite copies a segment, and lets f be what the copy holds. The copy has the same name and sequence, so whatever a crash
// cuts off there is one file of that sequence, the old or the new. What was lost in the old one stays lost in the copy: only
// later is it recorded whom that concerns.
func (l *Log) rewrite(f *found) error {
	head := segmentHead{seed: seed{f.sequence, newSalt()}}
	c := contents{}
	b := make([]byte, headBytes, f.end+int64(len(f.gaps)+3)*2*frameBytes)
	add := func(f frame) {
		at := len(b)
		b = appendFrame(b, head.seed, int64(at), &f)
		c.frames = append(c.frames, placed{f, int64(at), len(b) - at})
	}
	lost := func(from, to int64, what string) {
		add(frame{kind: kindLost, index: uint64(from), term: uint64(to), data: []byte(what)})
	}
	before, after := f.totals()
	add(frame{kind: kindMark, term: head.sequence, index: headBytes, count: before})
	gaps := f.gaps
	for i := range f.contents.frames {
		for len(gaps) > 0 && gaps[0].before == i {
			lost(gaps[0].from, gaps[0].to, fmt.Sprintf("%d bytes did not check", gaps[0].to-gaps[0].from))
			gaps = gaps[1:]
		}
		if fr := f.contents.frames[i].frame; fr.kind != kindMark && fr.kind != kindSeal {
			add(fr)
		}
	}
	why := f.noEnd()
	if why != "" {
		lost(f.end, f.end, why)
		if after = noTotal; f.closed {
			after = f.total
		}
	}
	add(frame{kind: kindSeal, term: head.sequence, index: uint64(len(b)), count: after})
	head.bytes = int64(len(b))
	c.head, c.end = head, head.bytes
	copy(b, head.encode())
	if len(f.gaps) > 0 || why != "" {
		if err := l.keepCopy(f.path); err != nil {
			return err
		}
	}
	f.contents = c
	if err := disk.WriteFileAtomic(l.cfg.FS, f.path, b); disk.IsNoSpace(err) {
		return fmt.Errorf("%w: %d bytes are needed to copy %s: %w", ErrNoSpace, len(b), f.path, err)
	} else if err != nil {
		return err
	}
	return nil
}

// totals are what the first mark and a seal of the contents say, or would, of the frames before them; noTotal if frames are
// missing in a way that nothing tells how many.
func (c *contents) totals() (before, after uint64) {
	before, after = noTotal, noTotal
	gaps := c.gaps
	for i := range c.frames {
		if len(gaps) > 0 && gaps[0].before == i {
			after, gaps = noTotal, gaps[1:]
		}
		switch f := &c.frames[i]; {
		case f.kind.ofReplica() && after != noTotal:
			after++
		case f.kind == kindMark || f.kind == kindSeal || f.kind == kindSummary:
			if i == 0 {
				before = f.count
			}
			after = f.count
		}
	}
	return before, after
}

// keepCopy keeps a damaged segment that is about to be rewritten.
func (l *Log) keepCopy(path string) error {
	b, err := disk.ReadFile(l.cfg.FS, path)
	if err != nil {
		return err
	}
	return disk.WriteFileAtomic(l.cfg.FS, path+damagedSuffix, b)
}

// begin makes the segment that the log goes on in. It says first who is damaged, and then gives every replica's count: a
// count that goes on with what is there takes away any doubt, and must not be met without the rest.
func (l *Log) begin(sequence uint64) error {
	least := l.neededLocked(l.damageBytes()) * reservePart
	tail, err := l.firstSegment(sequence, least)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append(l.segments, tail)
	l.durableAt = mark{sequence, headBytes}
	if err := l.recordDamageLocked(); err != nil {
		return err
	}
	l.summarizeLocked()
	return nil
}

// firstSegment makes the segment that the log goes on in, and the reserve for the copy that the next open makes of it. Where
// there is no room it makes the segment smaller, then the reserve, and in the end goes without: better a small segment than
// none. The reserve comes first, so that restarts of a full node don't use it up.
func (l *Log) firstSegment(sequence uint64, least int64) (*segment, error) {
	for reserve := max(l.cfg.SegmentBytes, least); ; reserve /= 2 {
		if reserve < least {
			reserve = 0
		}
		tail, err := l.firstBeside(reserve, sequence, least)
		if !disk.IsNoSpace(err) {
			return tail, err
		}
		l.outOfSpace(err)
		if reserve == 0 {
			return nil, fmt.Errorf("%w: %d bytes are needed to go on in: %w", ErrNoSpace, least, err)
		}
		if err := l.dropReserve(); err != nil {
			return nil, err
		}
	}
}

// firstBeside makes a reserve, and the largest segment that there is room for beside it and that it is large enough for.
func (l *Log) firstBeside(reserve int64, sequence uint64, least int64) (*segment, error) {
	if err := l.reserve(reserve); err != nil {
		return nil, err
	}
	for bytes := max(reserve, least); ; bytes = max(bytes/2, least) {
		tail, err := l.createSegment(segmentHead{seed: seed{sequence, newSalt()}, bytes: bytes &^ (alignment - 1)}, false)
		if !disk.IsNoSpace(err) || bytes == least {
			return tail, err
		}
		l.outOfSpace(err)
	}
}
