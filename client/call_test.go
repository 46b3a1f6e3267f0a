package client

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/connectivity"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

func mustSet(t *testing.T, c *Client, key, value string) SetResult {
	t.Helper()
	r, err := c.Set(t.Context(), []byte(key), []byte(value))
	if err != nil {
		t.Fatalf("set %s: %v", key, err)
	}
	return r
}

func mustGet(t *testing.T, c *Client, key, want string) {
	t.Helper()
	v, err := c.Get(t.Context(), []byte(key))
	if err != nil || string(v.Value) != want {
		t.Fatalf("get %s = %q, %v, want %q", key, v.Value, err, want)
	}
}

func TestRequestsGoStraightToTheLeader(t *testing.T) {
	f := newFakeCluster(t, 3, 6)
	c := f.client()
	for _, key := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		mustSet(t, c, key, "value of "+key)
		mustGet(t, c, key, "value of "+key)
	}
	sets := 0
	for _, n := range f.nodes {
		for _, req := range requests[*ostrakapb.SetRequest](n) {
			sets++
			if f.leaderOf(string(req.Key)) != n {
				t.Errorf("set %s went to %s", req.Key, n.id)
			}
			if req.Header.Epoch != 1 || len(req.Header.ClientId) != 16 {
				t.Errorf("header %v", req.Header)
			}
		}
	}
	if sets != 8 {
		t.Errorf("%d sets were sent, want 8", sets)
	}
	if n := c.written(); n != 8 {
		t.Errorf("%d writes are over after 8 answers", n)
	}
}

// written is how many of a client's writes are over in all sessions, as long as none is under way.
func (c *Client) written() (n int) {
	for _, sr := range c.routes.Load().shards {
		n += int(sr.session.current.Load().lowestUnanswered()) - 1
	}
	return n
}

func TestARedirectIsFollowedAndRemembered(t *testing.T) {
	f := newFakeCluster(t, 3, 1)
	c := f.client()
	f.lead(1, "n3")
	mustSet(t, c, "k", "1")
	mustSet(t, c, "k", "2")
	if old, led := len(requests[*ostrakapb.SetRequest](f.node("n1"))), len(requests[*ostrakapb.SetRequest](f.node("n3"))); old != 1 || led != 2 {
		t.Errorf("the old leader saw %d sets, the new one %d; want 1, 2", old, led)
	}
}

func TestARedirectMayNameAnAddressThatTheMapDoesNotHave(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	f.start("n9")
	c := f.client()
	f.lead(1, "n9")
	mustSet(t, c, "k", "1")
	if got := len(requests[*ostrakapb.SetRequest](f.node("n9"))); got != 1 {
		t.Errorf("the named node saw %d sets", got)
	}
}

func TestWithoutAKnownLeaderReplicasAreAskedInTurn(t *testing.T) {
	f := newFakeCluster(t, 3, 1)
	c := f.client()
	f.lead(1, "") // nobody knows, then n3 leads
	for _, id := range []shard.NodeID{"n1", "n2"} {
		f.node(id).play(func(_ context.Context, req any) (any, error) {
			if _, ok := req.(*ostrakapb.SetRequest); ok {
				return nil, detailed(notDone(ostrakapb.Reason_REASON_NOT_LEADER))
			}
			return nil, nil
		})
	}
	f.lead(1, "n3")
	mustSet(t, c, "k", "1")
}

// Every refusal that says "not done" is tried again: the write is done in the end, once, under one number.
func TestWhatWasNotDoneIsSentAgain(t *testing.T) {
	reasons := []ostrakapb.Reason{
		ostrakapb.Reason_REASON_NOT_LEADER, ostrakapb.Reason_REASON_STALE_EPOCH, ostrakapb.Reason_REASON_NO_LEADER,
		ostrakapb.Reason_REASON_OVERLOADED, ostrakapb.Reason_REASON_DRAINING, ostrakapb.Reason_REASON_DEADLINE,
		ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED, ostrakapb.Reason(99), ostrakapb.Reason_REASON_UNSPECIFIED,
	}
	for _, reason := range reasons {
		t.Run(reason.String(), func(t *testing.T) {
			f := newFakeCluster(t, 1, 1)
			c := f.client()
			var refusals atomic.Int32
			f.node("n1").play(func(_ context.Context, req any) (any, error) {
				if _, ok := req.(*ostrakapb.SetRequest); ok && refusals.Add(1) <= 3 {
					return nil, detailed(notDone(reason))
				}
				return nil, nil
			})
			mustSet(t, c, "k", "1")
			sets := requests[*ostrakapb.SetRequest](f.node("n1"))
			if len(sets) != 4 {
				t.Fatalf("sent %d times, want 4", len(sets))
			}
			for i, req := range sets {
				if h := req.Header; h.Request != 1 || h.Attempt != uint32(i+1) || h.LowestUnanswered != 1 {
					t.Errorf("sending %d has header %v", i+1, h)
				}
			}
		})
	}
}

