package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

func numbered(n int) (keys [][]byte, items []SetItem) {
	for i := range n {
		key := fmt.Appendf(nil, "key-%04d", i)
		keys = append(keys, key)
		items = append(items, SetItem{Key: key, Value: fmt.Appendf(nil, "value %d", i)})
	}
	return keys, items
}

// bothWays runs a test against nodes with the stream and against nodes without it, where a message is one Batch.
func bothWays(t *testing.T, run func(t *testing.T, unary bool)) {
	t.Run("stream", func(t *testing.T) { run(t, false) })
	t.Run("batch", func(t *testing.T) { run(t, true) })
}

// sets lists the writes that a node has seen, whichever way they came.
func (n *fakeNode) sets() []*ostrakapb.SetRequest {
	all := requests[*ostrakapb.SetRequest](n)
	for _, b := range requests[*ostrakapb.BatchRequest](n) {
		for _, op := range b.Ops {
			if set := op.GetSet(); set != nil {
				all = append(all, set)
			}
		}
	}
	return all
}

func TestMultiOperationsOverAllShards(t *testing.T) { bothWays(t, testMultiOperationsOverAllShards) }

func testMultiOperationsOverAllShards(t *testing.T, unary bool) {
	f := newFakeCluster(t, 3, 8)
	f.unary = unary
	c := f.client()
	keys, items := numbered(1000)
	for i, err := range c.MultiSet(t.Context(), items) {
		if err != nil {
			t.Fatalf("set %d: %v", i, err)
		}
	}
	for i, r := range c.MultiGet(t.Context(), append(keys, []byte("missing"))) {
		switch {
		case i == len(keys):
			if !errors.Is(r.Err, ErrNotFound) {
				t.Errorf("the missing key: %v", r.Err)
			}
		case r.Err != nil || string(r.Value.Value) != fmt.Sprintf("value %d", i):
			t.Fatalf("get %d = %q, %v", i, r.Value.Value, r.Err)
		}
	}
	deleted, errs := c.MultiDelete(t.Context(), [][]byte{keys[0], []byte("missing"), keys[1]})
	if fmt.Sprint(deleted, errs) != "[true false true] [<nil> <nil> <nil>]" {
		t.Errorf("delete: %v, %v", deleted, errs)
	}
	requestsOfWrites := map[string]bool{}
	for _, n := range f.nodes {
		for _, b := range requests[*ostrakapb.BatchRequest](n) {
			if len(b.Ops) > messageOpsMax {
				t.Errorf("a message of %d operations", len(b.Ops))
			}
		}
		if batches := len(requests[*ostrakapb.BatchRequest](n)); (batches > 0) != unary {
			t.Errorf("%d batches were sent", batches)
		}
		for _, set := range n.sets() {
			name := fmt.Sprint(c.ShardOf(set.Key), "#", set.Header.Request)
			if requestsOfWrites[name] {
				t.Errorf("request %s was sent twice", name)
			}
			requestsOfWrites[name] = true
		}
	}
	if len(requestsOfWrites) != len(items) {
		t.Errorf("%d writes were sent, want %d", len(requestsOfWrites), len(items))
	}
	if n := c.written(); n != len(items)+3 {
		t.Errorf("%d writes are over, want %d", n, len(items)+3)
	}
}

func TestMultiSetFollowsEachShardsLeader(t *testing.T) {
	bothWays(t, func(t *testing.T, unary bool) {
		f := newFakeCluster(t, 3, 6)
		f.unary = unary
		c := f.client()
		for id := range f.leaders { // all hints of the first map are wrong now
			f.lead(id, "n3")
		}
		_, items := numbered(100)
		for i, err := range c.MultiSet(t.Context(), items) {
			if err != nil {
				t.Fatalf("set %d: %v", i, err)
			}
		}
		if got := len(f.node("n3").sets()); got != len(items) {
			t.Errorf("the leader of all saw %d of %d items", got, len(items))
		}
		if got := len(requests[*ostrakapb.BatchRequest](f.node("n3"))); got > 4 {
			t.Errorf("the leader of all saw %d messages for 100 items", got)
		}
	})
}

