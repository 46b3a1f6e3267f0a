package server

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
)

func getOps(level ostrakapb.ReadLevel, keys ...string) (ops []*ostrakapb.Op) {
	for _, k := range keys {
		ops = append(ops, &ostrakapb.Op{Op: &ostrakapb.Op_Get{Get: &ostrakapb.GetRequest{Key: []byte(k), Level: level}}})
	}
	return ops
}

func setOps(value func(i int) []byte, keys ...string) (ops []*ostrakapb.Op) {
	for i, k := range keys {
		ops = append(ops, &ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: &ostrakapb.SetRequest{
			Header: &ostrakapb.Header{Request: uint64(i + 1), Attempt: 2}, Key: []byte(k), Value: value(i)}}})
	}
	return ops
}

func batchOf(t *testing.T, f *fakeServer, ops ...*ostrakapb.Op) []*ostrakapb.OpResult {
	t.Helper()
	resp, err := f.kv.Batch(t.Context(), &ostrakapb.BatchRequest{Ops: ops})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetResults()) != len(ops) {
		t.Fatalf("%d results for %d operations", len(resp.GetResults()), len(ops))
	}
	return resp.GetResults()
}

func TestBatchAcrossShards(t *testing.T) {
	f := serve(t, newFakeNode(t))
	keys := keysOfAllShards(t, f.node.m, 300)
	value := func(i int) []byte { return fmt.Appendf(nil, "v%d", i) }
	id := bytes.Repeat([]byte{9}, 16)
	resp, err := f.kv.Batch(t.Context(), &ostrakapb.BatchRequest{
		Header: &ostrakapb.Header{ClientId: id, LowestUnanswered: 4}, Ops: setOps(value, keys...)})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range resp.GetResults() {
		if !r.GetSet().GetDone() {
			t.Fatalf("set %d: %v", i, r)
		}
	}
	requests := make(map[uint64]bool)
	for _, r := range f.replicas {
		for _, s := range r.sessions {
			requests[s.Request] = true
			if s.ClientID != [16]byte(id) || s.Lowest != 4 || s.Attempt != 2 {
				t.Fatalf("session %v", s)
			}
		}
	}
	if len(requests) != len(keys) {
		t.Errorf("%d request numbers for %d writes", len(requests), len(keys))
	}
	for i, r := range batchOf(t, f, getOps(0, keys...)...) {
		if !bytes.Equal(r.GetGet().GetValue(), value(i)) {
			t.Fatalf("get %d: %v", i, r)
		}
	}
	for id, r := range f.replicas {
		if r.reads != 1 {
			t.Errorf("shard %d was opened %d times for one batch of reads", id, r.reads)
		}
	}
}

