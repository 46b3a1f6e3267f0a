package wal

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// crashPoints names the calls that change something on the disk, by what the log is about, the call and the kind of file,
// counts them, and strikes at one.
type crashPoints struct {
	// strike cuts the power, or returns what the call fails with.
	strike func(op disk.Op, path string) error

	mu    sync.Mutex
	phase string
	// named is the last change of a name, by which syncs of the directory are told apart.
	named  string
	counts map[string]int
	// target is where to strike: at the nth time, from 1; 0: nowhere.
	target string
	nth    int
	struck bool
}

func (c *crashPoints) hook(op disk.Op, path string) error {
	kind := "note"
	switch name := filepath.Base(path); {
	case op == disk.OpSyncDir:
		kind = ""
	case name == reserveName:
		kind = "reserve"
	case strings.HasSuffix(name, retiredSuffix):
		kind = "retired"
	case strings.HasSuffix(name, segmentSuffix+asideSuffix):
		kind = "aside"
	case strings.HasSuffix(name, segmentSuffix):
		kind = "segment"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	what := string(op) + " " + kind
	switch op {
	case disk.OpOpen, disk.OpRead, disk.OpReadDir, disk.OpStat:
		return nil
	case disk.OpCreate, disk.OpRename, disk.OpRemove:
		c.named = what
	case disk.OpSyncDir:
		what = "syncdir after " + c.named
	}
	point := c.phase + ": " + what
	if c.counts[point]++; point == c.target && c.counts[point] == c.nth {
		c.struck = true
		return c.strike(op, path)
	}
	return nil
}

func (c *crashPoints) enter(phase string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = phase
}

// crashed runs a workload with the power cut at the nth time of a point, and checks every filesystem that may be left: what
// was said to be durable is there, and what is there is a prefix of all that was done, by all replicas together. It returns
// how often each point was passed, and if the cut struck while copies of entries were on their way to the disk.
func crashed(t *testing.T, seed uint64, base *disk.Mem, start model, target string, nth int) (points *crashPoints, copies bool) {
	rng := rand.New(rand.NewPCG(seed, uint64(nth)))
	mem := base.Clone()
	cut := disk.NewPowerCut(mem, math.MaxInt)
	points = &crashPoints{phase: "open", counts: map[string]int{}, target: target, nth: nth, strike: func(disk.Op, string) error {
		cut.Cut()
		return nil
	}}
	cfg := testConfig(t, disk.NewHooked(cut, points.hook))
	cfg.Fatal = func(error) {}
	states, durable := []model{start.clone()}, 0
	if l, err := Open(cfg); err == nil {
		points.enter("run")
		w := newWorkload(seed, l, start)
		w.keepStates()
		moved := uint64(0)
		for range 300 {
			if err = w.step(); err == nil && rng.IntN(3) == 0 {
				before := l.Stats().Moved
				if err = w.settle(t.Context()); err == nil {
					moved = before
				}
			}
			if err != nil {
				break
			}
		}
		copies = l.Stats().Moved > moved
		points.enter("close")
		if closed := l.Close(); closed == nil && err == nil {
			w.durable = len(w.states) - 1
		}
		states, durable = w.states, w.durable
	}
	for variant := range 3 {
		left := mem.Crash()
		if variant > 0 {
			left = mem.CrashTorn(rng)
		}
		what := fmt.Sprintf("seed %d, cut at %q the %d. time, variant %d", seed, target, nth, variant)
		checkCrashed(t, what, rng, left, states, durable)
	}
	return points, copies
}

func checkCrashed(t *testing.T, what string, rng *rand.Rand, left *disk.Mem, states []model, durable int) {
	t.Helper()
	// The start may be cut off too, again and again.
	for range rng.IntN(3) {
		cut := disk.NewPowerCut(left, rng.IntN(40))
		cfg := testConfig(t, cut)
		cfg.Fatal = func(error) {}
		if l, err := Open(cfg); err == nil {
			_ = l.Close()
		}
		if left = cut.Left(); rng.IntN(2) == 0 {
			left = left.CrashTorn(rng)
		}
	}
	if report, err := Walk(left, "/wal", nil, nil); err != nil || report.Rotten() {
		t.Fatalf("%s: %v, %+v", what, err, report)
	}
	l, err := Open(testConfig(t, left))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	found, why := like(states, durable, l)
	if found < 0 {
		t.Fatalf("%s: the log is like none of the states %d to %d; from the first of these: %s", what, durable, len(states)-1, why)
	}
	// It goes on from there, and a clean end keeps it.
	w := newWorkload(rng.Uint64(), l, states[found])
	for range 20 {
		must(t, w.step())
	}
	must(t, l.Close())
	l = open(t, testConfig(t, left))
	if why := w.now.differs(l); why != "" {
		t.Fatalf("%s: after going on: %s", what, why)
	}
	must(t, l.Close())
}

// wantPoints are the points at which the power must have been cut: opening (with spares removed, the last segment rewritten,
// a new one made, the note of the last close taken away), appending, rotating into segments that were made or recycled,
// purging, and closing.
var wantPoints = []string{
	"open: remove segment", "open: syncdir after remove segment", "open: create aside", "open: write aside", "open: sync aside",
	"open: remove reserve", "open: create reserve", "open: preallocate reserve", "open: rename aside", "open: syncdir after rename aside", "open: preallocate aside", "open: remove note",
	"open: syncdir after remove note", "open: write segment", "open: datasync segment",
	"run: write segment", "run: datasync segment",
	"run: create aside", "run: preallocate aside", "run: write aside", "run: sync aside", "run: rename aside", "run: syncdir after rename aside",
	"run: rename segment", "run: syncdir after rename segment", "run: write retired", "run: sync retired", "run: rename retired", "run: syncdir after rename retired",
	"run: remove segment", "run: syncdir after remove segment",
	"close: write segment", "close: datasync segment", "close: create note", "close: write note", "close: sync note", "close: rename note",
	"close: syncdir after rename note", "close: remove retired",
}

// The power goes at each kind of call by which the disk is changed, twenty times at each: while a log is opened, frames are
// written, segments rotated, recycled, purged and copied, and while it is closed. OSTRAKA_CRASH_HITS says how often.
func TestCrashPoints(t *testing.T) {
	times := 20
	if testing.Short() || raceDetector {
		times = 4
	}
	if n, err := strconv.Atoi(os.Getenv("OSTRAKA_CRASH_HITS")); err == nil {
		times = n
	}
	const copiesPoint = "run: while entries are copied"
	hits := map[string]int{copiesPoint: 0}
	tries := map[string]int{} // how many workloads in a row did not come to a point
	for _, point := range wantPoints {
		hits[point] = 0
	}
	rarest := func() string {
		return slices.MinFunc(slices.Sorted(maps.Keys(hits)), func(a, b string) int { return hits[a] - hits[b] })
	}
	runs := 0
	for hits[rarest()] < times {
		seed := rand.Uint64()
		base := newMem(t)
		l := open(t, testConfig(t, base))
		w := newWorkload(seed, l, model{})
		for range 400 {
			must(t, w.step())
		}
		must(t, l.Close())
		passed, _ := crashed(t, seed, base, w.now, "", 0)
		for range 2 * len(wantPoints) {
			target := rarest()
			if hits[target] >= times {
				break
			}
			at := target
			if target == copiesPoint {
				at = []string{"run: write segment", "run: datasync segment"}[runs%2]
			}
			if passed.counts[at] == 0 {
				if tries[target]++; tries[target] > 200 {
					t.Fatalf("never at %q; struck so far: %v", target, hits)
				}
				break // another workload may
			}
			runs++
			got, copies := crashed(t, seed, base, w.now, at, 1+int(rand.Uint64N(uint64(passed.counts[at]))))
			if got.struck {
				tries[target] = 0
				hits[at]++
				if copies {
					hits[copiesPoint]++
				}
			}
		}
	}
	t.Logf("%d runs, the rarest point %q: %v", runs, rarest(), hits)
}
