package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// smallLog is a log of a few segments; clean: it was closed.
func smallLog(t *testing.T, clean bool) (*disk.Mem, []model) {
	t.Helper()
	m := newMem(t)
	cfg := testConfig(t, m)
	cfg.SegmentBytes = 4 << 10
	l := open(t, cfg)
	w := newWorkload(11, l, model{})
	states := []model{{}}
	for range 24 {
		must(t, w.step())
		states = append(states, w.now.clone())
		if len(states)%3 == 0 { // several writes, so that there are marks
			must(t, l.WaitDurable(t.Context(), l.Replica(workloadIDs[0]).Appended()))
		}
	}
	tail := func() *segment {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.segments[len(l.segments)-1]
	}
	for writes := 0; writes < 4; writes++ { // some behind a mark of the last segment
		before := tail()
		must(t, w.step())
		states = append(states, w.now.clone())
		for _, id := range workloadIDs {
			must(t, l.WaitDurable(t.Context(), l.Replica(id).Appended()))
		}
		if tail() != before {
			writes = 0
		}
	}
	upTo := max(l.Replica(workloadIDs[0]).Appended(), l.Replica(workloadIDs[1]).Appended(), l.Replica(workloadIDs[2]).Appended())
	must(t, l.WaitDurable(t.Context(), upTo))
	left := m.Clone()
	must(t, l.Close())
	if clean {
		left = m
	}
	return left, states
}

// judge opens a damaged log: each replica is found damaged, or is as it was. In a log that was not closed, all may also be
// as they were a little before: the end may pass for torn. It returns what was found damaged.
func judge(t *testing.T, what string, left *disk.Mem, states []model, mayBeTorn bool) (damaged int) {
	t.Helper()
	cfg := testConfig(t, left)
	cfg.SegmentBytes = 4 << 10
	l, err := Open(cfg)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer func() { must(t, l.Close()) }()
	now := states[len(states)-1]
	whole := model{}
	for id, r := range now {
		if err := l.Replica(id).Damage(); err != nil {
			damaged++
			continue
		}
		whole[id] = r
	}
	why := whole.differs(l)
	if why == "" {
		return damaged
	}
	if mayBeTorn && damaged == 0 {
		for i := len(states) - 1; i >= 0; i-- {
			if states[i].differs(l) == "" {
				return 0
			}
		}
	}
	t.Fatalf("%s: nothing is said to be wrong, but %s", what, why)
	return 0
}

// A bit that flips in any used byte is found, or changes nothing; in the last write of a log that was not closed it may pass
// for a tear. Wrong data is never served.
func TestFlippedBits(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprint("clean ", clean), func(t *testing.T) {
			left, states := smallLog(t, clean)
			rng := rand.New(rand.NewPCG(1, 2))
			stride := 1
			if testing.Short() {
				stride = 17
			}
			found, same := 0, 0
			for i, f := range segmentsOf(t, left) {
				b, head, err := readSegment(left, f.path, f.sequence, nil)
				must(t, err)
				c := scan(b, head)
				last := true // of those that hold anything
				for _, later := range segmentsOf(t, left)[i+1:] {
					b, head, err := readSegment(left, later.path, later.sequence, nil)
					must(t, err)
					last = last && len(scan(b, head).frames) == 0
				}
				for at := 0; at < int(c.end); at += 1 + rng.IntN(stride) {
					if at >= headUsedBytes && at < headBytes {
						continue // zeros, covered by the head's checksum all the same
					}
					bad := left.Clone()
					flipped := bytes.Clone(b)
					flipped[at] ^= 1 << rng.IntN(8)
					rewriteFile(t, bad, f.path, flipped)
					if judge(t, fmt.Sprintf("%s, byte %d", f.path, at), bad, states, !clean && last) > 0 {
						found++
					} else {
						same++
					}
				}
			}
			t.Logf("%d flips were found, %d changed nothing", found, same)
			if found < 10*same/2 && clean {
				t.Errorf("only %d of %d flips were found", found, found+same)
			}
		})
	}
}

