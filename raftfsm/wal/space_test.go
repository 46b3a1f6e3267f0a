package wal

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// sizedDisk is a Mem with so much room, for the files in /wal together.
type sizedDisk struct {
	*disk.Mem
	bytes atomic.Int64
}

func (d *sizedDisk) used() (bytes int64) {
	infos, err := d.ReadDir("/wal")
	if err != nil {
		return 0
	}
	for _, info := range infos {
		bytes += info.Size
	}
	return bytes
}

func (d *sizedDisk) Create(path string) (disk.File, error) { return d.file(d.Mem.Create(path)) }

func (d *sizedDisk) OpenWrite(path string) (disk.File, error) { return d.file(d.Mem.OpenWrite(path)) }

func (d *sizedDisk) file(f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return sizedFile{f, d}, nil
}

type sizedFile struct {
	disk.File
	disk *sizedDisk
}

// grow tells whether there is room for a file to end at.
func (f sizedFile) grow(end int64) error {
	size, err := f.Size()
	if err == nil && end > size && f.disk.used()+end-size > f.disk.bytes.Load() {
		err = syscall.ENOSPC
	}
	return err
}

func (f sizedFile) Preallocate(bytes int64) error {
	if err := f.grow(bytes); err != nil {
		return err
	}
	return f.File.Preallocate(bytes)
}

func (f sizedFile) Write(b []byte) (int, error) {
	size, err := f.Size()
	if err == nil {
		err = f.grow(size + int64(len(b)))
	}
	if err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

func (f sizedFile) WriteAt(b []byte, at int64) (int, error) {
	if err := f.grow(at + int64(len(b))); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, at)
}

// A node that is killed while its disk is full comes back, as often as one likes: the log opens, takes votes, refuses
// entries, and goes on when there is room.
func TestFullDiskIsOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segmentBytes = 64 << 10
		d := &sizedDisk{Mem: newMem(t)}
		d.bytes.Store(6*segmentBytes + 1000)
		cfg := testConfig(t, d)
		cfg.SegmentBytes = segmentBytes
		l := open(t, cfg)
		r := l.Replica(victim)
		index, votes := uint64(0), 0
		for l.Full() == nil {
			index++
			must(t, appendTo(r, one(index, 1, 3000)))
			synctest.Wait()
		}
		for r.log.Room(3000) == nil { // what leaders send is taken for longer
			index++
			must(t, appendTo(r, one(index, 1, 3000)))
			synctest.Wait()
		}
		for range 15 {
			votes++
			must(t, r.SetRecord("vote", fmt.Append(nil, votes)))
			must(t, l.WaitDurable(t.Context(), r.Appended()))
			left := &sizedDisk{Mem: d.Clone()}
			left.bytes.Store(d.used()) // others have taken the rest, and will take what is given back to them
			must(t, l.Close())

			d, cfg.FS = left, left
			l = open(t, cfg)
			synctest.Wait()
			r = l.Replica(victim)
			if _, last := r.Bounds(); last != index || string(r.Record("vote")) != fmt.Sprint(votes) {
				t.Fatalf("entries up to %d, want %d; vote %q, want %d", last, index, r.Record("vote"), votes)
			}
			if err := l.Full(); !errors.Is(err, ErrNoSpace) {
				t.Fatalf("%d bytes of %d are used, and new entries are taken: %v", d.used(), d.bytes.Load(), err)
			}
		}
		d.bytes.Add(4 * segmentBytes)
		time.Sleep(2 * spareRetry)
		synctest.Wait()
		must(t, l.Full())
		for range 100 {
			index++
			must(t, appendTo(r, one(index, 1, 1000)))
			synctest.Wait()
		}
		must(t, l.Close())
	})
}

