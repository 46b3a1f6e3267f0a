package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

const (
	// pipelineValueBytesMax: an operation that carries more goes by itself, so that it doesn't hold up the small ones.
	pipelineValueBytesMax = 64 << 10
	// pipelineMessageBytes is about what one message of calls carries.
	pipelineMessageBytes = 256 << 10
	// pipelineCallsMax bounds one message's calls; the server takes a little more.
	pipelineCallsMax = 4096
	// pipelineQueueMax and pipelineQueueBytesMax bound the calls that wait to be sent over one stream. One more fails as
	// not sent.
	pipelineQueueMax      = 65536
	pipelineQueueBytesMax = 64 << 20
	// pipelineAbsent is how long a node that did not know the stream is spared the question: it may be upgraded.
	pipelineAbsent = 30 * time.Second
)

// pipeline carries a node's small operations over one stream. Calls that come while a message is being sent are joined
// into the next one, without waiting for more.
//
//	caller ─► queue ─► sender (a goroutine): joins, Send ──► node
//	  ▲                                                       │
//	  ├────────── receiver (a goroutine): by number ◄─────────┘
//	  └────────── watch (a goroutine): whose patience is over
//
// A stream is opened when it is needed, and its goroutines end with it. Whether a call was sent is exact: it is marked
// before its message is handed to gRPC, and a call that isn't by then never will be.
type pipeline struct {
	kv ostrakapb.KVClient
	// header is that of a message that is sent now, but for the epoch, which is the oldest by which a call of it was routed.
	header func() *ostrakapb.Header
	// suspect is told of a write that was sent and is not answered within its attempt's patience.
	suspect func(*shardRoute)
	// silent is told each time that calls were sent and nothing at all was heard for the time of silence.
	silence time.Duration
	silent  func()
	// spoke is told that something was heard after that, be it an answer that came too late for its caller.
	spoke func()
	// beat is how often calls' patience is looked at.
	beat time.Duration

	// absentUntil is a Unix time in nanoseconds before which the node is taken not to know the stream.
	absentUntil atomic.Int64

	mu      sync.Mutex
	closed  bool
	current *pipe // nil: none is open
	running sync.WaitGroup
}

// pipelineCall is one operation on its way, and its outcome.
type pipelineCall struct {
	op       []byte // as ostrakapb.AppendOp makes it
	write    bool
	held     bool // see attempt
	epoch    uint64
	route    *shardRoute
	deadline time.Time
	// patience is when a read, or a write that is not sent, is given up in favour of another node. A write that was sent
	// then makes its node suspect, and is given up too if it is not held and the node says nothing at all.
	patience time.Time

	// done holds a token once the call has its outcome.
	done chan struct{}

	// Guarded by pipe.mu until the outcome is there, constant afterwards.
	number    uint64 // 0: not sent
	over      bool   // it has its outcome, or its caller is gone
	suspected bool
	result    *ostrakapb.OpResult
	err       error
}

func (c *pipelineCall) sent() bool { return c.number != 0 }

// outcome is what became of a call, and all of it that its caller may still look at: the call itself may be another's.
type outcome struct {
	result *ostrakapb.OpResult
	err    error
	// sent: the node may have seen it.
	sent bool
}

// settleLocked gives a call its outcome, unless it is over. Whoever calls it wakes the caller afterwards.
func (c *pipelineCall) settleLocked(result *ostrakapb.OpResult, err error) bool {
	if c.over {
		return false
	}
	c.over, c.result, c.err = true, result, err
	return true
}

func (c *pipelineCall) wake() { c.done <- struct{}{} }

// calls are used again, for the sake of their channels and bytes: those that were answered, and no others, since the
// stream may still hold them. Only pipe.wait gives one back. A test puts something in its place that writes all over what
// is given back, so that the race detector finds whoever still looks.
var calls interface {
	Get() any
	Put(any)
} = &sync.Pool{New: func() any { return &pipelineCall{done: make(chan struct{}, 1)} }}

func newPipelineCall() *pipelineCall { return calls.Get().(*pipelineCall) }

// takeOutcome returns the outcome of a call that has one, and gives the call back where it is nobody else's.
func (c *pipelineCall) takeOutcome() outcome {
	o := outcome{result: c.result, err: c.err, sent: c.sent()}
	if o.err == nil && cap(c.op) <= pipelineValueBytesMax {
		*c = pipelineCall{op: c.op[:0], done: c.done}
		calls.Put(c)
	}
	return o
}

var (
	errPipelineAbsent   = errors.New("the node has no pipeline")
	errPipelineDraining = status.Error(codes.Unavailable, "the node is about to stop")
	errPipelineFull     = status.Error(codes.Unavailable, fmt.Sprintf("%d calls or %d bytes wait to be sent to the node", pipelineQueueMax, pipelineQueueBytesMax))
	errPatience         = status.Error(codes.DeadlineExceeded, "the node did not answer in time")
	errDeadline         = status.Error(codes.DeadlineExceeded, "the call's time is up")
)

// absent reports whether the node is taken not to know the stream.
func (p *pipeline) absent() bool {
	until := p.absentUntil.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// close ends the stream, and waits for its goroutines. Calls under way fail.
func (p *pipeline) close() {
	p.mu.Lock()
	p.closed = true
	if p.current != nil {
		p.current.cancel()
	}
	p.mu.Unlock()
	p.running.Wait()
}

// call sends a call and waits for its outcome. The call is not the caller's any more.
func (p *pipeline) call(ctx context.Context, c *pipelineCall) outcome {
	s, err := p.push(c)
	if err != nil {
		return outcome{err: err}
	}
	return s.wait(ctx, c)
}

// push gives calls to the open stream, or to a new one. An error means that none was sent or will be.
func (p *pipeline) push(calls ...*pipelineCall) (*pipe, error) {
	for {
		s, err := p.stream()
		if err != nil {
			return nil, err
		}
		switch queued, err := s.push(calls); {
		case err != nil:
			return nil, err
		case queued:
			return s, nil
		}
		p.drop(s)
	}
}

func (p *pipeline) stream() (*pipe, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, ErrClosed
	case p.current == nil:
		p.current = newPipe(p)
	}
	return p.current, nil
}

// drop makes a stream that takes no more calls give way to another.
func (p *pipeline) drop(s *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == s {
		p.current = nil
	}
}
