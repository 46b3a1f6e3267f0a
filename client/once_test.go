package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// newOnceCluster is a fake cluster whose shards have sessions.
func newOnceCluster(t *testing.T, nodes, shards int) *fakeCluster {
	f := newFakeCluster(t, nodes, shards)
	f.known = &fakeSessions{now: 1000, results: map[string]any{}, forgotten: map[uint64]bool{}}
	return f
}

// isWrite says of a request that a script sees whether it is one.
func isWrite(req any) bool {
	switch req.(type) {
	case *ostrakapb.SetRequest, *ostrakapb.DeleteRequest, *ostrakapb.BatchRequest:
		return true
	}
	return false
}

// carryOut does what a request asks for.
func (n *fakeNode) carryOut(ctx context.Context, req any) (any, error) {
	switch r := req.(type) {
	case *ostrakapb.SetRequest:
		return n.Set(ctx, r)
	case *ostrakapb.BatchRequest:
		return n.Batch(ctx, r)
	}
	return nil, errors.New("not foreseen")
}

// The write is done, its answer is lost with the connection, and another node leads: sent again under the same name, it is
// answered with what it came to.
func TestAWriteWhoseAnswerIsLostIsDoneOnce(t *testing.T) {
	bothWays(t, func(t *testing.T, unary bool) {
		f := newOnceCluster(t, 2, 1)
		f.unary = unary
		c := f.client()
		n1 := f.node("n1")
		n1.play(func(ctx context.Context, req any) (any, error) {
			if !isWrite(req) {
				return nil, nil
			}
			n1.carryOut(ctx, req)
			f.lead(1, "n2")
			n1.reset()
			<-ctx.Done()
			return nil, ctx.Err()
		})
		got, err := c.Set(t.Context(), []byte("k"), []byte("v"))
		if err != nil || got.Version != 1 || f.version != 1 {
			t.Errorf("set: version %d, %v; %d writes were done", got.Version, err, f.version)
		}
		first, second := n1.sets()[0].Header, f.node("n2").sets()[0].Header
		if first.SessionBorn != 1000 || first.Attempt != 1 || first.LowestUnanswered != 1 || first.OpenSession ||
			second.SessionBorn != 1000 || second.Request != first.Request || second.Attempt <= 1 {
			t.Errorf("sent as %v, then as %v", first, second)
		}
		f.lead(1, "n1")
		for i, err := range c.MultiSet(t.Context(), []SetItem{{Key: []byte("k")}, {Key: []byte("l")}, {Key: []byte("m")}}) {
			if err != nil {
				t.Errorf("item %d: %v", i, err)
			}
		}
		if f.version != 4 {
			t.Errorf("%d writes were done, want 4", f.version)
		}
		if n := c.written(); n != 4 {
			t.Errorf("%d writes are over, want 4", n)
		}
	})
}

