package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
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

func TestMultiOperationsOverAllShards(t *testing.T) {
	f := newFakeCluster(t, 3, 8)
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
	requestsOfWrites := map[uint64]bool{}
	for _, n := range f.nodes {
		for _, b := range requests[*ostrakapb.BatchRequest](n) {
			if len(b.Ops) > messageOpsMax {
				t.Errorf("a message of %d operations", len(b.Ops))
			}
			for _, op := range b.Ops {
				if set := op.GetSet(); set != nil {
					if requestsOfWrites[set.Header.Request] {
						t.Errorf("request %d was sent twice", set.Header.Request)
					}
					requestsOfWrites[set.Header.Request] = true
				}
			}
		}
	}
	if len(requestsOfWrites) != len(items) {
		t.Errorf("%d writes were sent, want %d", len(requestsOfWrites), len(items))
	}
	if low := c.session.lowestUnanswered(); low != uint64(len(items))+4 {
		t.Errorf("lowest unanswered %d after %d writes", low, len(items)+3)
	}
}

func TestMultiSetFollowsEachShardsLeader(t *testing.T) {
	f := newFakeCluster(t, 3, 6)
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
	if got := len(requests[*ostrakapb.BatchRequest](f.node("n3"))); got > 4 {
		t.Errorf("the leader of all saw %d messages for 100 items", got)
	}
}

// Of one message, some operations are done, some refused for good, some unknown, some to be sent again.
func TestResultsOfOneMessageAreTakenApart(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	var batches atomic.Int32
	f.node("n1").play(func(_ context.Context, req any) (any, error) {
		b, ok := req.(*ostrakapb.BatchRequest)
		if !ok || batches.Add(1) > 1 {
			return nil, nil
		}
		resp := &ostrakapb.BatchResponse{}
		for i := range b.Ops {
			reasons := []ostrakapb.Reason{
				ostrakapb.Reason_REASON_OUTCOME_UNKNOWN, ostrakapb.Reason_REASON_NO_LEADER, ostrakapb.Reason_REASON_LIMIT}
			r := &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Set{Set: &ostrakapb.SetResponse{Done: true, Version: 1}}}
			if i < len(reasons) {
				r.Result = &ostrakapb.OpResult_Error{Error: &ostrakapb.ErrorDetail{Reason: reasons[i]}}
			}
			resp.Results = append(resp.Results, r)
		}
		return resp, nil
	})
	_, items := numbered(5)
	errs := c.MultiSet(t.Context(), items)
	if !errors.Is(errs[0], ErrOutcomeUnknown) || errs[1] != nil || !errors.Is(errs[2], ErrLimit) || errs[3] != nil || errs[4] != nil {
		t.Errorf("errors %v", errs)
	}
	sent := requests[*ostrakapb.BatchRequest](f.node("n1"))
	if len(sent) != 2 || len(sent[1].Ops) != 1 {
		t.Fatalf("sent %v", sent)
	}
	again := sent[1].Ops[0].GetSet()
	if string(again.Key) != "key-0001" || again.Header.Attempt != 2 || again.Header.Request != 2 {
		t.Errorf("sent again: %v", again)
	}
}

func TestAMessageTooLargeAsAWholeIsHalved(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
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
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
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
