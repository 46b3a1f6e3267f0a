package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// errAnswerFull: a read of a batch was left out, because the values before it filled the answer. Asked again
// in another batch it finds room: the first value of an answer always does.
var errAnswerFull = errors.New("the batch's answer is full: ask for the rest again")

// Batch implements ostrakapb.KVServer. Its operations are independent: each has its own result, none waits
// for another, and two on the same key run in an order that is not defined. The batch as a whole fails only
// before anything of it has begun.
func (s *kvService) Batch(ctx context.Context, r *ostrakapb.BatchRequest) (*ostrakapb.BatchResponse, error) {
	limits := s.node.Limits()
	if n := len(r.GetOps()); n > limits.BatchOpsMax {
		return nil, &limitError{limit: limitBatchOps, max: limits.BatchOpsMax, got: n}
	}
	if n := proto.Size(r); n > limits.BatchBytesMax {
		return nil, &limitError{limit: limitBatchBytes, max: limits.BatchBytesMax, got: n}
	}
	if err := checkClient(r.GetHeader()); err != nil {
		return nil, err
	}
	b := &batch{ctx: ctx, kv: s, results: make([]*ostrakapb.OpResult, len(r.GetOps())), left: len(r.GetOps()),
		done: make(chan struct{}), room: answerRoom{max: int64(limits.BatchBytesMax)}}
	c := newCalls(s, b)
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	for i, op := range r.GetOps() {
		if err := b.add(c, i, r.GetHeader(), op, deadline); err != nil {
			b.refuse(uint64(i), err)
		}
	}
	b.writes = c.pending()
	c.flush()
	b.finishIf(len(r.GetOps()) == 0)
	return &ostrakapb.BatchResponse{Results: b.wait()}, nil
}

// batch is one running Batch call.
type batch struct {
	ctx  context.Context
	kv   *kvService
	room answerRoom
	// writes are those that were set going. Each is the group's until it is answered.
	writes []*raftfsm.Write
	// reading joins the goroutines that read; panicked is what one of them met.
	reading  sync.WaitGroup
	panicked atomic.Pointer[error]

	mu sync.Mutex
	// results has one for each operation, in order; left counts those that are missing.
	results []*ostrakapb.OpResult
	left    int
	// done is closed, once, when none is missing, or one won't come.
	done     chan struct{}
	finished bool
}

// add sorts one operation in.
func (b *batch) add(c *calls, i int, client *ostrakapb.Header, op *ostrakapb.Op, deadline time.Time) error {
	if op.GetSet().GetReturnPrevious() || op.GetDelete().GetReturnPrevious() {
		// The answer's size must be known before anything is written.
		return &fieldError{"return_previous", "not offered in a batch"}
	}
	_, err := c.add(uint64(i), client, op, deadline, len(b.results)-i)
	return err
}

// wait returns the results once all are there, or the caller's time is up: what is missing then is not done if it could
// still be held back, and unknown if not. A panic of one of the batch's goroutines is raised again on the call's, where
// gate meets it.
func (b *batch) wait() []*ostrakapb.OpResult {
	select {
	case <-b.done:
	case <-b.ctx.Done():
		b.giveUp()
	}
	b.reading.Wait()
	if p := b.panicked.Load(); p != nil {
		panic(*p)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	results := b.results
	b.results = nil // what still comes is too late
	return results
}

// giveUp answers the writes that nobody waits for any more.
func (b *batch) giveUp() {
	for _, w := range b.writes {
		err := fmt.Errorf("%w: %w", raftfsm.ErrOutcomeUnknown, b.ctx.Err())
		if w.Withdraw() {
			err = fmt.Errorf("%w: %w", raftfsm.ErrDeadline, b.ctx.Err())
		}
		b.refuse(w.Number, err)
	}
}

// put notes an operation's result, unless it has one.
func (b *batch) put(number uint64, result *ostrakapb.OpResult) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.results == nil || b.results[number] != nil {
		return
	}
	b.results[number] = result
	b.left--
	b.finishLocked(b.left == 0)
}

func (b *batch) finishIf(over bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.finishLocked(over)
}

func (b *batch) finishLocked(over bool) {
	if over && !b.finished {
		b.finished = true
		close(b.done)
	}
}

// refuse implements answers.
func (b *batch) refuse(number uint64, err error) {
	b.put(number, &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Error{Error: b.kv.explain.detail(err)}})
}

// wrote implements answers.
func (b *batch) wrote(id shard.ID, writes []*raftfsm.Write) {
	for _, w := range writes {
		if err := ended(id, w); err != nil {
			b.refuse(w.Number, err)
			continue
		}
		b.put(w.Number, resultOf(&w.Op, w.Result))
	}
}

// read implements answers. The goroutine is joined by wait.
func (b *batch) read(group *readGroup) {
	b.reading.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				err := fmt.Errorf("in a batch: %v", p)
				b.panicked.Store(&err)
				b.finishIf(true)
			}
		}()
		from, err := openReader(b.ctx, group.shard, group.replica, group.level)
		for _, r := range group.reads {
			if err != nil {
				b.refuse(r.number, err)
				continue
			}
			result, readErr := b.readOne(from, r)
			if readErr != nil {
				b.refuse(r.number, readErr)
				continue
			}
			b.put(r.number, result)
		}
	})
}

func (b *batch) readOne(from shardReader, r keyRead) (*ostrakapb.OpResult, error) {
	if r.valueless {
		got, err := from.ttl(r.key)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Ttl{Ttl: got}}, err
	}
	if b.room.spent() {
		return nil, errAnswerFull
	}
	got, err := from.get(r.key)
	if err == nil && !b.room.take(len(got.GetValue())) {
		err = errAnswerFull
	}
	return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Get{Get: got}}, err
}

// answerRoom bounds the values that one answer carries.
type answerRoom struct {
	max  int64
	used atomic.Int64
}

// take reserves n bytes. The first value of all gets its place whatever its size.
func (r *answerRoom) take(n int) bool {
	for {
		used := r.used.Load()
		if used > 0 && used+int64(n) > r.max {
			return false
		}
		if r.used.CompareAndSwap(used, used+int64(n)) {
			return true
		}
	}
}

// spent spares reading values that could not be sent.
func (r *answerRoom) spent() bool { return r.used.Load() >= r.max }
