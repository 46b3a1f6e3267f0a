package ostrakapb

import (
	"bytes"
	"math"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func header() *Header {
	return &Header{Epoch: 9, ClientId: bytes.Repeat([]byte{7}, 16), Request: 1 << 40, LowestUnanswered: 300, Attempt: math.MaxUint32}
}

// sampleOps has every kind, with all fields and with none.
func sampleOps() []*Op {
	key, value := []byte("key"), bytes.Repeat([]byte("v"), 200)
	return []*Op{
		{},
		{Op: &Op_Get{Get: &GetRequest{}}},
		{Op: &Op_Get{Get: &GetRequest{Header: &Header{}, Key: key}}},
		{Op: &Op_Get{Get: &GetRequest{Header: header(), Key: key, Level: ReadLevel_READ_LEVEL_STALE}}},
		{Op: &Op_Get{Get: &GetRequest{Key: key, Level: -1}}},
		{Op: &Op_Ttl{Ttl: &TTLRequest{Header: header(), Key: key}}},
		{Op: &Op_Set{Set: &SetRequest{}}},
		{Op: &Op_Set{Set: &SetRequest{Header: header(), Key: key, Value: value, TtlMs: 300}}},
		{Op: &Op_Set{Set: &SetRequest{Header: header(), Key: key, TtlMs: -1, KeepTtl: true, ReturnPrevious: true}}},
		{Op: &Op_Set{Set: &SetRequest{Key: key, Value: value, Condition: &Condition{Condition: &Condition_IfVersion{IfVersion: 5}}}}},
		{Op: &Op_Delete{Delete: &DeleteRequest{Header: header(), Key: key}}},
		{Op: &Op_CompareAndSet{CompareAndSet: &CompareAndSetRequest{Key: key, Old: value, New: key}}},
		{Op: &Op_Increment{Increment: &IncrementRequest{Key: key, Delta: math.MinInt64}}},
		{Op: &Op_Append{Append: &AppendRequest{Key: key, Value: value}}},
		{Op: &Op_Expire{Expire: &ExpireRequest{Key: key, TtlMs: 1}}},
		{Op: &Op_Persist{Persist: &PersistRequest{Key: key}}},
		{Op: &Op_Touch{Touch: &TouchRequest{Key: key}}},
	}
}

func sampleResults() []*OpResult {
	value := bytes.Repeat([]byte("v"), 200)
	return []*OpResult{
		{},
		{Result: &OpResult_Get{Get: &GetResponse{}}},
		{Result: &OpResult_Get{Get: &GetResponse{Found: true, Value: value, Version: 1 << 50, TtlMs: 12}}},
		{Result: &OpResult_Set{Set: &SetResponse{Done: true, Version: 3}}},
		{Result: &OpResult_Set{Set: &SetResponse{Version: 3, Previous: &Previous{Found: true, Value: value, Version: 2}}}},
		{Result: &OpResult_Delete{Delete: &DeleteResponse{Deleted: true}}},
		{Result: &OpResult_Error{Error: &ErrorDetail{Reason: Reason_REASON_LIMIT, Message: "over"}}},
	}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is written by hand is a PipelineRequest like any other, and what others write is read.
func TestRequestBothWays(t *testing.T) {
	want := &PipelineRequest{Header: &Header{ClientId: header().ClientId, LowestUnanswered: 5}}
	hand := AppendRequestHeader(nil, want.Header)
	for i, op := range sampleOps() {
		number, timeout := uint64(i*1000), int64(i*i)
		want.Calls = append(want.Calls, &PipelineCall{Number: number, TimeoutUs: timeout, Op: op})
		body, err := AppendOp(nil, op)
		if err != nil {
			t.Fatal(err)
		}
		hand = AppendCall(hand, number, timeout, body)
	}
	read := new(PipelineRequest)
	if err := proto.Unmarshal(hand, read); err != nil || !proto.Equal(read, want) {
		t.Errorf("written by hand: %v, %v", read, err)
	}
	for name, message := range map[string][]byte{"by hand": hand, "by package proto": marshal(t, want)} {
		r, err := ReadRequest(message)
		if err != nil || !proto.Equal(r.Header, want.Header) || r.Calls != len(want.Calls) {
			t.Fatalf("%s: %v, %d calls, %v", name, r.Header, r.Calls, err)
		}
		var ops OpReader
		for i, call := range want.Calls {
			c, more, err := r.Next()
			if err != nil || !more || c.Number != call.Number || c.TimeoutMicros != call.TimeoutUs {
				t.Fatalf("%s: call %d: %+v, %v", name, i, c, err)
			}
			op, err := ops.Read(c.Op)
			if err != nil || !proto.Equal(op, call.Op) {
				t.Errorf("%s: call %d: %v, %v, want %v", name, i, op, err, call.Op)
			}
		}
		if _, more, err := r.Next(); more || err != nil {
			t.Errorf("%s: after the last: %v, %v", name, more, err)
		}
	}
}

func TestAnswersBothWays(t *testing.T) {
	want := &PipelineResponse{Draining: true}
	var hand []byte
	for i, result := range sampleResults() {
		number := uint64(i * 1000)
		want.Answers = append(want.Answers, &PipelineAnswer{Number: number, Result: result})
		var err error
		switch r := result.Result.(type) {
		case *OpResult_Get:
			hand = AppendGetAnswer(hand, number, r.Get.Found, r.Get.Value, r.Get.Version, r.Get.TtlMs)
			continue
		case *OpResult_Set:
			if r.Set.Previous == nil {
				hand = AppendSetAnswer(hand, number, r.Set.Done, r.Set.Version)
				continue
			}
		}
		if hand, err = AppendAnswer(hand, number, result); err != nil {
			t.Fatal(err)
		}
	}
	hand = AppendDraining(hand)
	read := new(PipelineResponse)
	if err := proto.Unmarshal(hand, read); err != nil || !proto.Equal(read, want) {
		t.Errorf("written by hand: %v, %v", read, err)
	}
	for name, message := range map[string][]byte{"by hand": hand, "by package proto": marshal(t, want)} {
		r := ReadAnswers(message)
		for i, a := range want.Answers {
			number, body, more, err := r.Next()
			if err != nil || !more || number != a.Number {
				t.Fatalf("%s: answer %d: %d, %v", name, i, number, err)
			}
			result, err := ReadResult(body)
			if err != nil || !proto.Equal(result, a.Result) {
				t.Errorf("%s: answer %d: %v, %v, want %v", name, i, result, err, a.Result)
			}
		}
		if _, _, more, err := r.Next(); more || err != nil || !r.Draining {
			t.Errorf("%s: after the last: %v, %v, draining %v", name, more, err, r.Draining)
		}
	}
}

// A value that a caller keeps must not change when the next message is received into the same bytes.
func TestResultHoldsNothingOfTheMessage(t *testing.T) {
	b := marshal(t, sampleResults()[2])
	r, err := ReadResult(b)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if !proto.Equal(r, sampleResults()[2]) {
		t.Errorf("%v", r)
	}
}

// known drops what a message carries of fields that its type does not know, which reading by hand drops too.
func known(m proto.Message) proto.Message {
	m = proto.Clone(m)
	var drop func(protoreflect.Message)
	drop = func(m protoreflect.Message) {
		m.SetUnknown(nil)
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if f.Message() != nil && !f.IsList() {
				drop(v.Message())
			}
			return true
		})
	}
	drop(m.ProtoReflect())
	return m
}

