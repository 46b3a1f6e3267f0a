package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// tally is the work of callers whose writes must each be done once, none of which shows in the end if it was done twice
// unless all are counted: increments, appends, and increments made of compare-and-set.
type tally struct {
	t       *testing.T
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	increments [tallyCounters]tallied
	swaps      [tallySwapped]tallied
	lists      []*tallyList
	// refused counts writes that were certainly not done, slowest is the longest that one took, in nanoseconds.
	refused, slowest atomic.Int64
}

const (
	tallyCounters = 16
	tallySwapped  = 4
	// tallyTimeout is longer than any fault here lasts, so that no outcome need remain unknown.
	tallyTimeout = 60 * time.Second
)

// tallied counts the writes of one key.
type tallied struct{ acknowledged, unknown atomic.Int64 }

// tallyList is a value that one caller appends numbers to.
type tallyList struct {
	key          string
	acknowledged []int
	unknown      int
}

// startTally has callers of each kind begin, spread over a few clients.
func startTally(t *testing.T, c *cluster.Cluster, incrementing, swapping, appending int) *tally {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	y := &tally{t: t, ctx: ctx, stop: stop}
	var clients []*client.Client
	for range 4 {
		clients = append(clients, connect(t, c))
	}
	begin := func(i int, step func(cl *client.Client, random *rand.Rand, n int)) {
		random := rand.New(rand.NewPCG(7, uint64(i)))
		cl := clients[i%len(clients)]
		y.running.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				step(cl, random, n)
			}
		})
	}
	for i := range incrementing {
		begin(i, y.increment)
	}
	for i := range swapping {
		begin(incrementing+i, y.swap)
	}
	for i := range appending {
		list := &tallyList{key: fmt.Sprint("list-", i)}
		y.lists = append(y.lists, list)
		begin(incrementing+swapping+i, func(cl *client.Client, _ *rand.Rand, n int) { y.grow(cl, list, n) })
	}
	t.Cleanup(func() { // before the clients are closed
		stop()
		y.running.Wait()
	})
	return y
}

// write runs a write, and says whether it was acknowledged. It goes on when the tally is stopped, so that its outcome is seen.
func (y *tally) write(do func(context.Context) error) (acknowledged, unknown bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(y.ctx), tallyTimeout)
	defer cancel()
	begin := time.Now()
	err := do(ctx)
	for took := int64(time.Since(begin)); ; {
		if slowest := y.slowest.Load(); took <= slowest || y.slowest.CompareAndSwap(slowest, took) {
			break
		}
	}
	switch {
	case err == nil:
		return true, false
	case errors.Is(err, client.ErrOutcomeUnknown):
		y.t.Logf("after %v: %v", time.Since(begin), err)
		return false, true
	case errors.Is(err, client.ErrConditionNotMet):
	case errors.Is(err, client.ErrUnavailable):
		y.refused.Add(1)
	default:
		y.t.Errorf("a client saw an error that is neither \"not done\" nor \"unknown\": %v", err)
	}
	return false, false
}

func (k *tallied) note(acknowledged, unknown bool) {
	if acknowledged {
		k.acknowledged.Add(1)
	}
	if unknown {
		k.unknown.Add(1)
	}
}

func (y *tally) increment(cl *client.Client, random *rand.Rand, _ int) {
	i := random.IntN(tallyCounters)
	y.increments[i].note(y.write(func(ctx context.Context) error {
		_, err := cl.Increment(ctx, fmt.Append(nil, "sum-", i), 1)
		return err
	}))
}

// swap counts up by compare-and-set: an own success that is reported as lost to another shows in the end.
func (y *tally) swap(cl *client.Client, random *rand.Rand, _ int) {
	i := random.IntN(tallySwapped)
	key := fmt.Append(nil, "swapped-", i)
	var old []byte
	y.write(func(ctx context.Context) error {
		got, err := cl.Get(ctx, key)
		if old = got.Value; errors.Is(err, client.ErrNotFound) {
			return nil
		}
		return err
	})
	n, _ := strconv.Atoi(string(old)) // 0 where there is none
	y.swaps[i].note(y.write(func(ctx context.Context) (err error) {
		if n == 0 {
			_, err = cl.Set(ctx, key, []byte("1"), client.IfAbsent())
		} else {
			_, err = cl.CompareAndSet(ctx, key, old, strconv.AppendInt(nil, int64(n)+1, 10))
		}
		return err
	}))
}

// tallyListMax keeps values small; then a list gets a successor.
const tallyListMax = 2000

func (l *tallyList) keyOf(n int) []byte { return fmt.Append(nil, l.key, "-", n/tallyListMax) }

func (y *tally) grow(cl *client.Client, l *tallyList, n int) {
	acknowledged, unknown := y.write(func(ctx context.Context) error {
		_, err := cl.Append(ctx, l.keyOf(n), fmt.Append(nil, n, ","))
		return err
	})
	if acknowledged {
		l.acknowledged = append(l.acknowledged, n)
	}
	if unknown {
		l.unknown++
	}
}

func (y *tally) acknowledged() (n int64) {
	for i := range y.increments {
		n += y.increments[i].acknowledged.Load()
	}
	return n
}

