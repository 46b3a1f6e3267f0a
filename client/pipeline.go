package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

const (
	// pipelineValueBytesMax: a call that carries more goes by itself, so that it doesn't hold up the small ones.
	pipelineValueBytesMax = 64 << 10
	// pipelineMessageBytes is about what one message of calls carries.
	pipelineMessageBytes = 256 << 10
	// pipelineCallsMax bounds one message's calls; the server takes a little more.
	pipelineCallsMax = 4096
	// pipelineQueueMax bounds the calls that wait to be sent to one node; one more fails as not sent.
	pipelineQueueMax = 65536
)

// pipelined is a node's KVClient that sends small single-key calls over one shared stream. Calls that come while a message
// is being sent are joined into the next one, without waiting for more.
//
//	call ─► queue ─► sender (a goroutine): joins, Send ──► node
//	  ▲                                                     │
//	  └───────── receiver (a goroutine): by number ◄────────┘
//
// A stream is opened when it is needed, and both goroutines end with it. Whether a call was sent is exact: its mark is set
// before its message is handed to gRPC, and a call that isn't by then never will be.
type pipelined struct {
	ostrakapb.KVClient // for everything else, and for large calls

	// unsupported: the node does not know the stream.
	unsupported atomic.Bool

	mu      sync.Mutex
	closed  bool
	current *pipe // nil: none is open
	running sync.WaitGroup
}

func newPipelined(kv ostrakapb.KVClient) *pipelined { return &pipelined{KVClient: kv} }

// close ends the stream, and waits for its goroutines. Calls under way fail.
func (p *pipelined) close() {
	p.mu.Lock()
	p.closed = true
	if p.current != nil {
		p.current.cancel()
	}
	p.mu.Unlock()
	p.running.Wait()
}

// pipe is one stream.
type pipe struct {
	owner  *pipelined
	cancel context.CancelFunc
	wake   chan struct{} // holds a token when there is something to send

	mu    sync.Mutex
	queue []*pipelinedCall
	// waiting are the calls that were sent, by number.
	waiting map[uint64]*pipelinedCall
	number  uint64
	// draining: the node is about to stop, nothing more is sent to it.
	draining bool
	ended    bool
}

// pipelinedCall is a call on its way.
type pipelinedCall struct {
	op     *ostrakapb.Op
	header *ostrakapb.Header
	bytes  int
	until  time.Time // zero: no deadline
	mark   *sendMark
	// done takes the one outcome.
	done chan pipelinedOutcome
	// gone: the caller doesn't wait any more. Guarded by pipe.mu.
	gone bool
	// number is its number once it is sent.
	number uint64
}

type pipelinedOutcome struct {
	result *ostrakapb.OpResult
	err    error
}

var (
	errPipelineUnsupported = errors.New("the node has no pipeline")
	errPipelineDraining    = status.Error(codes.Unavailable, "the node is about to stop")
	errPipelineFull        = status.Error(codes.Unavailable, fmt.Sprintf("%d calls wait to be sent to the node", pipelineQueueMax))
)

// call carries one operation out, or says errPipelineUnsupported.
func (p *pipelined) call(ctx context.Context, op *ostrakapb.Op, h *ostrakapb.Header, bytes int) (*ostrakapb.OpResult, error) {
	c := &pipelinedCall{op: op, header: h, bytes: bytes, done: make(chan pipelinedOutcome, 1)}
	c.until, _ = ctx.Deadline()
	c.mark, _ = ctx.Value(sendMarkKey{}).(*sendMark)
	stream, err := p.enqueue(c)
	if err != nil {
		return nil, err
	}
	var got pipelinedOutcome
	select {
	case got = <-c.done:
	case <-ctx.Done():
		stream.abandon(c)
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if got.err != nil {
		return nil, got.err
	}
	if detail := got.result.GetError(); detail != nil {
		return nil, &detailedError{detail}
	}
	return got.result, nil
}

// detailedError is a node's refusal of one call.
type detailedError struct{ detail *ostrakapb.ErrorDetail }

func (e *detailedError) Error() string { return explanation(e.detail) }

// enqueue gives a call to the open stream, or to a new one.
func (p *pipelined) enqueue(c *pipelinedCall) (*pipe, error) {
	for {
		s, err := p.stream()
		if err != nil {
			return nil, err
		}
		switch queued, err := s.push(c); {
		case err != nil:
			return nil, err
		case queued:
			return s, nil
		}
		p.drop(s)
	}
}

func (p *pipelined) stream() (*pipe, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, ErrClosed
	case p.unsupported.Load():
		return nil, errPipelineUnsupported
	case p.current == nil:
		ctx, cancel := context.WithCancel(context.Background())
		s := &pipe{owner: p, cancel: cancel, wake: make(chan struct{}, 1), waiting: make(map[uint64]*pipelinedCall)}
		p.current = s
		p.running.Go(func() { s.run(ctx) })
	}
	return p.current, nil
}

