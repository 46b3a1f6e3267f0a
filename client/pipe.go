package client

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// pipe is one stream of a pipeline.
type pipe struct {
	owner  *pipeline
	cancel context.CancelFunc
	// wake holds a token when there is something to send, watched when watch has something to look at.
	wake, watched chan struct{}

	mu         sync.Mutex
	queue      []*pipelineCall
	queueBytes int
	// waiting are the calls that were sent, by number.
	waiting map[uint64]*pipelineCall
	number  uint64
	// latest is the number of the first call in the latest message.
	latest uint64
	// watching: watch looks at the calls every beat, until there are none.
	watching bool
	// heard: the node has answered something. silentSince is when the first call was sent since it last did, or since it was
	// last found silent; zero: none was. Callers may give up sooner than that is noticed, again and again.
	heard       bool
	silentSince time.Time
	// silenced: it was found silent, and has not answered since.
	silenced bool
	// draining: the node is about to stop, nothing more is sent to it.
	draining bool
	ended    bool
}

func newPipe(owner *pipeline) *pipe {
	ctx, cancel := context.WithCancel(context.Background())
	s := &pipe{owner: owner, cancel: cancel, wake: make(chan struct{}, 1), watched: make(chan struct{}, 1),
		waiting: make(map[uint64]*pipelineCall)}
	owner.running.Go(func() { s.run(ctx) })
	owner.running.Go(func() { s.watch(ctx) })
	return s
}

// push queues calls, all or none; false: the stream takes none any more.
func (s *pipe) push(calls []*pipelineCall) (bool, error) {
	bytes := 0
	for _, c := range calls {
		bytes += len(c.op)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.draining {
		return false, nil
	}
	if n := len(s.queue); n > 0 && (n+len(calls) > pipelineQueueMax || s.queueBytes+bytes > pipelineQueueBytesMax) {
		return false, errPipelineFull
	}
	if len(s.queue) == 0 {
		signal(s.wake)
	}
	if !s.watching {
		s.watching = true
		signal(s.watched)
	}
	s.queue = append(s.queue, calls...)
	s.queueBytes += bytes
	return true, nil
}

func signal(token chan struct{}) {
	select {
	case token <- struct{}{}:
	default:
	}
}

// abandon takes a call back whose caller won't wait any more; false: it has its outcome. Once it is sent only its answer
// is dropped.
func (s *pipe) abandon(c *pipelineCall) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.over {
		return false
	}
	c.over = true
	delete(s.waiting, c.number)
	return true
}

// wait waits for a call's outcome, or its caller's end. The call is not the caller's any more.
func (s *pipe) wait(ctx context.Context, c *pipelineCall) outcome {
	select {
	case <-c.done:
		return c.takeOutcome()
	case <-ctx.Done():
	}
	if s.abandon(c) { // from here on nobody writes to it, but it may still stand in the queue
		return outcome{err: status.FromContextError(ctx.Err()).Err(), sent: c.sent()}
	}
	<-c.done // it came at the same moment
	return c.takeOutcome()
}

// run is the stream's life, and its sender.
func (s *pipe) run(ctx context.Context) {
	defer s.cancel()
	stream, err := s.owner.kv.Pipeline(ctx, grpc.ForceCodecV2(ostrakapb.PipelineCodec{}))
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
	s.mu.Lock()
	absent := status.Code(err) == codes.Unimplemented && !s.heard
	if absent {
		s.owner.absentUntil.Store(time.Now().Add(pipelineAbsent).UnixNano())
		err = errPipelineAbsent
	}
	s.ended = true
	var woken []*pipelineCall
	for _, c := range s.queue {
		if c.settleLocked(nil, err) {
			woken = append(woken, c)
		}
	}
	for _, c := range s.waiting {
		if absent {
			c.number = 0 // a node without the method has not looked at it
		}
		if c.settleLocked(nil, err) {
			woken = append(woken, c)
		}
	}
	s.queue, s.waiting = nil, nil
	s.mu.Unlock()
	s.owner.drop(s)
	for _, c := range woken {
		c.wake()
	}
}

