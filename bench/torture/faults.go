package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
)

// need is what a fault wants of the machine.
type need uint8

const (
	nothing need = iota
	namespaces
	disks
)

// kind groups faults that exclude each other in one round. They are healed in this order.
type kind uint8

const (
	ofNetwork kind = iota
	ofDisk
	ofProcess
	ofLoad
)

// fault is a row of the table below. begin strikes, end heals; both are the script's goroutine's.
type fault struct {
	name  string
	needs need
	kind  kind
	// holdMax bounds how long it lasts; 0: as the script says.
	holdMax time.Duration
	plan    func(random *rand.Rand, nodes []string) action
	begin   func(ctx context.Context, t *torture, a action) error
	end     func(ctx context.Context, t *torture, a action) error
}

// one, majority and all are plans that pick nodes; lead picks the leader.
func one(name string) func(*rand.Rand, []string) action {
	return func(r *rand.Rand, nodes []string) action { return action{Fault: name, Nodes: some(r, nodes, 1)} }
}

func majority(name string) func(*rand.Rand, []string) action {
	return func(r *rand.Rand, nodes []string) action {
		return action{Fault: name, Nodes: some(r, nodes, len(nodes)/2+1)}
	}
}

func all(name string) func(*rand.Rand, []string) action {
	return func(_ *rand.Rand, nodes []string) action { return action{Fault: name, Nodes: nodes} }
}

func lead(name string) func(*rand.Rand, []string) action {
	return func(*rand.Rand, []string) action { return action{Fault: name, Nodes: []string{leader}} }
}

func two(name string) func(*rand.Rand, []string) action {
	return func(r *rand.Rand, nodes []string) action { return action{Fault: name, Nodes: some(r, nodes, 2)} }
}

// amount adds one in [from, to] to a plan.
func amount(plan func(*rand.Rand, []string) action, from, to int) func(*rand.Rand, []string) action {
	return func(r *rand.Rand, nodes []string) action {
		a := plan(r, nodes)
		a.Amount = from + r.IntN(to-from+1)
		return a
	}
}

// faults is the table (shared/faults.md has the rows; those that can't be injected here are listed in doc.go).
var faults = []*fault{
	{name: "kill-leader", kind: ofProcess, plan: lead("kill-leader"), begin: kill, end: start},
	{name: "kill-one", kind: ofProcess, plan: one("kill-one"), begin: kill, end: start},
	{name: "kill-majority", kind: ofProcess, plan: majority("kill-majority"), begin: kill, end: start},
	{name: "kill-all", kind: ofProcess, plan: all("kill-all"), begin: kill, end: start},
	{name: "terminate", kind: ofProcess, plan: one("terminate"), begin: terminate, end: start},
	{name: "pause-leader", kind: ofProcess, plan: lead("pause-leader"), begin: pause, end: resume},
	{name: "pause-majority", kind: ofProcess, plan: majority("pause-majority"), begin: pause, end: resume},
	{name: "isolate", needs: namespaces, kind: ofNetwork, plan: one("isolate"), begin: isolate, end: healNetwork},
	{name: "isolate-leader", needs: namespaces, kind: ofNetwork, plan: lead("isolate-leader"), begin: isolate, end: healNetwork},
	{name: "isolate-all", needs: namespaces, kind: ofNetwork, plan: all("isolate-all"), begin: isolate, end: healNetwork},
	{name: "cut-pair", needs: namespaces, kind: ofNetwork, plan: two("cut-pair"), begin: cutPair, end: healNetwork},
	{name: "one-way", needs: namespaces, kind: ofNetwork, plan: two("one-way"), begin: cutOneWay, end: healNetwork},
	{name: "deaf", needs: namespaces, kind: ofNetwork, plan: one("deaf"), begin: deaf, end: healNetwork},
	{name: "clients-cut", needs: namespaces, kind: ofNetwork, plan: one("clients-cut"), begin: cutClients, end: healNetwork},
	{name: "loss", needs: namespaces, kind: ofNetwork, plan: amount(all("loss"), 5, 50), begin: lose, end: healNetwork},
	{name: "loss-one", needs: namespaces, kind: ofNetwork, plan: amount(one("loss-one"), 5, 50), begin: lose, end: healNetwork},
	{name: "slow-link", needs: namespaces, kind: ofNetwork, plan: amount(one("slow-link"), 200, 4000), begin: slow, end: healNetwork},
	{name: "power-cut", needs: disks, kind: ofDisk, plan: one("power-cut"), begin: cutPower, end: restorePower},
	{name: "power-cut-majority", needs: disks, kind: ofDisk, plan: majority("power-cut-majority"), begin: cutPower, end: restorePower},
	{name: "power-cut-all", needs: disks, kind: ofDisk, plan: all("power-cut-all"), begin: cutPower, end: restorePower},
	{name: "disk-fails", needs: disks, kind: ofDisk, plan: one("disk-fails"), begin: failDisk, end: restorePower},
	{name: "disk-hangs", needs: disks, kind: ofDisk, plan: one("disk-hangs"), begin: hangDisk, end: thawDisk},
	{name: "disks-stutter", needs: disks, kind: ofDisk, plan: amount(majority("disks-stutter"), 20, 500), begin: stutterDisks, end: thawDisk},
	{name: "disk-full", needs: disks, kind: ofDisk, plan: one("disk-full"), begin: fillDisk, end: freeDisk},
	{name: "disks-full", needs: disks, kind: ofDisk, plan: all("disks-full"), begin: fillDisk, end: freeDisk},
	{name: "wipe", kind: ofProcess, holdMax: time.Second, plan: one("wipe"), begin: wipe, end: startReplaced},
	{name: "rot-log", kind: ofProcess, holdMax: time.Second, plan: one("rot-log"), begin: rotLog, end: startReplaced},
	{name: "rot-snapshots", kind: ofProcess, holdMax: time.Second, plan: one("rot-snapshots"), begin: rotSnapshots, end: startReplaced},
	{name: "overload", kind: ofLoad, plan: func(*rand.Rand, []string) action { return action{Fault: "overload"} }, begin: overload, end: endOverload},
}