// drop makes a stream that takes no more calls give way to another.
func (p *pipelined) drop(s *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == s {
		p.current = nil
	}
}

// push queues a call; false: the stream takes none any more.
func (s *pipe) push(c *pipelinedCall) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.draining {
		return false, nil
	}
	if len(s.queue) >= pipelineQueueMax {
		return false, errPipelineFull
	}
	s.queue = append(s.queue, c)
	if len(s.queue) == 1 {
		s.signal()
	}
	return true, nil
}

func (s *pipe) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// abandon takes back a call whose caller has gone; once it is sent only its answer is dropped.
func (s *pipe) abandon(c *pipelinedCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.gone = true
	delete(s.waiting, c.number)
}

// run is the stream's life.
func (s *pipe) run(ctx context.Context) {
	defer s.cancel()
	stream, err := s.owner.KVClient.Pipeline(ctx)
	if err != nil {
		s.end(err)
		return
	}
	received := make(chan error, 1)
	s.owner.running.Go(func() {
		err := s.receive(stream)
		received <- err
		s.cancel() // the sender's Send fails, too
	})
	err = s.send(ctx, stream)
	if err != nil {
		s.cancel()
	}
	got := <-received
	if err == nil || errors.Is(err, io.EOF) || got != nil && status.Code(got) != codes.Canceled {
		err = got // the receiver knows why
	}
	s.end(err)
}

// end fails what was not answered.
func (s *pipe) end(err error) {
	if err == nil {
		err = errPipelineDraining
	}
	if status.Code(err) == codes.Unimplemented {
		s.owner.unsupported.Store(true)
	}
	s.owner.drop(s)
	s.mu.Lock()
	s.ended = true
	queue, waiting := s.queue, s.waiting
	s.queue, s.waiting = nil, nil
	s.mu.Unlock()
	for _, c := range queue {
		unsent := err
		if s.owner.unsupported.Load() {
			unsent = errPipelineUnsupported
		}
		c.done <- pipelinedOutcome{err: unsent}
	}
	for _, c := range waiting {
		if s.owner.unsupported.Load() && c.mark != nil {
			c.mark.sent.Store(false) // a node without the method has not looked at it
			c.done <- pipelinedOutcome{err: errPipelineUnsupported}
			continue
		}
		c.done <- pipelinedOutcome{err: err}
	}
}

// send joins queued calls into messages. It returns nil when the node is draining and all was sent.
func (s *pipe) send(ctx context.Context, stream grpc.BidiStreamingClient[ostrakapb.PipelineRequest, ostrakapb.PipelineResponse]) error {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		for {
			message, draining := s.next()
			if message != nil {
				if err := stream.Send(message); err != nil {
					return err
				}
				continue
			}
			if draining {
				return stream.CloseSend()
			}
			break
		}
	}
}

// next takes queued calls for one message, and marks them as sent; nil: there are none.
func (s *pipe) next() (message *ostrakapb.PipelineRequest, draining bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		queue := s.queue
		s.queue = nil
		for _, c := range queue {
			c.done <- pipelinedOutcome{err: errPipelineDraining}
		}
		return nil, true
	}
	now := time.Now()
	taken, bytes := 0, 0
	for _, c := range s.queue {
		if len(message.GetCalls()) == pipelineCallsMax || bytes > pipelineMessageBytes {
			break
		}
		taken++
		if c.gone {
			continue
		}
		if message == nil {
			message = &ostrakapb.PipelineRequest{Header: &ostrakapb.Header{ClientId: c.header.GetClientId(),
				LowestUnanswered: c.header.GetLowestUnanswered()}, Calls: make([]*ostrakapb.PipelineCall, 0, len(s.queue))}
		}
		s.number++
		c.number = s.number
		s.waiting[c.number] = c
		if c.mark != nil {
			c.mark.sent.Store(true)
		}
		call := &ostrakapb.PipelineCall{Number: c.number, Op: c.op}
		if !c.until.IsZero() {
			call.TimeoutUs = max(1, c.until.Sub(now).Microseconds())
		}
		message.Calls = append(message.Calls, call)
		bytes += c.bytes
	}
	if taken == len(s.queue) {
		clear(s.queue)
		s.queue = s.queue[:0]
	} else {
		s.queue = s.queue[taken:]
	}
	return message, false
}

// receive hands answers to their callers until the stream ends; nil: in good order.
func (s *pipe) receive(stream grpc.BidiStreamingClient[ostrakapb.PipelineRequest, ostrakapb.PipelineResponse]) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.settle(r)
	}
}

func (s *pipe) settle(r *ostrakapb.PipelineResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range r.GetAnswers() {
		c := s.waiting[a.GetNumber()]
		if c == nil {
			continue // its caller has gone
		}
		delete(s.waiting, a.GetNumber())
		c.done <- pipelinedOutcome{result: a.GetResult()}
	}
	if r.GetDraining() {
		s.draining = true
		s.signal()
	}
}
