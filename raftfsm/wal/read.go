package wal

import (
	"cmp"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// segmentFile is a segment found in a directory.
type segmentFile struct {
	sequence uint64
	path     string
	bytes    int64
}

// inventory is a log as it lies in its directory. An open and the offline tools read it by the same code.
type inventory struct {
	fsys disk.FS
	dir  string
	// files are the segments that hold something, in order; spares lie behind them and hold nothing.
	files, spares []segmentFile
	// closed is where the log was closed, in no segment if it was not.
	closed closing
	// judged are the places where it is known to be wrong, and whom that concerns is recorded.
	judged map[place]bool
	// bytes is the size of files.
	bytes int64
}

func takeInventory(fsys disk.FS, dir string, logger *slog.Logger) (*inventory, error) {
	in := &inventory{fsys: fsys, dir: dir, judged: make(map[place]bool)}
	var err error
	if in.closed, err = readClosed(fsys, dir); errors.Is(err, errNote) {
		logger.Warn("whether the log was closed is not known", "error", err)
	} else if err != nil {
		return nil, err
	}
	places, err := readJudged(fsys, dir)
	if errors.Is(err, errNote) {
		logger.Warn("earlier damage of the log is judged anew", "error", err)
	} else if err != nil {
		return nil, err
	}
	for _, p := range places {
		in.judged[p] = true
	}
	if in.files, err = listSegments(fsys, dir); err != nil {
		return nil, err
	}
	used, err := in.used(logger)
	if err != nil {
		return nil, err
	}
	in.files, in.spares = in.files[:used], in.files[used:]
	for _, f := range in.files {
		in.bytes += f.bytes
	}
	return in, nil
}

// listSegments returns the segments in a directory in order.
func listSegments(fsys disk.FS, dir string) ([]segmentFile, error) {
	infos, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []segmentFile
	for _, info := range infos {
		if sequence, ok := parseSegmentName(info.Name); ok {
			files = append(files, segmentFile{sequence, filepath.Join(dir, info.Name), info.Size})
		}
	}
	slices.SortFunc(files, func(a, b segmentFile) int { return cmp.Compare(a.sequence, b.sequence) })
	return files, nil
}

// used returns how many of the files are: behind the last that holds a frame there are only spares. One whose head doesn't
// check may have held anything, unless it can't have been begun: the log was closed before it, or the one before has no
// seal.
func (in *inventory) used(logger *slog.Logger) (int, error) {
	var buf []byte
	for used := len(in.files); used > 0; used-- {
		f := in.files[used-1]
		b, head, err := readSegment(in.fsys, f.path, f.sequence, buf)
		buf = b
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // of a log that is being written; its keeper took it
		case errors.Is(err, ErrDamaged):
			before := in.files[:used-1]
			if in.closed.segment == 0 || f.sequence <= in.closed.segment {
				if len(before) == 0 || in.maySeal(before[len(before)-1]) {
					return used, nil
				}
			}
			logger.Warn("a spare segment is damaged; nothing is lost by it", "error", err)
			continue
		case err != nil:
			return 0, err
		}
		if _, _, size := findFrame(b, head.seed, headBytes); size > 0 {
			return used, nil
		}
	}
	return 0, nil
}

// maySeal tells whether a segment ends with a seal, or can't be read.
func (in *inventory) maySeal(f segmentFile) bool {
	b, head, err := readSegment(in.fsys, f.path, f.sequence, nil)
	if err != nil {
		return true
	}
	c := scan(b, head, nil)
	return c.sealed()
}

// found is a segment as it was found, judged by what an open knows.
type found struct {
	segmentFile
	contents
	// gone: it was there when the directory was read, and isn't any more. A running log purges.
	gone bool
	// unreadable is why its head doesn't check; then there are no contents.
	unreadable *DamagedError
	// last: nothing of the log follows.
	last bool
	// closed: the log was closed at its end, after so many frames.
	closed bool
	total  uint64

	b      []byte
	frames []placed // the slice that contents has, to be used again
	err    error
}

// readAhead is how many segments are read and checked while others are replayed. Each costs its size and more.
const readAhead = 2

// read visits all segments in order. What it visits is valid until visit returns. Reading and checksums run on a goroutine
// of their own, ahead of the visits; read joins it.
func (in *inventory) read(visit func(*found) error) error {
	free, ready := make(chan *found, readAhead), make(chan *found, readAhead)
	for range readAhead {
		free <- new(found)
	}
	go func() {
		defer close(ready)
		for i, f := range in.files {
			next, ok := <-free
			if !ok {
				return
			}
			next.load(in, f, i == len(in.files)-1)
			failed := next.err != nil
			ready <- next
			if failed {
				return
			}
		}
	}()
	var failed error
	for f := range ready { // to its end, which joins the goroutine
		if failed == nil {
			if failed = f.err; failed == nil {
				failed = visit(f)
			}
			if failed != nil {
				close(free)
			}
		}
		if failed == nil {
			free <- f
		}
	}
	return failed
}

func (f *found) load(in *inventory, file segmentFile, last bool) {
	*f = found{segmentFile: file, last: last, closed: in.closed.segment == file.sequence, total: in.closed.total, b: f.b, frames: f.frames}
	var head segmentHead
	f.b, head, f.err = readSegment(in.fsys, file.path, file.sequence, f.b)
	if f.gone = errors.Is(f.err, fs.ErrNotExist); f.gone || errors.As(f.err, &f.unreadable) {
		f.err = nil
		return
	}
	if f.err != nil {
		return
	}
	f.contents = scan(f.b, head, f.frames)
	f.frames = f.contents.frames
	if last && !f.closed && !f.sealed() {
		f.cut(f.b)
	}
}