func faultNamed(name string) *fault {
	for _, f := range faults {
		if f.name == name {
			return f
		}
	}
	return nil
}

// each does something to several nodes at the same time.
func each(nodes []string, do func(node string) error) error {
	var mu sync.Mutex
	var failed error
	var running sync.WaitGroup
	for _, node := range nodes {
		running.Go(func() {
			if err := do(node); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, fmt.Errorf("%s: %w", node, err))
			}
		})
	}
	running.Wait()
	return failed
}

func kill(_ context.Context, t *torture, a action) error {
	return each(a.Nodes, func(node string) error { return t.cluster.Node(node).Kill() })
}

func start(ctx context.Context, t *torture, a action) error {
	return each(a.Nodes, func(node string) error { return t.start(ctx, node) })
}

// wipe takes a node's data away: it must come back as a new life of itself, with fresh replicas.
func wipe(ctx context.Context, t *torture, a action) error {
	if err := kill(ctx, t, a); err != nil {
		return err
	}
	return each(a.Nodes, func(node string) error {
		dir := t.cluster.Node(node).DataDir
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			if e.Name() != "lost+found" { // of the disk, not of the node
				err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
			}
		}
		return err
	})
}

// rotLog flips bits in the oldest file of a node's log, and rotSnapshots in all snapshots: the replicas that are struck must
// notice, never vote again, and be replaced.
func rotLog(ctx context.Context, t *torture, a action) error {
	return rot(ctx, t, a, "wal/*.wal", 1)
}

func rotSnapshots(ctx context.Context, t *torture, a action) error {
	return rot(ctx, t, a, "snap/*/*.snap", 1<<20)
}

func rot(ctx context.Context, t *torture, a action, pattern string, filesMax int) error {
	if err := kill(ctx, t, a); err != nil {
		return err
	}
	return each(a.Nodes, func(node string) error {
		found, err := filepath.Glob(filepath.Join(t.cluster.Node(node).DataDir, pattern))
		for _, path := range found[:min(filesMax, len(found))] { // none yet: then it is a kill
			err = errors.Join(err, flip(path))
		}
		return err
	})
}

// flip changes a bit in every 4 KiB of what is used of a file but its first, which says what it is.
func flip(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	used := len(bytes.TrimRight(b, "\x00"))
	for at := 4096 + 777; at < used; at += 4096 {
		b[at] ^= 0x10
	}
	return os.WriteFile(path, b, 0o600)
}

// startReplaced starts nodes and waits until every replica of every group is a voter that runs.
func startReplaced(ctx context.Context, t *torture, a action) error {
	if err := start(ctx, t, a); err != nil {
		return err
	}
	began := time.Now()
	waiting, cancel := context.WithTimeout(ctx, replacedMax)
	defer cancel()
	if _, err := t.cluster.AwaitStatus(waiting, cluster.Healthy); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t.violation("%s after %s the replicas are not replaced: %v", replacedMax, a, err)
		return fmt.Errorf("going on would strike a cluster that has lost a node already: %w", err)
	}
	t.say("%s: all replicas vote again after %.1fs", a, time.Since(began).Seconds())
	return nil
}

// replacedMax bounds how long a node's replicas may take to be replaced.
const replacedMax = time.Minute

// terminate asks a node to end in good order: it must, and with status 0.
func terminate(ctx context.Context, t *torture, a action) error {
	return each(a.Nodes, func(node string) error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		status, err := t.cluster.Node(node).Terminate(ctx)
		if err == nil && status != 0 {
			t.violation("%s ended with status %d after SIGTERM", node, status)
		}
		return err
	})
}

func pause(_ context.Context, t *torture, a action) error {
	return each(a.Nodes, func(node string) error { return t.cluster.Node(node).Pause() })
}

func resume(_ context.Context, t *torture, a action) error {
	return each(a.Nodes, func(node string) error { return t.cluster.Node(node).Resume() })
}

