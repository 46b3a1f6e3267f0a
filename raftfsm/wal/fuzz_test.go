package wal

import (
	"bytes"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// Whatever bytes lie in a segment: no panic, and each frame that is found is one that encodes to exactly these bytes.
func FuzzScan(f *testing.F) {
	head := segmentHead{seed: seed{sequence: 5, salt: 42}, bytes: 4096}
	var b []byte
	for i := range 5 {
		fr := frame{kind: kind(1 + i%int(kindEnd-1)), id: ID{1, 1}, index: uint64(i), count: uint64(i), data: bytes.Repeat([]byte{byte(i)}, 13*i), extensions: []byte("x")}
		b = appendFrame(b, head.seed, int64(headBytes+len(b)), &fr)
	}
	f.Add(b)
	f.Add(b[:100])
	f.Add(make([]byte, 500))
	f.Fuzz(func(t *testing.T, body []byte) {
		file := append(make([]byte, headBytes), body...)
		c := scan(file, head, nil)
		for _, got := range c.frames {
			want := file[got.offset : got.offset+int64(got.size)]
			if again := appendFrame(nil, head.seed, got.offset, &got.frame); !bytes.Equal(again[:frameBytes], want[:frameBytes]) {
				t.Fatalf("frame at %d: %x, encodes to %x", got.offset, want, again)
			}
		}
	})
}

// A segment file with any bytes changed: the log opens, and never returns an entry that was not appended.
func FuzzOpen(f *testing.F) {
	m := disk.NewMem()
	must(f, disk.MkdirAll(m, "/wal"))
	cfg := testConfig(f, m)
	cfg.SegmentBytes = 4 << 10
	l := open(f, cfg)
	w := newWorkload(3, l, model{})
	written := map[ID]map[uint64]map[string]bool{}
	for range 60 {
		must(f, w.step())
		for id, r := range w.now {
			for _, e := range r.entries {
				if written[id] == nil {
					written[id] = map[uint64]map[string]bool{}
				}
				if written[id][e.Index] == nil {
					written[id][e.Index] = map[string]bool{}
				}
				written[id][e.Index][string(e.Data)] = true
			}
		}
	}
	must(f, l.Close())
	files := segmentsOf(f, m)
	f.Add(uint8(0), uint16(600), []byte{1})
	f.Add(uint8(1), uint16(0), []byte("OSTRAWAL"))
	f.Add(uint8(2), uint16(700), make([]byte, 300))
	f.Fuzz(func(t *testing.T, which uint8, at uint16, change []byte) {
		left := m.Clone()
		path := files[int(which)%len(files)].path
		b, err := disk.ReadFile(left, path)
		must(t, err)
		for i, x := range change {
			b[(int(at)+i)%len(b)] ^= x
		}
		rewriteFile(t, left, path, b)
		cfg := testConfig(t, left)
		cfg.SegmentBytes = 4 << 10
		l, err := Open(cfg)
		if err != nil {
			return
		}
		defer func() { must(t, l.Close()) }()
		for _, id := range workloadIDs {
			r := l.Replica(id)
			if r.Damage() != nil {
				continue
			}
			first, last := r.Bounds()
			for i := first; i <= last && i > 0; i++ {
				if e, err := r.Get(i); err == nil && !written[id][i][string(e.Data)] {
					t.Fatalf("%s: entry %d was never written: %q", id, i, e.Data)
				}
			}
		}
	})
}
