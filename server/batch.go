package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// errAnswerFull: a read of a batch was left out, because the values before it filled the answer. Asked again
// in another batch it finds room: the first value of an answer always does.
var errAnswerFull = errors.New("the batch's answer is full: ask for the rest again")

// batchWritersMax bounds the goroutines of one batch. Writes of one shard are packed into one log entry only
// if they are proposed side by side, so it is about what one entry takes under load.
const batchWritersMax = 256

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
	if _, err := s.admit(ctx); err != nil {
		return nil, err
	}
	b := &batch{kv: s, header: r.GetHeader(), results: make([]*ostrakapb.OpResult, len(r.GetOps())),
		reads: make(map[readGroup][]batchRead), room: answerRoom{max: int64(limits.BatchBytesMax)}}
	for i, op := range r.GetOps() {
		b.add(ctx, i, op)
	}
	b.run(ctx)
	return &ostrakapb.BatchResponse{Results: b.results}, nil
}

// batch is one running Batch call. add fills it on the call's goroutine; then the jobs run side by side, each
// of them writing the results of its own operations and no others.
type batch struct {
	kv      *kvService
	header  *ostrakapb.Header
	results []*ostrakapb.OpResult // one for each operation, in order
	writes  []func()
	reads   map[readGroup][]batchRead
	room    answerRoom
}

// readGroup is a shard's reads of one level: one confirmation of leadership serves them all.
type readGroup struct {
	shard shard.ID
	level raftfsm.ReadLevel
}

type batchRead struct {
	index   int
	replica replica
	do      func(shardReader) (*ostrakapb.OpResult, error)
}

func (b *batch) fail(i int, err error) {
	b.results[i] = &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Error{Error: b.kv.explain.detail(err)}}
}

// add sorts one operation in, or fails it at once.
func (b *batch) add(ctx context.Context, i int, op *ostrakapb.Op) {
	switch o := op.GetOp().(type) {
	case *ostrakapb.Op_Get:
		b.addRead(ctx, i, o.Get.GetKey(), o.Get.GetLevel(), func(from shardReader) (*ostrakapb.OpResult, error) {
			if b.room.spent() {
				return nil, errAnswerFull
			}
			got, err := from.get(o.Get.GetKey())
			if err == nil && !b.room.take(len(got.GetValue())) {
				err = errAnswerFull
			}
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Get{Get: got}}, err
		})
	case *ostrakapb.Op_Ttl:
		b.addRead(ctx, i, o.Ttl.GetKey(), o.Ttl.GetLevel(), func(from shardReader) (*ostrakapb.OpResult, error) {
			got, err := from.ttl(o.Ttl.GetKey())
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Ttl{Ttl: got}}, err
		})
	default:
		b.addWrite(ctx, i, op)
	}
}

func (b *batch) addRead(ctx context.Context, i int, key []byte, asked ostrakapb.ReadLevel,
	do func(shardReader) (*ostrakapb.OpResult, error)) {
	level, err := readLevel(asked)
	if err == nil {
		err = b.kv.node.Limits().store().CheckKey(key)
	}
	if err != nil {
		b.fail(i, err)
		return
	}
	id, r, err := b.kv.route(ctx, key)
	if err != nil {
		b.fail(i, err)
		return
	}
	group := readGroup{id, level}
	b.reads[group] = append(b.reads[group], batchRead{index: i, replica: r, do: do})
}

func (b *batch) addWrite(ctx context.Context, i int, op *ostrakapb.Op) {
	w, err := batchWriteOf(op)
	if err == nil && w.op.ReturnPrevious {
		// The answer's size must be known before anything is written.
		err = &fieldError{"return_previous", "not offered in a batch"}
	}
	var session raftfsm.Session
	if err == nil {
		session, err = sessionOf(b.header, w.header)
	}
	if err != nil {
		b.fail(i, err)
		return
	}
	b.writes = append(b.writes, func() {
		result, err := b.kv.apply(ctx, w.op, session)
		if err != nil {
			b.fail(i, err)
			return
		}
		b.results[i] = w.answer(result)
	})
}

