package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// Bounds of one stream. At them the stream is not read any more, and HTTP/2's flow control holds the client back.
const (
	// pipelineCallsMax bounds the calls that are not answered yet. It is over what one shard's queue and entries in flight
	// hold, so that a shard that stands still can't keep the stream from the others: its further calls are refused.
	pipelineCallsMax = 16384
	// pipelineBytesMax bounds the keys and values of those calls, together with what answers may bring back.
	pipelineBytesMax = 16 << 20
	// answerBytesMax bounds the answers that wait to be sent: reads wait while there is more.
	answerBytesMax = 16 << 20
	// answerMessageBytes is about what one message of answers carries; a larger answer goes alone.
	answerMessageBytes = 256 << 10
	// flushBytes is what calls of a message may take before they are set going and the bounds are looked at again.
	flushBytes = 1 << 20
)

// Pipeline implements ostrakapb.KVServer. Its calls are checked, routed and answered as those of Batch, but each by
// itself and as soon as it can be.
//
//	receiver (this goroutine) ── writes ──► replica.Submit ──► the shard's goroutine ──┐
//	                          ── reads  ──► a reader (a goroutine) for each message    ├─► outbox ──► sender
//	                                        and shard, none for stale ones ────────────┘     (its goroutine)
//
// It ends when the client has closed its side and all is answered, or when the stream breaks.
func (s *kvService) Pipeline(stream grpc.BidiStreamingServer[ostrakapb.PipelineRequest, ostrakapb.PipelineResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	p := &pipeline{kv: s, ctx: ctx, wake: make(chan struct{}, 1), groups: make(chan *readGroup)}
	p.changed = sync.NewCond(&p.mu)
	p.calls = newCalls(s, p)
	var running sync.WaitGroup
	var sendErr error
	running.Go(func() {
		if sendErr = p.send(stream, s.stopping); sendErr != nil {
			cancel()
			p.fail()
		}
	})
	recvErr := p.receive(stream)
	if recvErr != nil {
		cancel() // nobody is there to hear the answers
		p.fail()
	}
	close(p.groups)
	p.reading.Wait()
	p.finish()
	running.Wait()
	cancel()
	return errors.Join(recvErr, sendErr)
}

// pipeline is one running stream.
type pipeline struct {
	kv  *kvService
	ctx context.Context
	// calls and ops are the receiver's.
	calls *calls
	ops   ostrakapb.OpReader
	// reading joins the readers. One that has nothing to do waits for groups, and ends when that is closed; idle counts those.
	reading sync.WaitGroup
	groups  chan *readGroup
	idle    atomic.Int32
	// wake holds a token when there is something for the sender.
	wake chan struct{}

	// added is what the receiver's calls since the last flush take.
	added int

	mu sync.Mutex
	// changed is signalled when calls are answered, answers sent, or the stream has failed.
	changed *sync.Cond
	// open counts the calls whose answers aren't sent yet, openBytes what those take that aren't answered.
	open, openBytes int
	// answers wait for the sender.
	answers outbox
	failed  bool // nobody hears answers any more
	ended   bool // no more calls come
}

func (p *pipeline) fail() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
	p.changed.Broadcast()
}

// finish tells the sender to end once all is answered.
func (p *pipeline) finish() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.signal()
}

func (p *pipeline) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// receive takes the client's messages until it closes its side (nil) or the stream breaks.
func (p *pipeline) receive(stream grpc.ServerStream) error {
	for {
		var frame ostrakapb.PipelineFrame // a new one each time: keys and values are parts of it
		err := stream.RecvMsg(&frame)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		message, err := ostrakapb.ReadRequest(frame.Bytes)
		if err != nil {
			return &fieldError{"pipeline", err.Error()}
		}
		if message.Calls > pipelineCallsMax {
			return &limitError{limit: "pipeline_calls_max", max: pipelineCallsMax, got: message.Calls}
		}
		if err := p.take(message); err != nil {
			return err
		}
	}
}

