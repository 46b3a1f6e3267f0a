package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

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
		if !n.pipeline.absent() {
			t.Errorf("%s is still asked for a stream", n.address)
		}
	}
}

// testPipe is a stream without goroutines, and calls that wait on it.
func testPipe(t *testing.T, calls int) (*pipe, []*pipelineCall) {
	t.Helper()
	s := &pipe{wake: make(chan struct{}, 1), watched: make(chan struct{}, 1), waiting: make(map[uint64]*pipelineCall),
		owner: &pipeline{header: func() *ostrakapb.Header { return &ostrakapb.Header{LowestUnanswered: 9} }, suspect: func(*shardRoute) {},
			silence: time.Hour, silent: func() {}, spoke: func() {}}}
	op, err := ostrakapb.AppendOp(nil, &ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: &ostrakapb.SetRequest{Key: []byte("k")}}})
	if err != nil {
		t.Fatal(err)
	}
	all := make([]*pipelineCall, calls)
	now := time.Now()
	for i := range all {
		all[i] = newPipelineCall()
		all[i].op, all[i].epoch, all[i].write = op, uint64(100-i), true
		all[i].deadline, all[i].patience = now.Add(time.Hour), now.Add(time.Minute)
		if ok, err := s.push(all[i : i+1]); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	return s, all
}

// sent decodes a message as any server would.
func sent(t *testing.T, frame *ostrakapb.PipelineFrame) *ostrakapb.PipelineRequest {
	t.Helper()
	message := new(ostrakapb.PipelineRequest)
	if frame == nil {
		return message
	}
	wire, err := ostrakapb.PipelineCodec{}.Marshal(frame)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(wire.Materialize(), message); err != nil {
		t.Fatal(err)
	}
	return message
}

func answers(t *testing.T, numbers ...uint64) []byte {
	t.Helper()
	message := new(ostrakapb.PipelineResponse)
	for _, n := range numbers {
		message.Answers = append(message.Answers, &ostrakapb.PipelineAnswer{Number: n,
			Result: &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Set{Set: &ostrakapb.SetResponse{Done: true}}}})
	}
	b, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Calls that come while a message is sent share the next one; one whose caller went before that is not sent.
func TestCallsAreJoined(t *testing.T) {
	s, calls := testPipe(t, 10)
	if !s.abandon(calls[3]) {
		t.Fatal("it has no outcome yet")
	}
	frame, _ := s.next()
	message := sent(t, frame)
	if len(message.GetCalls()) != 9 || message.GetHeader().GetLowestUnanswered() != 9 || message.GetHeader().GetEpoch() != 91 {
		t.Fatalf("sent %v", message)
	}
	for i, c := range calls {
		if c.sent() != (i != 3) {
			t.Errorf("call %d: sent %v", i, c.sent())
		}
	}
	if again, _ := s.next(); again != nil {
		t.Errorf("sent twice: %v", sent(t, again))
	}
	if _, err := s.settle(answers(t, 2, 2, 99), nil); err != nil {
		t.Fatal(err)
	}
	if len(calls[1].done) != 1 || len(s.waiting) != 8 || !calls[1].result.GetSet().GetDone() {
		t.Errorf("%d answers to call 1, %d calls wait", len(calls[1].done), len(s.waiting))
	}
	if s.abandon(calls[1]) {
		t.Error("a call that has its answer was taken back")
	}
}

// A message takes a bounded part of the queue, and a queue takes a bounded number of calls and bytes.
func TestPipelineBounds(t *testing.T) {
	s, _ := testPipe(t, pipelineCallsMax+1)
	frame, _ := s.next()
	if n := len(sent(t, frame).GetCalls()); n != pipelineCallsMax {
		t.Errorf("%d calls in a message", n)
	}
	frame, _ = s.next()
	if n := len(sent(t, frame).GetCalls()); n != 1 {
		t.Errorf("%d calls in the second message", n)
	}
	if s.queueBytes != 0 {
		t.Errorf("%d bytes wait in an empty queue", s.queueBytes)
	}
	big := newPipelineCall()
	big.op = make([]byte, pipelineQueueBytesMax)
	if ok, err := s.push([]*pipelineCall{big}); !ok || err != nil {
		t.Errorf("a queue that is empty takes anything: %v", err)
	}
	if ok, err := s.push([]*pipelineCall{newPipelineCall()}); ok == true && len(s.queue) != 2 || err != nil {
		t.Errorf("an empty operation fits: %v", err)
	}
	small := newPipelineCall()
	small.op = make([]byte, 1)
	if ok, err := s.push([]*pipelineCall{small}); ok || !errors.Is(err, errPipelineFull) {
		t.Errorf("one byte too many: %v", err)
	}
}