// Without any room, not even what a reserve keeps, an open says how much it wants and for which file.
func TestFullDiskIsNamedAtOpen(t *testing.T) {
	d := &sizedDisk{Mem: newMem(t)}
	d.bytes.Store(1 << 20)
	cfg := testConfig(t, d)
	l := open(t, cfg)
	must(t, appendTo(l.Replica(victim), one(1, 1, 3000)))
	must(t, l.WaitDurable(t.Context(), l.Replica(victim).Appended()))
	path := tailOf(l).path
	waitFor(t, "the spare", func() bool { // what is being made would be room that the next open finds
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.spare != nil
	})
	left := &sizedDisk{Mem: d.Clone()}
	must(t, l.Close())
	must(t, disk.RemoveIfThere(left, "/wal/"+reserveName))
	for _, f := range segmentsOf(t, left)[1:] { // spares are room too
		must(t, left.Remove(f.path))
	}
	left.bytes.Store(left.used())
	cfg.FS = left
	if _, err := Open(cfg); !errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

// An entry that no segment at hand holds is refused where there is no room for a larger one, at once, and without any harm
// to others; with room it is taken, and never waits once it is let in.
func TestRoomForALargeEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segmentBytes, large = 64 << 10, 100 << 10
		d := &sizedDisk{Mem: newMem(t)}
		d.bytes.Store(3*segmentBytes + 30<<10)
		cfg := testConfig(t, d)
		cfg.SegmentBytes = segmentBytes
		l := open(t, cfg)
		synctest.Wait()
		r := l.Replica(victim)
		must(t, l.Full())
		began := time.Now()
		if err := l.Room(large); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("room for what is larger than the disk: %v", err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it was refused after %s", took)
		}
		must(t, l.Full()) // there is a spare of the usual size
		must(t, l.Room(1000))
		must(t, appendTo(r, one(1, 1, 1000)))
		if l.Stalled() {
			t.Error("a full disk passes for one that does not answer")
		}

		d.bytes.Add(4 * large)
		time.Sleep(2 * spareRetry)
		must(t, l.Room(large))
		d.bytes.Store(0) // what was let in has its room
		must(t, appendTo(r, one(2, 1, large)))
		must(t, l.WaitDurable(t.Context(), r.Appended()))
		d.bytes.Store(1 << 30)
		must(t, l.Close())
	})
}

// A disk that can't be read fails the open, which names file and offset.
func TestUnreadableAtOpen(t *testing.T) {
	m := newMem(t)
	cfg := testConfig(t, m)
	l := open(t, cfg)
	for index := range uint64(100) {
		must(t, appendTo(l.Replica(victim), one(index+1, 1, 300)))
	}
	must(t, l.Close())
	files := segmentsOf(t, m)
	if len(files) < 3 {
		t.Fatalf("%d segments", len(files))
	}
	for _, f := range files {
		cfg.FS = disk.NewHooked(m.Clone(), func(op disk.Op, path string) error {
			if op == disk.OpRead && path == f.path {
				return syscall.EIO
			}
			return nil
		})
		if _, err := Open(cfg); !errors.Is(err, ErrUnreadable) || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), f.path+" at offset 0") {
			t.Errorf("%s can't be read: %v", f.path, err)
		}
	}
}

// What is left of the oldest segment is a vote: that must not keep a full disk from being freed by a compaction.
func TestVotesHoldNoSegmentUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segmentBytes = 64 << 10
		d := &sizedDisk{Mem: newMem(t)}
		d.bytes.Store(6*segmentBytes + 1000)
		cfg := testConfig(t, d)
		cfg.SegmentBytes = segmentBytes
		l := open(t, cfg)
		r, rare := l.Replica(victim), l.Replica(ID{9, 9})
		must(t, rare.SetRecord("vote", []byte("n3")))
		must(t, appendTo(rare, one(1, 1, 100)))
		index := uint64(0)
		for range 10 {
			for l.Full() == nil {
				index++
				must(t, appendTo(r, one(index, 1, 3000)))
				synctest.Wait()
			}
			must(t, r.Compact(index-3))
			time.Sleep(3 * spareRetry)
			synctest.Wait()
			if err := l.Full(); err != nil || l.Short() {
				t.Fatalf("only 3 entries of 3000 bytes are needed, on a disk of %d: %v", d.bytes.Load(), err)
			}
		}
		must(t, l.Close())
		l = open(t, cfg)
		if first, last := l.Replica(victim).Bounds(); first != index-2 || last != index {
			t.Errorf("entries [%d, %d], want [%d, %d]", first, last, index-2, index)
		}
		if got := l.Replica(victim).BytesAfter(index - 2); got < 6000 || got > 7000 {
			t.Errorf("2 entries of 3000 bytes take %d", got)
		}
		rare = l.Replica(ID{9, 9})
		if _, last := rare.Bounds(); last != 1 || string(rare.Record("vote")) != "n3" {
			t.Errorf("the other replica has entries up to %d and voted %q", last, rare.Record("vote"))
		}
		must(t, l.Close())
	})
}
