package wal

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

func intervalConfig(t testing.TB, fsys disk.FS, boot string) Config {
	cfg := testConfig(t, fsys)
	cfg.Sync = SyncInterval
	cfg.BootID = func() (string, error) { return boot, nil }
	return cfg
}

// Synced at intervals, what was said to be there is there when the process is killed, at any moment.
func TestIntervalSurvivesAKill(t *testing.T) {
	m := newMem(t)
	l := open(t, intervalConfig(t, m, "one"))
	w := newWorkload(rand.Uint64(), l, model{})
	for range 100 {
		w.keepStates()
		for range 5 {
			must(t, w.step())
		}
		told := make(chan error, 3)
		for _, id := range workloadIDs {
			if l.Notify(l.Replica(id).Appended(), func(err error) { told <- err }) {
				told <- nil
			}
		}
		for range workloadIDs {
			must(t, <-told)
		}
		killed := m.Clone()
		again := open(t, intervalConfig(t, killed, "one"))
		if why := w.now.differs(again); why != "" {
			t.Fatal(why)
		}
		must(t, again.Close())
	}
	must(t, l.Close())
}

// What is written is synced within the interval, though what came before it was synced at once.
func TestIntervalSyncsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMem(t)
		cfg := intervalConfig(t, m, "one")
		l := open(t, cfg)
		r := l.Replica(victim)
		must(t, appendTo(r, one(1, 1, 10)))
		must(t, r.SetRecord("vote", []byte("x"))) // synced at once, and the first entry with it
		must(t, appendTo(r, one(2, 1, 10)))
		synctest.Wait()
		began := time.Now()
		must(t, l.WaitDurable(t.Context(), r.Appended()))
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("synced after %s", took)
		}
		syncs := l.Stats().Syncs
		time.Sleep(time.Minute)
		if l.Stats().Syncs != syncs {
			t.Error("an idle log is synced")
		}
		left := m.Crash()
		must(t, l.Close())
		// The same start of the machine, so that what the disk holds can be looked at.
		cfg.FS = left
		l = open(t, cfg)
		if _, last := l.Replica(victim).Bounds(); last != 2 {
			t.Errorf("entries up to %d are on the disk", last)
		}
		must(t, l.Close())
	})
}

// A record is synced before its call returns, and all that came before it.
func TestIntervalSyncsRecordsAtOnce(t *testing.T) {
	m := newMem(t)
	cfg := intervalConfig(t, m, "one")
	cfg.SyncEvery = time.Hour
	l := open(t, cfg)
	must(t, appendTo(l.Replica(bystander), one(1, 1, 10)))
	must(t, l.Replica(victim).SetRecord("vote", []byte("x")))
	must(t, appendTo(l.Replica(bystander), one(2, 1, 10)))
	left := m.Crash()
	must(t, l.Close())
	cfg.FS = left
	l = open(t, cfg)
	_, last := l.Replica(bystander).Bounds()
	if got := string(l.Replica(victim).Record("vote")); got != "x" || last < 1 {
		t.Errorf("vote %q, entries up to %d", got, last)
	}
	must(t, l.Close())
}

// After another start of the machine, replicas of a log that was not closed count as damaged: with whatever mode it is
// opened, and for good. One that was closed, or only killed, is well.
func TestIntervalUncleanBoot(t *testing.T) {
	for _, c := range []struct {
		closed  bool
		next    string
		mode    SyncMode
		damaged bool
	}{
		{closed: true, next: "two"},
		{closed: false, next: "one"},
		{closed: false, next: "two", damaged: true},
		{closed: false, next: "two", mode: SyncInterval, damaged: true},
		{closed: false, next: "one", mode: SyncInterval},
		{closed: true, next: "two", mode: SyncInterval},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			m := newMem(t)
			l := open(t, intervalConfig(t, m, "one"))
			must(t, appendTo(l.Replica(victim), one(1, 1, 10)))
			must(t, l.WaitDurable(t.Context(), l.Replica(victim).Appended()))
			left := m.Clone()
			must(t, l.Close())
			if c.closed {
				left = m
			}
			for range 3 {
				cfg := intervalConfig(t, left, c.next)
				cfg.Sync = c.mode
				l = open(t, cfg)
				if got := errors.Is(l.Replica(victim).Damage(), ErrUncleanBoot); got != c.damaged || got != (l.Replica(victim).Damage() != nil) {
					t.Fatalf("damaged: %v", l.Replica(victim).Damage())
				}
				must(t, l.Replica(bystander).SetRecord("new", []byte("x")))
				must(t, l.Close())
				cfg = intervalConfig(t, left, "three")
				l = open(t, cfg) // a replica that is new since then is well
				must(t, l.Replica(bystander).Damage())
				must(t, l.Close())
			}
		})
	}
}

