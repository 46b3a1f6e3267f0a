package raftfsm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// slowDisk is a node's Mem whose data syncs take time, or don't come back while it is held. Only what was there when a sync
// began is durable by it, as a kernel promises no more.
type slowDisk struct {
	*disk.Mem
	takes func() time.Duration

	mu   sync.Mutex
	free chan struct{} // closed while syncs may end
}

func newSlowDisk(m *disk.Mem, takes func() time.Duration) *slowDisk {
	d := &slowDisk{Mem: m, takes: takes, free: make(chan struct{})}
	close(d.free)
	return d
}

// hold keeps every data sync from returning, and from taking effect, until release.
func (d *slowDisk) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = make(chan struct{})
}

func (d *slowDisk) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.free:
	default:
		close(d.free)
	}
}

func (d *slowDisk) wait() {
	d.mu.Lock()
	free := d.free
	d.mu.Unlock()
	<-free
	if d.takes != nil {
		time.Sleep(d.takes()) // virtual
	}
}

func (d *slowDisk) Create(path string) (disk.File, error)    { return d.file(d.Mem.Create(path)) }
func (d *slowDisk) OpenWrite(path string) (disk.File, error) { return d.file(d.Mem.OpenWrite(path)) }

func (d *slowDisk) file(f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return slowFile{f, d}, nil
}

type slowFile struct {
	disk.File
	disk *slowDisk
}

func (f slowFile) Datasync() error {
	f.disk.wait()
	return f.File.Datasync()
}

// writeAsync starts a write at whoever leads and returns where its outcome will be.
func (n *testNode) writeAsync(id shard.ID, key string) <-chan error {
	done := make(chan error, 1)
	g := n.group(id)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := g.Write(ctx, &store.Op{Kind: store.OpSet, Key: []byte(key), Value: []byte("v")}, Session{})
		done <- err
	}()
	return done
}

func (c *testCluster) others(than *testNode) (others []*testNode) {
	for _, n := range c.nodes {
		if n != than {
			others = append(others, n)
		}
	}
	return others
}

// wantPending fails if a write has been answered within a while.
func wantPending(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("%s: the write was answered: %v", what, err)
	case <-time.After(300 * time.Millisecond): // virtual; below any election timeout
	}
}

// An answer leaves only when the disks of a majority have the entry, the leader's among them: each raft instance counts
// its own copy when StoreLogs returns, which is before that.
func TestAnswersWaitForTheDisks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead := c.leader(1)
		lead.mustSet(1, "before", "v")
		followers := c.others(lead)

		followers[0].slow.hold()
		if err := <-lead.writeAsync(1, "one follower held"); err != nil {
			t.Fatal(err)
		}
		followers[1].slow.hold()
		done := lead.writeAsync(1, "followers held")
		wantPending(t, "no follower's disk has it", done)
		followers[1].slow.release()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		followers[0].slow.release()
		c.converged(1)

		lead.slow.hold()
		done = lead.writeAsync(1, "leader held")
		wantPending(t, "the leader's disk does not have it", done)
		lead.slow.release()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		c.converged(1)
	})
}

// A group with one voter gets no answers to hold: StoreLogs itself waits.
func TestSoleVoterWaitsForItsDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2, 1, 1, nil) // with a non-voter, whose answers count for nothing
		lead := c.leader(1)
		lead.mustSet(1, "before", "v")
		lead.slow.hold()
		done := lead.writeAsync(1, "k")
		wantPending(t, "the only voter's disk does not have it", done)
		lead.slow.release()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		lead.cutPower()
		lead.restart()
		if _, ok, err := c.leader(1).get(1, "k", Linearizable); err != nil || !ok {
			t.Fatalf("after a power cut: %v, %v", ok, err)
		}
	})
}

// What a killed process wrote is in the kernel's memory. Restarted, it may answer for it only after it has made it durable
// itself: a power cut after that answer must not take it.
func TestKilledThenPowerCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, func(cfg *Config) {
			cfg.Timing = Timing{Election: 10 * time.Second, LeaderLease: 10 * time.Second} // the leader must outlast the restart
		})
		lead := c.leader(1)
		lead.mustSet(1, "before", "v")
		c.converged(1)
		followers := c.others(lead)
		witness, away := followers[0], followers[1]
		away.stop()

		witness.slow.hold()
		done := lead.writeAsync(1, "k")
		wantPending(t, "one disk has it", done)
		witness.kill()
		witness.restart()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		witness.cutPower()
		lead.stop() // for good: only the two others are left
		away.restart()
		witness.restart()
		if _, ok, err := c.leader(1, lead.id).get(1, "k", Linearizable); err != nil || !ok {
			t.Fatalf("the acknowledged write is gone: %v, %v", ok, err)
		}
	})
}

