package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

const (
	// pipelineCallsMax bounds the calls of one stream that are not answered yet. At it the stream is not read any more, and
	// HTTP/2's flow control holds the client back.
	pipelineCallsMax = 16384
	// pipelineAnswerBytes is about what one message of answers carries; a larger answer goes alone.
	pipelineAnswerBytes = 256 << 10
	// pipelineWaitingBytesMax bounds the values that wait to be sent: reads stop while more than this waits.
	pipelineWaitingBytesMax = 16 << 20
)

// Pipeline implements ostrakapb.KVServer. Its calls are checked, routed and answered as those of Batch, but each by
// itself and as soon as it can be.
//
//	receiver (this goroutine) ── writes ──► replica.Submit ──► callback ──┐
//	                          ── reads  ──► one goroutine per message,    ├─► pipeline.answers ──► sender
//	                                        shard and level ──────────────┘     (its goroutine)
//
// It ends when the client has closed its side and all is answered, or when the stream breaks.
func (s *kvService) Pipeline(stream grpc.BidiStreamingServer[ostrakapb.PipelineRequest, ostrakapb.PipelineResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	p := &pipeline{kv: s, ctx: ctx, wake: make(chan struct{}, 1)}
	p.changed = sync.NewCond(&p.mu)
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
	// reading counts the goroutines that read for this stream.
	reading sync.WaitGroup
	// wake holds a token when there is something for the sender.
	wake chan struct{}

	mu sync.Mutex
	// changed is signalled when calls are answered, bytes sent, or the stream has failed.
	changed *sync.Cond
	// open counts the calls that are not answered yet; at most pipelineCallsMax and one message.
	open int
	// answers wait for the sender; waiting is the size of their values.
	answers []*ostrakapb.PipelineAnswer
	waiting int
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
func (p *pipeline) receive(stream grpc.BidiStreamingServer[ostrakapb.PipelineRequest, ostrakapb.PipelineResponse]) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(r.GetCalls()) > pipelineCallsMax {
			return &limitError{limit: "pipeline_calls_max", max: pipelineCallsMax, got: len(r.GetCalls())}
		}
		if !p.admit(len(r.GetCalls())) {
			return nil
		}
		p.take(r)
	}
}

// admit waits until there is room for more calls; false: the stream has failed.
func (p *pipeline) admit(calls int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.open > pipelineCallsMax-calls && !p.failed {
		p.changed.Wait()
	}
	p.open += calls
	return !p.failed
}

// take sorts a message's calls in and sets them going.
func (p *pipeline) take(r *ostrakapb.PipelineRequest) {
	now := time.Now()
	reads := make(map[readGroup][]pipelineRead)
	for _, c := range r.GetCalls() {
		p.guard(c.GetNumber(), func() { p.begin(r.GetHeader(), c, now, reads) })
	}
	for group, calls := range reads {
		p.reading.Go(func() { p.read(group, calls) })
	}
}

// guard answers a call whose handling panics, as gate does for the others.
func (p *pipeline) guard(number uint64, do func()) {
	defer func() {
		if got := recover(); got != nil {
			p.kv.panicked(fmt.Sprint(got), debug.Stack())
			p.refuse(number, errPanicked)
		}
	}()
	do()
}

// pipelineRead is a read of a message, to be done with others of its shard and level.
type pipelineRead struct {
	number   uint64
	replica  replica
	deadline time.Time
	do       func(shardReader) (*ostrakapb.OpResult, error)
}

// begin sets one call going, or answers it.
func (p *pipeline) begin(client *ostrakapb.Header, c *ostrakapb.PipelineCall, now time.Time, reads map[readGroup][]pipelineRead) {
	patience := p.kv.node.Limits().RequestTimeout
	if us := c.GetTimeoutUs(); us > 0 {
		patience = time.Duration(min(us, maxTimeoutMicros)) * time.Microsecond
	}
	deadline := now.Add(patience)
	var err error
	switch o := c.GetOp().GetOp().(type) {
	case *ostrakapb.Op_Get:
		err = p.addRead(reads, o.Get.GetKey(), o.Get.GetLevel(), pipelineRead{number: c.GetNumber(), deadline: deadline,
			do: func(from shardReader) (*ostrakapb.OpResult, error) {
				got, err := from.get(o.Get.GetKey())
				return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Get{Get: got}}, err
			}})
	case *ostrakapb.Op_Ttl:
		err = p.addRead(reads, o.Ttl.GetKey(), o.Ttl.GetLevel(), pipelineRead{number: c.GetNumber(), deadline: deadline,
			do: func(from shardReader) (*ostrakapb.OpResult, error) {
				got, err := from.ttl(o.Ttl.GetKey())
				return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Ttl{Ttl: got}}, err
			}})
	default:
		err = p.write(client, c, deadline)
	}
	if err != nil {
		p.refuse(c.GetNumber(), err)
	}
}

// maxTimeoutMicros keeps a deadline within what a time holds.
const maxTimeoutMicros = int64(24 * time.Hour / time.Microsecond)

func (p *pipeline) addRead(reads map[readGroup][]pipelineRead, key []byte, asked ostrakapb.ReadLevel, r pipelineRead) error {
	level, err := readLevel(asked)
	if err != nil {
		return err
	}
	if err := p.kv.node.Limits().store().CheckKey(key); err != nil {
		return err
	}
	id, replica, err := p.kv.route(p.ctx, key)
	if err != nil {
		return err
	}
	r.replica = replica
	group := readGroup{id, level}
	reads[group] = append(reads[group], r)
	return nil
}

