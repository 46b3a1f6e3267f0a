package server

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// TestEveryRowRoundTrips sends each error of the table, wrapped, through a status and reads the detail back.
func TestEveryRowRoundTrips(t *testing.T) {
	e := explainer{newFakeNode(t)}
	for _, row := range statusTable {
		sent := e.status(fmt.Errorf("shard 3: %w", row.is))
		if got := status.Code(sent); got != row.code {
			t.Errorf("%v: code %v, want %v", row.is, got, row.code)
		}
		d := detailOf(t, sent)
		want := row.reason
		if row.is == raftfsm.ErrNotLeader {
			want = ostrakapb.Reason_REASON_NO_LEADER // nobody knows one
		}
		if d.GetReason() != want || d.GetOutcome() != row.outcome || d.GetField() != row.field || d.GetEpoch() != 5 {
			t.Errorf("%v: detail %v", row.is, d)
		}
		if d.GetMessage() != "shard 3: "+row.is.Error() {
			t.Errorf("%v: message %q", row.is, d.GetMessage())
		}
	}
}

// TestTableIsWellFormed: no row hides another, every failure of a write is one of the two kinds, and
// Unavailable, which proxies may repeat, always means not done.
func TestTableIsWellFormed(t *testing.T) {
	for i, row := range statusTable {
		if row.outcome != notDone && row.outcome != outcomeUnknown {
			t.Errorf("%v has no outcome", row.is)
		}
		if row.code == codes.Unavailable && row.outcome != notDone {
			t.Errorf("%v is unavailable, and not known to be not done", row.is)
		}
		for _, earlier := range statusTable[:i] {
			if errors.Is(row.is, earlier.is) {
				t.Errorf("%v is never reached: it is %v", row.is, earlier.is)
			}
		}
	}
}

func TestUnknownOutcomeOutranksEverything(t *testing.T) {
	e := explainer{newFakeNode(t)}
	for _, cause := range []error{raftfsm.ErrNotLeader, raftfsm.ErrStopped, raftfsm.ErrDeadline, context.DeadlineExceeded,
		&raftfsm.NotLeaderError{Group: 1, Leader: "n2"}} {
		for _, err := range []error{
			fmt.Errorf("%w: %w", raftfsm.ErrOutcomeUnknown, cause),
			errors.Join(cause, raftfsm.ErrOutcomeUnknown),
			&shardError{shard: 1, err: fmt.Errorf("%w: %w", cause, raftfsm.ErrOutcomeUnknown)},
		} {
			if d := wantReason(t, e.status(err), ostrakapb.Reason_REASON_OUTCOME_UNKNOWN); d.GetOutcome() != outcomeUnknown {
				t.Errorf("%v: %v", err, d)
			}
		}
	}
}

func TestErrorsNotInTheTable(t *testing.T) {
	e := explainer{newFakeNode(t)}
	if e.status(nil) != nil {
		t.Error("nil becomes an error")
	}
	// A bug: nobody may take it for not done.
	sent := e.status(errors.New("surprise"))
	if d := detailOf(t, sent); status.Code(sent) != codes.Internal || d.GetOutcome() != outcomeUnknown || d.GetMessage() != "surprise" {
		t.Errorf("surprise: %v, %v", sent, d)
	}
	// Another node's answer keeps its detail on the way through this one.
	other := explainer{&fakeNode{id: "n2"}}
	relayed := e.status(fmt.Errorf("n2 refuses: %w", other.status(ErrAlreadyMember)))
	if d := wantReason(t, relayed, ostrakapb.Reason_REASON_ALREADY_MEMBER); d.GetEpoch() != 0 {
		t.Errorf("relayed: %v", d)
	}
}

func TestDetailsSayWhatPrograms(t *testing.T) {
	e := explainer{newFakeNode(t)}
	limited := e.detail(&store.LimitError{Limit: store.LimitKeyBytes, Got: 9, Max: 8})
	if limited.GetLimit() != store.LimitKeyBytes || limited.GetLimitGot() != 9 || limited.GetLimitMax() != 8 {
		t.Errorf("store's limit: %v", limited)
	}
	limited = e.detail(&limitError{limit: limitBatchOps, max: 8, got: 9})
	if limited.GetLimit() != limitBatchOps || limited.GetLimitGot() != 9 || limited.GetLimitMax() != 8 {
		t.Errorf("own limit: %v", limited)
	}
	full := e.detail(&shardError{shard: 3, err: &raftfsm.MemoryError{Node: "n3", Used: 9, Limit: 8}})
	if full.GetNode() != "n3" || full.GetLimit() != limitMemory || full.GetLimitGot() != 9 || full.GetLimitMax() != 8 || full.GetShard() != 3 ||
		full.GetReason() != ostrakapb.Reason_REASON_MEMORY || full.GetOutcome() != notDone {
		t.Errorf("memory: %v", full)
	}
	if d := e.detail(&fieldError{"ttl_ms", "negative"}); d.GetField() != "ttl_ms" || d.GetReason() != ostrakapb.Reason_REASON_INVALID {
		t.Errorf("field: %v", d)
	}
	d := e.detail(&shardError{shard: 3, hint: "n2", err: shard.ErrStaleEpoch})
	if d.GetShard() != 3 || d.GetLeaderNode() != "n2" || d.GetLeaderAddress() != "n2.test:7400" {
		t.Errorf("place: %v", d)
	}
}