// Callers that give up sooner than the node's silence is noticed don't keep it from being noticed; any answer ends it.
func TestPipelineNoticesSilence(t *testing.T) {
	s, calls := testPipe(t, 2)
	silences, spoke := 0, 0
	s.owner.silence, s.owner.silent, s.owner.spoke = time.Second, func() { silences++ }, func() { spoke++ }
	s.next()
	sent := time.Now()
	for _, c := range calls {
		s.abandon(c)
	}
	if s.look(sent.Add(900 * time.Millisecond)); silences != 0 {
		t.Error("silent after 0.9 s")
	}
	s.look(sent.Add(1100 * time.Millisecond))
	if s.look(sent.Add(1200 * time.Millisecond)); silences != 1 {
		t.Errorf("%d silences after 1.2 s, want 1", silences)
	}
	if s.look(sent.Add(2300 * time.Millisecond)); silences != 2 {
		t.Errorf("%d silences after 2.3 s, want 2", silences)
	}
	// It is late: its caller has gone.
	if _, err := s.settle(ostrakapb.AppendSetAnswer(nil, calls[0].number, true, 1), nil); err != nil {
		t.Fatal(err)
	}
	if s.look(sent.Add(time.Minute)); silences != 2 || spoke != 1 {
		t.Errorf("after an answer: %d silences, spoken %d times", silences, spoke)
	}
}

// Patience: a read, or a write that isn't sent, is given up; a write that is sent makes its node suspect, and is given up
// at its deadline.
func TestPipelinePatience(t *testing.T) {
	s, calls := testPipe(t, 3)
	suspected := 0
	s.owner.suspect = func(*shardRoute) { suspected++ }
	calls[1].write = false
	s.next()
	late, sr := newPipelineCall(), new(shardRoute)
	late.write, late.route, late.deadline, late.patience = true, sr, calls[0].deadline, calls[0].patience
	if ok, err := s.push([]*pipelineCall{late}); !ok || err != nil {
		t.Fatal(err)
	}
	start := calls[0].patience.Add(-time.Minute)
	outcome := func(c *pipelineCall) error {
		if len(c.done) == 0 {
			return nil
		}
		return c.err
	}
	if !s.look(start) || suspected != 0 || outcome(calls[1]) != nil {
		t.Errorf("too early: %d suspected, %v", suspected, outcome(calls[1]))
	}
	for range 2 {
		s.look(start.Add(2 * time.Minute))
	}
	if suspected != 2 {
		t.Errorf("%d writes made their node suspect, want each once", suspected)
	}
	for i, want := range []error{nil, errPatience, nil} {
		if got := outcome(calls[i]); got != want {
			t.Errorf("call %d: %v, want %v", i, got, want)
		}
	}
	if got := outcome(late); got != errPatience || late.sent() {
		t.Errorf("the write that waits to be sent: %v, sent %v", got, late.sent())
	}
	if frame, _ := s.next(); frame != nil {
		t.Error("what was given up was sent")
	}
	if s.look(start.Add(2 * time.Hour)) {
		t.Error("no call waits, and yet they are watched")
	}
	if outcome(calls[0]) != errDeadline || outcome(calls[2]) != errDeadline {
		t.Errorf("past the deadline: %v, %v", outcome(calls[0]), outcome(calls[2]))
	}
}

// Calls in a queue when the node says that it stops are not sent, and calls that were sent wait for their answers.
func TestPipelineDraining(t *testing.T) {
	s, calls := testPipe(t, 2)
	s.next()
	waits := newPipelineCall()
	if ok, err := s.push([]*pipelineCall{waits}); !ok || err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(&ostrakapb.PipelineResponse{Draining: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.settle(b, nil); err != nil {
		t.Fatal(err)
	}
	if frame, draining := s.next(); frame != nil || !draining {
		t.Errorf("sent %v", sent(t, frame))
	}
	<-waits.done
	if waits.err != errPipelineDraining || waits.sent() {
		t.Errorf("%v, sent %v", waits.err, waits.sent())
	}
	if ok, err := s.push([]*pipelineCall{newPipelineCall()}); ok || err != nil {
		t.Errorf("a stream that drains took a call: %v", err)
	}
	if _, err := s.settle(answers(t, 1, 2), nil); err != nil || len(calls[0].done)+len(calls[1].done) != 2 {
		t.Errorf("the answers to what was sent: %v", err)
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
	if n := c.pool.nodes["n1:7400"]; n.pipeline.current != nil {
		t.Error("the large value opened the stream")
	}
	if _, err := c.Set(t.Context(), []byte("small"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(t.Context(), []byte("large")); err != nil || !bytes.Equal(got.Value, large) {
		t.Errorf("%d bytes, %v", len(got.Value), err)
	}
}

// brokenStream takes a number of messages, and then none.
type brokenStream struct {
	grpc.ClientStream
	takes int
}

func (b *brokenStream) SendMsg(any) error {
	if b.takes--; b.takes < 0 {
		return io.EOF
	}
	return nil
}

// A message that gRPC does not take has not been sent, and its calls may be made again; those before it have been.
func TestMessageThatWasNotTaken(t *testing.T) {
	s, calls := testPipe(t, pipelineCallsMax+1) // two messages
	if err := s.send(t.Context(), &brokenStream{takes: 1}); err != io.EOF {
		t.Fatal(err)
	}
	s.end(status.Error(codes.Unavailable, "broken"))
	for i, c := range calls {
		if o := s.wait(t.Context(), c); o.sent != (i < pipelineCallsMax) || status.Code(o.err) != codes.Unavailable {
			t.Fatalf("call %d: sent %v, %v", i, o.sent, o.err)
		}
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