// progress waits until that many more increments are acknowledged.
func (y *tally) progress(increments int64) {
	y.t.Helper()
	goal := y.acknowledged() + increments
	deadline := time.Now().Add(patience)
	for y.acknowledged() < goal {
		if time.Now().After(deadline) {
			y.t.Fatalf("no progress: %d of %d increments", y.acknowledged(), goal)
		}
		time.Sleep(5 * time.Millisecond) // between two looks at a condition
	}
}

// end stops the callers, and holds what is there against what was acknowledged.
func (y *tally) end(cl *client.Client) {
	y.t.Helper()
	y.stop()
	y.running.Wait()
	ctx := testContext(y.t)
	number := func(key string) int64 {
		got, err := cl.Get(ctx, []byte(key))
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			y.t.Fatal(err)
		}
		n, _ := strconv.ParseInt(string(got.Value), 10, 64)
		return n
	}
	unknown, swaps := int64(0), int64(0)
	check := func(key string, k *tallied) {
		got, acknowledged, open := number(key), k.acknowledged.Load(), k.unknown.Load()
		unknown += open
		if got < acknowledged || got > acknowledged+open {
			y.t.Errorf("%s is %d after %d acknowledged writes and %d of unknown outcome", key, got, acknowledged, open)
		}
	}
	for i := range y.increments {
		check(fmt.Sprint("sum-", i), &y.increments[i])
	}
	for i := range y.swaps {
		swaps += y.swaps[i].acknowledged.Load()
		check(fmt.Sprint("swapped-", i), &y.swaps[i])
	}
	appended := 0
	for _, l := range y.lists {
		appended += len(l.acknowledged)
		unknown += int64(l.unknown)
		y.checkList(ctx, cl, l)
	}
	y.t.Logf("%d increments, %d swaps and %d appends acknowledged, %d writes of unknown outcome, %d certainly not done",
		y.acknowledged(), swaps, appended, unknown, y.refused.Load())
	if unknown > 0 {
		y.t.Errorf("%d writes are of unknown outcome, though all had time enough", unknown)
	}
}

// checkList: what was acknowledged is there once and in order, and little else.
func (y *tally) checkList(ctx context.Context, cl *client.Client, l *tallyList) {
	var there []int
	for n := 0; len(l.acknowledged) > 0 && n <= l.acknowledged[len(l.acknowledged)-1]; n += tallyListMax {
		got, err := cl.Get(ctx, l.keyOf(n))
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			y.t.Fatal(err)
		}
		for _, one := range strings.Split(strings.TrimSuffix(string(got.Value), ","), ",") {
			element, err := strconv.Atoi(one)
			if err != nil {
				y.t.Errorf("%s holds %q", l.keyOf(n), one)
			}
			there = append(there, element)
		}
	}
	seen := make(map[int]bool)
	next, others := 0, 0
	for _, element := range there {
		if seen[element] {
			y.t.Errorf("%s: %d stands there twice", l.key, element)
		}
		seen[element] = true
		if next < len(l.acknowledged) && l.acknowledged[next] == element {
			next++
		} else {
			others++
		}
	}
	if next < len(l.acknowledged) || others > l.unknown {
		y.t.Errorf("%s: %d of %d acknowledged elements are there in order, and %d others", l.key, next, len(l.acknowledged), others)
	}
}

// Increments, appends and compare-and-sets from many callers, while leaders are killed and paused, and all nodes killed at once:
// every write is done exactly once. The results that shards keep go through snapshots, logs and restarts meanwhile.
// OSTRAKA_TEST_INCREMENTS makes it longer: `make test-once`.
func TestExactlyOnce(t *testing.T) {
	goal, callers := int64(10_000), 64
	if text := os.Getenv("OSTRAKA_TEST_INCREMENTS"); text != "" {
		var err error
		if goal, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
		callers = 512
	}
	c := startCluster(t, cluster.Options{Shards: 3, ServerArgs: []string{"--election-timeout", "500ms",
		"--snapshot-log-bytes", "200000", "--snapshot-trailing-entries", "50"}})
	y := startTally(t, c, callers, 8, 8)
	slowest := make(map[string]time.Duration) // write, by the fault before it
	faults, last := 0, "none"
	note := func() {
		y.progress(100) // whoever stood still has been answered by then, for the most part
		slowest[last] = max(slowest[last], time.Duration(y.slowest.Swap(0)).Round(time.Millisecond))
	}
	for ; faults < 9 || y.acknowledged() < goal; faults++ {
		y.progress(max(300, goal/50))
		note()
		last = []string{"leader killed", "leader paused", "all killed"}[faults%3]
		s := await(t, c, cluster.Led)
		id, _ := cluster.MostLeading(s)
		p := c.Node(id)
		switch faults % 3 {
		case 0:
			kill(t, p)
			y.progress(100)
			restart(t, p)
		case 1:
			if err := p.Pause(); err != nil {
				t.Fatal(err)
			}
			await(t, c, ledByOthers(id))
			y.progress(100)
			if err := p.Resume(); err != nil {
				t.Fatal(err)
			}
		case 2:
			var all sync.WaitGroup
			for _, p := range c.Nodes() {
				all.Go(func() { kill(t, p) })
			}
			all.Wait()
			for _, p := range c.Nodes() {
				restart(t, p)
			}
		}
	}
	y.progress(300)
	note()
	y.end(connect(t, c))
	t.Logf("%d faults; the slowest write after each kind: %v", faults, slowest)
	await(t, c, cluster.Converged)
}
