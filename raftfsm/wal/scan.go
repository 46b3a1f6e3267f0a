package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
)

// contents is what a segment file was found to hold.
type contents struct {
	head   segmentHead
	frames []placed
	// gaps lie between frames: something was written there that doesn't check.
	gaps []gap
	// end is behind the last frame.
	end int64
	// torn is the part that a torn write left, and that cut took off; no length if there is none.
	torn gap
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
// aligned, and know their offset. The frames share b, and their slice is that of into, if it is long enough.
func scan(b []byte, head segmentHead, into []placed) contents {
	c := contents{head: head, end: headBytes, frames: into[:0]}
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
		if binary.BigEndian.Uint32(b[at+8:]) != low && !knownbad.Seed {
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

// cut takes off what a torn write left of a segment that was not sealed. What is left of the gaps is rot: a later frame
// says that its writer knew the place to be durable. The first gap of which none does may be a tear, and then it and all
// behind it was never acknowledged.
func (c *contents) cut(b []byte) {
	durable := mark{} // the furthest that a frame behind the gap says
	tear := -1
	next := len(c.frames)
	for i := len(c.gaps) - 1; i >= 0; i-- {
		for ; next > c.gaps[i].before; next-- {
			f := &c.frames[next-1]
			if known := (mark{f.term, int64(f.index)}); (f.kind == kindMark || f.kind == kindSeal) && durable.before(known) {
				durable = known
			}
		}
		if !(mark{c.head.sequence, c.gaps[i].from}).before(durable) {
			tear = i
		}
	}
	switch {
	case tear >= 0:
		g := c.gaps[tear]
		c.torn = gap{from: g.from, to: c.end}
		c.frames, c.gaps, c.end = c.frames[:g.before], c.gaps[:tear], g.from
	case c.begun(b):
		c.torn = gap{from: c.end, to: int64(len(b))}
	}
}

// begun tells whether behind the last frame there is the header of another, whose rest is missing. Zeros, and what a former
// life of the file left, are nothing of this one.
func (c *contents) begun(b []byte) bool {
	if int64(len(b))-c.end < frameBytes {
		return false
	}
	_, _, ok := checkHeader(b[c.end:], c.head.seed, c.end)
	return ok
}

// readSegment reads a whole segment file, into buf if that is large enough. A *DamagedError, with the bytes, if its head
// doesn't check.
func readSegment(fsys disk.FS, path string, sequence uint64, buf []byte) (b []byte, head segmentHead, err error) {
	file, err := fsys.Open(path)
	if err != nil {
		return buf, head, err
	}
	defer file.Close()
	size, err := file.Size()
	if err != nil {
		return buf, head, err
	}
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	b = buf[:size]
	n, err := file.ReadAt(b, 0)
	if int64(n) < size && err != nil && err != io.EOF {
		return b, head, fmt.Errorf("%w: %s at offset %d: %w", ErrUnreadable, path, n, err)
	}
	b = b[:n]
	head, err = decodeHead(b)
	if errors.Is(err, ErrFormat) {
		return b, head, fmt.Errorf("%s: %w", path, err)
	}
	if err == nil && head.sequence != sequence {
		err = fmt.Errorf("its head is of segment %d", head.sequence)
	}
	if err != nil {
		return b, head, &DamagedError{Path: path, Offset: 0, Reason: err.Error()}
	}
	return b, head, nil
}
