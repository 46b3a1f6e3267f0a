package wal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// A recycled file holds what its former life wrote. A value there, written to lie exactly where the next life's tail ends,
// looks like that life's next frame in all that can be guessed: its segment's sequence, kind, replica, index, count, and
// checksums for every seed but the right one. After a crash it is not read.
func TestForgedFrames(t *testing.T) {
	const segmentBytes = 8 << 10
	m := newMem(t)
	cfg := testConfig(t, m)
	cfg.SegmentBytes = segmentBytes
	l := open(t, cfg)
	r := l.Replica(victim)
	append1 := func(index uint64, data []byte) {
		t.Helper()
		must(t, r.Append(1, func(int) Entry { return Entry{Index: index, Term: 1, Data: data} }))
		must(t, l.WaitDurable(t.Context(), r.Appended()))
	}
	// Fill segments with values that are forged frames for every place that a tail can end at, until a file of that kind has
	// got another life.
	index := uint64(1)
	for l.Stats().Recycled == 0 {
		sequence := tailOf(l).sequence
		forged := make([]byte, 0, 1024)
		for at := 0; len(forged) < 960; at++ {
			f := frame{kind: kindEntry, id: victim, index: index + uint64(at), term: 9, count: r.count + 1, data: []byte("forged")}
			forged = append(forged, appendFrame(nil, seed{sequence: sequence + 1}, tailOf(l).end, &f)...)
		}
		append1(index, forged)
		if index > 3 {
			must(t, r.Compact(index-2))
		}
		index++
	}
	recycled := l.Stats().Recycled
	waitFor(t, "a recycled segment to be the tail", func() bool {
		append1(index, make([]byte, 1000))
		index++
		must(t, r.Compact(index-3))
		return l.Stats().Recycled > recycled+1
	})
	// Now forge for the very frame that comes next, in the file itself, as if the former life had written it there.
	append1(index, []byte("the last one"))
	tail := tailOf(l)
	l.mu.Lock()
	end, count := tail.end, r.count
	l.mu.Unlock()
	left := m.Clone()
	must(t, l.Close())
	b, err := disk.ReadFile(left, tail.path)
	must(t, err)
	for name, forge := range map[string]func(f *frame) []byte{
		"salt 0": func(f *frame) []byte { return appendFrame(nil, seed{tail.sequence, 0}, end, f) },
		"salt of another segment": func(f *frame) []byte {
			return appendFrame(nil, seed{tail.sequence, tail.salt + 1}, end, f)
		},
		"another offset":   func(f *frame) []byte { return appendFrame(nil, tail.seed, end+8, f) },
		"the former life":  func(f *frame) []byte { return appendFrame(nil, seed{tail.sequence - 3, tail.salt}, end, f) },
		"no seed":          func(f *frame) []byte { return unseeded(appendFrame(nil, tail.seed, end, f)) },
		"the right header": func(f *frame) []byte { return corrupt(appendFrame(nil, tail.seed, end, f)) },
	} {
		f := frame{kind: kindEntry, id: victim, index: index + 1, term: 9, count: count + 1, data: []byte("forged")}
		bad := left.Clone()
		forged := slices.Clone(b)
		copy(forged[end:], forge(&f))
		rewriteFile(t, bad, tail.path, forged)
		cfg.FS = bad
		l := open(t, cfg)
		must(t, l.Replica(victim).Damage())
		if _, last := l.Replica(victim).Bounds(); last != index {
			t.Errorf("%s: the log ends at %d, not %d", name, last, index)
		}
		must(t, l.Close())
	}
	// The test itself is right if the true frame would be taken.
	f := frame{kind: kindEntry, id: victim, index: index + 1, term: 9, count: count + 1, data: []byte("true")}
	copy(b[end:], appendFrame(nil, tail.seed, end, &f))
	rewriteFile(t, left, tail.path, b)
	cfg.FS = left
	l = open(t, cfg)
	if _, last := l.Replica(victim).Bounds(); last != index+1 {
		t.Errorf("a true frame is not read")
	}
	must(t, l.Close())
}

// unseeded gives a frame the checksums that it has without any seed.
func unseeded(b []byte) []byte {
	b = bytes.Clone(b)
	header := slices.Concat(b[:4], b[8:14], noCheck, b[16:frameBytes])
	sum := crc32.Checksum(header, castagnoli)
	binary.BigEndian.PutUint16(b[14:], headerCheck(sum))
	binary.BigEndian.PutUint32(b[4:], crc32.Update(sum, castagnoli, b[frameBytes:]))
	return b
}

// corrupt changes a frame behind its header.
func corrupt(b []byte) []byte {
	b[len(b)-1] ^= 1
	return b
}

// A log in which every segment has been recycled, killed at any moment: frames of former lives lie behind every tail, and
// none of them comes back.
func TestNothingComesBackFromFormerLives(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	recycled := uint64(0)
	for round := range uint64(20) {
		m := newMem(t)
		cfg := testConfig(t, m)
		cfg.SegmentBytes = 4 << 10
		l := open(t, cfg)
		w := newWorkload(seed+round, l, model{})
		for range 200 {
			must(t, w.step())
		}
		for range 20 {
			must(t, w.step())
			must(t, w.settle(t.Context()))
			left := m.Clone()
			again := testConfig(t, left)
			again.SegmentBytes = 4 << 10
			l := open(t, again)
			if why := w.now.differs(l); why != "" {
				t.Fatal(why)
			}
			must(t, l.Close())
		}
		recycled += l.Stats().Recycled
		must(t, l.Close())
	}
	if recycled == 0 {
		t.Error("nothing was recycled: the test proves nothing")
	}
}

// A torn value that is full of headers of huge frames costs no more time than its bytes: none of their lengths is believed.
func TestHeadersInATornValue(t *testing.T) {
	s := seed{sequence: 5, salt: 42}
	b := make([]byte, 16<<20)
	f := frame{kind: kindEntry, id: victim, index: 1, count: 1, data: make([]byte, 15<<20)}
	for at := 0; at+16 <= len(f.data); at += 16 { // both what begins a header and what its 24th byte belongs to
		binary.BigEndian.PutUint32(f.data[at:], 8<<20)
		binary.BigEndian.PutUint32(f.data[at+8:], uint32(s.sequence))
		f.data[at+12] = byte(kindEntry)
	}
	copy(b[headBytes:], appendFrame(nil, s, headBytes, &f))
	clear(b[headBytes+15<<20:]) // the end of the value didn't reach the disk
	began := time.Now()
	c := scan(b, segmentHead{seed: s, bytes: int64(len(b))}, nil)
	if len(c.frames) > 0 {
		t.Fatalf("%d frames", len(c.frames))
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	if c.cut(b); c.torn != (gap{from: headBytes, to: int64(len(b))}) {
		t.Errorf("torn: %+v", c.torn)
	}
}
