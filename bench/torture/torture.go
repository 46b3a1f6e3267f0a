package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// options describe a run.
type options struct {
	binary    string
	dir       string // of data, logs and artefacts
	nodes     int
	shards    int
	seed      uint64
	length    time.Duration
	script    *script  // given: replayed, and length is its own
	only      []string // names of faults; empty: all that the machine can do
	untilBad  bool     // ends at the first violation
	ledger    string
	diskBytes int64
	server    []string // more arguments of every node
	out       io.Writer
}

// torture is one run: a cluster, clients, and what is done to them.
//
//	machine checked ─► disks, network, processes ─► load ─► rounds: peace, faults, hold, heal, recovered? ─► load ended
//	─► replicas equal? all that was acknowledged there? histories linearizable? memory and goroutines back? ─► ledger
type torture struct {
	opts    options
	nodes   []string
	cluster *cluster.Cluster
	network *network
	disks   map[string]*cluster.Disk
	load    *load
	began   time.Time

	done     script // what was done, for a replay
	oneFault bool   // the round under way has one fault
	struck   map[string]int
	// stopStutter ends disks' stuttering, which stuttering joins; nil: none do.
	stopStutter context.CancelFunc
	stuttering  sync.WaitGroup

	mu         sync.Mutex
	violations []string
	bad        context.CancelFunc // called at the first violation, where that ends the run
}

// result is what the ledger keeps.
type result struct {
	seed       uint64
	length     time.Duration
	operations int64
	checked    int64 // of them, in histories found linearizable
	unknown    int64
	struck     map[string]int
	gaps       []time.Duration // the worst of each round in which something was broken
	violations []string
}

// recoveryMax bounds how long a shard may stand still once all is healed (shared/faults.md, check d).
const recoveryMax = 10 * time.Second

// runTorture carries a run out. An error means that it could not be carried out; violations are in the result.
func runTorture(ctx context.Context, opts options) (*result, error) {
	t := &torture{opts: opts, struck: make(map[string]int), disks: make(map[string]*cluster.Disk), began: time.Now()}
	t.done = script{Seed: opts.seed, Nodes: opts.nodes}
	for i := range opts.nodes {
		t.nodes = append(t.nodes, fmt.Sprintf("n%d", i+1))
	}
	ctx, t.bad = context.WithCancel(ctx)
	defer t.bad()
	usable, err := t.prepare()
	defer t.clean()
	if err != nil {
		return nil, err
	}
	if err := t.startCluster(ctx); err != nil {
		return nil, err
	}
	before, err := t.usage(ctx)
	if err != nil {
		return nil, err
	}
	t.load, err = newLoad(ctx, t.cluster.Endpoints(), opts.seed, t.violation, opts.dir)
	if err != nil {
		return nil, err
	}
	defer t.load.close()
	t.load.begin()
	gaps, roundsErr := t.rounds(ctx, usable)
	t.load.end()
	t.say("load ended: %d operations, %d of unknown outcome, %d refused", t.load.done.Load(), t.load.unknown.Load(), t.load.refused.Load())
	var checkErr error
	if roundsErr == nil {
		checkErr = t.checkAtEnd(before)
	}
	if err := t.done.write(filepath.Join(opts.dir, "script.json")); err != nil {
		return nil, err
	}
	r := &result{seed: opts.seed, length: time.Since(t.began), operations: t.load.done.Load(), checked: t.load.periods.checkedOperations(),
		unknown: t.load.unknown.Load(), struck: t.struck, gaps: gaps, violations: t.violations}
	return r, errors.Join(roundsErr, checkErr)
}

