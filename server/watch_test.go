package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// watcher is a test's end of a Watch stream on one shard of a fakeServer.
type watcher struct {
	t       *testing.T
	f       *fakeServer
	replica *fakeReplica
	stream  grpc.BidiStreamingClient[ostrakapb.WatchRequest, ostrakapb.WatchResponse]
	// heard and ends are by watch, progress is the last.
	heard    map[uint64][]*ostrakapb.Change
	ends     map[uint64]*ostrakapb.WatchEnd
	progress *ostrakapb.WatchProgress
}

const endless = math.MaxInt32

func watchOf(t *testing.T, f *fakeServer, id shard.ID, creates ...*ostrakapb.WatchCreate) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := f.kv.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		for err == nil {
			_, err = stream.Recv()
		}
	})
	w := &watcher{t: t, f: f, replica: f.replicas[id], stream: stream, heard: make(map[uint64][]*ostrakapb.Change), ends: make(map[uint64]*ostrakapb.WatchEnd)}
	w.ask(&ostrakapb.WatchRequest{Shard: uint32(id), Create: creates})
	return w
}

func (w *watcher) ask(r *ostrakapb.WatchRequest) {
	w.t.Helper()
	if err := w.stream.Send(r); err != nil {
		w.t.Fatal(err)
	}
}

// hear takes one message.
func (w *watcher) hear() error {
	r, err := w.stream.Recv()
	if err != nil {
		return err
	}
	for _, c := range r.GetChanges() {
		w.heard[c.GetWatch()] = append(w.heard[c.GetWatch()], c.GetChanges()...)
	}
	for _, e := range r.GetEnds() {
		w.ends[e.GetWatch()] = e
	}
	if r.GetProgress() != nil {
		w.progress = r.GetProgress()
	}
	return nil
}