// Of one message, some operations are done, some refused for good, some unknown, some to be sent again.
func TestResultsOfOneMessageAreTakenApart(t *testing.T) {
	bothWays(t, func(t *testing.T, unary bool) {
		f := newFakeCluster(t, 1, 1)
		f.unary = unary
		c := f.client()
		answer := func(set *ostrakapb.SetRequest) *ostrakapb.OpResult {
			reasons := map[string]ostrakapb.Reason{"key-0000": ostrakapb.Reason_REASON_OUTCOME_UNKNOWN,
				"key-0001": ostrakapb.Reason_REASON_NO_LEADER, "key-0002": ostrakapb.Reason_REASON_LIMIT}
			if reason, ok := reasons[string(set.Key)]; ok && set.Header.Attempt == 1 {
				return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Error{Error: &ostrakapb.ErrorDetail{Reason: reason}}}
			}
			return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Set{Set: &ostrakapb.SetResponse{Done: true, Version: 1}}}
		}
		f.node("n1").play(func(_ context.Context, req any) (any, error) {
			switch req := req.(type) {
			case *ostrakapb.SetRequest:
				r := answer(req)
				if d := r.GetError(); d != nil {
					return nil, detailed(d)
				}
				return r.GetSet(), nil
			case *ostrakapb.BatchRequest:
				resp := &ostrakapb.BatchResponse{}
				for _, op := range req.Ops {
					resp.Results = append(resp.Results, answer(op.GetSet()))
				}
				return resp, nil
			}
			return nil, nil
		})
		_, items := numbered(5)
		errs := c.MultiSet(t.Context(), items)
		if !errors.Is(errs[0], ErrOutcomeUnknown) || errs[1] != nil || !errors.Is(errs[2], ErrLimit) || errs[3] != nil || errs[4] != nil {
			t.Errorf("errors %v", errs)
		}
		again := 0
		for _, set := range f.node("n1").sets() {
			if set.Header.Attempt > 1 {
				again++
				if string(set.Key) != "key-0001" || set.Header.Attempt != 2 || set.Header.Request != 2 {
					t.Errorf("sent again: %v", set)
				}
			}
		}
		if again != 1 {
			t.Errorf("%d were sent again, want one", again)
		}
	})
}

func TestAMessageTooLargeAsAWholeIsHalved(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	f.unary = true
	c := f.client()
	f.node("n1").play(func(_ context.Context, req any) (any, error) {
		if b, ok := req.(*ostrakapb.BatchRequest); ok && len(b.Ops) > 30 {
			return nil, status.Error(codes.ResourceExhausted, "message too large")
		}
		return nil, nil
	})
	keys, _ := numbered(200)
	for i, r := range c.MultiGet(t.Context(), keys) {
		if !errors.Is(r.Err, ErrNotFound) {
			t.Fatalf("get %d: %v", i, r.Err)
		}
	}
}

func TestMultiOperationsOutOfTime(t *testing.T) {
	f := newFakeCluster(t, 2, 2)
	c := f.client()
	f.lead(2, "") // an election that does not end
	_, items := numbered(40)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	done, failed := 0, 0
	for _, err := range c.MultiSet(ctx, items) {
		switch {
		case err == nil:
			done++
		case errors.Is(err, ErrUnavailable), errors.Is(err, ErrOutcomeUnknown): // where the last refusal came too late
			failed++
		default:
			t.Errorf("error %v", err)
		}
	}
	if done == 0 || failed == 0 {
		t.Errorf("%d done, %d not: the shard with a leader should have served, the other not", done, failed)
	}
}

func TestMultiOperationsOfNothing(t *testing.T) {
	c := newFakeCluster(t, 1, 1).client()
	if got := c.MultiGet(t.Context(), nil); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}
