package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// watched is what writers know of their writes, and a watcher of its changes.
type watched struct {
	t  *testing.T
	mu sync.Mutex
	// acknowledged are the values, "" for a delete, by key and version; unknown those whose outcome nobody was told.
	acknowledged map[string]map[uint64]string
	unknown      map[string]bool
	notDone      map[string]bool
	writes       int

	// seen are the changes of each key in the order of their coming. The watcher's own.
	seen  map[string][]client.Change
	count int
	begun chan struct{} // closed when it watches
}

const watchedKeys = 40

// write sets or deletes keys, each value once, until the context ends.
func (w *watched) write(ctx context.Context, cl *client.Client, id int) {
	random := rand.New(rand.NewPCG(7, uint64(id)))
	for n := 0; ctx.Err() == nil; n++ {
		key, value := fmt.Sprintf("watched-%d", random.IntN(watchedKeys)), fmt.Sprintf("%d-%d", id, n)
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		var version uint64
		var err error
		if random.IntN(10) == 0 {
			// Deletes have no version to tell them by; they are checked by what the next change says was there before.
			_, err = cl.Delete(call, []byte(key))
			value = ""
		} else {
			var r client.SetResult
			r, err = cl.Set(call, []byte(key), []byte(value))
			version = r.Version
		}
		cancel()
		w.mu.Lock()
		switch {
		case err == nil && value != "":
			if w.acknowledged[key] == nil {
				w.acknowledged[key] = make(map[uint64]string)
			}
			w.acknowledged[key][version] = value
			w.writes++
		case err == nil, value == "":
		case errors.Is(err, client.ErrOutcomeUnknown):
			w.unknown[value] = true
		default:
			w.notDone[value] = true
		}
		w.mu.Unlock()
	}
}

// take notes a change, and checks it against the one before: with the previous state that it tells of, none can be missing between.
func (w *watched) take(c client.Change) {
	key := string(c.Key)
	before := w.seen[key]
	switch {
	case len(before) == 0:
		if c.Previous != nil {
			w.t.Errorf("the first change of %s, at %d, says that there was version %d", key, c.Version, c.Previous.Version)
		}
	default:
		last := before[len(before)-1]
		switch {
		case c.Version <= last.Version:
			w.t.Errorf("%s: version %d comes after %d", key, c.Version, last.Version)
		case last.Kind != client.ChangeSet && c.Previous != nil:
			w.t.Errorf("%s: version %d says that there was %q@%d after it had been deleted", key, c.Version, c.Previous.Value, c.Previous.Version)
		case last.Kind == client.ChangeSet && (c.Previous == nil || c.Previous.Version != last.Version || !bytes.Equal(c.Previous.Value, last.Value)):
			w.t.Errorf("%s: version %d says that there was %v, but what came last was %q@%d", key, c.Version, c.Previous, last.Value, last.Version)
		}
	}
	c.Previous = nil
	w.seen[key] = append(before, c)
	w.count++
}

// check compares what was seen with what was acknowledged, and its end with what is there.
func (w *watched) check(cl *client.Client) {
	missing := 0
	for key, versions := range w.acknowledged {
		got := make(map[uint64]string)
		for _, c := range w.seen[key] {
			got[c.Version] = string(c.Value)
			if w.notDone[string(c.Value)] {
				w.t.Errorf("%s: %q was seen, and not done", key, c.Value)
			}
		}
		for version, value := range versions {
			if got[version] != value {
				if missing++; missing < 5 {
					w.t.Errorf("%s: the acknowledged %q@%d was not seen: %q", key, value, version, got[version])
				}
			}
		}
	}
	if missing > 0 {
		w.t.Errorf("%d acknowledged writes were not seen", missing)
	}
	for key, changes := range w.seen {
		last := changes[len(changes)-1]
		v, err := cl.Get(testContext(w.t), []byte(key))
		switch {
		case last.Kind != client.ChangeSet && !errors.Is(err, client.ErrNotFound):
			w.t.Errorf("%s was last seen as deleted, and is %q@%d, %v", key, v.Value, v.Version, err)
		case last.Kind == client.ChangeSet && (err != nil || v.Version != last.Version || !bytes.Equal(v.Value, last.Value)):
			w.t.Errorf("%s was last seen as %q@%d, and is %q@%d, %v", key, last.Value, last.Version, v.Value, v.Version, err)
		}
	}
}

// finished reports whether the watcher has seen the last change of every key.
func (w *watched) finished(last map[string]uint64) bool {
	for key, version := range last {
		if seen := w.seen[key]; len(seen) == 0 || seen[len(seen)-1].Version < version {
			return false
		}
	}
	return len(last) > 0
}