// until hears until something holds.
func (w *watcher) until(what string, holds func() bool) {
	w.t.Helper()
	deadline := time.AfterFunc(30*time.Second, func() {
		panic(fmt.Sprintf("it did not come to pass: %s; ends %v, progress %v", what, w.ends, w.progress))
	})
	defer deadline.Stop()
	for !holds() {
		if err := w.hear(); err != nil {
			w.t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

func (w *watcher) apply(op *store.Op) store.Version {
	w.t.Helper()
	r, err := w.replica.Write(context.Background(), op, raftfsm.Session{})
	if err != nil || r.Status != store.StatusOK {
		w.t.Fatal(r.Status, err)
	}
	return r.Version
}

func (w *watcher) set(key, value string) store.Version {
	w.t.Helper()
	return w.apply(&store.Op{Kind: store.OpSet, Key: []byte(key), Value: []byte(value)})
}

func (w *watcher) at() *ostrakapb.Position {
	_, at := w.replica.history.End()
	return positionMessage(at)
}

// tagged returns a key of shard 1.
func tagged(t *testing.T, f *fakeServer) func(string) string {
	t.Helper()
	for i := 0; ; i++ {
		tag := fmt.Sprintf("{%d}", i)
		if f.node.m.ShardOf(shard.SlotOfString(tag)) == 1 {
			return func(key string) string { return tag + key }
		}
	}
}

// Watches of a key, a prefix and all keys on one stream each hear of exactly their changes, in order, with what they carry.
func TestWatchTellsOfChanges(t *testing.T) {
	f := serve(t, newFakeNode(t))
	k := tagged(t, f)
	all := func(n uint64) *ostrakapb.WatchCreate { return &ostrakapb.WatchCreate{Watch: n, Credit: endless} }
	one := &ostrakapb.WatchCreate{Watch: 1, Start: []byte(k("a")), End: []byte(k("a\x00")), Credit: endless, Previous: true}
	prefix := &ostrakapb.WatchCreate{Watch: 2, Start: []byte(k("p")), End: []byte(k("q")), Credit: endless}
	w := watchOf(t, f, 1)
	w.set(k("a"), "before")
	for _, c := range []*ostrakapb.WatchCreate{one, prefix, all(3)} {
		c.Behind = w.at()
	}
	w.ask(&ostrakapb.WatchRequest{Create: []*ostrakapb.WatchCreate{one, prefix, func() *ostrakapb.WatchCreate { c := all(3); c.Behind = w.at(); return c }(), all(4)}})
	w.apply(&store.Op{Kind: store.OpSet, Key: []byte(k("a")), Value: []byte("1"), TTL: 500})
	w.set(k("p1"), "x")
	w.set(k("q"), "x")
	w.apply(&store.Op{Kind: store.OpDelete, Key: []byte(k("p1"))})
	w.replica.mu.Lock()
	w.replica.store.SetTime(1_000_600)
	slot := uint16(shard.SlotOfString(k("a")))
	if n := w.replica.store.Reap(slot, 1_000_600, 10); n != 1 {
		t.Errorf("%d reaped", n)
	}
	w.replica.history.Publish()
	w.replica.mu.Unlock()
	w.until("all changes", func() bool {
		return len(w.heard[1]) == 2 && len(w.heard[2]) == 2 && len(w.heard[3]) == 5 && len(w.heard[4]) == 6
	})
	set, expire := w.heard[1][0], w.heard[1][1]
	if set.GetKind() != ostrakapb.ChangeKind_CHANGE_KIND_SET || string(set.GetValue()) != "1" || set.GetTtlMs() != 500 || !set.GetExisted() ||
		string(set.GetPrevious()) != "before" || set.GetPreviousVersion() != 1 || set.GetPosition().GetVersion() != 2 || set.GetTimeMs() != 1_000_000 {
		t.Errorf("set: %v", set)
	}
	if expire.GetKind() != ostrakapb.ChangeKind_CHANGE_KIND_EXPIRE || string(expire.GetPrevious()) != "1" || expire.GetTimeMs() != 1_000_600 {
		t.Errorf("expire: %v", expire)
	}
	if d := w.heard[2][1]; d.GetKind() != ostrakapb.ChangeKind_CHANGE_KIND_DELETE || string(d.GetKey()) != k("p1") || len(d.GetPrevious()) > 0 {
		t.Errorf("delete, previous values not asked for: %v", d)
	}
	for n, changes := range w.heard {
		for i := range changes[1:] {
			if changes[i+1].GetPosition().GetVersion() <= changes[i].GetPosition().GetVersion() {
				t.Errorf("watch %d hears %v after %v", n, changes[i+1], changes[i])
			}
		}
	}
	// The same from the middle on: a resumed watch hears the rest.
	w.ask(&ostrakapb.WatchRequest{Create: []*ostrakapb.WatchCreate{{Watch: 5, Behind: w.heard[3][2].GetPosition(), Credit: endless}}, Cancel: []uint64{3, 4}})
	w.until("the rest", func() bool { return len(w.heard[5]) == 2 })
	if n := f.watches.counts.watches.Load(); n != 3 {
		t.Errorf("%d watches are counted, want 3", n)
	}
}

// A watch without credit is sent nothing, holds a bounded queue, and hears all that the history still holds when it gets credit;
// others of the stream are not held up by it.
func TestWatchWithoutCreditHoldsNobodyUp(t *testing.T) {
	f := serve(t, newFakeNode(t))
	k := tagged(t, f)
	w := watchOf(t, f, 1, &ostrakapb.WatchCreate{Watch: 1}, &ostrakapb.WatchCreate{Watch: 2, Credit: endless})
	const writes = 3 * watchQueueMax
	for i := range writes {
		w.set(k("k"), fmt.Sprint(i))
	}
	w.until("all changes of the other", func() bool { return len(w.heard[2]) == writes })
	if len(w.heard[1]) > 0 {
		t.Errorf("%d changes without credit", len(w.heard[1]))
	}
	f.watches.mu.Lock()
	hub := f.watches.hubs[1]
	f.watches.mu.Unlock()
	hub.mu.Lock()
	for call := range hub.members {
		call.mu.Lock()
		if held := call.all[1]; held.state != watchStalled || len(held.queue) != watchQueueMax {
			t.Errorf("%v is in state %d with a queue of %d", held, held.state, len(held.queue))
		}
		call.mu.Unlock()
	}
	hub.mu.Unlock()
	w.until("progress without the one that lags", func() bool {
		return w.progress != nil && len(w.progress.GetExcept()) == 1 && w.progress.GetExcept()[0] == 1
	})
	// A little credit is used up by a change or two.
	w.ask(&ostrakapb.WatchRequest{Credit: []*ostrakapb.WatchCredit{{Watch: 1, Bytes: 1}}})
	w.until("a first change", func() bool { return len(w.heard[1]) > 0 })
	w.ask(&ostrakapb.WatchRequest{Credit: []*ostrakapb.WatchCredit{{Watch: 1, Bytes: endless}}})
	w.until("everything", func() bool { return len(w.heard[1]) == writes })
	for i, c := range w.heard[1] {
		if string(c.GetValue()) != fmt.Sprint(i) {
			t.Fatalf("change %d holds %s", i, c.GetValue())
		}
	}
	w.until("progress of all", func() bool {
		return len(w.progress.GetExcept()) == 0 && w.progress.GetPosition().GetVersion() == writes
	})
}

// A watch that is slower than the history is long ends as compacted, with the position at which to begin again; so does one that comes
// too late. Neither costs memory meanwhile.
func TestWatchIsCompacted(t *testing.T) {
	f := serve(t, newFakeNode(t))
	k := tagged(t, f)
	w := watchOf(t, f, 1, &ostrakapb.WatchCreate{Watch: 1}, &ostrakapb.WatchCreate{Watch: 2, Credit: endless, Start: []byte("~")},
		&ostrakapb.WatchCreate{Watch: 5, Credit: endless})
	const writes = 3000
	value := string(bytes.Repeat([]byte("v"), 1000))
	for i := range writes { // several times what the history holds
		w.set(k("k"), value)
		if i%100 == 99 { // the node keeps up
			w.until("what was written", func() bool { return len(w.heard[5]) == i+1 })
		}
	}
	w.ask(&ostrakapb.WatchRequest{Credit: []*ostrakapb.WatchCredit{{Watch: 1, Bytes: endless}}})
	w.until("the end of the slow one", func() bool { return w.ends[1] != nil })
	if got := w.replica.history.Bytes(); got > 1<<20 {
		t.Errorf("the history takes %d bytes", got)
	}
	end := w.ends[1]
	if end.GetError().GetReason() != ostrakapb.Reason_REASON_COMPACTED || end.GetRestart().GetVersion() != writes {
		t.Errorf("end: %v", end)
	}
	w.ask(&ostrakapb.WatchRequest{Create: []*ostrakapb.WatchCreate{{Watch: 3, Credit: endless}, {Watch: 4, Credit: endless, Behind: end.GetRestart()}}})
	w.until("the end of the late one", func() bool { return w.ends[3] != nil })
	if w.ends[3].GetError().GetReason() != ostrakapb.Reason_REASON_COMPACTED {
		t.Errorf("end: %v", w.ends[3])
	}
	w.set(k("k"), "new")
	w.until("what the restarted one hears", func() bool { return len(w.heard[4]) > 0 })
	if got := w.heard[4][0]; string(got.GetValue()) != "new" || w.ends[2] != nil || w.ends[4] != nil {
		t.Errorf("it hears %v; ends %v", got, w.ends)
	}
	if got := f.watches.counts.compacted.Load(); got != 2 {
		t.Errorf("%d counted as compacted, want the slow one and the late one", got)
	}
}

// The history goes on behind a snapshot: who had heard of all that it skips goes on too, the others are told.
func TestWatchOverAReset(t *testing.T) {
	f := serve(t, newFakeNode(t))
	k := tagged(t, f)
	ahead := &ostrakapb.Position{Version: 50, Index: store.LastIndex}
	w := watchOf(t, f, 1, &ostrakapb.WatchCreate{Watch: 1, Credit: endless}, &ostrakapb.WatchCreate{Watch: 2, Credit: endless, Behind: ahead})
	w.set(k("k"), "1")
	w.until("the first change", func() bool { return len(w.heard[1]) == 1 })
	w.replica.mu.Lock()
	w.replica.store.RaiseVersion(40)
	w.replica.store.KeepHistory(w.replica.history)
	w.replica.mu.Unlock()
	w.until("the end", func() bool { return w.ends[1] != nil })
	for w.set(k("k"), "2") < 52 {
	}
	w.until("what is behind its position", func() bool { return len(w.heard[2]) == 2 })
	if v := w.heard[2][0].GetPosition().GetVersion(); v != 51 || w.ends[2] != nil {
		t.Errorf("it hears of version %d first; %v", v, w.ends[2])
	}
}

// The stream ends when the replica's life does, when the replica has had no leader for a while, when the node drains, and by the client.
func TestWatchStreamsEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*watcher)
		want ostrakapb.Reason
	}{
		{"life", func(w *watcher) { close(w.replica.ended) }, ostrakapb.Reason_REASON_NO_LEADER},
		{"leaderless", func(w *watcher) { w.replica.mu.Lock(); w.replica.leader = ""; w.replica.mu.Unlock() }, ostrakapb.Reason_REASON_NO_LEADER},
		{"drain", func(w *watcher) { close(w.f.stopping) }, ostrakapb.Reason_REASON_DRAINING},
		{"number in use", func(w *watcher) { w.ask(&ostrakapb.WatchRequest{Create: []*ostrakapb.WatchCreate{{Watch: 1}}}) }, ostrakapb.Reason_REASON_INVALID},
		{"too many at once", func(w *watcher) {
			w.ask(&ostrakapb.WatchRequest{Create: make([]*ostrakapb.WatchCreate, watchCreatesMax+1)})
		}, ostrakapb.Reason_REASON_LIMIT},
		{"client", func(w *watcher) {
			if err := w.stream.CloseSend(); err != nil {
				w.t.Error(err)
			}
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, newFakeNode(t))
			w := watchOf(t, f, 1, &ostrakapb.WatchCreate{Watch: 1, Credit: endless})
			w.until("a beat", func() bool { return w.progress != nil })
			c.do(w)
			var err error
			for err == nil {
				err = w.hear()
			}
			if c.name == "client" {
				if !errors.Is(err, io.EOF) {
					t.Errorf("the stream ended with %v", err)
				}
			} else {
				wantReason(t, err, c.want)
			}
			f.grpc.Stop() // and waits for handlers
			if n, b := f.watches.counts.watches.Load(), f.watches.counts.bytes.Load(); n != 0 || b != 0 || len(f.watches.hubs) != 0 {
				t.Errorf("%d watches of %d bytes and %d hubs are left", n, b, len(f.watches.hubs))
			}
		})
	}
}