// The end of a log that was not closed, cut or garbled at each byte behind the last mark: what is left is a prefix, and holds
// all that the mark says was durable.
func TestTornTail(t *testing.T) {
	left, states := smallLog(t, false)
	files := segmentsOf(t, left)
	f := files[len(files)-1]
	b, head, err := readSegment(left, f.path, f.sequence, nil)
	must(t, err)
	c := scan(b, head)
	if len(c.frames) == 0 { // the tail is a spare yet
		f = files[len(files)-2]
		b, head, err = readSegment(left, f.path, f.sequence, nil)
		must(t, err)
		c = scan(b, head)
	}
	durable := int64(headBytes)
	for _, fr := range c.frames {
		if fr.kind == kindMark && fr.term == head.sequence {
			durable = max(durable, int64(fr.index))
		}
	}
	if durable == headBytes || durable >= c.end {
		t.Fatalf("durable up to %d of %d: the test proves nothing", durable, c.end)
	}
	// What was there when the last mark was written.
	atMark := left.Clone()
	rewriteFile(t, atMark, f.path, append(bytes.Clone(b[:durable]), make([]byte, len(b)-int(durable))...))
	least := stateOf(t, atMark, states)
	rng := rand.New(rand.NewPCG(3, 4))
	for at := durable; at <= c.end; at++ {
		for _, how := range []string{"cut off", "zeros", "rubbish"} {
			torn := bytes.Clone(b)
			switch how {
			case "cut off":
				torn = torn[:at]
			case "zeros":
				clear(torn[at:])
			case "rubbish":
				for i := at; i < c.end; i++ {
					torn[i] = byte(rng.Uint32())
				}
			}
			bad := left.Clone()
			rewriteFile(t, bad, f.path, torn)
			if got := stateOf(t, bad, states); got < least {
				t.Fatalf("%s at %d: state %d, and %d was durable", how, at, got, least)
			}
		}
	}
}

// stateOf opens a log, which must be like one of the states, and returns which.
func stateOf(t *testing.T, left *disk.Mem, states []model) int {
	t.Helper()
	cfg := testConfig(t, left)
	cfg.SegmentBytes = 4 << 10
	l := open(t, cfg)
	defer func() { must(t, l.Close()) }()
	why := ""
	for i := len(states) - 1; i >= 0; i-- {
		if why = states[i].differs(l); why == "" {
			return i
		}
	}
	t.Fatalf("like none of the states: %s", why)
	return -1
}

// Rot that is found stays found, over any number of starts, and only the replica that lost something is concerned.
func TestDamageIsRemembered(t *testing.T) {
	m := newMem(t)
	cfg := testConfig(t, m)
	l := open(t, cfg)
	for i := uint64(1); i <= 20; i++ {
		must(t, appendTo(l.Replica(ID{1, 1}), one(i, 1, 100)))
		must(t, appendTo(l.Replica(ID{2, 1}), one(i, 1, 100)))
		must(t, l.WaitDurable(t.Context(), l.Replica(ID{2, 1}).Appended()))
	}
	must(t, l.Close())
	f := segmentsOf(t, m)[0]
	b, head, err := readSegment(m, f.path, f.sequence, nil)
	must(t, err)
	c := scan(b, head)
	for _, fr := range c.frames {
		if fr.id == (ID{1, 1}) && fr.index == 7 {
			b[fr.offset+frameBytes] ^= 1
		}
	}
	rewriteFile(t, m, f.path, b)
	for range 3 {
		l = open(t, cfg)
		if err := l.Replica(ID{1, 1}).Damage(); !errors.Is(err, ErrDamaged) || !bytes.Contains([]byte(err.Error()), []byte(f.path)) {
			t.Fatalf("damage: %v", err)
		}
		must(t, l.Replica(ID{2, 1}).Damage())
		_, last := l.Replica(ID{2, 1}).Bounds()
		must(t, appendTo(l.Replica(ID{2, 1}), one(last+1, 1, 10)))
		must(t, l.Close())
	}
	l = open(t, cfg)
	wantDamaged(t, l, ID{1, 1})
	must(t, l.Replica(ID{1, 1}).Forget())
	must(t, l.Close())
	l = open(t, cfg)
	must(t, l.Replica(ID{1, 1}).Damage()) // a replica that was wiped is no damaged one
	must(t, l.Close())
}

func wantDamaged(t *testing.T, l *Log, id ID) {
	t.Helper()
	if err := l.Replica(id).Damage(); !errors.Is(err, ErrDamaged) {
		t.Fatalf("%s: %v", id, err)
	}
}