// follow takes changes in until all is seen. A watch that is to begin again does so every few hundred changes, from its token, with
// another client.
func (w *watched) follow(ctx context.Context, c *cluster.Cluster, again bool, last func() map[string]uint64) (begun int, err error) {
	var token *client.Token
	for {
		begun++
		over, err := w.followOnce(ctx, c, again, &token, last)
		if over || err != nil {
			return begun, err
		}
	}
}

func (w *watched) followOnce(ctx context.Context, c *cluster.Cluster, again bool, token **client.Token, last func() map[string]uint64) (over bool, err error) {
	cl, err := client.New(ctx, c.Endpoints())
	if err != nil {
		return false, err
	}
	defer cl.Close()
	options := []client.WatchOption{client.WithPrevious(), client.Buffer(20_000)}
	if *token != nil {
		options = append(options, client.From(**token))
	}
	watch, err := cl.Watch(ctx, client.Prefix([]byte("watched-")), options...)
	if err != nil {
		return false, err
	}
	defer watch.Close()
	if w.begun != nil {
		close(w.begun)
		w.begun = nil
	}
	for goal := w.count + 300; !again || w.count < goal; {
		// A context that ends does not end the watch; it lets this look whether all is seen.
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		change, err := watch.Next(short)
		cancel()
		switch {
		case err == nil:
			w.take(change)
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return false, fmt.Errorf("after %d changes: %w", w.count, err)
		case w.finished(last()):
			return true, nil
		}
	}
	now := watch.Token()
	*token = &now
	return false, nil
}