// FuzzReadOp reads any bytes as package proto does.
func FuzzReadOp(f *testing.F) {
	for _, op := range sampleOps() {
		f.Add(marshal(f, op))
	}
	f.Add(append(marshal(f, sampleOps()[3]), marshal(f, sampleOps()[7])...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var ops OpReader
		if _, err := ops.Read(marshal(t, sampleOps()[8])); err != nil { // nothing of it may be left
			t.Fatal(err)
		}
		want := new(Op)
		wantErr := proto.Unmarshal(b, want)
		got, err := ops.Read(b)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, package proto says %v", err, wantErr)
		}
		if err == nil && !proto.Equal(known(got), known(want)) {
			t.Fatalf("%v, package proto reads %v", got, want)
		}
	})
}

// FuzzReadResult reads any bytes as package proto does.
func FuzzReadResult(f *testing.F) {
	for _, r := range sampleResults() {
		f.Add(marshal(f, r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := new(OpResult)
		wantErr := proto.Unmarshal(b, want)
		got, err := ReadResult(b)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, package proto says %v", err, wantErr)
		}
		if err == nil && !proto.Equal(known(got), known(want)) {
			t.Fatalf("%v, package proto reads %v", got, want)
		}
	})
}

// FuzzReadRequest never reads a message that package proto refuses, and reads the same calls out of all others, unless a
// call's operation stands in it twice, which it refuses.
func FuzzReadRequest(f *testing.F) {
	whole := &PipelineRequest{Header: header()}
	for i, op := range sampleOps() {
		whole.Calls = append(whole.Calls, &PipelineCall{Number: uint64(i), TimeoutUs: 5, Op: op})
	}
	f.Add(marshal(f, whole))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		want := new(PipelineRequest)
		wantErr := proto.Unmarshal(b, want)
		got, err := readAll(b)
		if err == nil && wantErr != nil {
			t.Fatalf("package proto refuses it: %v", wantErr)
		}
		if err == nil && !proto.Equal(known(got), known(want)) && len(want.ProtoReflect().GetUnknown()) == 0 {
			for i := range want.Calls {
				if !proto.Equal(known(got.Calls[i]), known(want.Calls[i])) {
					t.Fatalf("call %d: %v, package proto reads %v", i, got.Calls[i], want.Calls[i])
				}
			}
		}
	})
}

