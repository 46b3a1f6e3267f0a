package wal

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
)

// Open reads the log in cfg.Dir and makes it ready to be appended to. It fails if the directory can't be read or written;
// damage is no failure, but stays with the replicas that it may concern: see Replica.Damage.
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
	l := &Log{cfg: cfg, replicas: make(map[ID]*Replica), wake: make(chan struct{}, 1), keep: make(chan struct{}, 1), closed: make(chan struct{})}
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
	l.goroutines.Go(l.tend)
	l.goroutines.Go(l.watch)
	signal(l.keep)
	if err := l.settle(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// settle makes durable what the log begins its new life with.
func (l *Log) settle() error {
	l.mu.Lock()
	err := l.recordDamageLocked()
	l.urgentLocked()
	until := l.appended
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err := l.WaitDurable(l.ctx, until); err != nil {
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

func (l *Log) recover() error {
	files, err := listSegments(l.cfg.FS, l.cfg.Dir, true)
	if err != nil {
		return err
	}
	unclean, err := l.uncleanBoot()
	if err != nil {
		return err
	}
	rp := newReplay(l)
	last, err := l.replayFiles(rp, files)
	if err != nil {
		return err
	}
	l.damaged = rp.finish(unclean)
	return l.begin(last + 1)
}

// listSegments returns the segments in a directory in order. With clear, what was not finished is removed.
func listSegments(fsys disk.FS, dir string, clear bool) ([]segmentFile, error) {
	infos, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []segmentFile
	for _, info := range infos {
		path := filepath.Join(dir, info.Name)
		if sequence, ok := parseSegmentName(info.Name); ok {
			files = append(files, segmentFile{sequence, path, info.Size})
		} else if clear && strings.HasSuffix(info.Name, asideSuffix) {
			if err := fsys.Remove(path); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(files, func(a, b segmentFile) int {
		if a.sequence < b.sequence {
			return -1
		}
		return 1
	})
	return files, nil
}

// replayFiles reads all segments into the replay, rewrites the last that holds anything and removes those behind it. It
// returns the last one's sequence, or one below the first to be used.
func (l *Log) replayFiles(rp *replay, files []segmentFile) (last uint64, err error) {
	used, err := l.lastUsed(files)
	if err != nil {
		return 0, err
	}
	for _, unused := range files[used:] {
		if err := l.cfg.FS.Remove(unused.path); err != nil {
			return 0, err
		}
	}
	if len(files[used:]) > 0 {
		if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
			return 0, err
		}
	}
	var total, done int64
	for _, f := range files[:used] {
		total += f.bytes
	}
	var buf []byte
	for i, f := range files[:used] {
		b, head, err := readSegment(l.cfg.FS, f.path, f.sequence, buf)
		buf = b
		var damaged *DamagedError
		switch {
		case errors.As(err, &damaged):
			rp.lost(damaged)
			if i == used-1 {
				// Nothing in it can be used. It must not be in the way of what follows.
				err = l.setAside(f.path)
			} else {
				err = nil
			}
		case err == nil:
			if last != 0 && f.sequence != last+1 {
				rp.lost(&DamagedError{Path: filepath.Join(l.cfg.Dir, segmentName(last+1)), Reason: "the segment is missing"})
			}
			err = l.replayFile(rp, f, scan(b, head), i == used-1)
		}
		if err != nil {
			return 0, err
		}
		last = f.sequence
		done += f.bytes
		if l.cfg.Progress != nil {
			l.cfg.Progress(done, total)
		}
	}
	return last, nil
}

// lastUsed returns how many of the files are used: behind the last that holds a frame, or a damaged head, there are only
// spares.
func (l *Log) lastUsed(files []segmentFile) (int, error) {
	used := len(files)
	for ; used > 0; used-- {
		f := files[used-1]
		b, head, err := readSegment(l.cfg.FS, f.path, f.sequence, nil)
		if err != nil {
			if errors.Is(err, ErrDamaged) {
				break
			}
			return 0, err
		}
		if _, _, size := findFrame(b, head.seed, headBytes); size > 0 {
			break
		}
	}
	return used, nil
}

// damagedSuffix is put behind the name of a segment that can't be read; it is kept for people to look at.
const damagedSuffix = ".damaged"

func (l *Log) setAside(path string) error {
	if err := l.cfg.FS.Rename(path, path+damagedSuffix); err != nil {
		return err
	}
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}

// replayFile takes a segment into use.
func (l *Log) replayFile(rp *replay, f segmentFile, c contents, isLast bool) error {
	if isLast {
		if !c.sealed() {
			c.cut()
		}
		for _, g := range c.gaps {
			l.cfg.Logger.Error("rot in the log", "path", f.path, "offset", g.from, "bytes", g.to-g.from)
		}
		if !knownbad.Rewrite {
			return l.replayLast(rp, f, c)
		}
	}
	s, err := l.openSegment(f.path, c.head, c.end)
	if err != nil {
		return err
	}
	rp.segment(s, c)
	if !c.sealed() && !isLast {
		rp.lost(&DamagedError{Path: f.path, Offset: c.end, Reason: "the segment has no end"})
	}
	return nil
}

func (l *Log) openSegment(path string, head segmentHead, end int64) (*segment, error) {
	file, err := l.cfg.FS.OpenWrite(path)
	if err != nil {
		return nil, err
	}
	s := newSegment(head, path, file)
	s.end, s.sealed = end, true
	s.written.Store(end)
	l.segments = append(l.segments, s)
	return s, nil
}

// replayLast copies the last segment and takes the copy into use. It keeps the sequence, and so whatever a crash cuts off
// there is one file of that sequence, the old or the new.
func (l *Log) replayLast(rp *replay, f segmentFile, c contents) error {
	head := segmentHead{seed: seed{c.head.sequence, newSalt()}}
	b := make([]byte, headBytes, c.end+2*frameBytes)
	add := func(f *frame) placed {
		at := len(b)
		b = appendFrame(b, head.seed, int64(at), f)
		return placed{*f, int64(at), len(b) - at}
	}
	copied := contents{}
	add(&frame{kind: kindMark, term: head.sequence, index: headBytes})
	for i := range c.frames {
		for _, g := range c.gaps {
			if g.before == i { // where it was in the old file, which is what people can look at
				copied.gaps = append(copied.gaps, gap{from: g.from, to: g.to, before: len(copied.frames)})
			}
		}
		if k := c.frames[i].kind; k != kindMark && k != kindSeal {
			copied.frames = append(copied.frames, add(&c.frames[i].frame))
		}
	}
	add(&frame{kind: kindSeal, term: head.sequence, index: uint64(len(b))})
	head.bytes = int64(len(b))
	copied.head, copied.end = head, head.bytes
	copy(b, head.encode())
	if len(c.gaps) > 0 {
		// People may want to look at it; and nobody else will know that it was there.
		if err := l.keepCopy(f.path); err != nil {
			return err
		}
	}
	if err := disk.WriteFileAtomic(l.cfg.FS, f.path, b); err != nil {
		return err
	}
	s, err := l.openSegment(f.path, head, head.bytes)
	if err != nil {
		return err
	}
	rp.segment(s, copied)
	return nil
}

// keepCopy keeps a damaged segment that is about to be rewritten.
func (l *Log) keepCopy(path string) error {
	b, err := disk.ReadFile(l.cfg.FS, path)
	if err != nil {
		return err
	}
	return disk.WriteFileAtomic(l.cfg.FS, path+damagedSuffix, b)
}

// begin makes the segment that the log goes on in.
func (l *Log) begin(sequence uint64) error {
	tail, err := l.createSegment(segmentHead{seed: seed{sequence, newSalt()}, bytes: max(l.cfg.SegmentBytes, l.neededLocked(0)*reservePart)}, false)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append(l.segments, tail)
	l.durableAt = mark{sequence, headBytes}
	l.summarizeLocked()
	return nil
}

// discard takes no logs.
var discard = slog.New(slog.DiscardHandler)

// removeIfThere removes a file that may be missing.
func removeIfThere(fsys disk.FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