// Rot under a running log is found by the read that meets it.
func TestRotWhileRunning(t *testing.T) {
	m := newMem(t)
	l := open(t, testConfig(t, m))
	defer func() { must(t, l.Close()) }()
	r := l.Replica(ID{1, 1})
	must(t, appendTo(r, one(1, 1, 100), one(2, 1, 100)))
	must(t, l.WaitDurable(t.Context(), r.Appended()))
	at := r.positions[0]
	f, err := m.OpenWrite(at.segment.path)
	must(t, err)
	_, err = f.WriteAt([]byte{0xee}, int64(at.offset)+frameBytes+3)
	must(t, err)
	must(t, f.Close())
	var damaged *DamagedError
	if _, err := r.Get(1); !errors.As(err, &damaged) || damaged.Offset != int64(at.offset) || damaged.Path != at.segment.path {
		t.Fatalf("%v", err)
	}
	if e, err := r.Get(2); err != nil || e.Index != 2 {
		t.Fatalf("%v, %v", e, err)
	}
}

// A recycled file is full of frames that check in their own time, and values may look like frames. None of it is read.
func TestStaleFrames(t *testing.T) {
	old, now := seed{sequence: 3, salt: 77}, seed{sequence: 9, salt: 12345}
	b := make([]byte, 4096)
	at := headBytes
	for i := range 20 {
		f := frame{kind: kindEntry, id: ID{1, 1}, index: uint64(i + 1), count: uint64(i + 1), data: make([]byte, 40)}
		at += copy(b[at:], appendFrame(nil, old, int64(at), &f))
	}
	// The new life has written two frames; then a value of the old one that is a frame of this segment but for the salt.
	at = headBytes
	for i := range 2 {
		f := frame{kind: kindEntry, id: ID{2, 2}, index: uint64(i + 1), count: uint64(i + 1), data: []byte("new")}
		at += copy(b[at:], appendFrame(nil, now, int64(at), &f))
	}
	forged := frame{kind: kindMark, term: 9, index: 4000}
	copy(b[at:], appendFrame(nil, seed{sequence: 9}, int64(at), &forged))
	c := scan(b, segmentHead{seed: now, bytes: 4096})
	if len(c.frames) != 2 || len(c.gaps) != 0 || c.end != int64(at) {
		t.Fatalf("%d frames, gaps %v, end %d", len(c.frames), c.gaps, c.end)
	}
	// And a good frame at another place than its own is none.
	moved := appendFrame(nil, now, 1024, &forged)
	copy(b[2048:], moved)
	if c = scan(b, segmentHead{seed: now, bytes: 4096}); len(c.frames) != 2 {
		t.Fatalf("%d frames", len(c.frames))
	}
}

// A block of a segment that holds what it held some writes ago.
func TestOldBlockPutBack(t *testing.T) {
	m := newMem(t)
	cfg := testConfig(t, m)
	cfg.SegmentBytes = 64 << 10
	l := open(t, cfg)
	w := newWorkload(5, l, model{})
	var before *disk.Mem
	states := []model{{}}
	for i := range 100 {
		must(t, w.step())
		states = append(states, w.now.clone())
		for _, id := range workloadIDs {
			must(t, l.WaitDurable(t.Context(), l.Replica(id).Appended()))
		}
		if i == 40 {
			before = m.Clone()
		}
	}
	must(t, l.Close())
	f := segmentsOf(t, before)[0]
	old, err := disk.ReadFile(before, f.path)
	must(t, err)
	now, err := disk.ReadFile(m, f.path)
	must(t, err)
	found := 0
	for at := 0; at+4096 <= len(now); at += 4096 {
		if bytes.Equal(old[at:at+4096], now[at:at+4096]) {
			continue
		}
		bad := bytes.Clone(now)
		copy(bad[at:], old[at:at+4096])
		left := m.Clone()
		rewriteFile(t, left, f.path, bad)
		// Where the end of the log is lost with its seal, it is like one that was not closed.
		found += judge(t, fmt.Sprint("block at ", at), left, states, bytes.Equal(now[at+4096:], make([]byte, len(now)-at-4096)))
	}
	if found == 0 {
		t.Error("nothing was found")
	}
}
