package raftfsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/store"
)

// scriptedFuture is raft's answer to one entry, given by the test.
type scriptedFuture struct {
	entry    *entry
	done     chan struct{}
	err      error
	response any
}

func (f *scriptedFuture) Error() error  { <-f.done; return f.err }
func (f *scriptedFuture) Response() any { return f.response }
func (f *scriptedFuture) Index() uint64 { return 0 }

// commit answers as a machine would that gives every op the version of its place in the entry.
func (f *scriptedFuture) commit() {
	if f.entry.Kind != entryOps {
		close(f.done)
		return
	}
	results := make([]store.Result, len(f.entry.Ops))
	for i := range results {
		results[i] = store.Result{Status: store.StatusOK, Version: store.Version(i + 1)}
	}
	f.response = opResults{results: results}
	close(f.done)
}

func (f *scriptedFuture) fail(err error) { f.err = err; close(f.done) }

func scriptedProposer(t *testing.T, cfg ProposerConfig) (*proposer, <-chan *scriptedFuture) {
	full, err := (&Config{Node: "n", Proposer: cfg}).withDefaults()
	if full.Proposer.QueueOpsMax == 0 {
		t.Fatal(err)
	}
	futures := make(chan *scriptedFuture, 1000)
	apply := func(data []byte, _ time.Duration) raft.ApplyFuture {
		ent, err := decodeEntry(data)
		if err != nil {
			t.Error(err)
		}
		f := &scriptedFuture{entry: ent, done: make(chan struct{})}
		futures <- f
		return f
	}
	clock := store.Time(0)
	stamp := func() store.Time { clock += 10; return clock }
	term := func() uint64 { return 1 }
	return newProposer(full.Proposer, apply, term, stamp, func(error) {}), futures
}

func setOp(key string) *Write {
	return &Write{Op: store.Op{Kind: store.OpSet, Key: []byte(key), Value: []byte("v")}}
}

type written struct {
	result store.Result
	err    error
}

func writeAsync(ctx context.Context, p *proposer, w *Write) <-chan written {
	out := make(chan written, 1)
	go func() {
		result, err := p.write(ctx, w)
		out <- written{result, err}
	}()
	return out
}

// While entries are in flight what waits is packed into one, each caller gets its own result, and stamps rise.
func TestProposerPacksWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, futures := scriptedProposer(t, ProposerConfig{InFlightMax: 1})
		var flying []*scriptedFuture
		var first []<-chan written
		for i := range 3 { // one with finish, one in the channel, one waiting for its place
			first = append(first, writeAsync(context.Background(), p, setOp(fmt.Sprint("first", i))))
			synctest.Wait()
			flying = append(flying, <-futures)
		}
		var rest []<-chan written
		for i := range 50 {
			rest = append(rest, writeAsync(context.Background(), p, setOp(fmt.Sprint(i))))
		}
		synctest.Wait()
		for _, f := range flying {
			f.commit()
		}
		packed := <-futures
		if len(packed.entry.Ops) != 50 {
			t.Errorf("50 waiting writes: %d in the next entry", len(packed.entry.Ops))
		}
		if packed.entry.Time <= flying[2].entry.Time {
			t.Errorf("stamp %d after %d", packed.entry.Time, flying[2].entry.Time)
		}
		packed.commit()
		for _, w := range append(first, rest...) {
			if got := <-w; got.err != nil {
				t.Error(got.err)
			}
		}
		p.close()
	})
}

func TestProposerCapsEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, futures := scriptedProposer(t, ProposerConfig{InFlightMax: 1, EntryOpsMax: 8, EntryBytesMax: 3 * (opOverhead + 2)})
		var all []<-chan written
		for i := range 40 {
			all = append(all, writeAsync(context.Background(), p, setOp(string(rune('a'+i%26)))))
		}
		big := setOp("big")
		big.Op.Value = make([]byte, 10_000)
		all = append(all, writeAsync(context.Background(), p, big))
		ops := 0
		for ops < 41 {
			f := <-futures
			ops += len(f.entry.Ops)
			if len(f.entry.Ops) > 3 {
				t.Errorf("%d ops in an entry that holds 3", len(f.entry.Ops))
			}
			for _, so := range f.entry.Ops {
				if len(so.Op.Value) > 1000 && len(f.entry.Ops) != 1 {
					t.Error("the large op does not go alone")
				}
			}
			f.commit()
		}
		for _, w := range all {
			if got := <-w; got.err != nil {
				t.Error(got.err)
			}
		}
		p.close()
	})
}

// Entries that stand alone are neither mixed with ops nor reordered around them.
func TestProposerKeepsLoneEntriesApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, futures := scriptedProposer(t, ProposerConfig{InFlightMax: 1})
		var done sync.WaitGroup
		for range 3 { // fill the way, so that the rest queues up
			done.Go(func() { p.write(context.Background(), setOp("x")) })
			synctest.Wait()
		}
		order := []func(){
			func() { p.write(context.Background(), setOp("a")) },
			func() { p.entry(context.Background(), &entry{Kind: entryTick}) },
			func() { p.write(context.Background(), setOp("b")) },
		}
		for _, f := range order {
			done.Go(f)
			synctest.Wait()
		}
		var kinds []entryKind
		for range 6 {
			f := <-futures
			kinds = append(kinds, f.entry.Kind)
			f.commit()
		}
		done.Wait()
		want := []entryKind{entryOps, entryOps, entryOps, entryOps, entryTick, entryOps}
		if fmt.Sprint(kinds) != fmt.Sprint(want) {
			t.Errorf("entries of kinds %v, want %v", kinds, want)
		}
		p.close()
	})
}

// A leader that was paused stamps entries by its clock before it learns that another one leads, and that one's time may be far
// behind. When it leads again its old stamps must not move time on: keys would expire early (found by bench/torture).
func TestProposerForgetsStampsOfEarlierTerms(t *testing.T) {
	var term uint64
	var clock store.Time
	p := &proposer{term: func() uint64 { return term }, stamp: func() store.Time { return clock }}
	for _, step := range []struct {
		term        uint64
		clock, want store.Time
	}{
		{1, 1000, 1000},
		{1, 990, 1000}, // it took 10 ms to apply an entry
		{1, 6000, 6000},
		{3, 2000, 2000}, // its successor's entries are applied, and they are of these times
		{3, 1995, 2000},
	} {
		term, clock = step.term, step.clock
		if got := p.now(); got != step.want {
			t.Errorf("term %d, clock %d: stamped %d, want %d", step.term, step.clock, got, step.want)
		}
	}
}

// The two kinds of failure, by what raft says.
func TestProposerSortsErrors(t *testing.T) {
	for _, tc := range []struct {
		raft error
		want error
	}{
		{raft.ErrNotLeader, ErrNotLeader},
		{raft.ErrLeadershipTransferInProgress, ErrNotReady},
		{raft.ErrEnqueueTimeout, ErrOverloaded},
		{fmt.Errorf("%w: of the disk", ErrNoSpace), ErrNoSpace},
		{raft.ErrLeadershipLost, ErrOutcomeUnknown},
		{raft.ErrAbortedByRestore, ErrOutcomeUnknown},
		{raft.ErrRaftShutdown, ErrOutcomeUnknown},
		{errors.New("disk on fire"), ErrOutcomeUnknown},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, futures := scriptedProposer(t, ProposerConfig{})
			w := writeAsync(context.Background(), p, setOp("k"))
			(<-futures).fail(tc.raft)
			got := <-w
			if !errors.Is(got.err, tc.want) {
				t.Errorf("%v became %v, want %v", tc.raft, got.err, tc.want)
			}
			if errors.Is(got.err, ErrOutcomeUnknown) != (tc.want == ErrOutcomeUnknown) {
				t.Errorf("%v: the two kinds are mixed: %v", tc.raft, got.err)
			}
			p.close()
		})
	}
}