func TestAnUnknownOutcomeIsNeverSentAgain(t *testing.T) {
	unknown := ostrakapb.Outcome_OUTCOME_UNKNOWN
	details := map[string]*ostrakapb.ErrorDetail{
		"the reason says so":                {Reason: ostrakapb.Reason_REASON_OUTCOME_UNKNOWN},
		"the outcome says so":               {Reason: ostrakapb.Reason_REASON_NO_LEADER, Outcome: unknown},
		"neither says anything":             {},
		"a reason from the future, no word": {Reason: ostrakapb.Reason(99)},
	}
	for name, d := range details {
		t.Run(name, func(t *testing.T) {
			f := newFakeCluster(t, 3, 1)
			c := f.client()
			f.node("n1").play(func(_ context.Context, req any) (any, error) {
				if _, ok := req.(*ostrakapb.GetRequest); ok && len(requests[*ostrakapb.GetRequest](f.node("n1"))) > 1 {
					return nil, nil
				}
				return nil, detailed(d)
			})
			_, err := c.Set(t.Context(), []byte("k"), []byte("v"))
			if !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrUnavailable) {
				t.Errorf("error %v", err)
			}
			for _, n := range f.nodes {
				if got := len(requests[*ostrakapb.SetRequest](n)); n.id == "n1" && got != 1 || n.id != "n1" && got != 0 {
					t.Errorf("%s saw %d sets", n.id, got)
				}
			}
			// A read has no outcome to be unsure of.
			if _, err := c.Get(t.Context(), []byte("k")); !errors.Is(err, ErrNotFound) {
				t.Errorf("get: %v", err)
			}
		})
	}
}

func TestConnectionBreaksAfterTheRequestWasRead(t *testing.T) {
	bothWays(t, func(t *testing.T, unary bool) {
		f := newFakeCluster(t, 2, 1)
		f.unary = unary
		c := f.client()
		breaking := func(ctx context.Context, req any) (any, error) {
			switch req.(type) {
			case *ostrakapb.SetRequest, *ostrakapb.GetRequest, *ostrakapb.BatchRequest:
				f.node("n1").reset()
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, nil
		}
		f.node("n1").play(breaking)
		_, err := c.Set(t.Context(), []byte("k"), []byte("v"))
		if !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrUnavailable) {
			t.Errorf("set: %v", err)
		}
		for i, err := range c.MultiSet(t.Context(), []SetItem{{Key: []byte("k")}, {Key: []byte("l")}}) {
			if !errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("item %d: %v", i, err)
			}
		}
		// On a stream the second item of two may have been sent and not been read.
		if sets := f.node("n1").sets(); len(sets) > 3 || len(sets) < 2 || unary && len(sets) != 3 {
			t.Errorf("%d sets were read, want each once at most", len(sets))
		}
		f.lead(1, "n2")
		if _, err = c.Get(t.Context(), []byte("k")); !errors.Is(err, ErrNotFound) {
			t.Errorf("get, which another replica can answer: %v", err)
		}
	})
}

// A connection that cannot be made, or that broke before the write, is no reason to be unsure.
func TestConnectionBreaksBeforeTheRequest(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	c := f.client()
	mustSet(t, c, "k", "1")
	f.refuse("n1", true)
	waitForBreak(t, c, "n1:7400")
	f.lead(1, "n2")
	mustSet(t, c, "k", "2")
	mustGet(t, c, "k", "2")
	if got := len(requests[*ostrakapb.SetRequest](f.node("n1"))); got != 1 {
		t.Errorf("the dead node saw %d sets", got)
	}
}

