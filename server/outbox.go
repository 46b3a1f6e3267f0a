package server

import (
	"fmt"
	"runtime/debug"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/store"
)

// What a call takes of a stream's room, from when it is sorted in until it is answered.
const (
	// callOverhead is what any call counts beside its key and values.
	callOverhead = 64
	// previousBytes is what one counts that wants the value before its own: how large that is shows only when it is done.
	previousBytes = 256 << 10
)

func readRoom(key []byte) int { return callOverhead + len(key) }

func writeRoom(op *store.Op) int {
	room := callOverhead + len(op.Key) + len(op.Value) + len(op.Old)
	if op.ReturnPrevious {
		room += previousBytes
	}
	return room
}

// outbox holds a stream's answers, encoded, until they are sent.
type outbox struct {
	pieces []answerPiece
	bytes  int
}

type answerPiece struct {
	buf   *[]byte
	count int
}

// pieceBytes: smaller pieces are copied together, larger ones are left as they are.
const pieceBytes = 32 << 10

// put adds answers; the buffer is the outbox's from then on.
func (o *outbox) put(buf *[]byte, count int) {
	if count == 0 {
		ostrakapb.FreePipelineBuffer(buf)
		return
	}
	o.bytes += len(*buf)
	if n := len(o.pieces); n > 0 {
		last := &o.pieces[n-1]
		if len(*last.buf)+len(*buf) <= pieceBytes {
			*last.buf = append(*last.buf, *buf...)
			last.count += count
			ostrakapb.FreePipelineBuffer(buf)
			return
		}
	}
	o.pieces = append(o.pieces, answerPiece{buf, count})
}

// take makes a message of the oldest answers and tells how many they are; nil: there are none.
func (o *outbox) take() (message *ostrakapb.PipelineFrame, count int) {
	if len(o.pieces) == 0 {
		return nil, 0
	}
	message = new(ostrakapb.PipelineFrame)
	taken, bytes := 0, 0
	for _, p := range o.pieces {
		if taken > 0 && bytes+len(*p.buf) > answerMessageBytes {
			break
		}
		taken++
		bytes += len(*p.buf)
		count += p.count
		message.Add(p.buf)
	}
	o.bytes -= bytes
	rest := copy(o.pieces, o.pieces[taken:])
	clear(o.pieces[rest:])
	o.pieces = o.pieces[:rest]
	return message, count
}

// answerWriter encodes answers of one stream.
type answerWriter struct {
	pipeline *pipeline
	buf      *[]byte
	count    int
	// room is what the answered calls give back.
	room int
}

func (p *pipeline) newAnswers() *answerWriter {
	return &answerWriter{pipeline: p, buf: ostrakapb.NewPipelineBuffer()}
}

// write answers a mutation that was carried out.
func (a *answerWriter) write(w *raftfsm.Write) {
	if w.Op.Kind == store.OpSet && !w.Op.ReturnPrevious {
		a.count++
		*a.buf = ostrakapb.AppendSetAnswer(*a.buf, w.Number, w.Result.Status == store.StatusOK, uint64(w.Result.Version))
		return
	}
	a.any(w.Number, resultOf(&w.Op, w.Result))
}

// read reads a key and answers with what it holds. dst is room for the value, which comes back for the next one.
func (a *answerWriter) read(from shardReader, r keyRead, dst []byte) []byte {
	defer func() {
		if got := recover(); got != nil {
			a.pipeline.kv.panicked(fmt.Sprint(got), debug.Stack())
			a.refuse(r.number, errPanicked)
		}
	}()
	if r.valueless {
		got, err := from.ttl(r.key)
		if err != nil {
			a.refuse(r.number, err)
			return dst
		}
		a.any(r.number, &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Ttl{Ttl: got}})
		return dst
	}
	got, err := from.lookUp(r.key, dst)
	if err != nil {
		a.refuse(r.number, err)
		return dst
	}
	a.count++
	*a.buf = ostrakapb.AppendGetAnswer(*a.buf, r.number, got.found, got.value, got.version, got.ttlMillis)
	return got.value
}

// refuse answers a call that failed.
func (a *answerWriter) refuse(number uint64, err error) {
	detail := a.pipeline.kv.explain.detail(err)
	a.pipeline.kv.count(detail)
	a.any(number, &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Error{Error: detail}})
}

// any answers in the general way.
func (a *answerWriter) any(number uint64, result *ostrakapb.OpResult) {
	a.count++
	var err error
	if *a.buf, err = ostrakapb.AppendAnswer(*a.buf, number, result); err != nil {
		panic(fmt.Sprintf("server: an answer does not encode: %v", err))
	}
}