// A leader that says nothing at all, a paused one for instance, costs a write no more than the attempt's patience.
func TestAWriteLeavesASilentNode(t *testing.T) {
	bothWays(t, func(t *testing.T, unary bool) {
		f := newOnceCluster(t, 2, 1)
		f.unary = unary
		c := f.client(WithAttemptTimeout(50*time.Millisecond), WithTimeout(20*time.Second))
		n1 := f.node("n1")
		n1.play(func(ctx context.Context, req any) (any, error) {
			if isWrite(req) {
				n1.carryOut(ctx, req)
				f.lead(1, "n2")
			}
			return hang(ctx, req)
		})
		begin := time.Now()
		if got, err := c.Set(t.Context(), []byte("k"), []byte("v")); err != nil || got.Version != 1 || f.version != 1 {
			t.Errorf("set: version %d, %v; %d writes were done", got.Version, err, f.version)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A leader that is slow, but speaks, keeps the writes that it was sent.
func TestAWriteStaysWithANodeThatSpeaks(t *testing.T) {
	f := newOnceCluster(t, 1, 1)
	c := f.client(WithAttemptTimeout(50*time.Millisecond), WithTimeout(20*time.Second))
	answer := make(chan struct{})
	f.node("n1").play(func(ctx context.Context, req any) (any, error) {
		if isWrite(req) {
			<-answer
		}
		return nil, nil
	})
	written := make(chan error, 1)
	go func() { _, err := c.Set(t.Context(), []byte("k"), []byte("v")); written <- err }()
	waitFor(t, "the write to arrive", func() bool { return len(f.node("n1").sets()) == 1 })
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond; { // several times its patience
		if _, err := c.Get(t.Context(), []byte("k")); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
	close(answer)
	if err := <-written; err != nil {
		t.Error(err)
	}
	if n := len(f.node("n1").sets()); n != 1 {
		t.Errorf("the write was sent %d times", n)
	}
}

// A shard that doesn't know a session, or a number, any more: the client knows whether that matters.
func TestAShardForgets(t *testing.T) {
	for what, forget := range map[string]func(*fakeSessions){
		"the session": func(k *fakeSessions) { k.horizon, k.now = 1500, 2000 },
		"the number":  func(k *fakeSessions) { k.forgotten[1] = true },
	} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprint(what, ", an answer was lost ", lost), func(t *testing.T) {
				bothWays(t, func(t *testing.T, unary bool) {
					f := newOnceCluster(t, 1, 1)
					f.unary = unary
					c := f.client()
					n1 := f.node("n1")
					var sent atomic.Int32
					n1.play(func(ctx context.Context, req any) (resp any, err error) {
						if !isWrite(req) || sent.Add(1) > 1 {
							return nil, nil
						}
						if lost {
							n1.carryOut(ctx, req)
							err = detailed(&ostrakapb.ErrorDetail{Reason: ostrakapb.Reason_REASON_OUTCOME_UNKNOWN})
						}
						f.mu.Lock()
						defer f.mu.Unlock()
						forget(f.known)
						return nil, err
					})
					err := c.MultiSet(t.Context(), []SetItem{{Key: []byte("k")}})[0]
					if lost != errors.Is(err, ErrOutcomeUnknown) || !lost && err != nil {
						t.Errorf("set: %v", err)
					}
					if f.version != 1 {
						t.Errorf("%d writes were done", f.version)
					}
					if n := sent.Load(); n != 2 {
						t.Errorf("%d sendings, want 2", n)
					}
					if _, err := c.Set(t.Context(), []byte("k"), nil); err != nil || f.version != 2 {
						t.Errorf("the next: %v", err)
					}
				})
			})
		}
	}
}

// The key of a write that may have been done is another shard's when it is to be sent again: that one can't know.
func TestAKeyMovesWhileItsWriteMayBeDone(t *testing.T) {
	f := newOnceCluster(t, 1, 1)
	c := f.client()
	n1 := f.node("n1")
	var sent atomic.Int32
	n1.play(func(ctx context.Context, req any) (any, error) {
		switch {
		case !isWrite(req):
			return nil, nil
		case sent.Add(1) == 1:
			n1.carryOut(ctx, req)
			return nil, detailed(&ostrakapb.ErrorDetail{Reason: ostrakapb.Reason_REASON_OUTCOME_UNKNOWN})
		case sent.Load() > 2:
			return nil, nil
		}
		f.setMap(2, []shard.NodeID{"n1"}, 256)
		f.mu.Lock()
		defer f.mu.Unlock()
		for i := range 256 {
			f.leaders[shard.ID(i+1)] = "n1"
		}
		return nil, detailed(notDone(ostrakapb.Reason_REASON_STALE_EPOCH))
	})
	key := []byte("k")
	for shard.SlotOf(key) < shard.SlotCount/2 { // the first shard keeps the first slots
		key = append(key, 'k')
	}
	_, err := c.Set(t.Context(), key, nil)
	if !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, errMoved) {
		t.Errorf("set: %v", err)
	}
	if f.version != 1 {
		t.Errorf("%d writes were done", f.version)
	}
	if _, err := c.Set(t.Context(), key, nil); err != nil {
		t.Errorf("the next: %v", err)
	}
}

func TestManyCallersShareANewSession(t *testing.T) {
	f := newOnceCluster(t, 1, 1)
	f.known.untold = true
	c := f.client()
	const callers, each = 16, 20
	var group errgroup.Group
	for i := range callers {
		group.Go(func() error {
			for j := range each {
				if _, err := c.Set(t.Context(), fmt.Append(nil, i, j), nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if f.version != callers*each || len(f.known.results) != callers*each {
		t.Errorf("%d writes were done, under %d names", f.version, len(f.known.results))
	}
	if born := c.sessions.of(1, 0).current.Load().born; born != 1000 {
		t.Errorf("the session is born at %d", born)
	}
	for _, set := range f.node("n1").sets() {
		if h := set.Header; h.SessionBorn == 0 && !h.OpenSession {
			t.Fatalf("a write without a session was sent: %v", h)
		}
	}
}

// What a write that may have been done comes to in the end: never "not done", whatever is said of the last sending.
func TestAWriteThatMayBeDoneIsNeverCalledNotDone(t *testing.T) {
	unknown := &ostrakapb.ErrorDetail{Reason: ostrakapb.Reason_REASON_OUTCOME_UNKNOWN}
	for name, row := range map[string]struct {
		then  *ostrakapb.ErrorDetail // nil: nothing is said
		want  error
		close bool
	}{
		"out of time, no leader":     {then: notDone(ostrakapb.Reason_REASON_NO_LEADER), want: ErrOutcomeUnknown},
		"out of time, unknown again": {then: unknown, want: ErrOutcomeUnknown},
		"refused for its size":       {then: notDone(ostrakapb.Reason_REASON_LIMIT), want: ErrOutcomeUnknown},
		"refused as invalid":         {then: notDone(ostrakapb.Reason_REASON_INVALID), want: ErrOutcomeUnknown},
		"session unknown":            {then: notDone(ostrakapb.Reason_REASON_SESSION_UNKNOWN), want: ErrOutcomeUnknown},
		"result forgotten":           {then: notDone(ostrakapb.Reason_REASON_RESULT_FORGOTTEN), want: ErrOutcomeUnknown},
		"the result is an error":     {then: notDone(ostrakapb.Reason_REASON_NOT_INTEGER), want: ErrNotInteger},
		"the result is another":      {then: notDone(ostrakapb.Reason_REASON_OVERFLOW), want: ErrOverflow},
		"closed":                     {close: true, want: ErrOutcomeUnknown},
		"the caller goes":            {want: ErrOutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, unary bool) {
				f := newOnceCluster(t, 1, 1)
				f.unary = unary
				c := f.client(WithTimeout(300 * time.Millisecond))
				var sent atomic.Int32
				again := make(chan struct{}, 1)
				f.node("n1").play(func(ctx context.Context, req any) (any, error) {
					switch {
					case !isWrite(req):
						return nil, nil
					case sent.Add(1) == 1:
						return nil, detailed(unknown)
					case row.then != nil:
						return nil, detailed(row.then)
					}
					signal(again)
					return hang(ctx, req)
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					select {
					case <-again:
					case <-ctx.Done():
						return
					}
					if row.close {
						c.Close()
					} else {
						cancel()
					}
				}()
				for i, do := range []func() error{
					func() error { _, err := c.Set(ctx, []byte("k"), nil); return err },
					func() error { return c.MultiSet(ctx, []SetItem{{Key: []byte("k")}})[0] },
				} {
					if i > 0 && row.then == nil {
						break // there is nobody left to ask
					}
					sent.Store(0)
					err := do()
					if !errors.Is(err, row.want) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrLimit) || errors.Is(err, ErrInvalid) {
						t.Errorf("way %d: %v, want %v", i, err, row.want)
					}
					if sent.Load() < 2 {
						t.Errorf("way %d: sent once", i)
					}
				}
			})
		})
	}
}