// isolate cuts nodes off from everybody, and from each other.
func isolate(_ context.Context, t *torture, a action) error {
	var failed error
	for _, node := range a.Nodes {
		for _, other := range t.nodes {
			if other != node {
				failed = errors.Join(failed, t.network.cutBoth(node, other))
			}
		}
		failed = errors.Join(failed, t.network.cutBoth(node, "clients"))
	}
	return failed
}

func cutPair(_ context.Context, t *torture, a action) error {
	return t.network.cutBoth(a.Nodes[0], a.Nodes[1])
}

func cutOneWay(_ context.Context, t *torture, a action) error {
	return t.network.cut(a.Nodes[0], a.Nodes[1])
}

// deaf: a node hears nobody, and is heard.
func deaf(_ context.Context, t *torture, a action) error {
	var failed error
	for _, other := range t.nodes {
		if other != a.Nodes[0] {
			failed = errors.Join(failed, t.network.cut(other, a.Nodes[0]))
		}
	}
	return failed
}

func cutClients(_ context.Context, t *torture, a action) error {
	return t.network.cutBoth(a.Nodes[0], "clients")
}

func lose(_ context.Context, t *torture, a action) error {
	var failed error
	for _, node := range a.Nodes {
		failed = errors.Join(failed, t.network.lose(node, a.Amount))
	}
	return failed
}

func slow(_ context.Context, t *torture, a action) error {
	return t.network.slow(a.Nodes[0], a.Amount)
}

func healNetwork(_ context.Context, t *torture, _ action) error { return t.network.heal() }

// cutPower takes what the disks had not synced, and ends the processes, which would otherwise end themselves.
func cutPower(_ context.Context, t *torture, a action) error {
	err := each(a.Nodes, func(node string) error { return t.disks[node].CutPower() })
	return errors.Join(err, each(a.Nodes, func(node string) error { return t.cluster.Node(node).Kill() }))
}

func restorePower(ctx context.Context, t *torture, a action) error {
	err := each(a.Nodes, func(node string) error {
		// A disk that failed may have left the process running: see failDisk.
		return errors.Join(t.cluster.Node(node).Kill(), t.disks[node].Restore())
	})
	return errors.Join(err, start(ctx, t, a))
}

// diskFailureMax bounds how long a process goes on without its disk.
const diskFailureMax = 2 * time.Second

// failDisk makes every write to a disk fail: the process must end, since it can't tell any more what is durable.
func failDisk(ctx context.Context, t *torture, a action) error {
	node := a.Nodes[0]
	if err := t.disks[node].Fail(); err != nil {
		return err
	}
	deadline := time.Now().Add(diskFailureMax)
	for t.cluster.Node(node).Running() && time.Now().Before(deadline) && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond) // between two looks at a condition
	}
	if t.cluster.Node(node).Running() && t.oneFault { // with another one, nothing may have been written
		t.violation("%s still runs %s after its disk failed", node, diskFailureMax)
	}
	return nil
}

// hangDisk makes writes and syncs hang. A node whose disk hangs gives up its leaderships, and ends once that lasts.
func hangDisk(_ context.Context, t *torture, a action) error {
	return each(a.Nodes, func(node string) error { return t.disks[node].Freeze() })
}

// stutterDisks makes disks hang for some milliseconds again and again, half of the time.
func stutterDisks(ctx context.Context, t *torture, a action) error {
	ctx, t.stopStutter = context.WithCancel(ctx)
	beat := time.Duration(a.Amount) * time.Millisecond
	for _, node := range a.Nodes {
		t.stuttering.Go(func() {
			for ctx.Err() == nil {
				if err := t.disks[node].Freeze(); err != nil {
					t.violation("%s can't be frozen: %v", node, err)
					return
				}
				pauseFor(ctx, beat)
				if err := t.disks[node].Thaw(); err != nil {
					t.violation("%s can't be thawed: %v", node, err)
					return
				}
				pauseFor(ctx, beat)
			}
		})
	}
	return nil
}

func thawDisk(_ context.Context, t *torture, a action) error { return t.thaw(a.Nodes) }

func (t *torture) thaw(nodes []string) error {
	if t.stopStutter != nil {
		t.stopStutter()
		t.stuttering.Wait()
		t.stopStutter = nil
	}
	return each(nodes, func(node string) error {
		if d := t.disks[node]; d != nil {
			return d.Thaw()
		}
		return nil
	})
}

func fillDisk(_ context.Context, t *torture, a action) error {
	return each(a.Nodes, func(node string) error { return t.disks[node].Fill() })
}

// freeDisk makes room again; a node whose disk was full must not have ended.
func freeDisk(_ context.Context, t *torture, a action) error {
	return each(a.Nodes, func(node string) error {
		if !t.cluster.Node(node).Running() && t.oneFault {
			t.violation("%s ended while its disk was full", node)
		}
		return t.disks[node].Free()
	})
}

func overload(_ context.Context, t *torture, _ action) error {
	t.load.overload()
	return nil
}

func endOverload(_ context.Context, t *torture, _ action) error {
	t.load.endOverload()
	return nil
}
