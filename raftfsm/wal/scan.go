package wal

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// contents is what a segment file was found to hold.
type contents struct {
	head   segmentHead
	frames []placed
	// gaps lie between frames: something was written there that doesn't check.
	gaps []gap
	// end is behind the last frame.
	end int64
}

// placed is a frame and its offset.
type placed struct {
	frame
	offset int64
	size   int
}

// gap is [from, to), frames[before] is the first behind it.
type gap struct {
	from, to int64
	before   int
}

// scan finds all frames in a segment's bytes. After one that doesn't check it looks for the next that does: frames are
// aligned, and know their offset.
func scan(b []byte, head segmentHead) contents {
	c := contents{head: head, end: headBytes}
	for at := int64(headBytes); ; {
		next, f, size := findFrame(b, head.seed, at)
		if size == 0 {
			return c
		}
		if next > at {
			c.gaps = append(c.gaps, gap{from: at, to: next, before: len(c.frames)})
		}
		c.frames = append(c.frames, placed{f, next, size})
		at = next + int64(size)
		c.end = at
	}
}

// findFrame returns the first frame at or behind an offset; size 0: there is none.
func findFrame(b []byte, s seed, from int64) (at int64, f frame, size int) {
	low := uint32(s.sequence)
	for at = from; at+frameBytes <= int64(len(b)); at += alignment {
		if binary.BigEndian.Uint32(b[at+8:]) != low {
			continue
		}
		if f, size, err := decodeFrame(b[at:], s, at); err == nil {
			return at, f, size
		}
	}
	return 0, frame{}, 0
}

// sealed tells whether the last frame is a seal.
func (c *contents) sealed() bool {
	return len(c.frames) > 0 && c.frames[len(c.frames)-1].kind == kindSeal
}

// cut takes what a torn write left off a segment that was not sealed, and returns what is left of the gaps: rot. A gap is
// rot if a later frame says that its writer knew the place to be durable; else it may be a tear, and then it and all
// behind it was never acknowledged.
func (c *contents) cut() {
	for i, g := range c.gaps {
		if c.knownDurable(g) {
			continue
		}
		c.frames, c.gaps, c.end = c.frames[:g.before], c.gaps[:i], g.from
		return
	}
}

func (c *contents) knownDurable(g gap) bool {
	place := mark{c.head.sequence, g.from}
	for _, f := range c.frames[g.before:] {
		if (f.kind == kindMark || f.kind == kindSeal) && place.before(mark{f.term, int64(f.index)}) {
			return true
		}
	}
	return false
}

// readSegment reads a whole segment file. A *DamagedError, with the bytes, if its head doesn't check.
func readSegment(fsys disk.FS, path string, sequence uint64, buf []byte) (b []byte, head segmentHead, err error) {
	file, err := fsys.Open(path)
	if err != nil {
		return nil, head, err
	}
	defer file.Close()
	size, err := file.Size()
	if err != nil {
		return nil, head, err
	}
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	b = buf[:size]
	if n, err := file.ReadAt(b, 0); int64(n) < size && err != nil && err != io.EOF {
		return nil, head, fmt.Errorf("reading %s: %w", path, err)
	}
	head, err = decodeHead(b)
	if err == nil && head.sequence != sequence {
		err = fmt.Errorf("its head is of segment %d", head.sequence)
	}
	if err != nil {
		return b, head, &DamagedError{Path: path, Offset: 0, Reason: err.Error()}
	}
	return b, head, nil
}

// segmentFile is a segment found in a directory.
type segmentFile struct {
	sequence uint64
	path     string
	bytes    int64
}
