package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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

// judge opens a damaged log: each replica is found damaged, or is as it was. With least >= 0 all may also be as they were a
// little before, but not before states[least]: the end may pass for torn. It returns who was found damaged.
func judge(t *testing.T, what string, left *disk.Mem, states []model, least int) (damaged map[ID]bool) {
	t.Helper()
	cfg := testConfig(t, left)
	cfg.SegmentBytes = 4 << 10
	l, err := Open(cfg)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer func() { must(t, l.Close()) }()
	damaged = map[ID]bool{}
	whole := states[len(states)-1].clone()
	for id := range whole {
		if err := l.Replica(id).Damage(); err != nil {
			damaged[id] = true
			delete(whole, id)
		}
	}
	why := whole.differs(l)
	if why == "" {
		return damaged
	}
	if least >= 0 && len(damaged) == 0 {
		for i := len(states) - 1; i >= least; i-- {
			if states[i].differs(l) == "" {
				return damaged
			}
		}
	}
	t.Fatalf("%s: nothing is said to be wrong, but %s", what, why)
	return nil
}

// filled are the segments of a log that hold something, and what they hold.
func filled(t *testing.T, fsys disk.FS) (files []segmentFile, held []contents, bytes [][]byte) {
	t.Helper()
	for _, f := range segmentsOf(t, fsys) {
		b, head, err := readSegment(fsys, f.path, f.sequence, nil)
		must(t, err)
		if c := scan(b, head, nil); len(c.frames) > 0 {
			files, held, bytes = append(files, f), append(held, c), append(bytes, b)
		}
	}
	return files, held, bytes
}

// durableAt is how far the last mark of a segment says that it is durable.
func durableAt(c *contents) int64 {
	durable := int64(headBytes)
	for _, f := range c.frames {
		if f.kind == kindMark && f.term == c.head.sequence {
			durable = max(durable, int64(f.index))
		}
	}
	return durable
}

// upToMark is a log without what was written since the last mark, and which of the states that is.
func upToMark(t *testing.T, left *disk.Mem, states []model) (durable int64, least int) {
	t.Helper()
	files, held, bytes := filled(t, left)
	last := len(files) - 1
	durable = durableAt(&held[last])
	if durable == headBytes || durable >= held[last].end {
		t.Fatalf("durable up to %d of %d: the test proves nothing", durable, held[last].end)
	}
	atMark := left.Clone()
	rewriteFile(t, atMark, files[last].path, append(append([]byte{}, bytes[last][:durable]...), make([]byte, len(bytes[last])-int(durable))...))
	return durable, stateOf(t, atMark, states)
}

// A bit that flips in any used byte is found, and named by file and offset; it concerns only replicas that can have lost
// something by it. Behind the last mark of a log that was not closed it may pass for a tear. Wrong data is never served.
func TestFlippedBits(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprint("clean ", clean), func(t *testing.T) {
			left, states := smallLog(t, clean)
			rng := rand.New(rand.NewPCG(1, 2))
			stride := 1
			if testing.Short() || raceDetector {
				stride = 40
			}
			durable, least := int64(0), -1
			if !clean {
				durable, least = upToMark(t, left, states)
			}
			found, concerned := 0, 0
			files, held, all := filled(t, left)
			for i, f := range files {
				b, c, last := all[i], held[i], i == len(files)-1
				for at := 0; at < int(c.end); at += 1 + rng.IntN(stride) {
					bad := left.Clone()
					flipped := bytes.Clone(b)
					flipped[at] ^= 1 << rng.IntN(8)
					rewriteFile(t, bad, f.path, flipped)
					what := fmt.Sprintf("%s, byte %d", f.path, at)
					mayBeTorn := !clean && last && int64(at) >= durable
					if mayBeTorn {
						judge(t, what, bad, states, least)
						continue
					}
					report, err := Walk(bad, "/wal", nil, nil)
					must(t, err)
					from, owners := concernedBy(held, i, int64(at))
					if !slices.ContainsFunc(report.Problems, func(p Problem) bool { return p.Path == f.path && p.Offset == from && !p.Torn }) {
						t.Fatalf("%s: not found: %+v", what, report.Problems)
					}
					found++
					for id := range judge(t, what, bad, states, -1) {
						if concerned++; owners != nil && !owners[id] && (clean || !last) {
							t.Fatalf("%s: %s is damaged, and has nothing there", what, id)
						}
					}
				}
			}
			t.Logf("%d flips were found, %d replicas concerned", found, concerned)
			if concerned < found/2 {
				t.Error("few replicas were concerned: the test proves nothing")
			}
		})
	}
}

// concernedBy returns where the frame, or the head, begins that has a byte, and whose frames are lost with it. nil: anybody's.
func concernedBy(held []contents, i int, at int64) (from int64, owners map[ID]bool) {
	owners = map[ID]bool{}
	if at < headBytes {
		if i == 0 || i == len(held)-1 {
			return 0, nil
		}
		for _, f := range held[i].frames {
			owners[f.id] = true
		}
		return 0, owners
	}
	for _, f := range held[i].frames {
		if f.offset <= at && at < f.offset+int64(f.size) {
			if i == 0 && f.kind == kindSummary && f.offset < headBytes+2*frameBytes {
				owners = nil
			} else if f.kind.ofReplica() {
				owners[f.id] = true
			}
			return f.offset, owners
		}
	}
	panic("no frame there")
}

// The end of a log that was not closed, cut or garbled at each byte behind the last mark: what is left is a prefix, and holds
// all that the mark says was durable.
func TestTornTail(t *testing.T) {
	left, states := smallLog(t, false)
	files, held, all := filled(t, left)
	f, c, b := files[len(files)-1], held[len(files)-1], all[len(files)-1]
	durable, least := upToMark(t, left, states)
	rng := rand.New(rand.NewPCG(3, 4))
	stride := int64(1)
	if testing.Short() || raceDetector {
		stride = 7
	}
	for at := durable; at <= c.end; at += stride {
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
	c := scan(b, head, nil)
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
	c := scan(b, segmentHead{seed: now, bytes: 4096}, nil)
	if len(c.frames) != 2 || len(c.gaps) != 0 || c.end != int64(at) {
		t.Fatalf("%d frames, gaps %v, end %d", len(c.frames), c.gaps, c.end)
	}
	// And a good frame at another place than its own is none.
	moved := appendFrame(nil, now, 1024, &forged)
	copy(b[2048:], moved)
	if c = scan(b, segmentHead{seed: now, bytes: 4096}, nil); len(c.frames) != 2 {
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
		found += len(judge(t, fmt.Sprint("block at ", at), left, states, -1))
	}
	if found == 0 {
		t.Error("nothing was found")
	}
}
