package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/bench/failover"
	"github.com/ostraka-db/ostraka/bench/history"
	"github.com/ostraka-db/ostraka/client"
)

// load is a set of clients that read, write, swap and delete a few keys at full speed, and record it.
type load struct {
	t        *testing.T
	recorder *history.Recorder
	stop     context.CancelFunc
	running  sync.WaitGroup
	unknown  atomic.Int64
	// acknowledged counts writes of unique keys; each was answered without an error.
	mu           sync.Mutex
	acknowledged map[string]string
}

const (
	loadClients = 6
	loadKeys    = 12
)

// startLoad begins the clients, each with a connection of its own.
func startLoad(t *testing.T, c *cluster.Cluster, seed uint64) *load {
	t.Helper()
	ctx, stop := context.WithCancel(testContext(t))
	l := &load{t: t, recorder: history.NewRecorder(), stop: stop, acknowledged: make(map[string]string)}
	for i := range loadClients {
		cl := connect(t, c)
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		l.running.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.step(ctx, cl, i, n, random)
			}
		})
	}
	// Registered last and so run first: the clients must have ended before their connections are closed.
	t.Cleanup(func() {
		stop()
		l.running.Wait()
	})
	return l
}

// end stops the clients, checks what they saw, and that every acknowledged unique write is there.
func (l *load) end(cl *client.Client) {
	l.t.Helper()
	l.stop()
	l.running.Wait()
	l.t.Logf("%d operations recorded, %d unknown outcomes, %d unique writes acknowledged",
		l.recorder.Len(), l.unknown.Load(), len(l.acknowledged))
	if len(l.acknowledged) == 0 || l.recorder.Len() < 100 {
		l.t.Fatal("the load did next to nothing")
	}
	picture := filepath.Join(l.t.ArtifactDir(), "history.html")
	if err := l.recorder.Check(patience, picture); err != nil {
		l.t.Error(err)
	}
	l.checkAcknowledged(cl)
}

func (l *load) checkAcknowledged(cl *client.Client) {
	l.t.Helper()
	var keys [][]byte
	for key := range l.acknowledged {
		keys = append(keys, []byte(key))
	}
	ctx, cancel := context.WithTimeout(testContext(l.t), patience)
	defer cancel()
	lost := 0
	for start := 0; start < len(keys); start += 500 {
		batch := keys[start:min(start+500, len(keys))]
		for i, got := range cl.MultiGet(ctx, batch) {
			if got.Err != nil || string(got.Value.Value) != l.acknowledged[string(batch[i])] {
				lost++
				if lost <= 5 {
					l.t.Errorf("acknowledged write of %s is not there: %q, %v", batch[i], got.Value.Value, got.Err)
				}
			}
		}
	}
	if lost > 0 {
		l.t.Errorf("%d of %d acknowledged writes are lost", lost, len(keys))
	}
}

// callTimeout is short, so that clients meet unknown outcomes and go on.
const callTimeout = 3 * time.Second

func (l *load) step(parent context.Context, cl *client.Client, id, n int, random *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), callTimeout)
	defer cancel()
	key := fmt.Sprintf("register-%d", random.IntN(loadKeys))
	value := fmt.Sprintf("%d-%d", id, n)
	in := history.Input{Key: key, Value: value}
	var out history.Output
	var err error
	call := l.recorder.Now()
	switch random.IntN(10) {
	case 0, 1, 2, 3:
		in.Kind, in.Value = history.Read, ""
		var got client.Value
		got, err = cl.Get(ctx, []byte(key))
		out.Found, out.Value = err == nil, string(got.Value)
		if errors.Is(err, client.ErrNotFound) {
			err = nil
		}
	case 4, 5, 6:
		in.Kind = history.Write
		_, err = cl.Set(ctx, []byte(key), []byte(value))
	case 7:
		in.Kind, in.Value = history.Delete, ""
		var got client.DeleteResult
		got, err = cl.Delete(ctx, []byte(key))
		out.Found = got.Deleted
	case 8:
		in.Kind, in.Old = history.CompareAndSet, fmt.Sprintf("%d-%d", random.IntN(loadClients), max(0, n-random.IntN(5)))
		_, err = cl.CompareAndSet(ctx, []byte(key), []byte(in.Old), []byte(value))
		out.Swapped = err == nil
		if errors.Is(err, client.ErrConditionNotMet) || errors.Is(err, client.ErrNotFound) {
			err = nil
		}
	default:
		l.unique(ctx, cl, id, n)
		return
	}
	switch {
	case err == nil:
	case errors.Is(err, client.ErrOutcomeUnknown):
		l.unknown.Add(1)
		out = history.Output{Unknown: true}
	case errors.Is(err, client.ErrUnavailable): // certainly not done, or a read that found nobody
		return
	default:
		l.t.Errorf("a client saw an error that is neither \"not done\" nor \"unknown\": %v", err)
		return
	}
	l.recorder.Add(id, call, in, out)
}

