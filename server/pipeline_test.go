package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

type testPipeline struct {
	grpc.BidiStreamingClient[ostrakapb.PipelineRequest, ostrakapb.PipelineResponse]
	t        *testing.T
	draining bool
}

func openPipeline(t *testing.T, f *fakeServer) *testPipeline {
	t.Helper()
	stream, err := f.kv.Pipeline(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &testPipeline{BidiStreamingClient: stream, t: t}
}

// send numbers the operations from a number on.
func (p *testPipeline) send(from uint64, h *ostrakapb.Header, ops ...*ostrakapb.Op) {
	p.t.Helper()
	r := &ostrakapb.PipelineRequest{Header: h}
	for i, op := range ops {
		r.Calls = append(r.Calls, &ostrakapb.PipelineCall{Number: from + uint64(i), Op: op})
	}
	if err := p.Send(r); err != nil {
		p.t.Fatal(err)
	}
}

// answers waits for n answers; each number may come once.
func (p *testPipeline) answers(n int) map[uint64]*ostrakapb.OpResult {
	p.t.Helper()
	got := make(map[uint64]*ostrakapb.OpResult)
	for len(got) < n {
		r, err := p.Recv()
		if err != nil {
			p.t.Fatalf("after %d of %d answers: %v", len(got), n, err)
		}
		p.draining = p.draining || r.GetDraining()
		for _, a := range r.GetAnswers() {
			if got[a.GetNumber()] != nil {
				p.t.Fatalf("call %d was answered twice", a.GetNumber())
			}
			got[a.GetNumber()] = a.GetResult()
		}
	}
	return got
}

func TestPipeline(t *testing.T) {
	f := serve(t, newFakeNode(t))
	p := openPipeline(t, f)
	keys := keysOfAllShards(t, f.node.m, 300)
	value := func(i int) []byte { return fmt.Appendf(nil, "v%d", i) }
	id := bytes.Repeat([]byte{9}, 16)
	p.send(1, &ostrakapb.Header{ClientId: id, LowestUnanswered: 4}, setOps(value, keys...)...)
	for number, r := range p.answers(len(keys)) {
		if !r.GetSet().GetDone() {
			t.Fatalf("set %d: %v", number, r)
		}
	}
	for _, r := range f.replicas {
		for _, s := range r.sessions {
			if s.ClientID != [16]byte(id) || s.Lowest != 4 || s.Attempt != 2 {
				t.Fatalf("session %v", s)
			}
		}
	}
	p.send(1000, nil, getOps(0, keys...)...)
	for number, r := range p.answers(len(keys)) {
		if !bytes.Equal(r.GetGet().GetValue(), value(int(number-1000))) {
			t.Fatalf("get %d: %v", number, r)
		}
	}
	for id, r := range f.replicas {
		if r.reads != 1 {
			t.Errorf("shard %d was opened %d times for one message of reads", id, r.reads)
		}
	}
	// What a batch doesn't offer.
	p.send(5000, nil, &ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: &ostrakapb.SetRequest{Key: []byte(keys[0]), Value: []byte("w"), ReturnPrevious: true}}})
	if got := p.answers(1)[5000].GetSet(); !bytes.Equal(got.GetPrevious().GetValue(), value(0)) {
		t.Errorf("previous: %v", got)
	}
	if err := p.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after all: %v", err)
	}
}

// Each call is refused by itself.
func TestPipelineErrors(t *testing.T) {
	f := serve(t, newFakeNode(t))
	p := openPipeline(t, f)
	set := func(r *ostrakapb.SetRequest) *ostrakapb.Op { return &ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: r}} }
	p.send(1, nil,
		set(&ostrakapb.SetRequest{}),
		&ostrakapb.Op{},
		set(&ostrakapb.SetRequest{Key: []byte("k"), TtlMs: -1}),
		getOps(99, "k")[0],
		set(&ostrakapb.SetRequest{Key: []byte("k"), Value: []byte("v")}),
		set(&ostrakapb.SetRequest{Key: []byte("k"), Value: make([]byte, f.node.limits.ValueBytesMax+1)}),
	)
	got := p.answers(6)
	for number, want := range map[uint64]ostrakapb.Reason{1: ostrakapb.Reason_REASON_INVALID, 2: ostrakapb.Reason_REASON_INVALID,
		3: ostrakapb.Reason_REASON_INVALID, 4: ostrakapb.Reason_REASON_UNSUPPORTED, 6: ostrakapb.Reason_REASON_LIMIT} {
		if d := got[number].GetError(); d.GetReason() != want {
			t.Errorf("call %d: %v, want %v", number, got[number], want)
		}
	}
	if !got[5].GetSet().GetDone() {
		t.Errorf("the good one: %v", got[5])
	}
}

// A node that is about to stop says so, and answers what still comes until the client closes its side.
func TestPipelineDrains(t *testing.T) {
	f := serve(t, newFakeNode(t))
	p := openPipeline(t, f)
	p.send(1, nil, setOps(func(int) []byte { return nil }, "a")...)
	p.answers(1)
	close(f.stopping)
	for !p.draining {
		r, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		p.draining = r.GetDraining()
	}
	p.send(2, nil, setOps(func(int) []byte { return nil }, "b")...)
	if got := p.answers(1)[2]; !got.GetSet().GetDone() {
		t.Errorf("a call that was on its way: %v", got)
	}
	if err := p.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after all: %v", err)
	}
	f.grpc.GracefulStop() // hangs if the stream's handler is still there
}
