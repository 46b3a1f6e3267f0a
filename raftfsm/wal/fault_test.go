package wal

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// faulted runs a workload in which one call of the disk fails, and checks that the log ends by it: Fatal is called once,
// whoever waits or asks is told, and what had been called durable is there afterwards.
func faulted(t *testing.T, seed uint64, target string, nth int, failure error) *crashPoints {
	m := newMem(t)
	points := &crashPoints{phase: "open", counts: map[string]int{}, target: target, nth: nth, strike: func(op disk.Op, path string) error {
		if op == disk.OpDatasync || op == disk.OpSync {
			must(t, m.SyncFailed(path))
		}
		return failure
	}}
	what := fmt.Sprintf("seed %d, %v at %q the %d. time", seed, failure, target, nth)
	cfg := testConfig(t, disk.NewHooked(m, points.hook))
	var fatal atomic.Int32
	cfg.Fatal = func(err error) {
		if fatal.Add(1); !errors.Is(err, failure) {
			t.Errorf("%s: fatal: %v", what, err)
		}
	}
	states, durable := []model{{}}, 0
	l, err := Open(cfg)
	switch {
	case err != nil && !errors.Is(err, failure):
		t.Fatalf("%s: %v", what, err)
	case err == nil:
		points.enter("run")
		w := newWorkload(seed, l, model{})
		w.keepStates()
		var asked, told, refused atomic.Int32
		for i := range 300 {
			if err = w.step(); err == nil {
				asked.Add(1)
				if l.Notify(l.Replica(workloadIDs[i%2]).Appended(), func(err error) {
					if told.Add(1); err != nil {
						refused.Add(1)
					}
				}) {
					told.Add(1)
				}
				if i%5 == 0 {
					err = w.settle(t.Context())
				}
			}
			if err != nil {
				break
			}
		}
		if err != nil {
			mustFail(t, what, l, failure)
		}
		points.enter("close")
		closed := l.Close()
		// The keeper's calls may also be tried again, or come when it is too late for them to matter: then all is well.
		survived := points.struck && fatal.Load() == 0 && (target == "close: remove retired" || failure == syscall.ENOSPC && strings.HasSuffix(target, "retired") ||
			strings.HasPrefix(target, "close") && !strings.HasSuffix(target, "note") && target != "close: write segment" && target != "close: datasync segment")
		if points.struck && !survived && (fatal.Load() != 1 || !errors.Is(closed, failure)) {
			t.Fatalf("%s: fatal %d times; Close: %v", what, fatal.Load(), closed)
		}
		if asked.Load() != told.Load() {
			t.Fatalf("%s: %d asked to be told, %d were", what, asked.Load(), told.Load())
		}
		if !points.struck || survived {
			must(t, closed)
			w.durable = len(w.states) - 1
		}
		states, durable = w.states, w.durable
	}
	if fatal.Load() > 1 {
		t.Fatalf("%s: fatal %d times", what, fatal.Load())
	}
	rng := rand.New(rand.NewPCG(seed, 8))
	for _, left := range []*disk.Mem{m.Clone(), m.Crash(), m.CrashTorn(rng)} {
		checkCrashed(t, what, rng, left, states, durable)
	}
	return points
}

// mustFail checks that nothing succeeds any more.
func mustFail(t *testing.T, what string, l *Log, failure error) {
	t.Helper()
	r := l.Replica(workloadIDs[0])
	_, last := r.Bounds()
	done := make(chan error, 1)
	if l.Notify(r.Appended()+1<<40, func(err error) { done <- err }) {
		t.Fatalf("%s: what was never appended is durable", what)
	}
	for call, err := range map[string]error{
		"Append":         appendTo(r, one(last+1, 1<<30, 10)),
		"SetRecord":      r.SetRecord("r0", []byte("x")),
		"TruncateSuffix": r.TruncateSuffix(1),
		"Compact":        r.Compact(1),
		"Clear":          r.Clear(),
		"Forget":         r.Forget(),
		"WaitDurable":    l.WaitDurable(t.Context(), r.Appended()+1<<40),
		"Notify":         <-done,
	} {
		if !errors.Is(err, failure) {
			t.Fatalf("%s: after it, %s says %v", what, call, err)
		}
	}
}