func TestBatchOfEveryKind(t *testing.T) {
	f := serve(t, newFakeNode(t))
	if _, err := f.kv.Set(t.Context(), &ostrakapb.SetRequest{Key: []byte("k"), Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	key := func(name string) []byte { return []byte(name) }
	got := batchOf(t, f,
		&ostrakapb.Op{Op: &ostrakapb.Op_Get{Get: &ostrakapb.GetRequest{Key: key("k")}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_Ttl{Ttl: &ostrakapb.TTLRequest{Key: key("k"), Level: ostrakapb.ReadLevel_READ_LEVEL_STALE}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: &ostrakapb.SetRequest{Key: key("a")}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_Delete{Delete: &ostrakapb.DeleteRequest{Key: key("b")}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_CompareAndSet{CompareAndSet: &ostrakapb.CompareAndSetRequest{Key: key("c")}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_Increment{Increment: &ostrakapb.IncrementRequest{Key: key("d"), Delta: 4}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_Append{Append: &ostrakapb.AppendRequest{Key: key("e"), Value: key("xy")}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_Expire{Expire: &ostrakapb.ExpireRequest{Key: key("f"), TtlMs: 1}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_Persist{Persist: &ostrakapb.PersistRequest{Key: key("g")}}},
		&ostrakapb.Op{Op: &ostrakapb.Op_Touch{Touch: &ostrakapb.TouchRequest{Key: key("h")}}},
	)
	for i, ok := range []bool{
		string(got[0].GetGet().GetValue()) == "1", got[1].GetTtl().GetValueSize() == 1, got[2].GetSet().GetDone(),
		got[3].GetDelete().GetConditionMet(), got[4].GetCompareAndSet() != nil, got[5].GetIncrement().GetValue() == 4,
		got[6].GetAppend().GetLength() == 2, got[7].GetExpire() != nil, got[8].GetPersist() != nil, got[9].GetTouch() != nil,
	} {
		if !ok {
			t.Errorf("operation %d: %v", i, got[i])
		}
	}
}

// TestBatchFailsOneByOne: what is wrong with one operation is its own affair.
func TestBatchFailsOneByOne(t *testing.T) {
	f := serve(t, newFakeNode(t))
	r := f.replicas.of(f.node.m, "lost")
	r.writeErr = fmt.Errorf("%w: leadership lost", raftfsm.ErrOutcomeUnknown)
	r.readErr = raftfsm.ErrNotConfirmed
	var elsewhere string
	for _, k := range keysOfAllShards(t, f.node.m, 100) {
		if f.replicas.of(f.node.m, k) != r {
			elsewhere = k
			break
		}
	}
	set := func(r *ostrakapb.SetRequest) *ostrakapb.Op { return &ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: r}} }
	got := batchOf(t, f,
		set(&ostrakapb.SetRequest{Key: []byte("lost")}),
		set(&ostrakapb.SetRequest{Key: []byte(elsewhere)}),
		set(&ostrakapb.SetRequest{}),
		set(&ostrakapb.SetRequest{Key: []byte(elsewhere), ReturnPrevious: true}),
		&ostrakapb.Op{},
		getOps(0, "lost")[0],
		getOps(0, "")[0],
		getOps(1, elsewhere)[0],
		getOps(0, elsewhere)[0],
	)
	for i, want := range []ostrakapb.Reason{
		ostrakapb.Reason_REASON_OUTCOME_UNKNOWN, 0, ostrakapb.Reason_REASON_INVALID, ostrakapb.Reason_REASON_INVALID,
		ostrakapb.Reason_REASON_INVALID, ostrakapb.Reason_REASON_NO_LEADER, ostrakapb.Reason_REASON_INVALID,
		ostrakapb.Reason_REASON_UNSUPPORTED, 0,
	} {
		if d := got[i].GetError(); d.GetReason() != want {
			t.Errorf("operation %d: %v, want %v", i, got[i], want)
		}
	}
	if d := got[0].GetError(); d.GetOutcome() != outcomeUnknown || d.GetShard() != uint32(r.status.Shard) {
		t.Errorf("lost write: %v", d)
	}
}

// TestBatchAnswerIsBounded reads more than an answer holds, again and again, as a client does.
func TestBatchAnswerIsBounded(t *testing.T) {
	node := newFakeNode(t)
	node.limits.BatchBytesMax = 1000
	f := serve(t, node)
	keys := keysOfAllShards(t, node.m, 20)
	for i, k := range keys {
		size := 300
		if i == 0 {
			size = 5000 // more than an answer holds, and yet it must be had
		}
		if _, err := f.kv.Set(t.Context(), &ostrakapb.SetRequest{Key: []byte(k), Value: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
	}
	pending := keys
	for round := 0; len(pending) > 0; round++ {
		if round > len(keys) {
			t.Fatal("a round brought nothing")
		}
		var left []string
		answered := 0
		for i, r := range batchOf(t, f, getOps(0, pending...)...) {
			if d := r.GetError(); d != nil {
				if d.GetReason() != ostrakapb.Reason_REASON_OVERLOADED || d.GetOutcome() != notDone {
					t.Fatalf("refused for %v", d)
				}
				left = append(left, pending[i])
				continue
			}
			answered += len(r.GetGet().GetValue())
		}
		if answered > 1000 && answered != 5000 {
			t.Fatalf("round %d: an answer of %d bytes", round, answered)
		}
		pending = left
	}
}

// TestBatchGivesUp: when the caller's time is up, what could still be held back is not done, and the rest is unknown.
func TestBatchGivesUp(t *testing.T) {
	node := newFakeNode(t)
	kv := newKVService(node)
	replicas := newFakeReplicas(node.m)
	kv.replicas = replicas
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	keys := keysOfAllShards(t, node.m, 100)
	stuck := replicas.of(node.m, keys[0])
	begun := make(chan struct{}, len(keys))
	release := make(chan struct{})
	defer close(release)
	here := 0
	for _, k := range keys {
		if replicas.of(node.m, k) == stuck {
			here++
		}
	}
	stuck.beforeWrite = func(context.Context) { begun <- struct{}{}; <-release }
	for _, r := range replicas {
		if r != stuck {
			r.held = release
		}
	}
	go func() {
		for range here {
			<-begun
		}
		cancel()
	}()
	resp, err := kv.Batch(ctx, &ostrakapb.BatchRequest{Ops: setOps(func(int) []byte { return nil }, keys...)})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range resp.GetResults() {
		want := ostrakapb.Reason_REASON_DEADLINE
		if replicas.of(node.m, keys[i]) == stuck {
			want = ostrakapb.Reason_REASON_OUTCOME_UNKNOWN
		}
		if got := r.GetError().GetReason(); got != want {
			t.Errorf("write %d: %v, want %v", i, got, want)
		}
	}
}

// TestBatchRefusedByOneShard: what a shard does not take is refused, operation by operation.
func TestBatchRefusedByOneShard(t *testing.T) {
	f := serve(t, newFakeNode(t))
	keys := keysOfAllShards(t, f.node.m, 100)
	full := f.replicas.of(f.node.m, keys[0])
	full.submitErr = raftfsm.ErrOverloaded
	for i, r := range batchOf(t, f, setOps(func(int) []byte { return nil }, keys...)...) {
		refused := f.replicas.of(f.node.m, keys[i]) == full
		if d := r.GetError(); refused != (d.GetReason() == ostrakapb.Reason_REASON_OVERLOADED) || refused == r.GetSet().GetDone() {
			t.Errorf("write %d: %v", i, r)
		}
	}
	for id, r := range f.replicas {
		if r.submits != 1 {
			t.Errorf("shard %d was given writes %d times for one batch", id, r.submits)
		}
	}
}

// TestPanicInBatch: it must reach the call's goroutine, where it ends one call and not the process.
func TestPanicInBatch(t *testing.T) {
	f := serve(t, newFakeNode(t))
	for _, r := range f.replicas {
		r.getPanics = true
	}
	keys := keysOfAllShards(t, f.node.m, 100)
	for _, n := range []int{1, len(keys)} {
		_, err := f.kv.Batch(t.Context(), &ostrakapb.BatchRequest{Ops: getOps(0, keys[:n]...)})
		if status.Code(err) != codes.Internal || detailOf(t, err).GetOutcome() != outcomeUnknown {
			t.Errorf("batch of %d: %v", n, err)
		}
	}
}

func TestEmptyBatch(t *testing.T) {
	if got := batchOf(t, serve(t, newFakeNode(t))); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