// A caller that gives up in the queue is told that its write is not done, and it never is. One that gives up
// after packing is told that the outcome is unknown.
func TestProposerDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, futures := scriptedProposer(t, ProposerConfig{InFlightMax: 1})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		var packed []<-chan written
		var flying []*scriptedFuture
		for range 3 {
			packed = append(packed, writeAsync(ctx, p, setOp("packed")))
			synctest.Wait()
			flying = append(flying, <-futures)
		}
		queued := writeAsync(ctx, p, setOp("queued"))
		time.Sleep(2 * time.Second) // virtual: lets the deadline pass
		if got := <-queued; !errors.Is(got.err, ErrDeadline) || errors.Is(got.err, ErrOutcomeUnknown) {
			t.Errorf("queued: %v", got.err)
		}
		for _, w := range packed {
			if got := <-w; !errors.Is(got.err, ErrOutcomeUnknown) {
				t.Errorf("packed: %v", got.err)
			}
		}
		last := writeAsync(context.Background(), p, setOp("last"))
		synctest.Wait()
		for _, f := range flying {
			f.commit()
		}
		f := <-futures
		if len(f.entry.Ops) != 1 || string(f.entry.Ops[0].Op.Key) != "last" {
			t.Errorf("the abandoned write was proposed: %+v", f.entry.Ops)
		}
		f.commit()
		if got := <-last; got.err != nil {
			t.Error(got.err)
		}
		p.close()
	})
}

func TestProposerFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, futures := scriptedProposer(t, ProposerConfig{InFlightMax: 1, QueueOpsMax: 4, EntryOpsMax: 1})
		var accepted []<-chan written
		for range 3 + 4 {
			accepted = append(accepted, writeAsync(context.Background(), p, setOp("k")))
			synctest.Wait()
		}
		if _, err := p.write(context.Background(), setOp("k")); !errors.Is(err, ErrOverloaded) {
			t.Errorf("one too many: %v", err)
		}
		for range accepted {
			(<-futures).commit()
			synctest.Wait()
		}
		for _, w := range accepted {
			if got := <-w; got.err != nil {
				t.Errorf("accepted work was not finished: %v", got.err)
			}
		}
		p.close()
		if _, err := p.write(context.Background(), setOp("k")); !errors.Is(err, ErrStopped) {
			t.Errorf("after close: %v", err)
		}
	})
}

// collector is a Receiver that keeps what it gets, call by call.
type collector struct {
	mu    sync.Mutex
	calls [][]*Write
}

func (c *collector) Written(writes []*Write) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, slices.Clone(writes))
}

func (c *collector) all() []*Write {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Concat(c.calls...)
}

// submitted makes writes numbered from one number to another, for one receiver.
func submitted(to Receiver, from, until uint64) []*Write {
	var all []*Write
	for n := from; n < until; n++ {
		w := setOp(fmt.Sprint(n))
		w.To, w.Number = to, n
		all = append(all, w)
	}
	return all
}

// Each write comes back to its receiver once, with its own result, and an entry's writes of one receiver together.
func TestSubmittedWritesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, futures := scriptedProposer(t, ProposerConfig{})
		one, two := &collector{}, &collector{}
		all := slices.Concat(submitted(one, 0, 10), submitted(two, 10, 15), submitted(one, 15, 20))
		if n, err := p.submit(all); n != len(all) || err != nil {
			t.Fatal(n, err)
		}
		f := <-futures
		if len(f.entry.Ops) != len(all) {
			t.Fatalf("%d operations in the entry, want %d: they were submitted together", len(f.entry.Ops), len(all))
		}
		f.commit()
		synctest.Wait()
		if got := []int{len(one.calls), len(two.calls)}; !slices.Equal(got, []int{2, 1}) {
			t.Errorf("%v calls to the receivers, want one for each run of their writes", got)
		}
		got := slices.Concat(one.all(), two.all())
		if len(got) != len(all) {
			t.Fatalf("%d writes came back, want %d", len(got), len(all))
		}
		for _, w := range got {
			if w.Err != nil || w.Result.Version != store.Version(w.Number+1) {
				t.Errorf("write %d: %+v, %v", w.Number, w.Result, w.Err)
			}
		}
		p.close()
	})
}