// What can't be watched is refused by itself, with a reason; the others of the stream go on.
func TestWatchRefusals(t *testing.T) {
	node := newFakeNode(t)
	node.limits.WatchesMax, node.limits.WatchBytesMax = 3, 100_000
	f := serve(t, node)
	k := tagged(t, f)
	long := bytes.Repeat([]byte("k"), 32<<10)
	w := watchOf(t, f, 1, &ostrakapb.WatchCreate{Watch: 1, Credit: endless},
		&ostrakapb.WatchCreate{Watch: 2, Start: []byte("b"), End: []byte("a")},
		&ostrakapb.WatchCreate{Watch: 3, Start: append(long, 0, 0)},
		&ostrakapb.WatchCreate{Watch: 4, Start: long, End: append(bytes.Clone(long), 0)},
		&ostrakapb.WatchCreate{Watch: 5, Start: long, End: append(bytes.Clone(long), 0)},
		&ostrakapb.WatchCreate{Watch: 6},
		&ostrakapb.WatchCreate{Watch: 7})
	want := map[uint64]ostrakapb.Reason{2: ostrakapb.Reason_REASON_INVALID, 3: ostrakapb.Reason_REASON_LIMIT, 5: ostrakapb.Reason_REASON_LIMIT, 7: ostrakapb.Reason_REASON_LIMIT}
	w.until("the refusals", func() bool { return len(w.ends) == len(want) })
	for number, reason := range want {
		if got := w.ends[number].GetError(); got.GetReason() != reason {
			t.Errorf("watch %d: %v", number, got)
		}
	}
	if w.ends[5].GetError().GetLimit() != limitWatchBytes || w.ends[7].GetError().GetLimit() != limitWatches {
		t.Errorf("limits: %v, %v", w.ends[5], w.ends[7])
	}
	w.set(k("k"), "v")
	w.until("a change", func() bool { return len(w.heard[1]) == 1 })

	for name, c := range map[string]struct {
		shard uint32
		err   error
		want  ostrakapb.Reason
	}{
		"no such shard": {99, nil, ostrakapb.Reason_REASON_STALE_EPOCH},
		"no history":    {2, raftfsm.ErrNoHistory, ostrakapb.Reason_REASON_UNSUPPORTED},
		"stopped":       {3, raftfsm.ErrStopped, ostrakapb.Reason_REASON_NO_LEADER},
	} {
		if r := f.replicas[shard.ID(c.shard)]; r != nil {
			r.mu.Lock()
			r.changesErr = c.err
			r.mu.Unlock()
		}
		stream, err := f.kv.Watch(t.Context())
		if err == nil {
			err = stream.Send(&ostrakapb.WatchRequest{Shard: c.shard})
		}
		for err == nil {
			_, err = stream.Recv()
		}
		if d := detailOf(t, err); d.GetReason() != c.want {
			t.Errorf("%s: %v", name, d)
		}
	}
}

func TestPositionIsBehindWhatWasWritten(t *testing.T) {
	f := serve(t, newFakeNode(t))
	k := tagged(t, f)
	for i := range 3 {
		if _, err := f.kv.Set(t.Context(), &ostrakapb.SetRequest{Key: []byte(k(fmt.Sprint(i)))}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := f.kv.Position(t.Context(), &ostrakapb.PositionRequest{Shard: 1})
	if err != nil || got.GetPosition().GetVersion() != 3 || got.GetPosition().GetIndex() != store.LastIndex {
		t.Errorf("%v, %v", got, err)
	}
	f.replicas[1].readErr = &raftfsm.NotLeaderError{Group: 1, Leader: "n2"}
	if _, err := f.kv.Position(t.Context(), &ostrakapb.PositionRequest{Shard: 1}); err == nil {
		t.Error("a follower gave a position")
	} else if d := wantReason(t, err, ostrakapb.Reason_REASON_NOT_LEADER); d.GetLeaderNode() != "n2" {
		t.Errorf("%v", d)
	}
}
