package wal

import (
	"cmp"
	"fmt"
	"io/fs"
	"log/slog"
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
	// "summary", "lost".
	Kind string
	// ID is the replica's; zero for frames of the log's own.
	ID ID
	// Index and Term of an entry; the index of what is deleted; for marks, the segment (Term) and offset (Index) up to which
	// the writer knew the log to be durable; for lost, from where (Index) to where (Term) a segment that has been rewritten
	// since did not check.
	Index, Term uint64
	// Count numbers the replica's frames; for the log's own it is how many frames of replicas came before.
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
	Torn bool
	// Judged: an open has found it, and recorded which replicas it concerns.
	Judged bool
	Reason string
}

// ReplicaReport tells what a log holds of one replica.
type ReplicaReport struct {
	ID ID
	// First and Last index; 0 if there are no entries.
	First, Last uint64
	// Frames written so far, purged ones included.
	Frames uint64
	// Live is the bytes in frames that are still needed, Dead those of the replica's other frames that were read. Segments
	// is how many files hold the live ones.
	Live, Dead int64
	Segments   int
	// Damage is why the replica can't be used; empty: it can.
	Damage string
}

// Report tells what a log holds.
type Report struct {
	// Segments that hold something, and Spares behind them.
	Segments, Spares int
	// Closed: the log was closed by its last user.
	Closed bool
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
// order, and reports what is wrong. A nil fsys is the system's. progress, if not nil, hears how many bytes of how many were
// read. It fails if the directory can't be read; damage is no failure.
//
// Beside a running node it tells what was there when it came by: what is just being written may look torn, and segments
// that are purged meanwhile are left out.
func Walk(fsys disk.FS, dir string, visit func(Frame) error, progress func(done, total int64)) (*Report, error) {
	if fsys == nil {
		fsys = disk.OS{}
	}
	if visit == nil {
		visit = func(Frame) error { return nil }
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	in, err := takeInventory(fsys, dir, discard)
	if err != nil {
		return nil, err
	}
	w := &walker{in: in, visit: visit, report: &Report{Spares: len(in.spares), Closed: in.closed.segment != 0}}
	w.begin()
	var done int64
	err = in.read(func(f *found) error {
		done += f.bytes
		defer progress(done, in.bytes)
		return w.segment(f)
	})
	if err != nil {
		return nil, err
	}
	w.replay.ended(dir, in.closed)
	return w.finish(), nil
}

// discard takes no logs.
var discard = slog.New(slog.DiscardHandler)

// walker is a running Walk.
type walker struct {
	in       *inventory
	visit    func(Frame) error
	report   *Report
	replay   *replay
	segments []*segment
}

// begin forgets what was read, all of which has been purged meanwhile.
func (w *walker) begin() {
	w.replay = newReplay(&Log{replicas: make(map[ID]*Replica), cfg: Config{Logger: discard}}, w.in.judged)
	w.replay.report = func(d *DamagedError, judged bool) {
		w.report.Problems = append(w.report.Problems, Problem{Path: d.Path, Offset: d.Offset, Judged: judged, Reason: d.Reason})
	}
	w.report.Segments, w.report.Bytes, w.report.Frames, w.report.Problems, w.segments = 0, 0, 0, nil, nil
}

// rereads is how often a segment that doesn't check is read again: a running node may have been writing it.
const rereads = 3

func (w *walker) segment(f *found) error {
	for range rereads {
		if !f.gone && f.unreadable == nil && len(f.gaps) == 0 && f.noEnd() == "" {
			break
		}
		if f.load(w.in, f.segmentFile, f.last); f.err != nil {
			return f.err
		}
	}
	if f.gone { // and so are those before it: the oldest goes first
		w.begin()
		return nil
	}
	w.report.Segments++
	w.report.Bytes += f.bytes
	w.report.Frames += len(f.contents.frames)
	if f.torn.to > f.torn.from {
		w.report.Problems = append(w.report.Problems, Problem{Path: f.path, Offset: f.torn.from, Torn: true,
			Reason: "a write was cut off here; what is behind it counts for nothing"})
	}
	s := &segment{segmentHead: f.head, path: f.path}
	w.segments = append(w.segments, s)
	w.replay.segment(s, f)
	for i := range f.contents.frames {
		if err := w.visit(shown(f.head.sequence, &f.contents.frames[i])); err != nil {
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
	for id, r := range w.replay.replicas {
		first, last := r.Bounds()
		one := ReplicaReport{ID: id, First: first, Last: last, Frames: r.count}
		if err := r.Damage(); err != nil {
			one.Damage = err.Error()
		}
		one.Live, one.Segments = r.alive()
		one.Dead = r.frames - one.Live
		w.report.Replicas = append(w.report.Replicas, one)
	}
	slices.SortFunc(w.report.Replicas, func(a, b ReplicaReport) int {
		return cmp.Or(cmp.Compare(a.ID.Shard, b.ID.Shard), cmp.Compare(a.ID.Replica, b.ID.Replica))
	})
	for _, s := range w.segments {
		w.report.Live += s.live
	}
	return w.report
}

// alive adds up the frames that are needed of a replica, and counts the segments they lie in.
func (r *replaying) alive() (bytes int64, segments int) {
	seen := make(map[*segment]bool)
	add := func(at position) {
		if at.segment != nil { // nil: made up by finish
			bytes += int64(at.size)
			seen[at.segment] = true
		}
	}
	for _, at := range r.positions {
		add(at)
	}
	for _, rec := range r.records {
		add(rec.at)
	}
	return bytes, len(seen)
}

// HeldBy tells whether a process holds the data directory that is dir, or that dir is the log of, and its id; 0: not known.
func HeldBy(dir string) (pid int, held bool) {
	for _, data := range []string{dir, filepath.Dir(filepath.Clean(dir))} {
		if pid, held = disk.HeldBy(filepath.Join(data, "lock")); held {
			return pid, true
		}
	}
	return 0, false
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
	files, err := listSegments(fsys, dir)
	switch {
	case err != nil:
		return "", err
	case len(files) == 0:
		return "", fmt.Errorf("%s holds no write-ahead log: %w", dir, fs.ErrNotExist)
	}
	return dir, nil
}
