package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// scribbler stands in for the pool of calls. What is given back is never handed out again: a goroutine that nobody waits
// for writes all over it. Whoever still looks at a call that it gave away, or that its caller did, then races with that
// goroutine whatever the timing, and sees nonsense.
type scribbler struct {
	scribbling sync.WaitGroup
	mu         sync.Mutex
	given      int
}

func (s *scribbler) Get() any { return &pipelineCall{done: make(chan struct{}, 1)} }

func (s *scribbler) Put(c any) {
	s.mu.Lock()
	s.given++
	s.mu.Unlock()
	s.scribbling.Go(func() {
		call := c.(*pipelineCall)
		op := call.op[:cap(call.op)]
		for i := range op {
			op[i] = 0xff
		}
		*call = pipelineCall{op: op, write: true, epoch: 1 << 63, number: 1 << 63, over: true, suspected: true,
			result: &ostrakapb.OpResult{}, err: errors.New("of a call that was given back")}
	})
}

// scribble makes the test's calls go to a scribbler. Tests that do so can't run beside others.
func scribble(t *testing.T) *scribbler {
	t.Helper()
	usual, s := calls, new(scribbler)
	calls = s
	t.Cleanup(func() {
		calls = usual
		s.scribbling.Wait()
	})
	return s
}

// Nobody looks at a call that was given back; the race detector finds who does. Each way a call can end is taken: answered,
// refused, given up by its caller before it was sent and after, late, and cut off.
func TestCallsGivenBackAreLeftAlone(t *testing.T) {
	pool := scribble(t)
	f := newFakeCluster(t, 1, 1)
	c := f.client(WithAttemptTimeout(20 * time.Millisecond))
	n := f.node("n1")
	keys := [][]byte{[]byte("a"), []byte("b"), []byte("c")}
	for _, k := range keys {
		if _, err := c.Set(t.Context(), k, k); err != nil {
			t.Fatal(err)
		}
		if v, err := c.Get(t.Context(), k); err != nil || string(v.Value) != string(k) {
			t.Fatalf("%s: %q, %v", k, v.Value, err)
		}
		if _, err := c.Set(t.Context(), k, k, IfAbsent()); !errors.Is(err, ErrConditionNotMet) {
			t.Fatal(err)
		}
	}
	for i, r := range c.MultiGet(t.Context(), keys) {
		if r.Err != nil || string(r.Value.Value) != string(keys[i]) {
			t.Errorf("%s: %q, %v", keys[i], r.Value.Value, r.Err)
		}
	}
	if pool.given < 4*len(keys) {
		t.Errorf("%d calls were given back", pool.given)
	}

	given := pool.given
	n.play(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Set(ctx, keys[0], nil); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("a write that was sent and not answered: %v", err)
	}
	if _, err := c.Get(ctx, keys[0]); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a read that was not answered: %v", err)
	}
	for _, err := range c.MultiSet(ctx, []SetItem{{Key: keys[0]}, {Key: keys[1]}}) {
		if err == nil {
			t.Error("a write that was not answered is done")
		}
	}
	if pool.given != given {
		t.Errorf("%d calls were given back that the stream might still hold", pool.given-given)
	}
}

// The same of a stream by itself, at the moments that a cluster would have to be lucky to meet.
func TestCallsOfAStreamGivenBackAreLeftAlone(t *testing.T) {
	pool := scribble(t)
	s, calls := testPipe(t, 6)
	ended, end := context.WithCancel(t.Context())
	end()
	if o := s.wait(ended, calls[5]); o.sent || !errors.Is(ended.Err(), context.Canceled) || o.err == nil {
		t.Errorf("given up before it was sent: %+v", o)
	}
	s.next()
	if o := s.wait(ended, calls[4]); !o.sent || o.err == nil {
		t.Errorf("given up after it was sent: %+v", o)
	}
	// A garbled answer ends the stream. Those before it in the message count, and are not forgotten.
	message := answers(t, 1, 5)
	bad, err := proto.Marshal(&ostrakapb.PipelineResponse{Answers: []*ostrakapb.PipelineAnswer{{Number: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	bad = append(bad, 0x0a, 0x04, 0x08, 0x03, 0x12, 0x7f)
	if _, err := s.settle(append(message, bad...), nil); err == nil {
		t.Error("a garbled message passed")
	}
	for i, want := range []bool{true, true} {
		if got := len(calls[i].done) == 1; got != want {
			t.Errorf("call %d answered: %v", i, got)
		}
	}
	if o := s.wait(t.Context(), calls[0]); o.err != nil || !o.sent || !o.result.GetSet().GetDone() {
		t.Errorf("the answer: %+v", o)
	}
	s.look(calls[2].deadline.Add(time.Second))
	if o := s.wait(t.Context(), calls[2]); o.err != errDeadline || !o.sent {
		t.Errorf("late: %+v", o)
	}
	s.end(errPipelineDraining)
	if pool.given != 1 {
		t.Errorf("%d calls were given back, of one whose answer was taken", pool.given)
	}
}

// Many callers, of whom some lose patience at any moment, while connections break and nodes say that they stop: every
// caller gets the answer to its own call, and to no other's.
func TestCallersUnderFire(t *testing.T) {
	f := newFakeCluster(t, 3, 3)
	c := f.client()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	const callers, rounds = 48, 60
	var group errgroup.Group
	for i := range callers {
		group.Go(func() error {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			key := fmt.Append(nil, "caller-", i)
			last, unknown := "", []string(nil) // an unknown write may also happen later
			for j := range rounds {
				value := fmt.Sprintf("%d of %s", j, key)
				hurry, cancel := ctx, context.CancelFunc(func() {})
				if random.IntN(3) == 0 {
					hurry, cancel = context.WithTimeout(ctx, time.Duration(random.IntN(2000))*time.Microsecond)
				}
				_, err := c.Set(hurry, key, []byte(value))
				cancel()
				switch {
				case err == nil:
					last = value
				case errors.Is(err, ErrOutcomeUnknown):
					unknown = append(unknown, value)
				case !errors.Is(err, ErrUnavailable):
					return fmt.Errorf("set %s: %w", value, err)
				}
				got, err := c.Get(ctx, key)
				if err != nil && !errors.Is(err, ErrNotFound) {
					return fmt.Errorf("get %s: %w", key, err)
				}
				if string(got.Value) != last && !slices.Contains(unknown, string(got.Value)) {
					return fmt.Errorf("%s is %q, want %q or one of %q", key, got.Value, last, unknown)
				}
			}
			return nil
		})
	}
	done := make(chan error, 1)
	go func() { done <- group.Wait() }()
	random := rand.New(rand.NewPCG(2, 2))
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			// Close beside calls.
			var late sync.WaitGroup
			for range callers {
				late.Go(func() {
					for {
						if _, err := c.Get(ctx, []byte("k")); errors.Is(err, ErrClosed) || ctx.Err() != nil {
							return
						}
					}
				})
			}
			c.Close()
			late.Wait()
			return
		case <-time.After(25 * time.Millisecond): // the pace of the faults
			n := f.node(shard.NodeID(fmt.Sprint("n", 1+random.IntN(3))))
			if random.IntN(2) == 0 {
				n.reset()
			} else {
				n.drain()
			}
		}
	}
}
