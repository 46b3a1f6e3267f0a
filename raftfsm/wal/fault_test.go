package wal

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// faultyDisk is a Mem that fails calls, or holds data syncs.
type faultyDisk struct {
	*disk.Mem
	mu sync.Mutex
	// fail returns the error of a call ("datasync", "write", "preallocate"); nil: none.
	fail func(call string) error
	hung chan struct{} // not nil: data syncs wait until it is closed
}

func (d *faultyDisk) set(fail func(string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = fail
}

func (d *faultyDisk) err(call string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == nil {
		return nil
	}
	return d.fail(call)
}

func (d *faultyDisk) Create(path string) (disk.File, error)    { return d.file(d.Mem.Create(path)) }
func (d *faultyDisk) OpenWrite(path string) (disk.File, error) { return d.file(d.Mem.OpenWrite(path)) }

func (d *faultyDisk) file(f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return faultyFile{f, d}, nil
}

type faultyFile struct {
	disk.File
	disk *faultyDisk
}

func (f faultyFile) Datasync() error {
	f.disk.mu.Lock()
	hung := f.disk.hung
	f.disk.mu.Unlock()
	if hung != nil {
		<-hung
	}
	if err := f.disk.err("datasync"); err != nil {
		return err
	}
	return f.File.Datasync()
}

func (f faultyFile) WriteAt(b []byte, at int64) (int, error) {
	if err := f.disk.err("write"); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, at)
}

func (f faultyFile) Preallocate(n int64) error {
	if err := f.disk.err("preallocate"); err != nil {
		return err
	}
	return f.File.Preallocate(n)
}

// An error of a write or sync is the end: Fatal hears it once, who waits hears it, and nothing is a success afterwards, even
// if the disk is well again.
func TestDiskErrors(t *testing.T) {
	for _, call := range []string{"datasync", "write"} {
		t.Run(call, func(t *testing.T) {
			d := &faultyDisk{Mem: newMem(t)}
			cfg := testConfig(t, d)
			fatal := make(chan error, 10)
			cfg.Fatal = func(err error) { fatal <- err }
			l := open(t, cfg)
			r := l.Replica(ID{1, 1})
			must(t, appendTo(r, one(1, 1, 10)))
			must(t, l.WaitDurable(t.Context(), r.Appended()))
			d.set(func(got string) error {
				if got == call {
					return syscall.EIO
				}
				return nil
			})
			must(t, appendTo(r, one(2, 1, 10)))
			told := make(chan error, 1)
			if l.Notify(r.Appended(), func(err error) { told <- err }) {
				t.Fatal("durable")
			}
			for what, err := range map[string]error{"Fatal": <-fatal, "Notify": <-told, "WaitDurable": l.WaitDurable(t.Context(), r.Appended())} {
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("%s: %v", what, err)
				}
			}
			d.set(nil)
			if err := appendTo(r, one(3, 1, 10)); !errors.Is(err, syscall.EIO) {
				t.Errorf("append: %v", err)
			}
			if err := r.SetRecord("a", []byte("b")); !errors.Is(err, syscall.EIO) {
				t.Errorf("record: %v", err)
			}
			if l.Notify(r.Appended(), func(err error) { told <- err }) {
				t.Error("durable after the end")
			}
			if err := l.Close(); !errors.Is(err, syscall.EIO) {
				t.Errorf("close: %v", err)
			}
			if len(fatal) > 0 {
				t.Errorf("Fatal again: %v", <-fatal)
			}
			// What was answered before is there.
			l = open(t, testConfig(t, d.Crash()))
			if _, last := l.Replica(ID{1, 1}).Bounds(); last < 1 {
				t.Error("the durable entry is gone")
			}
			must(t, l.Close())
		})
	}
}

func TestHungDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &faultyDisk{Mem: newMem(t)}
		cfg := testConfig(t, d)
		fatal := make(chan error, 10)
		cfg.Fatal = func(err error) { fatal <- err }
		l := open(t, cfg)
		r := l.Replica(ID{1, 1})
		d.mu.Lock()
		d.hung = make(chan struct{})
		d.mu.Unlock()
		must(t, appendTo(r, one(1, 1, 10)))
		time.Sleep(1900 * time.Millisecond) // virtual
		if l.Stalled() {
			t.Error("stalled too early")
		}
		time.Sleep(200 * time.Millisecond)
		if !l.Stalled() {
			t.Error("not stalled after over two seconds")
		}
		time.Sleep(7 * time.Second)
		synctest.Wait()
		if len(fatal) > 0 {
			t.Fatalf("too early: %v", <-fatal)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		select {
		case err := <-fatal:
			if !errors.Is(err, ErrStalled) {
				t.Fatal(err)
			}
		default:
			t.Fatal("the process lives on")
		}
		close(d.hung) // what comes back now is no success
		if err := l.WaitDurable(t.Context(), r.Appended()); !errors.Is(err, ErrStalled) {
			t.Fatal(err)
		}
		_ = l.Close()
	})
}

// A full disk refuses what can be refused, keeps room for what can't, and goes on when there is room again.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &faultyDisk{Mem: newMem(t)}
		l := open(t, testConfig(t, d))
		defer func() { must(t, l.Close()) }()
		synctest.Wait() // the spare is made
		d.set(func(call string) error {
			if call == "preallocate" {
				return fmt.Errorf("allocating: %w", syscall.ENOSPC)
			}
			return nil
		})
		r := l.Replica(ID{1, 1})
		next := uint64(1)
		for l.Full() == nil {
			must(t, appendTo(r, one(next, 1, 200)))
			next++
			synctest.Wait()
			if next > 1000 {
				t.Fatal("never full")
			}
		}
		if err := l.Full(); !errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		for i := range 5 {
			must(t, r.SetRecord("term", fmt.Append(nil, i))) // votes go on
		}
		d.set(nil)
		time.Sleep(2 * spareRetry) // virtual
		synctest.Wait()
		must(t, l.Full())
		for range 100 {
			must(t, appendTo(r, one(next, 1, 200)))
			next++
		}
		must(t, l.WaitDurable(t.Context(), r.Appended()))
	})
}

// With SyncInterval a killed process loses nothing; a stop of the machine marks every replica, a clean close none.
func TestSyncInterval(t *testing.T) {
	boot := "first"
	m := newMem(t)
	interval := func(fsys disk.FS) Config {
		cfg := testConfig(t, fsys)
		cfg.Sync = SyncInterval
		cfg.BootID = func() (string, error) { return boot, nil }
		return cfg
	}
	synctest.Test(t, func(t *testing.T) {
		l := open(t, interval(m))
		r := l.Replica(ID{1, 1})
		must(t, r.SetRecord("term", []byte("1")))
		must(t, appendTo(r, one(1, 1, 10)))
		released := make(chan error, 1)
		if !l.Notify(r.Appended(), func(err error) { released <- err }) {
			must(t, <-released)
		}
		synctest.Wait()
		killed, cut := m.Clone(), m.Crash()
		if _, last := openAt(t, interval(killed)).Bounds(); last != 1 {
			t.Errorf("a killed process lost the entry: the log ends at %d", last)
		}
		r1 := openAt(t, interval(cut))
		if _, last := r1.Bounds(); last != 0 || string(r1.Record("term")) != "1" {
			t.Errorf("the entry was not synced and the record was, but the log ends at %d with record %q", last, r1.Record("term"))
		}
		boot = "second"
		if err := openAt(t, interval(m.Crash())).Damage(); !errors.Is(err, ErrDamaged) {
			t.Errorf("after the machine stopped: %v", err)
		}
		boot = "first"
		time.Sleep(150 * time.Millisecond) // virtual
		synctest.Wait()
		if _, last := openAt(t, interval(m.Crash())).Bounds(); last != 1 {
			t.Errorf("not synced within the interval: the log ends at %d", last)
		}
		must(t, l.Close())
		boot = "third"
		r = openAt(t, interval(m.Crash()))
		must(t, r.Damage())
		if _, last := r.Bounds(); last != 1 {
			t.Errorf("after a clean close the log ends at %d", last)
		}
	})
}

// openAt opens and closes a log, and returns what its replica held.
func openAt(t *testing.T, cfg Config) *Replica {
	t.Helper()
	l := open(t, cfg)
	r := l.Replica(ID{1, 1})
	must(t, l.Close())
	return r
}