// unique writes a key that nobody else writes: if that is acknowledged it must be there at the end.
func (l *load) unique(ctx context.Context, cl *client.Client, id, n int) {
	key, value := fmt.Sprintf("unique-%d-%d", id, n), fmt.Sprint(n)
	if _, err := cl.Set(ctx, []byte(key), []byte(value)); err != nil {
		if !errors.Is(err, client.ErrOutcomeUnknown) && !errors.Is(err, client.ErrUnavailable) {
			l.t.Errorf("set: %v", err)
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acknowledged[key] = value
}

// progress waits until the load has recorded more operations, so that faults fall into a running load.
func (l *load) progress(operations int) {
	l.t.Helper()
	goal := l.recorder.Len() + operations
	deadline := time.Now().Add(patience)
	for l.recorder.Len() < goal {
		if time.Now().After(deadline) {
			l.t.Fatalf("the load makes no progress: %d of %d operations", l.recorder.Len(), goal)
		}
		time.Sleep(5 * time.Millisecond) // between two looks at a condition
	}
}

// Leaders are killed in turn, ten times, under load: no acknowledged write is lost, what clients saw is
// linearizable, and they saw no errors but typed ones.
func TestLeadersKilledInTurn(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms"}})
	l := startLoad(t, c, 1)
	for range 10 {
		l.progress(150)
		s := await(t, c, cluster.Led)
		id, _ := cluster.MostLeading(s)
		kill(t, c.Node(id))
		l.progress(30)
		restart(t, c.Node(id))
	}
	l.progress(100)
	l.end(connect(t, c))
	await(t, c, cluster.Converged)
}

// All processes are killed at once, with tiny snapshot thresholds so that snapshots are being taken all the
// time: nothing that was acknowledged is lost.
func TestAllKilledAtOnce(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"log only", nil},
		{"tiny snapshots", []string{"--snapshot-log-bytes", "2000", "--snapshot-trailing-entries", "20"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := startCluster(t, cluster.Options{ServerArgs: append(tc.args, "--election-timeout", "500ms")})
			l := startLoad(t, c, 2)
			for range 3 {
				l.progress(600)
				if tc.args != nil {
					await(t, c, snapshotsEverywhere)
				}
				var all sync.WaitGroup
				for _, p := range c.Nodes() {
					all.Go(func() { kill(t, p) })
				}
				all.Wait()
				for _, p := range c.Nodes() {
					restart(t, p)
				}
			}
			l.progress(100)
			l.end(connect(t, c))
			await(t, c, cluster.Converged)
		})
	}
}

// snapshotsEverywhere holds for a status in which every replica has taken a snapshot.
func snapshotsEverywhere(s *client.Status) bool {
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			if r.SnapshotIndex == 0 {
				return false
			}
		}
	}
	return true
}

// A leader is stopped for longer than an election, and goes on: what it then answers must not be older than
// what others wrote meanwhile. The history's reads, sent to it too, prove it.
func TestPausedLeaderServesNoStaleRead(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms"}})
	l := startLoad(t, c, 3)
	// Besides the load, readers that know only one node each and so ask it the moment it wakes up.
	ctx := testContext(t)
	asked, stop := context.WithCancel(ctx)
	defer stop()
	var readers sync.WaitGroup
	for i, p := range c.Nodes() {
		cl, err := client.New(ctx, []string{p.Address})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cl.Close() })
		readers.Go(func() {
			for n := 0; asked.Err() == nil; n++ {
				in := history.Input{Kind: history.Read, Key: fmt.Sprintf("register-%d", n%loadKeys)}
				call := l.recorder.Now()
				once, cancel := context.WithTimeout(ctx, 2*time.Second)
				got, err := cl.Get(once, []byte(in.Key))
				cancel()
				if err == nil || errors.Is(err, client.ErrNotFound) {
					l.recorder.Add(loadClients+i, call, in, history.Output{Found: err == nil, Value: string(got.Value)})
				}
			}
		})
	}
	for range 4 {
		l.progress(200)
		s := await(t, c, cluster.Led)
		id, _ := cluster.MostLeading(s)
		p := c.Node(id)
		if err := p.Pause(); err != nil {
			t.Fatal(err)
		}
		// The others elect new leaders and write on; only then may the old one wake up.
		await(t, c, ledByOthers(id))
		l.progress(100)
		if err := p.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	l.progress(100)
	stop()
	readers.Wait()
	l.end(connect(t, c))
}

// The command that measures it: processes are ended, killed or gently, and all shards take writes again. A gentle end fails no call.
func TestBenchFailover(t *testing.T) {
	notWithRace(t)
	for _, gently := range []bool{false, true} {
		status, stdout, stderr := ostraka(t, "", "bench", "failover", "--kills", "2", "--shards", "3", "--json", fmt.Sprintf("--gently=%v", gently))
		var s failover.Summary
		if err := json.Unmarshal([]byte(stdout), &s); status != 0 || err != nil {
			t.Fatalf("exit status %d, %v: %s%s", status, err, stdout, stderr)
		}
		if s.Ends != 2 || s.GapMS.Max <= 0 || gently && s.Failed > 0 {
			t.Errorf("gently %v: %+v\n%s", gently, s, stderr)
		}
	}
	if status, _, stderr := ostraka(t, "", "bench", "failover", "--nodes", "2"); status != 2 || !strings.Contains(stderr, "--nodes") {
		t.Errorf("two nodes: exit status %d: %s", status, stderr)
	}
}