// Writers write while leaders are killed and paused. A watcher that stays, and one that begins again and again from its last token, with
// another client each time, both see every acknowledged change exactly once, in order, and end up with what is there.
func TestWatchWhileLeadersAreKilledAndPaused(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms"}})
	ctx, stop := context.WithCancel(testContext(t))
	defer stop()
	shared := &watched{t: t, acknowledged: make(map[string]map[uint64]string), unknown: make(map[string]bool), notDone: make(map[string]bool)}
	var last map[string]uint64 // guarded by shared.mu
	watchers := make([]*watched, 2)
	var watching sync.WaitGroup
	for i := range watchers {
		w := &watched{t: t, seen: make(map[string][]client.Change), begun: make(chan struct{})}
		watchers[i] = w
		begun := w.begun
		watching.Go(func() {
			n, err := w.follow(ctx, c, i == 1, func() map[string]uint64 {
				shared.mu.Lock()
				defer shared.mu.Unlock()
				return last
			})
			if err != nil {
				t.Errorf("watcher %d: %v", i, err)
				stop()
			}
			t.Logf("watcher %d saw %d changes, and began %d times", i, w.count, n)
		})
		select {
		case <-begun:
		case <-ctx.Done():
			t.Fatal("the watch did not begin")
		}
	}
	writing, stopWriting := context.WithCancel(ctx)
	defer stopWriting()
	var writers sync.WaitGroup
	for id := range 6 {
		cl := connect(t, c)
		writers.Go(func() { shared.write(writing, cl, id) })
	}
	writes := func() int {
		shared.mu.Lock()
		defer shared.mu.Unlock()
		return shared.writes
	}
	progress := func(more int) {
		t.Helper()
		goal := writes() + more
		for deadline := time.Now().Add(patience); writes() < goal; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) || ctx.Err() != nil {
				t.Fatalf("%d writes, want %d", writes(), goal)
			}
		}
	}
	progress(200)
	for round := range 8 {
		s := await(t, c, cluster.Led)
		id, _ := cluster.MostLeading(s)
		p := c.Node(id)
		if round%2 == 0 {
			kill(t, p)
			progress(300)
			restart(t, p)
		} else {
			if err := p.Pause(); err != nil {
				t.Fatal(err)
			}
			progress(300)
			if round == 3 { // longer than a client's patience with a node that says nothing
				time.Sleep(5 * time.Second)
			}
			if err := p.Resume(); err != nil {
				t.Fatal(err)
			}
		}
		progress(300)
	}
	stopWriting()
	writers.Wait()
	await(t, c, cluster.Converged)
	cl := connect(t, c)
	final := make(map[string]uint64)
	for i := range watchedKeys {
		key := fmt.Sprint("watched-", i)
		err := insist(ctx, func() error {
			r, err := cl.Set(ctx, []byte(key), []byte("end"))
			final[key] = r.Version
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	shared.mu.Lock()
	last = final
	shared.mu.Unlock()
	watching.Wait()
	t.Logf("%d sets acknowledged, %d unknown, %d not done", shared.writes, len(shared.unknown), len(shared.notDone))
	for _, w := range watchers {
		w.acknowledged, w.notDone = shared.acknowledged, shared.notDone
		w.check(cl)
	}
}

// A watcher that does not read is ended as compacted once the nodes have gone on without it, and hears where to begin again; those
// that read are not.
func TestSlowWatchIsCompacted(t *testing.T) {
	c := startCluster(t, cluster.Options{HTTP: true, ServerArgs: []string{"--watch-history-bytes", "100000"}})
	cl := connect(t, c)
	ctx := testContext(t)
	slow, err := cl.Watch(ctx, client.All(), client.Buffer(10_000))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	quick, err := cl.Watch(ctx, client.All())
	if err != nil {
		t.Fatal(err)
	}
	defer quick.Close()
	value := bytes.Repeat([]byte("v"), 1000)
	const writes = 1500
	for i := range writes {
		if err := insist(ctx, func() error { _, err := cl.Set(ctx, fmt.Append(nil, "k", i%50), value); return err }); err != nil {
			t.Fatal(err)
		}
		if _, err := quick.Next(ctx); err != nil {
			t.Fatalf("the quick one, after %d changes: %v", i, err)
		}
	}
	read := 0
	for err == nil {
		if _, err = slow.Next(ctx); err == nil {
			read++
		}
	}
	var compacted *client.CompactedError
	if !errors.As(err, &compacted) || read == 0 || read > 100 {
		t.Fatalf("the slow one read %d changes, then %v", read, err)
	}
	compactions := 0.0
	for _, p := range c.Nodes() {
		if err := p.Metrics(ctx, func(name, _ string, value float64) {
			if name == "ostraka_watch_compacted_total" {
				compactions += value
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if compactions == 0 {
		t.Error("no node has counted it")
	}
	// Another shard may have been too late as well: each restart mends one at least.
	for restarts := 0; ; restarts++ {
		restarted, err := cl.Watch(ctx, client.All(), client.From(compacted.Restart))
		if err != nil {
			t.Fatal(err)
		}
		defer restarted.Close()
		if err := insist(ctx, func() error { _, err := cl.Set(ctx, []byte("after"), nil); return err }); err != nil {
			t.Fatal(err)
		}
		var change client.Change
		for err == nil && string(change.Key) != "after" {
			change, err = restarted.Next(ctx)
		}
		if err == nil {
			return
		}
		if !errors.As(err, &compacted) || restarts > len(cl.Map().Shards()) {
			t.Fatalf("restart %d: %v", restarts, err)
		}
	}
}

// The command prints changes, goes on from a token, and ends with 0 by a signal.
func TestWatchCommand(t *testing.T) {
	c := startCluster(t, cluster.Options{})
	endpoint := c.Nodes()[0].Address
	set := func(key, value string) {
		t.Helper()
		if status, _, stderr := ostraka(t, "", "set", key, value, "--endpoints", endpoint); status != 0 {
			t.Fatal(stderr)
		}
	}
	run := func(want []string, between func(), args ...string) (token string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(testContext(t), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary, append([]string{"watch", "user:", "--endpoints", endpoint}, args...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		errs, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := bufio.NewScanner(errs)
		if !said.Scan() || !strings.HasPrefix(said.Text(), "watching from ") {
			t.Errorf("it says %q", said.Text())
		}
		between()
		lines := bufio.NewScanner(out)
		for _, line := range want {
			if !lines.Scan() || lines.Text() != line {
				t.Errorf("it prints %q, want %q", lines.Text(), line)
			}
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		for said.Scan() {
			if rest, ok := strings.CutPrefix(said.Text(), "go on with --from "); ok {
				token = rest
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("it ended with %v", err)
		}
		return token
	}
	set("user:1", "before")
	token := run([]string{"set\tuser:1\ta\tbefore", "set\tuser:1\tb\ta"}, func() {
		set("user:1", "a")
		set("other", "x")
		set("user:1", "b")
	}, "--previous")
	set("user:1", "c")
	run([]string{"set\tuser:1\tc"}, func() {}, "--from", token)
	if status, _, stderr := ostraka(t, "", "watch", "--from", "kaputt", "--endpoints", endpoint); status != 2 || !strings.Contains(stderr, "token") {
		t.Errorf("no token: %d, %q", status, stderr)
	}
}