// take sorts a message's calls in and sets them going. It waits where there is no room for more. An error breaks the
// stream.
func (p *pipeline) take(message ostrakapb.RequestReader) error {
	p.mu.Lock()
	p.open += message.Calls
	p.mu.Unlock()
	now := time.Now()
	admitted := p.calls.begin(p.ctx)
	for left := message.Calls; left > 0; left-- {
		c, _, err := message.Next()
		if err != nil {
			return &fieldError{"pipeline.calls", err.Error()}
		}
		op, err := p.ops.Read(c.Op)
		if err != nil {
			return &fieldError{"pipeline.calls.op", err.Error()}
		}
		if admitted != nil {
			p.refuse(c.Number, admitted)
			continue
		}
		p.begin(message.Header, c, op, now, left)
		if p.added >= flushBytes {
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	return p.flush()
}

// begin sorts one call in, or answers it. It survives a panic, as gate does for the others.
func (p *pipeline) begin(client *ostrakapb.Header, c ostrakapb.Call, op *ostrakapb.Op, now time.Time, left int) {
	defer func() {
		if got := recover(); got != nil {
			p.panicked(c.Number, got)
		}
	}()
	patience := p.kv.node.Limits().RequestTimeout
	if c.TimeoutMicros > 0 {
		patience = time.Duration(min(c.TimeoutMicros, timeoutMicrosMax)) * time.Microsecond
	}
	room, err := p.calls.add(c.Number, client, op, now.Add(patience), left)
	if err != nil {
		p.refuse(c.Number, err)
		return
	}
	p.added += room
}

// timeoutMicrosMax keeps a deadline within what a time holds.
const timeoutMicrosMax = int64(24 * time.Hour / time.Microsecond)

func (p *pipeline) panicked(number uint64, what any) {
	p.kv.panicked(fmt.Sprint(what), debug.Stack())
	p.refuse(number, errPanicked)
}

// flush sets going what was added, and waits until there is room for more; an error: the stream has failed.
func (p *pipeline) flush() error {
	p.mu.Lock()
	p.openBytes += p.added
	p.mu.Unlock()
	p.added = 0
	p.calls.flush()
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.failed && (p.open > pipelineCallsMax || p.openBytes > pipelineBytesMax || p.answers.bytes > answerBytesMax) {
		p.changed.Wait()
	}
	if p.failed {
		return context.Cause(p.ctx)
	}
	return nil
}

// read implements answers. Where no other node is asked there is nothing to wait for, and no goroutine needed.
func (p *pipeline) read(group *readGroup) {
	if group.level == raftfsm.Stale {
		p.answerReads(group)
		return
	}
	select {
	case p.groups <- group:
	default:
		p.reading.Go(func() { p.answerGroups(group) })
	}
}

// idleReadersMax bounds the readers that wait for more. They are kept for their stacks, which have grown to what a read takes:
// a new goroutine for each group would grow its own every time.
const idleReadersMax = 8

// answerGroups is a reader.
func (p *pipeline) answerGroups(group *readGroup) {
	for more := true; more; {
		p.answerReads(group)
		if p.idle.Add(1) > idleReadersMax {
			p.idle.Add(-1)
			return
		}
		group, more = <-p.groups
		p.idle.Add(-1)
	}
}

func (p *pipeline) answerReads(group *readGroup) {
	ctx, cancel := context.WithDeadline(p.ctx, group.latest())
	defer cancel()
	from, err := openReader(ctx, group.shard, group.replica, group.level)
	out := p.newAnswers()
	var value []byte
	for _, r := range group.reads {
		if err != nil {
			out.refuse(r.number, err)
		} else {
			value = out.read(from, r, value[:0])
		}
		out.room += readRoom(r.key)
		if len(*out.buf) >= answerMessageBytes {
			p.awaitRoom()
			p.put(out)
			out = p.newAnswers()
		}
	}
	p.awaitRoom()
	p.put(out)
}

// awaitRoom waits until few enough answers wait for the sender.
func (p *pipeline) awaitRoom() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.answers.bytes > answerBytesMax && !p.failed {
		p.changed.Wait()
	}
}

// wrote implements answers. It never waits.
func (p *pipeline) wrote(id shard.ID, writes []*raftfsm.Write) {
	out := p.newAnswers()
	for _, w := range writes {
		out.room += writeRoom(&w.Op)
		if err := ended(id, w); err != nil {
			out.refuse(w.Number, err)
			continue
		}
		out.write(w)
	}
	p.put(out)
}

// refuse implements answers. The call takes no room.
func (p *pipeline) refuse(number uint64, err error) {
	out := p.newAnswers()
	out.refuse(number, err)
	p.put(out)
}

// put queues answers.
func (p *pipeline) put(out *answerWriter) {
	p.mu.Lock()
	p.openBytes -= out.room
	p.answers.put(out.buf, out.count)
	if out.room > 0 {
		p.changed.Broadcast()
	}
	p.mu.Unlock()
	p.signal()
}

// send is the sender's goroutine: it joins the answers that are ready into messages, and ends when all calls are answered
// and no more come, or the stream breaks.
func (p *pipeline) send(stream grpc.ServerStream, stopping <-chan struct{}) error {
	for {
		select {
		case <-p.wake:
		case <-stopping:
			stopping = nil
			if err := stream.SendMsg(drainingFrame()); err != nil {
				return err
			}
		case <-p.ctx.Done():
			return nil
		}
		for {
			message, done := p.next()
			if done {
				return nil
			}
			if message == nil {
				break
			}
			if err := stream.SendMsg(message); err != nil {
				return err
			}
		}
	}
}

func drainingFrame() *ostrakapb.PipelineFrame {
	buf := ostrakapb.NewPipelineBuffer()
	*buf = ostrakapb.AppendDraining(*buf)
	frame := new(ostrakapb.PipelineFrame)
	frame.Add(buf)
	return frame
}

// next takes answers for one message; nil: there are none. done: there will be none either.
func (p *pipeline) next() (message *ostrakapb.PipelineFrame, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	message, count := p.answers.take()
	p.open -= count
	if message == nil {
		return nil, p.failed || p.ended && p.open == 0
	}
	p.changed.Broadcast()
	return message, false
}
