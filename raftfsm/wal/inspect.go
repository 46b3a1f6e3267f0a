package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// Frame is one frame of a log as Walk shows it.
type Frame struct {
	// Segment is the sequence of the file, Offset where the frame begins there, Bytes its whole size.
	Segment uint64
	Offset  int64
	Bytes   int
	// Kind: "entry", "moved", "truncate", "compact", "clear", "record", "forget", and the log's own "mark", "seal",
	// "summary".
	Kind string
	// ID is the replica's; zero for frames of the log's own.
	ID ID
	// Index and Term of an entry; the index of what is deleted; for marks, the segment (Term) and offset (Index) up to which
	// the writer knew the log to be durable.
	Index, Term uint64
	// Count numbers the replica's frames.
	Count uint64
	// Type of an entry, as the caller gave it.
	Type uint8
	// Name of a record.
	Name string
	// Data of an entry or record. Valid until the function it was given to returns.
	Data []byte
}

// Problem is what is wrong at one place of a log.
type Problem struct {
	Path   string
	Offset int64
	// Torn: a crash can have left it, and nothing that was acknowledged need be missing. Otherwise it is rot.
	Torn   bool
	Reason string
}

// ReplicaReport tells what a log holds of one replica.
type ReplicaReport struct {
	ID ID
	// First and Last index; 0 if there are no entries.
	First, Last uint64
	// Frames written so far, purged ones included.
	Frames uint64
	// Damage is why the replica can't be used; empty: it can.
	Damage string
}

// Report tells what a log holds.
type Report struct {
	Segments int
	// Bytes read, and of these in frames that are still needed.
	Bytes, Live int64
	Frames      int
	Replicas    []ReplicaReport
	Problems    []Problem
}

// Rotten tells whether something that was written whole is not there any more.
func (r *Report) Rotten() bool {
	return slices.ContainsFunc(r.Problems, func(p Problem) bool { return !p.Torn }) ||
		slices.ContainsFunc(r.Replicas, func(r ReplicaReport) bool { return r.Damage != "" })
}

// Walk reads the log in a directory as an open would, and changes nothing: it gives visit, which may be nil, each frame in
// order, and reports what is wrong. A nil fsys is the system's. progress, if not nil, hears how many bytes of how many were read. It fails if the
// directory can't be read; damage is no failure. Beside a running node it may take what is just being written for torn.
func Walk(fsys disk.FS, dir string, visit func(Frame) error, progress func(done, total int64)) (*Report, error) {
	if fsys == nil {
		fsys = disk.OS{}
	}
	files, err := listSegments(fsys, dir, false)
	if err != nil {
		return nil, err
	}
	w := &walker{fsys: fsys, visit: visit, progress: progress, report: &Report{Segments: len(files)}}
	w.replay = newReplay(&Log{replicas: make(map[ID]*Replica), cfg: Config{Logger: discard}})
	if err := w.files(files); err != nil {
		return nil, err
	}
	return w.finish(), nil
}

// walker is a running Walk.
type walker struct {
	fsys     disk.FS
	visit    func(Frame) error
	progress func(done, total int64)
	report   *Report
	replay   *replay
	segments []*segment
}

func (w *walker) files(files []segmentFile) error {
	used := len(files)
	for ; used > 0; used-- { // behind the last that holds a frame there are only spares
		b, head, err := readSegment(w.fsys, files[used-1].path, files[used-1].sequence, nil)
		if errors.Is(err, ErrDamaged) {
			break
		}
		if err != nil {
			return err
		}
		if _, _, size := findFrame(b, head.seed, headBytes); size > 0 {
			break
		}
	}
	var total, done int64
	for _, f := range files[:used] {
		total += f.bytes
	}
	var buf []byte
	last := uint64(0)
	for i, f := range files[:used] {
		b, head, err := readSegment(w.fsys, f.path, f.sequence, buf)
		buf = b
		var damaged *DamagedError
		switch {
		case errors.As(err, &damaged):
			w.rot(damaged)
		case err != nil:
			return err
		default:
			if last != 0 && f.sequence != last+1 {
				w.rot(&DamagedError{Path: filepath.Join(filepath.Dir(f.path), segmentName(last+1)), Reason: "the segment is missing"})
			}
			if err := w.file(f, scan(b, head), i == used-1); err != nil {
				return err
			}
		}
		last = f.sequence
		done += f.bytes
		w.report.Bytes += f.bytes
		if w.progress != nil {
			w.progress(done, total)
		}
	}
	return nil
}