// Every kind of call fails once: with an error of the disk, and where nothing is being made in advance, with a full one.
func TestFailingDisk(t *testing.T) {
	times := 4
	if testing.Short() || raceDetector {
		times = 1
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	passed := faulted(t, seed, "", 0, nil)
	for _, failure := range []error{syscall.EIO, syscall.ENOSPC} {
		struck, tried := 0, 0
		for _, point := range slices.Sorted(maps.Keys(passed.counts)) {
			if failure == syscall.ENOSPC && (strings.HasSuffix(point, "aside") || strings.HasSuffix(point, "reserve")) { // tried again: see TestFullDiskRefusesAndRecovers
				continue
			}
			for range times {
				tried++
				if faulted(t, seed, point, 1+rng.IntN(passed.counts[point]), failure).struck {
					struck++
				}
			}
		}
		if struck < tried/3 {
			t.Errorf("%v struck only %d times of %d, at %v", failure, struck, tried, passed.counts)
		}
	}
}

// While there is no room for another segment, entries are refused before the log is asked, and what is left of the last one
// is for votes. Once there is room again all goes on.
func TestFullDiskRefusesAndRecovers(t *testing.T) {
	for _, op := range []disk.Op{disk.OpCreate, disk.OpPreallocate, disk.OpWrite, disk.OpSync} {
		for _, failure := range []error{syscall.ENOSPC, syscall.EDQUOT} {
			synctest.Test(t, func(t *testing.T) {
				m := newMem(t)
				var full atomic.Bool
				cfg := testConfig(t, disk.NewHooked(m, func(o disk.Op, path string) error {
					if o == op && full.Load() && strings.HasSuffix(path, segmentSuffix+asideSuffix) {
						return failure
					}
					return nil
				}))
				cfg.SegmentBytes = 64 << 10
				l := open(t, cfg)
				synctest.Wait() // the spare is there
				full.Store(true)
				r := l.Replica(victim)
				index := uint64(0)
				for l.Full() == nil {
					index++
					must(t, appendTo(r, one(index, 1, 300)))
					synctest.Wait() // the keeper has had its turn
					if index > 2*64<<10/300 {
						t.Fatal("it is never full")
					}
				}
				if err := l.Full(); !errors.Is(err, ErrNoSpace) || !errors.Is(err, failure) {
					t.Fatal(err)
				}
				if left := tailOf(l).bytes - tailOf(l).end; left < 12<<10 {
					t.Errorf("only %d bytes are left for votes", left)
				}
				for i := range 20 {
					must(t, r.SetRecord("vote", fmt.Append(nil, i)))
				}
				if l.Stalled() {
					t.Error("a full disk passes for one that does not answer")
				}
				if _, err := r.Get(1); err != nil {
					t.Error(err)
				}
				full.Store(false)
				time.Sleep(2 * spareRetry)
				synctest.Wait()
				must(t, l.Full())
				for range 1000 {
					index++
					must(t, appendTo(r, one(index, 1, 300)))
				}
				must(t, l.Close())
				cfg.FS = m
				l = open(t, cfg)
				if _, last := l.Replica(victim).Bounds(); last != index {
					t.Errorf("%d of %d entries", last, index)
				}
				must(t, l.Close())
			})
		}
	}
}

// Room that purging gives is used while there is no other.
func TestFullDiskIsFreedByPurging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMem(t)
		var full atomic.Bool
		cfg := testConfig(t, disk.NewHooked(m, func(o disk.Op, path string) error {
			if o == disk.OpPreallocate && full.Load() {
				return syscall.ENOSPC
			}
			return nil
		}))
		l := open(t, cfg)
		synctest.Wait()
		full.Store(true)
		r := l.Replica(victim)
		for index := uint64(1); index <= 1000; index++ {
			for l.Full() != nil {
				must(t, r.Compact(index-1))
				time.Sleep(2 * spareRetry)
				synctest.Wait()
			}
			must(t, appendTo(r, one(index, 1, 300)))
			synctest.Wait()
		}
		if l.Stats().Recycled < 10 {
			t.Errorf("%+v", l.Stats())
		}
		must(t, l.Close())
	})
}

// The files of purged segments are room too: for a larger segment than theirs they go.
func TestFullDiskTakesPurgedFilesForALargerSegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMem(t)
		retired := func() (n int) {
			infos, err := m.ReadDir("/wal")
			must(t, err)
			for _, info := range infos {
				if strings.HasSuffix(info.Name, retiredSuffix) {
					n++
				}
			}
			return n
		}
		var full atomic.Bool
		l := open(t, testConfig(t, disk.NewHooked(m, func(o disk.Op, path string) error {
			if o == disk.OpPreallocate && full.Load() && retired() > 0 {
				return syscall.ENOSPC
			}
			return nil
		})))
		r := l.Replica(victim)
		const entries = 5 * 8 << 10 / 300
		for index := range uint64(entries) {
			must(t, appendTo(r, one(index+1, 1, 300)))
		}
		must(t, r.Compact(entries))
		synctest.Wait()
		if retired() == 0 {
			t.Fatal("no purged file is kept: the test proves nothing")
		}
		full.Store(true)
		must(t, appendTo(r, one(entries+1, 1, 3*8<<10)))
		must(t, l.WaitDurable(t.Context(), r.Appended()))
		must(t, l.Close())
	})
}

// A disk that is full when the log is opened still has room for a small segment, as a rule.
func TestFullDiskAtStart(t *testing.T) {
	m := newMem(t)
	must(t, open(t, testConfig(t, m)).Close())
	refuse := 2
	cfg := testConfig(t, disk.NewHooked(m, func(o disk.Op, path string) error {
		if o == disk.OpPreallocate && refuse > 0 {
			refuse--
			return syscall.ENOSPC
		}
		return nil
	}))
	cfg.SegmentBytes = 1 << 20
	l := open(t, cfg)
	if got := l.segments[len(l.segments)-1].bytes; got != 1<<18 {
		t.Errorf("a tail of %d bytes", got)
	}
	must(t, appendTo(l.Replica(victim), one(1, 1, 300<<10))) // more than fits: it waits for a proper one
	must(t, l.Close())
}