func readAll(b []byte) (*PipelineRequest, error) {
	r, err := ReadRequest(b)
	if err != nil {
		return nil, err
	}
	all := &PipelineRequest{Header: r.Header}
	for {
		c, more, err := r.Next()
		if err != nil || !more {
			return all, err
		}
		call := &PipelineCall{Number: c.Number, TimeoutUs: c.TimeoutMicros}
		if c.Op != nil {
			op, err := new(OpReader).Read(c.Op)
			if err != nil {
				return nil, err
			}
			call.Op = op
		}
		all.Calls = append(all.Calls, call)
	}
}

// The codec passes a frame's bytes on, in pieces, and everything else to package proto.
func TestPipelineCodec(t *testing.T) {
	first, second := []byte("first "), []byte("second")
	var f PipelineFrame
	f.Add(&first)
	f.Add(&second)
	wire, err := PipelineCodec{}.Marshal(&f)
	if err != nil || string(wire.Materialize()) != "first second" {
		t.Fatalf("%q, %v", wire.Materialize(), err)
	}
	var got PipelineFrame
	if err := (PipelineCodec{}).Unmarshal(wire, &got); err != nil || string(got.Bytes) != "first second" {
		t.Errorf("%q, %v", got.Bytes, err)
	}
	if err := (PipelineCodec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer("x")}, &got); err != nil || string(got.Bytes) != "x" {
		t.Errorf("%q, %v", got.Bytes, err)
	}
	wire, err = PipelineCodec{}.Marshal(header())
	if err != nil {
		t.Fatal(err)
	}
	h := new(Header)
	if err := (PipelineCodec{}).Unmarshal(wire, h); err != nil || !proto.Equal(h, header()) {
		t.Errorf("%v, %v", h, err)
	}
}

// BenchmarkPipelineMessage is a call's part in writing and reading messages of 64, by hand and by package proto.
func BenchmarkPipelineMessage(b *testing.B) {
	const calls = 64
	set := &Op{Op: &Op_Set{Set: &SetRequest{Header: &Header{Request: 1000, Attempt: 1}, Key: make([]byte, 16), Value: make([]byte, 128)}}}
	message := new(PipelineRequest)
	var hand []byte
	body, err := AppendOp(nil, set)
	if err != nil {
		b.Fatal(err)
	}
	for i := range uint64(calls) {
		message.Calls = append(message.Calls, &PipelineCall{Number: i + 1, TimeoutUs: 5_000_000, Op: set})
		hand = AppendCall(hand, i+1, 5_000_000, body)
	}
	perCall := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*calls), "ns/call")
	}
	b.Run("write/hand", func(b *testing.B) {
		b.ReportAllocs()
		buf := make([]byte, 0, 2*len(hand))
		for b.Loop() {
			buf = buf[:0]
			for i := range uint64(calls) {
				body, _ = AppendOp(body[:0], set)
				buf = AppendCall(buf, i+1, 5_000_000, body)
			}
		}
		perCall(b)
	})
	b.Run("write/proto", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			marshal(b, message)
		}
		perCall(b)
	})
	b.Run("read/hand", func(b *testing.B) {
		b.ReportAllocs()
		var ops OpReader
		for b.Loop() {
			r, _ := ReadRequest(hand)
			for c, more, _ := r.Next(); more; c, more, _ = r.Next() {
				if _, err := ops.Read(c.Op); err != nil {
					b.Fatal(err)
				}
			}
		}
		perCall(b)
	})
	b.Run("read/proto", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(hand, new(PipelineRequest)); err != nil {
				b.Fatal(err)
			}
		}
		perCall(b)
	})
}