// read answers a message's reads of one shard and level: one confirmation of leadership serves them all.
func (p *pipeline) read(group readGroup, calls []pipelineRead) {
	latest := calls[0].deadline
	for _, c := range calls[1:] {
		if c.deadline.After(latest) {
			latest = c.deadline
		}
	}
	ctx, cancel := context.WithDeadline(p.ctx, latest)
	defer cancel()
	from, err := openReader(ctx, group.shard, calls[0].replica, group.level)
	for _, c := range calls {
		if err != nil {
			p.refuse(c.number, err)
			continue
		}
		p.guard(c.number, func() {
			result, err := c.do(from)
			if err != nil {
				p.refuse(c.number, err)
				return
			}
			p.await(c.number, result)
		})
	}
}

func (p *pipeline) write(client *ostrakapb.Header, c *ostrakapb.PipelineCall, deadline time.Time) error {
	w, err := batchWriteOf(c.GetOp())
	if err != nil {
		return err
	}
	session, err := sessionOf(client, w.header)
	if err != nil {
		return err
	}
	number := c.GetNumber()
	return p.kv.submit(p.ctx, w.op, session, deadline, func(result store.Result, err error) {
		if err != nil {
			p.refuse(number, err)
			return
		}
		p.answer(number, w.answer(result))
	})
}

// submit is apply without waiting: it checks, routes and hands over one mutation. done is called once, from a goroutine
// that it must not block, or never if submit returns an error.
func (s *kvService) submit(ctx context.Context, op *store.Op, session raftfsm.Session, deadline time.Time, done func(store.Result, error)) error {
	id, r, err := s.prepare(ctx, op)
	if err != nil {
		return err
	}
	err = r.Submit(op, session, deadline, func(result store.Result, err error) {
		done(result, settled(id, op, result, err))
	})
	return settled(id, op, store.Result{}, err)
}

// settled places the error of a mutation at its shard.
func settled(id shard.ID, op *store.Op, result store.Result, err error) error {
	if err == nil {
		err = refusal(op, result)
	}
	if err != nil {
		return &shardError{shard: id, err: err}
	}
	return nil
}

func (p *pipeline) refuse(number uint64, err error) {
	detail := p.kv.explain.detail(err)
	p.kv.count(detail)
	p.answer(number, &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Error{Error: detail}})
}

// answer queues an answer. It never waits.
func (p *pipeline) answer(number uint64, result *ostrakapb.OpResult) {
	p.mu.Lock()
	p.queueLocked(number, result)
	p.mu.Unlock()
	p.signal()
}

// await queues the answer to a read, when there is room for its value.
func (p *pipeline) await(number uint64, result *ostrakapb.OpResult) {
	p.mu.Lock()
	for p.waiting > pipelineWaitingBytesMax && !p.failed {
		p.changed.Wait()
	}
	p.queueLocked(number, result)
	p.mu.Unlock()
	p.signal()
}

func (p *pipeline) queueLocked(number uint64, result *ostrakapb.OpResult) {
	if p.failed {
		p.open--
		return
	}
	p.answers = append(p.answers, &ostrakapb.PipelineAnswer{Number: number, Result: result})
	p.waiting += valueBytes(result)
}

// valueBytes is the size of the value that an answer carries.
func valueBytes(r *ostrakapb.OpResult) int {
	switch r := r.GetResult().(type) {
	case *ostrakapb.OpResult_Get:
		return len(r.Get.GetValue())
	case *ostrakapb.OpResult_Set:
		return len(r.Set.GetPrevious().GetValue())
	case *ostrakapb.OpResult_Delete:
		return len(r.Delete.GetPrevious().GetValue())
	}
	return 0
}

// send is the sender's goroutine: it joins the answers that are ready into messages, and ends when all calls are answered
// and no more come, or the stream breaks.
func (p *pipeline) send(stream grpc.BidiStreamingServer[ostrakapb.PipelineRequest, ostrakapb.PipelineResponse], stopping <-chan struct{}) error {
	for {
		select {
		case <-p.wake:
		case <-stopping:
			stopping = nil
			if err := stream.Send(&ostrakapb.PipelineResponse{Draining: true}); err != nil {
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
			if err := stream.Send(message); err != nil {
				return err
			}
		}
	}
}

// next takes answers for one message; nil: there are none. done: there will be none either.
func (p *pipeline) next() (message *ostrakapb.PipelineResponse, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.answers) == 0 {
		return nil, p.failed || p.ended && p.open == 0
	}
	count, bytes := 0, 0
	for count < len(p.answers) && (count == 0 || bytes < pipelineAnswerBytes) {
		bytes += valueBytes(p.answers[count].GetResult()) + answerOverhead
		count++
	}
	message = &ostrakapb.PipelineResponse{Answers: p.answers[:count:count]}
	if count == len(p.answers) {
		p.answers = nil // the message has them; what comes next needs an array of its own
	} else {
		p.answers = p.answers[count:]
	}
	for _, a := range message.Answers {
		p.waiting -= valueBytes(a.GetResult())
	}
	p.open -= count
	p.changed.Broadcast()
	return message, false
}

// answerOverhead is about what an answer takes beside its value.
const answerOverhead = 32