// A disk that hangs is told of in time, ends the log in time, and what comes back after that counts for nothing.
func TestHungDiskCountsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMem(t)
		var held holder
		cfg := testConfig(t, disk.NewHooked(m, held.hook))
		var fatal []error
		cfg.Fatal = func(err error) { fatal = append(fatal, err) }
		cfg.SlowMax, cfg.StallMax = 2*time.Second, 10*time.Second
		l := open(t, cfg)
		synctest.Wait()
		r := l.Replica(victim)
		began := time.Now()
		held.hold(func(op disk.Op, _ string) bool { return op == disk.OpDatasync })
		must(t, appendTo(r, one(1, 1, 10)))
		told := make(chan error, 1)
		if l.Notify(r.Appended(), func(err error) { told <- err }) {
			t.Fatal("durable without a sync")
		}
		time.Sleep(cfg.SlowMax)
		if l.Stalled() {
			t.Error("stalled too early")
		}
		time.Sleep(time.Second)
		if !l.Stalled() {
			t.Error("not stalled")
		}
		if err := <-told; !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		if took := time.Since(began); took < cfg.StallMax || took > cfg.StallMax+2*cfg.StallMax/watchParts {
			t.Errorf("the end came after %s", took)
		}
		held.release()
		synctest.Wait()
		if l.Notify(r.Appended(), func(err error) { told <- err }) {
			t.Error("durable after the end")
		}
		if err := <-told; !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		mustFail(t, "a hung disk", l, ErrStalled)
		if len(fatal) != 1 || !errors.Is(fatal[0], ErrStalled) {
			t.Errorf("fatal: %v", fatal)
		}
		if err := l.Close(); !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
	})
}

// A disk that hangs where a segment is made is told of when appends wait for that.
func TestHungDiskWhileASegmentIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMem(t)
		var held holder
		cfg := testConfig(t, disk.NewHooked(m, held.hook))
		l := open(t, cfg)
		synctest.Wait()
		held.hold(func(op disk.Op, path string) bool { return op == disk.OpCreate })
		r := l.Replica(victim)
		appended := make(chan error, 1)
		go func() {
			var err error
			for index := uint64(1); index <= 80 && err == nil; index++ {
				err = appendTo(r, one(index, 1, 300))
			}
			appended <- err
		}()
		synctest.Wait()
		if l.Stalled() {
			t.Error("stalled too early")
		}
		time.Sleep(3 * time.Second)
		if !l.Stalled() {
			t.Error("not stalled")
		}
		held.release()
		must(t, <-appended)
		synctest.Wait()
		if l.Stalled() {
			t.Error("still stalled")
		}
		must(t, l.Close())
	})
}

// A process that is stopped while a write is under way does not blame its disk.
func TestLookoutCountsLooks(t *testing.T) {
	var w lookout
	for i := range 3 * watchParts { // many writes, each seen once or twice
		if w.look(int64(1+i/2)) || w.look(0) {
			t.Fatalf("look %d", i)
		}
	}
	for i := range watchParts {
		if w.look(1000) {
			t.Fatalf("after %d looks", i)
		}
	}
	if !w.look(1000) {
		t.Error("one that is never answered is not noticed")
	}
}

// Close ends appends that wait for room, and everything that is read or asked after it.
func TestCloseRacesAppends(t *testing.T) {
	for range 50 {
		m := newMem(t)
		cfg := testConfig(t, m)
		cfg.PendingBytesMax = 1000
		l := open(t, cfg)
		appended := make(chan uint64, 1)
		go func() {
			index := uint64(0)
			for {
				if err := appendTo(l.Replica(victim), one(index+1, 1, 300)); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					appended <- index
					return
				}
				index++
			}
		}()
		waitFor(t, "some entries", func() bool { _, last := l.Replica(victim).Bounds(); return last > uint64(rand.IntN(60)) })
		must(t, l.Close())
		must(t, l.Close())
		last := <-appended
		if _, err := l.Replica(victim).Get(last); !errors.Is(err, ErrClosed) {
			t.Fatalf("Get after Close: %v", err)
		}
		mustFail(t, "closed", l, ErrClosed)
		l = open(t, testConfig(t, m))
		if _, got := l.Replica(victim).Bounds(); got != last {
			t.Fatalf("%d entries were appended, %d are there", last, got)
		}
		must(t, l.Close())
	}
}

// What no segment could hold is refused.
func TestTooLarge(t *testing.T) {
	if raceDetector {
		t.Skip("its checks of pointers see through the trick")
	}
	l := open(t, testConfig(t, newMem(t)))
	huge := unsafe.Slice(new(byte), PayloadBytesMax+1) // nobody looks into it
	if err := appendTo(l.Replica(victim), Entry{Index: 1, Term: 1, Data: huge}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	must(t, appendTo(l.Replica(victim), one(1, 1, 10)))
	must(t, l.Close())
}