// The watermark counts changes, not indexes: a tail that was overruled had its indexes durable, what comes in their place
// has not.
func TestOverruledTailIsNotVouchedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		old := c.leader(1)
		old.mustSet(1, "before", "v")
		c.converged(1)
		c.isolate(old.id)
		for i := range 20 { // alone, it makes a tail of its own durable
			old.writeAsync(1, fmt.Sprint("overruled ", i))
			time.Sleep(10 * time.Millisecond)
		}
		tail := old.group(1).Status().Last
		lead := c.leader(1, old.id)
		c.heal()
		c.eventually("the tail is overruled", func() bool { return old.group(1).Status().Last == lead.group(1).Status().Last })
		c.converged(1)
		for _, n := range c.others(lead) {
			if n != old {
				n.stop()
			}
		}
		old.slow.hold()
		done := lead.writeAsync(1, "k")
		wantPending(t, "one disk has it", done)
		if last := lead.group(1).Status().Last; last > tail {
			t.Fatalf("its index %d is above the tail's %d: the test proves nothing", last, tail)
		}
		old.slow.release()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// torture runs a group with slow disks through kills, power cuts, held disks and isolation while it is written to. Nothing
// that was acknowledged may be missing afterwards.
func torture(t *testing.T, seed uint64, nodes, voters int) {
	rng := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex // guards rng's use by disks
	diskRNG := rand.New(rand.NewPCG(seed, 1))
	c := newTestClusterWith(t, nodes, voters, 1, func(cfg *Config) {
		cfg.Snapshots = SnapshotConfig{LogBytes: 4000, TrailingEntries: 1, CheckEvery: 300 * time.Millisecond}
	}, func(n *testNode) {
		n.syncTakes = func() time.Duration {
			mu.Lock()
			defer mu.Unlock()
			if diskRNG.IntN(20) == 0 {
				return time.Duration(diskRNG.IntN(400)) * time.Millisecond
			}
			return time.Duration(diskRNG.IntN(5000)) * time.Microsecond
		}
	})
	c.leader(1)

	acknowledged := c.writeOn(4, 2*time.Millisecond)
	for range 8 {
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		hit := slicesOf(rng, c.nodes, []int{1, 1, len(c.nodes)/2 + 1, len(c.nodes)}[rng.IntN(4)])
		for _, n := range hit {
			if rng.IntN(2) == 0 {
				n.slow.hold()
			}
		}
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		switch rng.IntN(5) {
		case 0:
			for _, n := range hit {
				n.kill()
			}
		case 1: // a kill, a short life, and a power cut
			for _, n := range hit {
				n.kill()
			}
			for _, n := range hit {
				n.restart()
				n.slow.hold()
			}
			time.Sleep(time.Duration(rng.IntN(2500)) * time.Millisecond)
			fallthrough
		case 2, 3:
			for _, n := range hit {
				n.cutPower()
			}
		case 4:
			c.isolate(hit[0].id)
		}
		time.Sleep(time.Duration(rng.IntN(2500)) * time.Millisecond)
		c.heal()
		for _, n := range c.nodes {
			n.slow.release()
			if n.host == nil {
				n.restart()
			}
		}
	}
	c.leader(1)
	acked := acknowledged()
	lead := c.leader(1)
	c.converged(1)
	if len(acked) == 0 {
		t.Error("nothing was acknowledged: the run proves nothing")
	}
	lost := 0
	for _, key := range acked {
		if _, ok, err := lead.get(1, key, Stale); err != nil || !ok {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are gone", lost, len(acked))
	}
	for _, n := range c.nodes {
		if err := n.failure(); err != nil {
			t.Errorf("%s: %v", n.id, err)
		}
	}
}

// slicesOf picks n of the nodes.
func slicesOf(rng *rand.Rand, nodes []*testNode, n int) []*testNode {
	picked := make([]*testNode, 0, n)
	for _, i := range rng.Perm(len(nodes))[:n] {
		picked = append(picked, nodes[i])
	}
	return picked
}

// raceDetector is set in builds with -race.
var raceDetector bool

func TestPowerCuts(t *testing.T) {
	if raceDetector {
		t.Skip("the detector itself crashes (StackDepot, tsan_rtl.cpp:346) in long bubbles with many timers, Go 1.26; the others run with it")
	}
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for _, voters := range []int{1, 2, 3, 4, 5} {
		for range rounds {
			seed := rand.Uint64()
			t.Run(fmt.Sprintf("%d voters, seed %d", voters, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { torture(t, seed, voters, voters) })
			})
		}
	}
}