// send joins queued calls into messages. It returns nil when the node is draining and all was sent.
func (s *pipe) send(ctx context.Context, stream grpc.ClientStream) error {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		// Callers that were woken together are about to call again together: they come first, and share a message.
		runtime.Gosched()
		for {
			message, draining := s.next()
			if message != nil {
				if err := stream.SendMsg(message); err != nil {
					s.unsend()
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
func (s *pipe) next() (message *ostrakapb.PipelineFrame, draining bool) {
	s.mu.Lock()
	if s.draining {
		refused := s.queue
		s.queue, s.queueBytes = nil, 0
		s.mu.Unlock()
		s.refuse(refused)
		return nil, true
	}
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return nil, false
	}
	h := s.owner.header()
	h.Epoch = s.queue[0].epoch
	for _, c := range s.queue[1:] {
		h.Epoch = min(h.Epoch, c.epoch)
	}
	buf := ostrakapb.NewPipelineBuffer()
	b := ostrakapb.AppendRequestHeader(*buf, h)
	now := time.Now()
	taken, joined := 0, 0
	s.latest = s.number + 1
	for _, c := range s.queue {
		if joined == pipelineCallsMax || len(b) > pipelineMessageBytes {
			break
		}
		taken++
		s.queueBytes -= len(c.op)
		if c.over {
			continue
		}
		joined++
		s.number++
		c.number = s.number
		s.waiting[c.number] = c
		if s.silentSince.IsZero() {
			s.silentSince = now
		}
		b = ostrakapb.AppendCall(b, c.number, max(1, c.deadline.Sub(now).Microseconds()), c.op)
	}
	rest := copy(s.queue, s.queue[taken:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	*buf = b
	if joined == 0 {
		ostrakapb.FreePipelineBuffer(buf)
		return nil, false
	}
	message = new(ostrakapb.PipelineFrame)
	message.Add(buf)
	return message, false
}

// unsend puts the calls of the latest message back into the queue, to fail as not sent. gRPC gives an error for a message only
// where it did not take it: the stream or the connection was over before, and not a byte has left.
func (s *pipe) unsend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number, c := range s.waiting {
		if number >= s.latest {
			delete(s.waiting, number)
			c.number = 0
			s.queue = append(s.queue, c)
			s.queueBytes += len(c.op)
		}
	}
}

// refuse ends calls that were not sent to a node that is about to stop.
func (s *pipe) refuse(calls []*pipelineCall) {
	for _, c := range calls {
		s.mu.Lock()
		settled := c.settleLocked(nil, errPipelineDraining)
		s.mu.Unlock()
		if settled {
			c.wake()
		}
	}
}

// receive hands answers to their callers until the stream ends; nil: in good order.
func (s *pipe) receive(stream grpc.ClientStream) error {
	var frame ostrakapb.PipelineFrame
	var answered []*pipelineCall
	for {
		err := stream.RecvMsg(&frame)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if answered, err = s.settle(frame.Bytes, answered[:0]); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
	}
}

// settle gives a message's answers to their calls; answered is room for them. Those before a garbled one count.
func (s *pipe) settle(message []byte, answered []*pipelineCall) ([]*pipelineCall, error) {
	answers := ostrakapb.ReadAnswers(message)
	answered, err := s.settleAll(&answers, answered)
	for i, c := range answered {
		answered[i] = nil
		c.wake()
	}
	if answers.Draining {
		s.mu.Lock()
		s.draining = true
		s.mu.Unlock()
		signal(s.wake)
	}
	return answered, err
}

func (s *pipe) settleAll(answers *ostrakapb.AnswerReader, answered []*pipelineCall) ([]*pipelineCall, error) {
	for {
		number, body, more, err := answers.Next()
		if err != nil || !more {
			return answered, err
		}
		result, err := ostrakapb.ReadResult(body)
		if err != nil {
			return answered, err
		}
		s.mu.Lock()
		s.heard, s.silentSince = true, time.Time{}
		if s.silenced {
			s.silenced = false
			s.owner.spoke()
		}
		if c := s.waiting[number]; c != nil { // else its caller has gone
			delete(s.waiting, number)
			c.settleLocked(result, nil)
			answered = append(answered, c)
		}
		s.mu.Unlock()
	}
}

// watch ends calls whose time is up. One goroutine looks at all calls of the stream every beat, so that a call needs no
// timer of its own; it rests while there are none.
func (s *pipe) watch(ctx context.Context) {
	beat := time.NewTicker(s.owner.beat)
	defer beat.Stop()
	for {
		beat.Stop()
		select {
		case <-s.watched:
		case <-ctx.Done():
			return
		}
		beat.Reset(s.owner.beat)
		for busy := true; busy; {
			select {
			case now := <-beat.C:
				busy = s.look(now)
			case <-ctx.Done():
				return
			}
		}
	}
}

// look ends the calls whose time is up; false: there are no calls.
func (s *pipe) look(now time.Time) bool {
	var woken []*pipelineCall
	var suspicious []*shardRoute
	s.mu.Lock()
	silent := !s.silentSince.IsZero() && now.Sub(s.silentSince) >= s.owner.silence
	if silent {
		s.silentSince, s.silenced = now, true
	}
	for _, c := range s.queue {
		if err := c.late(now, s.silenced); err != nil && c.settleLocked(nil, err) {
			woken = append(woken, c)
		}
	}
	for number, c := range s.waiting {
		if err := c.late(now, s.silenced); err != nil {
			delete(s.waiting, number)
			c.settleLocked(nil, err)
			woken = append(woken, c)
			continue
		}
		if !c.suspected && now.After(c.patience) {
			c.suspected = true
			suspicious = append(suspicious, c.route)
		}
	}
	s.watching = len(s.queue)+len(s.waiting) > 0
	busy := s.watching
	s.mu.Unlock()
	for _, c := range woken {
		c.wake()
	}
	if silent {
		s.owner.silent()
	}
	for _, sr := range suspicious {
		s.owner.suspect(sr)
	}
	return busy
}

// late is the error of a call that must not wait longer. silent: its node says nothing at all. A node that is slow but
// speaks keeps the writes that it has: to send them again would only give it more to do. pipe.mu is held.
func (c *pipelineCall) late(now time.Time, silent bool) error {
	switch {
	case now.After(c.deadline):
		return errDeadline
	case !now.After(c.patience):
		return nil
	case c.write && c.sent() && (c.held || !silent):
		return nil
	}
	return errPatience
}