// The power goes at each step. Either all that had been said to be there is there, or the replicas know that it may not be.
func TestIntervalCrashPoints(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	lost, kept := 0, 0
	for steps, done := 0, false; !done; steps++ {
		rng := rand.New(rand.NewPCG(seed, uint64(steps)))
		base := newMem(t)
		l := open(t, intervalConfig(t, base, "zero"))
		must(t, appendTo(l.Replica(victim), one(1, 1, 100)))
		must(t, l.Close())

		cut := disk.NewPowerCut(base, steps)
		cfg := intervalConfig(t, cut, "one")
		cfg.Fatal = func(error) {}
		cfg.SyncEvery = time.Millisecond
		released := uint64(1)
		l, err := Open(cfg)
		if err == nil {
			r := l.Replica(victim)
			for index := uint64(2); index < 30 && err == nil; index++ {
				if err = appendTo(r, one(index, 1, 200)); err != nil {
					break
				}
				told := make(chan error, 1)
				if !l.Notify(r.Appended(), func(err error) { told <- err }) {
					err = <-told
				}
				if err == nil {
					released = index
				}
			}
			if closed := l.Close(); err == nil {
				err = closed
			}
			done = err == nil
		}
		for _, left := range []*disk.Mem{base.Crash(), base.CrashTorn(rng)} {
			// The next start is cut off as well.
			again := disk.NewPowerCut(left, rng.IntN(40))
			cfg := intervalConfig(t, again, "two")
			cfg.Fatal = func(error) {}
			if l, err := Open(cfg); err == nil {
				_ = l.Close()
			}
			l := open(t, intervalConfig(t, again.Left(), "three"))
			_, last := l.Replica(victim).Bounds()
			switch damaged := l.Replica(victim).Damage() != nil; {
			case last < released && !damaged:
				t.Fatalf("cut after %d steps: entries up to %d were there, %d are, and nobody knows", steps, released, last)
			case last < released:
				lost++
			case !damaged:
				kept++
			}
			if last > 1<<20 || last == 0 {
				t.Fatalf("cut after %d steps: entries up to %d", steps, last)
			}
			must(t, l.Close())
		}
		if steps == math.MaxInt16 {
			t.Fatal("it never gets through")
		}
	}
	if lost == 0 || kept == 0 {
		t.Errorf("something was lost %d times, and all was known to be there %d times: the test proves little", lost, kept)
	}
}

// Who answers for what may be missing can take such a replica for whole, for good; but not one that is rotten too, whether that
// was found before or later.
func TestTrustAfterAnUncleanBoot(t *testing.T) {
	unclean := func() *disk.Mem {
		m := newMem(t)
		l := open(t, intervalConfig(t, m, "one"))
		for index := range uint64(5) {
			must(t, appendTo(l.Replica(victim), one(index+1, 1, 100)))
			must(t, l.WaitDurable(t.Context(), l.Replica(victim).Appended()))
		}
		left := m.Clone()
		must(t, l.Close())
		return left
	}
	rot := func(m *disk.Mem) {
		for _, f := range segmentsOf(t, m) {
			b, head, err := readSegment(m, f.path, f.sequence, nil)
			must(t, err)
			for _, fr := range scan(b, head, nil).frames {
				if fr.id == victim && fr.index == 2 {
					b[fr.offset+frameBytes] ^= 1
				}
			}
			rewriteFile(t, m, f.path, b)
		}
	}
	m := unclean()
	l := open(t, intervalConfig(t, m, "two"))
	must(t, l.Replica(victim).Trust())
	must(t, l.Replica(victim).Damage())
	must(t, l.Close())
	l = open(t, intervalConfig(t, m, "two"))
	must(t, l.Replica(victim).Damage())
	must(t, l.Replica(victim).Trust())
	must(t, l.Close())

	before, after := unclean(), unclean()
	rot(before)
	l = open(t, intervalConfig(t, after, "two"))
	must(t, l.Close())
	rot(after)
	for name, m := range map[string]*disk.Mem{"rot before": before, "rot after": after} {
		l := open(t, intervalConfig(t, m, "three"))
		if err := l.Replica(victim).Trust(); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrUncleanBoot) {
			t.Errorf("%s: %v", name, err)
		}
		wantDamaged(t, l, victim)
		must(t, l.Close())
	}
}
