package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// A node of a build without the stream is asked call by call, and nothing is lost over finding out.
func TestNodeWithoutPipeline(t *testing.T) {
	f := newFakeCluster(t, 3, 3)
	f.unary = true
	c := f.client()
	var group errgroup.Group
	for i := range 50 {
		group.Go(func() error {
			_, err := c.Set(t.Context(), fmt.Append(nil, "k", i), []byte("v"))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if f.version != 50 {
		t.Errorf("%d sets were done", f.version)
	}
	for _, n := range c.pool.nodes {
		if !n.kv.unsupported.Load() {
			t.Errorf("%s is still asked for a stream", n.address)
		}
	}
}

// Calls that come while a message is sent share the next one.
func TestCallsAreJoined(t *testing.T) {
	p := &pipe{wake: make(chan struct{}, 1), waiting: make(map[uint64]*pipelinedCall)}
	calls := make([]*pipelinedCall, 10)
	for i := range calls {
		calls[i] = &pipelinedCall{op: &ostrakapb.Op{}, mark: new(sendMark), done: make(chan pipelinedOutcome, 1)}
		if ok, err := p.push(calls[i]); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	p.abandon(calls[3])
	message, _ := p.next()
	if got := len(message.GetCalls()); got != 9 {
		t.Fatalf("%d calls in the message", got)
	}
	for i, c := range calls {
		if c.mark.sent.Load() != (i != 3) {
			t.Errorf("call %d: sent %v", i, c.mark.sent.Load())
		}
	}
	if message, _ = p.next(); message != nil {
		t.Errorf("sent twice: %v", message)
	}
	p.settle(&ostrakapb.PipelineResponse{Answers: []*ostrakapb.PipelineAnswer{{Number: 2}, {Number: 2}, {Number: 99}}})
	if len(calls[1].done) != 1 || len(p.waiting) != 8 {
		t.Errorf("%d answers to call 1, %d calls wait", len(calls[1].done), len(p.waiting))
	}
}

// A large value goes by itself: the small calls behind it are not held up, and it may be as large as ever.
func TestLargeValuesGoAlone(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	large := bytes.Repeat([]byte("x"), pipelineValueBytesMax+1)
	if _, err := c.Set(t.Context(), []byte("large"), large); err != nil {
		t.Fatal(err)
	}
	if n := c.pool.nodes["n1:7400"]; n.kv.current != nil {
		t.Error("the large value opened the stream")
	}
	if _, err := c.Set(t.Context(), []byte("small"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(t.Context(), []byte("large")); err != nil || !bytes.Equal(got.Value, large) {
		t.Errorf("%d bytes, %v", len(got.Value), err)
	}
}

// When the connection breaks, what was sent is unknown for writes, and what was not is sent again.
func TestBrokenStream(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	var arrived sync.WaitGroup
	arrived.Add(3)
	f.node("n1").play(func(ctx context.Context, req any) (any, error) {
		if _, ok := req.(*ostrakapb.SetRequest); !ok {
			return nil, nil
		}
		arrived.Done()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	outcomes := make(chan error, 3)
	for i := range 3 {
		go func() {
			_, err := c.Set(t.Context(), fmt.Append(nil, "k", i), []byte("v"))
			outcomes <- err
		}()
	}
	arrived.Wait()
	f.node("n1").play(nil)
	f.node("n1").reset()
	for range 3 {
		if err := <-outcomes; !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("a write under way: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Set(ctx, []byte("next"), []byte("v")); err != nil {
		t.Errorf("the next write: %v", err)
	}
}