func (w *walker) rot(d *DamagedError) {
	w.report.Problems = append(w.report.Problems, Problem{Path: d.Path, Offset: d.Offset, Reason: d.Reason})
	w.replay.lost(d)
}

func (w *walker) file(f segmentFile, c contents, isLast bool) error {
	if !c.sealed() {
		if isLast {
			whole := len(c.frames)
			c.cut()
			if lost := whole - len(c.frames); lost > 0 {
				w.report.Problems = append(w.report.Problems, Problem{Path: f.path, Offset: c.end, Torn: true,
					Reason: fmt.Sprintf("a write was cut off; %d frames behind it count for nothing", lost)})
			}
		} else {
			w.rot(&DamagedError{Path: f.path, Offset: c.end, Reason: "the segment has no end"})
		}
	}
	for _, g := range c.gaps {
		w.report.Problems = append(w.report.Problems, Problem{Path: f.path, Offset: g.from, Reason: fmt.Sprintf("%d bytes do not check", g.to-g.from)})
	}
	s := &segment{segmentHead: c.head, path: f.path}
	w.segments = append(w.segments, s)
	w.replay.segment(s, c)
	w.report.Frames += len(c.frames)
	if w.visit == nil {
		return nil
	}
	for i := range c.frames {
		if err := w.visit(shown(c.head.sequence, &c.frames[i])); err != nil {
			return err
		}
	}
	return nil
}

func shown(segment uint64, f *placed) Frame {
	out := Frame{Segment: segment, Offset: f.offset, Bytes: f.size, Kind: f.kind.String(), ID: f.id, Index: f.index, Term: f.term,
		Count: f.count, Type: f.entryType, Data: f.data}
	if f.kind == kindRecord {
		out.Name = string(f.extensions)
	}
	return out
}

func (w *walker) finish() *Report {
	for _, d := range w.replay.finish(false) {
		d.replica.records[recordDamaged] = recordAt{value: []byte(d.reason.Error())}
	}
	for id, r := range w.replay.log.replicas {
		first, last := r.Bounds()
		one := ReplicaReport{ID: id, First: first, Last: last, Frames: r.count}
		if err := r.Damage(); err != nil {
			one.Damage = err.Error()
		}
		w.report.Replicas = append(w.report.Replicas, one)
	}
	slices.SortFunc(w.report.Replicas, func(a, b ReplicaReport) int {
		if a.ID.Shard != b.ID.Shard {
			return int(a.ID.Shard) - int(b.ID.Shard)
		}
		return int(a.ID.Replica) - int(b.ID.Replica)
	})
	for _, s := range w.segments {
		w.report.Live += s.live
	}
	return w.report
}

// DirOf returns the directory of the log in a data directory, or dir itself if it is one. A nil fsys is the system's.
func DirOf(fsys disk.FS, dir string) (string, error) {
	if fsys == nil {
		fsys = disk.OS{}
	}
	below := filepath.Join(dir, "wal")
	if info, err := fsys.Stat(below); err == nil && info.Dir {
		return below, nil
	}
	files, err := listSegments(fsys, dir, false)
	switch {
	case err != nil:
		return "", err
	case len(files) == 0:
		return "", fmt.Errorf("%s holds no write-ahead log: %w", dir, fs.ErrNotExist)
	}
	return dir, nil
}