// A submitted write whose time is up before it is packed is not done; one that was packed is answered whenever raft does.
func TestSubmittedWritesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, futures := scriptedProposer(t, ProposerConfig{InFlightMax: 1})
		c := &collector{}
		submit := func(from, until uint64, deadline time.Time) {
			all := submitted(c, from, until)
			for _, w := range all {
				w.Deadline = deadline
			}
			if n, err := p.submit(all); n != len(all) || err != nil {
				t.Fatal(n, err)
			}
			synctest.Wait()
		}
		var flying []*scriptedFuture
		for n := range uint64(3) { // the way is full after these
			submit(n, n+1, time.Now().Add(time.Second))
			flying = append(flying, <-futures)
		}
		submit(3, 5, time.Now().Add(time.Second)) // too late when their turn comes
		submit(5, 7, time.Time{})                 // without a deadline
		time.Sleep(2 * time.Second)               // virtual
		for _, f := range flying {
			f.commit()
		}
		f := <-futures
		if len(f.entry.Ops) != 2 || string(f.entry.Ops[0].Op.Key) != "5" {
			t.Errorf("proposed: %+v", f.entry.Ops)
		}
		f.fail(raft.ErrLeadershipLost)
		synctest.Wait()
		got := c.all()
		slices.SortFunc(got, func(a, b *Write) int { return cmp.Compare(a.Number, b.Number) })
		if len(got) != 7 {
			t.Fatalf("%d writes came back, want 7", len(got))
		}
		for i, want := range []error{nil, nil, nil, ErrDeadline, ErrDeadline, ErrOutcomeUnknown, ErrOutcomeUnknown} {
			if !errors.Is(got[i].Err, want) {
				t.Errorf("write %d: %v, want %v", i, got[i].Err, want)
			}
		}
		p.close()
	})
}

// What does not fit into the queue is refused, by count and by bytes, and what was taken is finished.
func TestSubmitStopsAtAFullQueue(t *testing.T) {
	for name, cfg := range map[string]ProposerConfig{
		"count": {InFlightMax: 1, EntryOpsMax: 1, QueueOpsMax: 4},
		"bytes": {InFlightMax: 1, EntryOpsMax: 1, QueueBytesMax: 4*(opOverhead+2) + 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, futures := scriptedProposer(t, cfg)
				c := &collector{}
				for n := range uint64(3) {
					if accepted, err := p.submit(submitted(c, n, n+1)); accepted != 1 || err != nil {
						t.Fatal(accepted, err)
					}
					synctest.Wait()
				}
				accepted, err := p.submit(submitted(c, 3, 9))
				if accepted != 4 || !errors.Is(err, ErrOverloaded) {
					t.Errorf("%d taken, %v; there is room for 4", accepted, err)
				}
				for range 3 + 4 {
					(<-futures).commit()
					synctest.Wait()
				}
				if got := len(c.all()); got != 7 {
					t.Errorf("%d came back, want 7", got)
				}
				if accepted, err := p.submit(submitted(c, 9, 10)); accepted != 1 || err != nil {
					t.Errorf("the queue is empty again: %d taken, %v", accepted, err)
				}
				(<-futures).commit()
				p.close()
				if accepted, err := p.submit(submitted(c, 10, 11)); accepted != 0 || !errors.Is(err, ErrStopped) {
					t.Errorf("after close: %d taken, %v", accepted, err)
				}
			})
		})
	}
}