// run carries everything out and returns when every operation has its result. A panic of one of its
// goroutines is raised again on the call's, where gate meets it.
func (b *batch) run(ctx context.Context) {
	jobs := b.writes
	for group, reads := range b.reads {
		jobs = append(jobs, func() { b.read(ctx, group, reads) })
	}
	if len(jobs) == 1 {
		jobs[0]()
		return
	}
	var taken atomic.Int64
	var panicked atomic.Pointer[error]
	var wg sync.WaitGroup
	for range min(batchWritersMax, len(jobs)) {
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					err := fmt.Errorf("in a batch: %v", p)
					panicked.Store(&err)
				}
			}()
			for i := taken.Add(1); i <= int64(len(jobs)); i = taken.Add(1) {
				jobs[i-1]()
			}
		})
	}
	wg.Wait()
	if p := panicked.Load(); p != nil {
		panic(*p)
	}
}

func (b *batch) read(ctx context.Context, group readGroup, reads []batchRead) {
	from, err := openReader(ctx, group.shard, reads[0].replica, group.level)
	for _, r := range reads {
		if err != nil {
			b.fail(r.index, err)
			continue
		}
		result, readErr := r.do(from)
		if readErr != nil {
			b.fail(r.index, readErr)
			continue
		}
		b.results[r.index] = result
	}
}

// batchWrite is one mutation of a batch.
type batchWrite struct {
	header *ostrakapb.Header
	op     *store.Op
	answer func(store.Result) *ostrakapb.OpResult
}

func batchWriteOf(op *ostrakapb.Op) (w batchWrite, err error) {
	switch o := op.GetOp().(type) {
	case *ostrakapb.Op_Set:
		w.header = o.Set.GetHeader()
		w.op, err = setOp(o.Set)
		w.answer = func(r store.Result) *ostrakapb.OpResult {
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Set{Set: setResponse(w.op, r)}}
		}
	case *ostrakapb.Op_Delete:
		w.header = o.Delete.GetHeader()
		w.op, err = deleteOp(o.Delete)
		w.answer = func(r store.Result) *ostrakapb.OpResult {
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Delete{Delete: deleteResponse(w.op, r)}}
		}
	case *ostrakapb.Op_CompareAndSet:
		w.header, w.op = o.CompareAndSet.GetHeader(), compareAndSetOp(o.CompareAndSet)
		w.answer = func(r store.Result) *ostrakapb.OpResult {
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_CompareAndSet{CompareAndSet: compareAndSetResponse(w.op, r)}}
		}
	case *ostrakapb.Op_Increment:
		w.header, w.op = o.Increment.GetHeader(), incrementOp(o.Increment)
		w.answer = func(r store.Result) *ostrakapb.OpResult {
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Increment{Increment: incrementResponse(w.op, r)}}
		}
	case *ostrakapb.Op_Append:
		w.header, w.op = o.Append.GetHeader(), appendOp(o.Append)
		w.answer = func(r store.Result) *ostrakapb.OpResult {
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Append{Append: appendResponse(w.op, r)}}
		}
	case *ostrakapb.Op_Expire:
		w.header = o.Expire.GetHeader()
		w.op, err = expireOp(o.Expire)
		w.answer = func(r store.Result) *ostrakapb.OpResult {
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Expire{Expire: expireResponse(w.op, r)}}
		}
	case *ostrakapb.Op_Persist:
		w.header, w.op = o.Persist.GetHeader(), persistOp(o.Persist)
		w.answer = func(r store.Result) *ostrakapb.OpResult {
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Persist{Persist: persistResponse(w.op, r)}}
		}
	case *ostrakapb.Op_Touch:
		w.header, w.op = o.Touch.GetHeader(), touchOp(o.Touch)
		w.answer = func(r store.Result) *ostrakapb.OpResult {
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Touch{Touch: touchResponse(w.op, r)}}
		}
	case nil:
		return w, &fieldError{"ops", "an operation is empty, or of a kind this node does not know"}
	default:
		return w, fmt.Errorf("%w: operation %T", errUnsupported, o)
	}
	return w, err
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