// A node that stops in good order finishes what it has read and refuses the rest in a way that gRPC understands
// as "not processed": no write under way ends with an unknown outcome, and each is done once.
func TestAGracefulStopLeavesNothingUnknown(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	c := f.client()
	const callers, each = 8, 50
	var group errgroup.Group
	stopping := make(chan struct{})
	var sent atomic.Int32
	for range callers {
		group.Go(func() error {
			for range each {
				if sent.Add(1) == callers*each/4 {
					close(stopping)
				}
				if _, err := c.Set(t.Context(), []byte("k"), []byte("v")); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		<-stopping
		f.lead(1, "n2")
		f.node("n1").drain()
		f.node("n1").server.GracefulStop()
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if f.version != callers*each {
		t.Errorf("%d sets were done for %d calls", f.version, callers*each)
	}
}

func TestNoNodeCanBeReached(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	c := f.client(WithTimeout(200 * time.Millisecond))
	f.refuse("n1", true)
	f.refuse("n2", true)
	waitForBreak(t, c, "n1:7400")
	_, err := c.Set(t.Context(), []byte("k"), []byte("v"))
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("set: %v", err)
	}
	if _, err := c.Get(t.Context(), []byte("k")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
}

// A black hole neither refuses nor accepts connections. A write that waits for one is not done, and goes on to
// another node after the attempt timeout.
func TestConnectingHangs(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	f.start("hole")
	f.lead(1, "")
	c := f.client(WithAttemptTimeout(50*time.Millisecond), WithTimeout(connectTimeout/2))
	f.mu.Lock()
	f.silent["n2:7400"] = true
	f.mu.Unlock()
	hole, err := c.pool.node("n2:7400")
	if err != nil {
		t.Fatal(err)
	}
	c.routes.Load().shards[1].learn(hole)
	f.lead(1, "n1")
	mustSet(t, c, "k", "1")
}

// hang lets requests of the tested kinds reach the node and never answers them.
func hang(ctx context.Context, req any) (any, error) {
	if _, ok := req.(*ostrakapb.MapRequest); ok {
		return nil, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestALeaderHangs(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	c := f.client(WithAttemptTimeout(50*time.Millisecond), WithTimeout(500*time.Millisecond))
	f.node("n1").play(hang)
	stuck := make(chan error, 1)
	go func() {
		_, err := c.Set(t.Context(), []byte("stuck"), []byte("v"))
		stuck <- err
	}()
	waitFor(t, "the write to arrive", func() bool { return len(requests[*ostrakapb.SetRequest](f.node("n1"))) == 1 })
	waitFor(t, "the node to be suspected", func() bool {
		n, _ := c.pool.node("n1:7400")
		return n.suspected()
	})
	f.lead(1, "n2")
	mustSet(t, c, "k", "1") // goes to the new leader meanwhile
	mustGet(t, c, "k", "1")
	if err := <-stuck; !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("the stuck write: %v", err)
	}
	if got := len(requests[*ostrakapb.SetRequest](f.node("n1"))); got != 1 {
		t.Errorf("the hanging node saw %d sets", got)
	}
}

// A leader hangs, and all callers have less patience than it takes to notice that by one call: the calls after them find
// the new leader, and go on doing so, whatever replicas say meanwhile of who leads.
func TestALeaderHangsAndCallersAreImpatient(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	c := f.client(WithAttemptTimeout(100*time.Millisecond), WithTimeout(40*time.Millisecond))
	f.node("n1").play(hang)
	f.lead(1, "n1")
	waitFor(t, "the node to be suspected", func() bool {
		c.Set(t.Context(), []byte("k"), []byte("v"))
		n, _ := c.pool.node("n1:7400")
		return n.suspected()
	})
	sent := len(f.node("n1").sets())
	f.lead(1, "n2")
	done := 0
	for began := time.Now(); time.Since(began) < 2*suspectFor || done == 0; {
		if _, err := c.Set(t.Context(), []byte("k"), []byte("v")); err == nil { // so little time may be too little for n2, too
			done++
		}
	}
	if got := len(f.node("n1").sets()) - sent; got != 0 {
		t.Errorf("the hanging node saw %d more sets, the leader did %d", got, done)
	}
}

// waitForBreak waits until the client has noticed that its connection is gone. Until then what it sends is lost
// on the way, and it cannot know that.
func waitForBreak(t *testing.T, c *Client, address string) {
	t.Helper()
	n, err := c.pool.node(address)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the connection to break", func() bool {
		n.pipeline.mu.Lock()
		defer n.pipeline.mu.Unlock()
		return n.conn.GetState() != connectivity.Ready && n.pipeline.current == nil
	})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAnAnswerOfANewerEpochBringsTheMap(t *testing.T) {
	f := newFakeCluster(t, 3, 1)
	c := f.client()
	f.setMap(2, []shard.NodeID{"n2", "n3"}, 2)
	f.lead(1, "n2")
	f.lead(2, "n3")
	mustSet(t, c, "k", "1") // n1 answers NOT_LEADER at epoch 2
	waitFor(t, "the new map", func() bool { return c.Map().Epoch() == 2 })
	if len(c.Map().Shards()) != 2 {
		t.Errorf("%d shards", len(c.Map().Shards()))
	}
}

func TestAStaleEpochWaitsForTheMap(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	c := f.client()
	f.setMap(7, []shard.NodeID{"n2"}, 1)
	f.lead(1, "n2")
	f.node("n1").play(func(_ context.Context, req any) (any, error) {
		if _, ok := req.(*ostrakapb.SetRequest); ok {
			d := notDone(ostrakapb.Reason_REASON_STALE_EPOCH)
			d.Epoch = 7
			return nil, detailed(d)
		}
		return nil, nil
	})
	mustSet(t, c, "k", "1")
	if got := requests[*ostrakapb.SetRequest](f.node("n2")); len(got) != 1 || got[0].Header.Epoch != 7 {
		t.Errorf("the new owner saw %v", got)
	}
}

func TestOverloadIsGivenTheTimeItAsksFor(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	var refused atomic.Int64 // when, in Unix nanoseconds
	f.node("n1").play(func(_ context.Context, req any) (any, error) {
		if _, ok := req.(*ostrakapb.SetRequest); ok && refused.CompareAndSwap(0, time.Now().UnixNano()) {
			d := notDone(ostrakapb.Reason_REASON_OVERLOADED)
			d.RetryAfterMs = 120
			return nil, detailed(d)
		}
		return nil, nil
	})
	mustSet(t, c, "k", "1")
	if waited := time.Since(time.Unix(0, refused.Load())); waited < 120*time.Millisecond {
		t.Errorf("waited %v, asked for 120ms", waited)
	}
	// A pause past the deadline is not begun.
	refused.Store(0)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.Set(ctx, []byte("k"), []byte("2"))
	if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
		t.Errorf("error %v at the deadline: %v", err, ctx.Err())
	}
}

func TestErrorsThatEndAnOperation(t *testing.T) {
	rows := []struct {
		detail *ostrakapb.ErrorDetail
		is     error
	}{
		{notDone(ostrakapb.Reason_REASON_LIMIT), ErrLimit},
		{notDone(ostrakapb.Reason_REASON_INVALID), ErrInvalid},
		{notDone(ostrakapb.Reason_REASON_NOT_INTEGER), ErrNotInteger},
		{notDone(ostrakapb.Reason_REASON_OVERFLOW), ErrOverflow},
		{notDone(ostrakapb.Reason_REASON_WRONG_CLUSTER), ErrWrongCluster},
		{notDone(ostrakapb.Reason_REASON_UNSUPPORTED), ErrUnsupported},
		{notDone(ostrakapb.Reason_REASON_ALREADY_MEMBER), ErrAlreadyMember},
	}
	for _, row := range rows {
		t.Run(row.detail.Reason.String(), func(t *testing.T) {
			f := newFakeCluster(t, 1, 1)
			c := f.client()
			f.node("n1").play(func(_ context.Context, req any) (any, error) { return nil, detailed(row.detail) })
			if _, err := c.Increment(t.Context(), []byte("k"), 1); !errors.Is(err, row.is) {
				t.Errorf("error %v, want %v", err, row.is)
			}
			if got := len(requests[*ostrakapb.IncrementRequest](f.node("n1"))); got != 1 {
				t.Errorf("sent %d times", got)
			}
		})
	}
}

func TestAMethodThatTheNodeDoesNotHave(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	if _, err := c.Touch(t.Context(), []byte("k")); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestCancelledCalls(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client(WithAttemptTimeout(10 * time.Second))
	f.node("n1").play(hang)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() { _, err := c.Set(ctx, []byte("k"), nil); errs <- err }()
	waitFor(t, "the write to arrive", func() bool { return len(requests[*ostrakapb.SetRequest](f.node("n1"))) == 1 })
	cancel()
	if err := <-errs; !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("a write that was sent: %v", err)
	}
	if _, err := c.Set(ctx, []byte("k"), nil); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a write that was not: %v", err)
	}
	if _, err := c.Get(ctx, []byte("k")); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a read: %v", err)
	}
	if n, _ := c.pool.node("n1:7400"); n.suspected() {
		t.Error("the node is blamed for its caller's impatience")
	}
}

func TestStaleReadsAreSpreadAndNeedNoLeader(t *testing.T) {
	f := newFakeCluster(t, 3, 1)
	c := f.client()
	f.lead(1, "")
	f.mu.Lock()
	f.put("k", []byte("v"), 0)
	f.mu.Unlock()
	for range 60 {
		if v, err := c.Get(t.Context(), []byte("k"), Stale()); err != nil || string(v.Value) != "v" {
			t.Fatalf("get: %q, %v", v.Value, err)
		}
	}
	for _, n := range f.nodes {
		if len(requests[*ostrakapb.GetRequest](n)) == 0 {
			t.Errorf("%s was never asked", n.id)
		}
	}
}
