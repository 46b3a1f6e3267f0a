package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// write sets a key behind the client's back, which is every shard's leader's business.
func (f *fakeCluster) write(key, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(key, []byte(value), 0)
}

func (f *fakeCluster) adjust(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// next is the next change within patience, as "kind key=value".
func next(t *testing.T, w *Watch) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%v %s=%s", c.Kind, c.Key, c.Value)
}

func watch(t *testing.T, c *Client, keys KeyRange, opts ...WatchOption) *Watch {
	t.Helper()
	w, err := c.Watch(t.Context(), keys, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// A watch yields what comes after it began, of its keys, of all shards; and another goes on behind its token.
func TestWatchYieldsChanges(t *testing.T) {
	f := newFakeCluster(t, 3, 4)
	c := f.client()
	f.write("a:before", "0")
	w := watch(t, c, Prefix([]byte("a:")), WithPrevious())
	one := watch(t, c, Key([]byte("a:3")))
	if got := len(one.parts); got != 1 {
		t.Errorf("a watch of one key has %d parts", got)
	}
	for i := range 20 {
		f.write(fmt.Sprint("a:", i), "1")
		f.write(fmt.Sprint("b:", i), "1")
	}
	var got []string
	for range 20 {
		got = append(got, next(t, w))
	}
	slices.Sort(got)
	for i := range 20 {
		if want := fmt.Sprintf("set a:%d=1", i); !slices.Contains(got, want) {
			t.Errorf("%q is missing of %q", want, got)
		}
	}
	if got := next(t, one); got != "set a:3=1" {
		t.Errorf("the key's watch yields %s", got)
	}
	token := w.Token()
	w.Close()
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	f.write("a:1", "2")
	if _, err := c.Delete(t.Context(), []byte("a:1")); err != nil {
		t.Fatal(err)
	}
	resumed := watch(t, f.client(), Prefix([]byte("a:")), From(token), WithPrevious())
	if got := next(t, resumed); got != "set a:1=2" {
		t.Errorf("behind the token: %s", got)
	}
	change, err := resumed.Next(t.Context())
	if err != nil || change.Kind != ChangeDelete || change.Previous == nil || string(change.Previous.Value) != "2" ||
		change.Previous.Version == 0 || change.Version <= change.Previous.Version || change.Time.UnixMilli() != int64(change.Version) {
		t.Errorf("the delete: %+v, %v", change, err)
	}
}

// Whatever happens to the nodes, each change comes once and in order: streams that break, leaders that change, nodes that fall silent
// or drain, and even a node that sends what it should not.
func TestWatchGoesOnElsewhere(t *testing.T) {
	f := newFakeCluster(t, 3, 1)
	c := f.client()
	w := watch(t, c, All(), Buffer(1000))
	written, seen := 0, 0
	write := func(n int) {
		for range n {
			f.write("k", fmt.Sprint(written))
			written++
		}
	}
	read := func(n int) {
		t.Helper()
		for range n {
			if got, want := next(t, w), fmt.Sprintf("set k=%d", seen); got != want {
				t.Fatalf("%s, want %s", got, want)
			}
			seen++
		}
	}
	for i, disturb := range []func(){
		func() { f.node("n1").reset() },
		func() { f.lead(1, "n2"); f.refuse("n1", true) },
		func() { f.refuse("n1", false); f.adjust(func() { f.node("n2").watch.mute = true }) },
		func() {
			f.adjust(func() {
				f.node("n2").watch.mute = false
				for _, n := range f.nodes {
					n.watch.again = true
				}
			})
			for _, n := range f.nodes {
				n.reset()
			}
		},
		func() { f.adjust(func() { f.node("n3").watch.refuse = notDone(ostrakapb.Reason_REASON_DRAINING) }) },
		func() {
			f.adjust(func() {
				f.node("n1").watch.refuse = notDone(ostrakapb.Reason_REASON_NO_LEADER)
				f.node("n3").watch.refuse = nil
			})
		},
	} {
		write(30)
		read(10)
		disturb()
		write(30)
		read(50)
		if seen != written {
			t.Fatalf("%d: %d seen, %d written", i, seen, written)
		}
	}
	if n := len(w.queue); n != 0 {
		t.Errorf("%d changes too many", n)
	}
}

// A watch moves to its shard's leader, which hears of changes first, as soon as a node names it.
func TestWatchFollowsTheLeader(t *testing.T) {
	f := newFakeCluster(t, 3, 1)
	c := f.client()
	w := watch(t, c, All())
	f.write("k", "1")
	next(t, w)
	f.lead(1, "n3")
	f.adjust(func() {
		for _, n := range f.nodes {
			n.watch.tellsLeader = true
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		moved := f.node("n3").watch.streams == 1
		f.mu.Unlock()
		if moved {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it stays where it is")
		}
	}
	f.write("k", "2")
	if got := next(t, w); got != "set k=2" {
		t.Error(got)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.node("n1").watch.streams + f.node("n2").watch.streams + f.node("n3").watch.streams; s != 2 {
		t.Errorf("%d streams", s)
	}
}

// One stream for each shard carries all watches; ended ones leave nothing behind, and the stream ends with the last.
func TestWatchesShareStreams(t *testing.T) {
	f := newFakeCluster(t, 1, 2)
	c := f.client()
	var all []*Watch
	for i := range 600 {
		all = append(all, watch(t, c, Key(fmt.Append(nil, "k", i))))
	}
	for i, w := range all {
		f.write(fmt.Sprint("k", i), "v")
		if got, want := next(t, w), fmt.Sprintf("set k%d=v", i); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	f.mu.Lock()
	if s := f.node("n1").watch; s.streams != 2 || s.watches != 600 {
		t.Errorf("%d streams with %d watches", s.streams, s.watches)
	}
	f.mu.Unlock()
	for _, w := range all {
		w.Close()
	}
	c.watching.mu.Lock()
	if n := len(c.watching.feeds); n != 0 {
		t.Errorf("%d feeds are left", n)
	}
	c.watching.mu.Unlock()
	c.watching.running.Wait()
}

// A watch that nobody reads holds no more than its buffer and a change for each shard; what it did not hold comes when it is read.
func TestWatchBufferIsBounded(t *testing.T) {
	f := newFakeCluster(t, 3, 2)
	c := f.client()
	const buffer, value = 10_000, 500
	w := watch(t, c, All(), Buffer(buffer))
	const writes = 300
	for i := range writes {
		f.write(fmt.Sprint("k", i), strings.Repeat("v", value))
	}
	full := func() (bytes int64) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, a := range w.queue {
			bytes += a.bytes
		}
		return bytes
	}
	for deadline := time.Now().Add(20 * time.Second); full() < buffer; {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are buffered", full())
		}
		time.Sleep(time.Millisecond)
	}
	for i := range writes {
		next(t, w)
		if got := full(); got > buffer+2*(value+100) {
			t.Fatalf("%d bytes are buffered after %d changes", got, i)
		}
	}
}

// A watch that one node can't serve any more goes on at another that can. Where none can it ends, behind all that it had, and says where
// to begin again.
func TestWatchIsCompacted(t *testing.T) {
	f := newFakeCluster(t, 3, 2)
	c := f.client()
	other := watch(t, c, All())
	early := watch(t, c, All()).Token()
	for i := range 10 {
		f.write(fmt.Sprint("k", i), "v")
		next(t, other)
	}
	f.adjust(func() {
		f.node("n1").watch.floor = f.version
		f.node("n3").watch.floor = f.version
	})
	w := watch(t, c, All(), From(early))
	for range 10 {
		next(t, w)
	}
	for _, w := range []*Watch{w, other} {
		awaitToken(t, w, 10)
	}
	f.adjust(func() { f.node("n2").watch.floor = f.version })
	for _, n := range f.nodes {
		n.reset()
	}
	f.write("k0", "new")
	for _, w := range []*Watch{w, other} { // they are up to date, and don't care
		if got := next(t, w); got != "set k0=new" {
			t.Error(got)
		}
	}
	late := watch(t, c, All(), From(early))
	_, err := late.Next(t.Context())
	var compacted *CompactedError
	if !errors.Is(err, ErrCompacted) || !errors.As(err, &compacted) {
		t.Fatalf("a token from too long ago: %v", err)
	}
	if _, again := late.Next(t.Context()); !errors.Is(again, ErrCompacted) {
		t.Errorf("and then: %v", again)
	}
	restarted := watch(t, c, Key([]byte("k1")), From(compacted.Restart))
	f.write("k1", "after")
	if got := next(t, restarted); got != "set k1=after" {
		t.Errorf("from the restart: %s", got)
	}
	if got := next(t, other); got != "set k1=after" {
		t.Errorf("the other: %s", got)
	}
}

// The token of a quiet watch moves on, so that it does not grow too old.
func TestTokenOfAQuietWatchMovesOn(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	w := watch(t, c, Key([]byte("quiet")))
	for range 5 {
		f.write("other", "v")
	}
	awaitToken(t, w, 5)
}

// awaitToken waits until a watch's token stands at a version in all shards.
func awaitToken(t *testing.T, w *Watch, version uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		positions, err := w.Token().read(clusterMark(w.c.ClusterID()))
		if err != nil {
			t.Fatal(err)
		}
		there := true
		for _, p := range positions {
			there = there && p.version >= version
		}
		if there {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it stands at %v", positions)
		}
	}
}

func TestWatchRefusals(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	f.limits.key = 10
	c := f.client()
	for name, test := range map[string]struct {
		keys KeyRange
		opts []WatchOption
		want error
	}{
		"backwards":     {KeyRange{[]byte("b"), []byte("a")}, nil, ErrInvalid},
		"no buffer":     {All(), []WatchOption{Buffer(0)}, ErrInvalid},
		"no token":      {All(), []WatchOption{From("")}, ErrInvalid},
		"not a token":   {All(), []WatchOption{From("kaputt!")}, ErrInvalid},
		"other cluster": {All(), []WatchOption{From(newToken(clusterMark("c2"), nil))}, ErrWrongCluster},
		"other shard":   {All(), []WatchOption{From(newToken(clusterMark("c1"), map[shard.ID]position{7: {}}))}, ErrInvalid},
		"long key":      {Key(make([]byte, 11)), nil, ErrLimit},
	} {
		if _, err := c.Watch(t.Context(), test.keys, test.opts...); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	watch(t, c, Key(make([]byte, 10)))
	// A node that refuses for good ends the watch.
	f.adjust(func() {
		f.node("n1").watch.refuse = &ostrakapb.ErrorDetail{Reason: ostrakapb.Reason_REASON_UNSUPPORTED}
	})
	if _, err := watch(t, c, All()).Next(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.adjust(func() { f.node("n1").watch.refuse = nil })
	w := watch(t, c, All())
	cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	f.write("a", "1")
	if got := next(t, w); got != "set a=1" {
		t.Errorf("after a context ended: %s", got)
	}
	c.Close()
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("of a closed client: %v", err)
	}
	if _, err := c.Watch(t.Context(), All()); !errors.Is(err, ErrClosed) && !errors.Is(err, ErrUnavailable) {
		t.Errorf("a watch of a closed client: %v", err)
	}
}

func TestRangesWithACommonSlot(t *testing.T) {
	for _, c := range []struct {
		keys KeyRange
		of   string // a key in the slot; empty: they don't share one
	}{
		{Key([]byte("a")), "a"},
		{Key([]byte("{t}a")), "t"},
		{Prefix([]byte("{t}")), "t"},
		{Prefix([]byte("x{t}a")), "t"},
		{KeyRange{[]byte("x{t}a"), []byte("x{t}c")}, "t"},
		{KeyRange{[]byte("x{t}"), []byte("x{t~")}, "t"}, // the same as the prefix
		{KeyRange{[]byte("x{t}"), []byte("x{u}")}, ""},
		{Prefix([]byte("{t")), ""},
		{Prefix([]byte("{}")), ""},
		{Prefix([]byte("{}{t}")), ""},
		{Prefix([]byte("a")), ""},
		{Prefix(nil), ""},
		{All(), ""},
		{KeyRange{Start: []byte("{t}")}, ""},
	} {
		slot, ok := commonSlot(c.keys)
		if ok != (c.of != "") || ok && slot != shard.SlotOfString(c.of) {
			t.Errorf("%q: %v, %v", c.keys, slot, ok)
		}
	}
}

func TestTokensRoundTrip(t *testing.T) {
	for _, positions := range []map[shard.ID]position{
		{}, {1: {}}, {1: {1, math.MaxUint32}, 2: {1 << 63, 0}, 256: {7, 8}, math.MaxUint32: {1, 1}},
	} {
		token := newToken(77, positions)
		got, err := token.read(77)
		if err != nil || len(got) != len(positions) {
			t.Errorf("%v: %v, %v", positions, got, err)
		}
		for id, p := range positions {
			if got[id] != p {
				t.Errorf("shard %d: %v, want %v", id, got[id], p)
			}
		}
		for i := range token {
			garbled := []byte(token)
			garbled[i] ^= 1
			if _, err := Token(garbled).read(77); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s with byte %d changed: %v", token, i, err)
			}
		}
	}
}

// FuzzToken: whatever is called a token is refused with a typed error, or says what a token of the same positions would say.
func FuzzToken(f *testing.F) {
	f.Add("")
	f.Add(string(newToken(0, nil)))
	f.Add(string(newToken(0, map[shard.ID]position{1: {5, math.MaxUint32}, 3: {1 << 40, 2}})))
	f.Fuzz(func(t *testing.T, text string) {
		positions, err := Token(text).read(0)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrWrongCluster) {
				t.Error(err)
			}
			return
		}
		again, err := newToken(0, positions).read(0)
		if err != nil || len(again) != len(positions) {
			t.Errorf("%v became %v, %v", positions, again, err)
		}
	})
}