// say prints a line of progress.
func (t *torture) say(format string, args ...any) {
	fmt.Fprintf(t.opts.out, "%8.1fs  %s\n", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
}

// violation notes that a promise was broken. From any goroutine.
func (t *torture) violation(format string, args ...any) {
	t.mu.Lock()
	t.violations = append(t.violations, fmt.Sprintf(format, args...))
	n := len(t.violations)
	t.mu.Unlock()
	if n <= 20 {
		t.say("VIOLATION: "+format, args...)
	}
	if t.opts.untilBad {
		t.bad()
	}
}

// prepare makes disks and network as far as this machine can, and returns the faults that it can inject.
func (t *torture) prepare() ([]*fault, error) {
	if why := needsOfNetwork(); why != "" {
		t.say("no network faults: this needs %s", why)
	} else {
		n, err := newNetwork(t.nodes)
		if err != nil {
			return nil, err
		}
		t.network = n
	}
	for _, node := range t.nodes {
		d, err := cluster.NewDisk(t.opts.dir, node, t.opts.diskBytes)
		if errors.Is(err, cluster.ErrNoLoopDisks) {
			t.say("no power cuts and disk faults: %v", err)
			break
		}
		if err != nil {
			return nil, err
		}
		t.disks[node] = d
	}
	var usable []*fault
	for _, f := range faults {
		switch {
		case len(t.opts.only) > 0 && !slices.Contains(t.opts.only, f.name):
		case f.needs == namespaces && t.network == nil:
		case f.needs == disks && len(t.disks) < len(t.nodes):
		default:
			usable = append(usable, f)
		}
	}
	return usable, nil
}

func (t *torture) startCluster(ctx context.Context) error {
	opts := cluster.Options{Binary: t.opts.binary, Dir: t.opts.dir, Nodes: len(t.nodes), Shards: t.opts.shards,
		ServerArgs: t.opts.server, HTTP: true}
	if t.network != nil {
		opts.Wrap = t.network.wrap
		for i := range t.nodes {
			opts.Hosts = append(opts.Hosts, nodeHost(i))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, opts)
	if err != nil {
		return err
	}
	t.cluster = c
	t.say("%d nodes, data in %s", len(t.nodes), t.opts.dir)
	return nil
}

// clean ends and removes what the run made, except for logs, histories and, after a violation, data.
func (t *torture) clean() {
	if err := t.thaw(t.nodes); err != nil { // else processes that hang can't be ended
		t.say("%v", err)
	}
	if t.cluster != nil {
		t.cluster.Close()
	}
	for node, d := range t.disks {
		keep := len(t.violations) > 0
		if keep {
			run("cp", "-a", d.Dir, filepath.Join(t.opts.dir, "data-of-"+node))
		}
		if err := d.Remove(); err != nil {
			t.say("%v", err)
		}
	}
	if t.network != nil {
		if err := t.network.close(); err != nil {
			t.say("%v", err)
		}
	}
}

// rounds goes through the script and returns the worst gap of each round with faults.
func (t *torture) rounds(ctx context.Context, usable []*fault) (gaps []time.Duration, err error) {
	writer := newScriptWriter(t.opts.seed, usable, t.nodes)
	for i := 0; ctx.Err() == nil; i++ {
		var r round
		switch {
		case t.opts.script != nil && i < len(t.opts.script.Rounds):
			r = t.opts.script.Rounds[i]
		case t.opts.script != nil || time.Since(t.began) >= t.opts.length:
			return gaps, nil
		default:
			r = writer.next()
		}
		t.done.Rounds = append(t.done.Rounds, r)
		gap, err := t.round(ctx, r)
		if err != nil && ctx.Err() == nil {
			return gaps, err
		}
		if len(r.Actions) > 0 && ctx.Err() == nil {
			gaps = append(gaps, gap)
		}
		if len(t.violations) > 0 && t.opts.untilBad {
			return gaps, nil
		}
	}
	return gaps, nil
}

func (t *torture) round(ctx context.Context, r round) (gap time.Duration, err error) {
	pauseFor(ctx, time.Duration(r.PeaceMS)*time.Millisecond)
	t.load.probes.reset()
	actions, err := t.aim(ctx, r.Actions)
	if err != nil {
		return 0, err
	}
	t.oneFault = len(actions) == 1
	for _, a := range actions {
		t.struck[a.Fault]++
		if err := faultNamed(a.Fault).begin(ctx, t, a); err != nil {
			return 0, fmt.Errorf("%s: %w", a, err)
		}
	}
	pauseFor(ctx, time.Duration(r.HoldMS)*time.Millisecond)
	// The network first: a node that is cut off can't be waited for.
	slices.SortStableFunc(actions, func(a, b action) int {
		return cmp.Compare(faultNamed(a.Fault).kind, faultNamed(b.Fault).kind)
	})
	for _, a := range actions {
		if err := faultNamed(a.Fault).end(ctx, t, a); err != nil {
			return 0, fmt.Errorf("healing %s: %w", a, err)
		}
	}
	if err := t.revive(ctx); err != nil {
		return 0, err
	}
	healed := time.Now()
	for !t.load.probes.since(healed) {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if time.Since(healed) > recoveryMax {
			t.violation("a shard stands still %s after %s was healed: %s\n%s", recoveryMax, describe(actions), t.load.probes.standing(t.load.prober(), healed), t.status(ctx))
			return 0, t.awaitProbes(ctx, healed)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at a condition
	}
	recovered := time.Since(healed)
	gap = t.load.probes.reset()
	t.say("%-40s held %4.1fs  recovered in %4.1fs  worst gap %4.1fs  %d operations", describe(actions), float64(r.HoldMS)/1000,
		recovered.Seconds(), gap.Seconds(), t.load.done.Load())
	return gap, nil
}

// awaitProbes gives a cluster that stands still more time, so that what follows can be checked all the same.
func (t *torture) awaitProbes(ctx context.Context, healed time.Time) error {
	for !t.load.probes.since(healed) {
		if ctx.Err() != nil || time.Since(healed) > 6*recoveryMax {
			return fmt.Errorf("the cluster does not recover: %s", t.status(ctx))
		}
		time.Sleep(20 * time.Millisecond) // between two looks at a condition
	}
	return nil
}

func describe(actions []action) string {
	if len(actions) == 0 {
		return "no fault"
	}
	var names []string
	for _, a := range actions {
		names = append(names, a.String())
	}
	return strings.Join(names, " + ")
}

// aim resolves "leader".
func (t *torture) aim(ctx context.Context, actions []action) ([]action, error) {
	aimed := slices.Clone(actions)
	for i, a := range aimed {
		if !slices.Contains(a.Nodes, leader) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, recoveryMax)
		s, err := t.cluster.AwaitStatus(ctx, cluster.Led)
		cancel()
		if err != nil {
			return nil, err
		}
		id, _ := cluster.MostLeading(s)
		aimed[i].Nodes = []string{id}
	}
	return aimed, nil
}

// start runs a node's process again and waits until it listens.
func (t *torture) start(ctx context.Context, node string) error {
	p := t.cluster.Node(node)
	if p.Running() {
		return nil
	}
	if err := p.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return p.AwaitListening(ctx)
}

// revive starts nodes that ended though nobody killed them, which some may: a disk that hangs or fails ends a process by
// design, and paused ones may find themselves too late. What they said last is shown.
func (t *torture) revive(ctx context.Context) error {
	for _, p := range t.cluster.Nodes() {
		if p.Running() {
			continue
		}
		t.say("%s had ended by itself: %s", p.ID, lastLine(p.LogPath))
		if text := panicIn(p.LogPath); text != "" {
			t.violation("%s panicked: %s", p.ID, text)
		}
		if err := t.start(ctx, p.ID); err != nil {
			return err
		}
	}
	return nil
}

func (t *torture) status(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := t.cluster.AwaitStatus(ctx, func(*client.Status) bool { return false })
	return err.Error()
}

func lastLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}

// panicIn returns the first line of a Go panic or data race in a log; empty: there is none.
func panicIn(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "WARNING: DATA RACE") {
			return line
		}
	}
	return ""
}
