package wal

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// crashed runs a workload until the power is cut after so many steps of the disk, and checks every filesystem that may be
// left: what was said to be durable is there, and what is there is a prefix of all that was done, by all replicas together.
func crashed(t *testing.T, seed uint64, base *disk.Mem, start model, steps int, hits map[string]int) (ended bool) {
	rng := rand.New(rand.NewPCG(seed, uint64(steps)))
	mem := base.Clone()
	point := &pointFS{FS: disk.NewPowerCut(mem, steps)}
	cfg := testConfig(t, point)
	cfg.Fatal = func(error) {}
	states := []model{start.clone()}
	durable := 0
	l, err := Open(cfg)
	if err == nil {
		w := newWorkload(seed, l, start)
		for range 300 {
			err = w.step()
			states = append(states, w.now.clone())
			if err != nil {
				break
			}
			if rng.IntN(3) == 0 {
				upTo := l.Replica(workloadIDs[0]).Appended()
				for _, id := range workloadIDs[1:] {
					upTo = max(upTo, l.Replica(id).Appended())
				}
				if err = l.WaitDurable(t.Context(), upTo); err != nil {
					break
				}
				durable = len(states) - 1
			}
		}
		if closeErr := l.Close(); err == nil {
			err = closeErr
		}
		if err == nil {
			durable = len(states) - 1
		}
	}
	hits[point.struck]++
	for variant := range 3 {
		left := mem.Crash()
		if variant > 0 {
			left = mem.CrashTorn(rng)
		}
		// The start may be cut off too, again and again.
		for again := 0; again < rng.IntN(3); again++ {
			cut := disk.NewPowerCut(left.Clone(), rng.IntN(30))
			cfg := testConfig(t, cut)
			cfg.Fatal = func(error) {}
			if l, err := Open(cfg); err == nil {
				_ = l.Close()
			}
			left = cut.Left()
		}
		l, openErr := Open(testConfig(t, left))
		if openErr != nil {
			t.Fatalf("seed %d, cut after %d steps at %q: %v", seed, steps, point.struck, openErr)
		}
		found := -1
		var why string
		for i := len(states) - 1; i >= durable && found < 0; i-- {
			if why = states[i].differs(l); why == "" {
				found = i
			}
		}
		if found < 0 {
			t.Fatalf("seed %d, cut after %d steps at %q, variant %d: the log is like none of the states %d to %d; from the first of these: %s",
				seed, steps, point.struck, variant, durable, len(states)-1, why)
		}
		// It goes on from there, and a clean end keeps it.
		w := newWorkload(seed+1, l, states[found])
		for range 20 {
			must(t, w.step())
		}
		must(t, l.Close())
		l = open(t, testConfig(t, left))
		if why := w.now.differs(l); why != "" {
			t.Fatalf("seed %d, cut after %d steps: after going on: %s", seed, steps, why)
		}
		must(t, l.Close())
	}
	return err == nil
}

// crashPoints are the calls at which the cut must have struck. A file is named by how it was opened: the tail was made as an
// aside file, or is a segment that was recycled; the latter is rarer.
var crashPoints = map[string]int{"write segment": 10, "datasync segment": 10, "create aside": 10, "preallocate aside": 10, "sync aside": 10,
	"write aside": 10, "datasync aside": 10, "rename from other segment": 10, "remove segment": 10, "syncdir wal": 10,
	"rename from other spare": 1, "rename from spare segment": 1}

// The power goes at each step that the disk is asked for: while frames are written, segments rotated, recycled, purged and
// copied, and while a log that was cut off is opened. OSTRAKA_CRASH_HITS=100 makes it go on until each point was struck a
// hundred times.
func TestCrashPoints(t *testing.T) {
	scale := 2 // 20 times each
	if testing.Short() || raceDetector {
		scale = 0
	}
	if n, err := strconv.Atoi(os.Getenv("OSTRAKA_CRASH_HITS")); err == nil {
		scale = n / 10
	}
	hits := make(map[string]int)
	missing := func() string {
		for point, times := range crashPoints {
			if hits[point] < max(times*scale, times/10) {
				return point
			}
		}
		return ""
	}
	runs, began := 0, time.Now()
	for missing() != "" {
		seed := rand.Uint64()
		base := newMem(t)
		l := open(t, testConfig(t, base))
		w := newWorkload(seed, l, model{})
		for range 400 {
			must(t, w.step())
		}
		must(t, l.Close())
		for steps := 0; missing() != ""; steps += 1 + int(rand.Uint64N(6)) {
			runs++
			if crashed(t, seed, base, w.now, steps, hits) {
				break
			}
		}
		if time.Since(began) > time.Duration(2+scale)*time.Minute {
			t.Fatalf("not once in %d runs was the power cut at %q: %v", runs, missing(), hits)
		}
	}
	t.Logf("%d runs: %v", runs, hits)
}
