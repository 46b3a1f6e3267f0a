package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// This file alone knows gRPC's status codes. Handlers return Go errors; gate and Batch pass them through an
// explainer, which looks them up in statusTable and attaches an ErrorDetail. Programs read the detail; the
// codes serve people, proxies and dashboards. Its inverse is client/errors.go.

const (
	notDone        = ostrakapb.Outcome_OUTCOME_NOT_DONE
	outcomeUnknown = ostrakapb.Outcome_OUTCOME_UNKNOWN
)

// electionPause is about what an election takes at best: coming back sooner meets the same answer.
const electionPause = 50 * time.Millisecond

// statusRow says how callers hear of an error.
type statusRow struct {
	is         error
	code       codes.Code
	reason     ostrakapb.Reason
	outcome    ostrakapb.Outcome
	retryAfter time.Duration
	// field is the request's field at fault, where the error can't name it itself.
	field string
}

// statusTable is walked from the top with errors.Is; the first row that matches counts. Unknown outcomes stand
// first: whatever else went wrong with such a write, it must not be sent again as if it were not done.
//
// gRPC repeats no call by itself for any of these codes; only a service config could ask it to, usually for
// Unavailable, which therefore always means not done.
var statusTable = []statusRow{
	{is: raftfsm.ErrOutcomeUnknown, code: codes.Unknown, reason: ostrakapb.Reason_REASON_OUTCOME_UNKNOWN, outcome: outcomeUnknown},
	{is: raftfsm.ErrResultForgotten, code: codes.Unknown, reason: ostrakapb.Reason_REASON_RESULT_FORGOTTEN, outcome: outcomeUnknown},
	{is: errPanicked, code: codes.Internal, reason: ostrakapb.Reason_REASON_UNSPECIFIED, outcome: outcomeUnknown},

	{is: errNotBootstrapped, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED, outcome: notDone},
	{is: errBootstrapUnfinished, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED, outcome: notDone},
	{is: errStarting, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_NO_LEADER, outcome: notDone, retryAfter: electionPause},
	{is: errAnswerFull, code: codes.ResourceExhausted, reason: ostrakapb.Reason_REASON_OVERLOADED, outcome: notDone, retryAfter: time.Millisecond},

	{is: raftfsm.ErrNotLeader, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_NOT_LEADER, outcome: notDone},
	{is: raftfsm.ErrNotReady, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_NO_LEADER, outcome: notDone, retryAfter: electionPause},
	{is: raftfsm.ErrNotConfirmed, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_NO_LEADER, outcome: notDone, retryAfter: electionPause},
	{is: raftfsm.ErrStopped, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_NO_LEADER, outcome: notDone, retryAfter: electionPause},
	{is: raftfsm.ErrNoSpace, code: codes.ResourceExhausted, reason: ostrakapb.Reason_REASON_OVERLOADED, outcome: notDone, retryAfter: noSpacePause},
	{is: raftfsm.ErrMemory, code: codes.ResourceExhausted, reason: ostrakapb.Reason_REASON_MEMORY, outcome: notDone, retryAfter: memoryPause},
	{is: raftfsm.ErrOverloaded, code: codes.ResourceExhausted, reason: ostrakapb.Reason_REASON_OVERLOADED, outcome: notDone, retryAfter: 20 * time.Millisecond},
	{is: raftfsm.ErrNoAudit, code: codes.Aborted, reason: ostrakapb.Reason_REASON_UNSPECIFIED, outcome: notDone},
	{is: raftfsm.ErrDeadline, code: codes.DeadlineExceeded, reason: ostrakapb.Reason_REASON_DEADLINE, outcome: notDone},
	{is: raftfsm.ErrSessionUnknown, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_SESSION_UNKNOWN, outcome: notDone},
	{is: errSessionsLevel, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_NO_LEADER, outcome: notDone, retryAfter: electionPause},
	{is: errDraining, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_DRAINING, outcome: notDone},
	{is: store.ErrCompacted, code: codes.OutOfRange, reason: ostrakapb.Reason_REASON_COMPACTED, outcome: notDone},
	{is: raftfsm.ErrNoHistory, code: codes.Unimplemented, reason: ostrakapb.Reason_REASON_UNSUPPORTED, outcome: notDone},
	{is: shard.ErrStaleEpoch, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_STALE_EPOCH, outcome: notDone},

	{is: errLimit, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_LIMIT, outcome: notDone},
	{is: store.ErrKeyTooLarge, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_LIMIT, outcome: notDone},
	{is: store.ErrValueTooLarge, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_LIMIT, outcome: notDone},
	{is: errField, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone},
	{is: store.ErrKeyEmpty, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone, field: "key"},
	{is: store.ErrTTLInvalid, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone, field: "ttl_ms"},
	{is: store.ErrOpInvalid, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone},
	{is: raftfsm.ErrNotSpared, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_UNSPECIFIED, outcome: notDone, retryAfter: time.Second},
	{is: raftfsm.ErrBadMeta, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone},
	{is: errUnsupported, code: codes.Unimplemented, reason: ostrakapb.Reason_REASON_UNSUPPORTED, outcome: notDone},
	{is: store.ErrOpUnknown, code: codes.Unimplemented, reason: ostrakapb.Reason_REASON_UNSUPPORTED, outcome: notDone},

	{is: ErrAlreadyMember, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_ALREADY_MEMBER, outcome: notDone},
	{is: ErrBootstrapRequest, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone, field: "bootstrap"},
	{is: ErrNodeUnreachable, code: codes.Unavailable, reason: ostrakapb.Reason_REASON_UNSPECIFIED, outcome: notDone},
	{is: ErrConfig, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone, field: "address"},
	{is: transport.ErrWrongCluster, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_WRONG_CLUSTER, outcome: notDone},
	{is: transport.ErrStranger, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_WRONG_CLUSTER, outcome: notDone},
	{is: transport.ErrWrongNode, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_WRONG_CLUSTER, outcome: notDone},
	{is: errIncarnationLeap, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone, field: "incarnation"},
	{is: transport.ErrFormat, code: codes.Unimplemented, reason: ostrakapb.Reason_REASON_UNSUPPORTED, outcome: notDone},
	{is: transport.ErrMalformed, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone, field: "frame"},
	{is: transport.ErrOldIncarnation, code: codes.Aborted, reason: ostrakapb.Reason_REASON_UNSPECIFIED, outcome: notDone},
	{is: transport.ErrOutlived, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_WRONG_CLUSTER, outcome: notDone},
	{is: transport.ErrReplaced, code: codes.Aborted, reason: ostrakapb.Reason_REASON_UNSPECIFIED, outcome: notDone},
	{is: shard.ErrInvalidMap, code: codes.InvalidArgument, reason: ostrakapb.Reason_REASON_INVALID, outcome: notDone, field: "map"},

	{is: errNotInteger, code: codes.FailedPrecondition, reason: ostrakapb.Reason_REASON_NOT_INTEGER, outcome: notDone},
	{is: errOverflow, code: codes.OutOfRange, reason: ostrakapb.Reason_REASON_OVERFLOW, outcome: notDone},

	// What a context ends does not say how far it had come.
	{is: context.DeadlineExceeded, code: codes.DeadlineExceeded, reason: ostrakapb.Reason_REASON_OUTCOME_UNKNOWN, outcome: outcomeUnknown},
	{is: context.Canceled, code: codes.Canceled, reason: ostrakapb.Reason_REASON_OUTCOME_UNKNOWN, outcome: outcomeUnknown},
}

// noSpacePause is how soon a node whose disk is full may have got room.
const noSpacePause = time.Second

// memoryPause is how soon a node over its memory limit may have got below.
const memoryPause = time.Second

// unforeseen is the row of every other error: whether anything was done is not known.
var unforeseen = statusRow{code: codes.Internal, reason: ostrakapb.Reason_REASON_UNSPECIFIED, outcome: outcomeUnknown}

// explainer tells callers what an error means, as this node sees the cluster.
type explainer struct{ node nodeView }

// status turns a handler's error into one that gRPC sends with its detail; nil stays nil. A status that is no
// error of ours, such as another node's answer, is passed on as it is.
func (e explainer) status(err error) error {
	if err == nil {
		return nil
	}
	row, known := rowOf(err)
	if s, ok := status.FromError(err); ok && !known {
		return s.Err()
	}
	s, encodeErr := status.New(row.code, err.Error()).WithDetails(e.detailOf(row, err))
	if encodeErr != nil {
		panic(fmt.Sprintf("server: an ErrorDetail does not encode: %v", encodeErr))
	}
	return s.Err()
}

// detail is what status attaches, for one failed operation of a batch.
func (e explainer) detail(err error) *ostrakapb.ErrorDetail {
	row, _ := rowOf(err)
	return e.detailOf(row, err)
}

func rowOf(err error) (row statusRow, known bool) {
	for _, row := range statusTable {
		if errors.Is(err, row.is) {
			return row, true
		}
	}
	return unforeseen, false
}

func (e explainer) detailOf(row statusRow, err error) *ostrakapb.ErrorDetail {
	d := &ostrakapb.ErrorDetail{
		Reason:       row.reason,
		Outcome:      row.outcome,
		Field:        row.field,
		RetryAfterMs: row.retryAfter.Milliseconds(),
		Message:      err.Error(),
	}
	if m := e.node.Map(); m != nil {
		d.Epoch = uint64(m.Epoch())
	}
	e.addPlace(d, err)
	addLimit(d, err)
	if unknown, ok := errors.AsType[*raftfsm.SessionUnknownError](err); ok {
		d.ShardTimeMs = int64(unknown.Now)
		if unknown.Resent { // it is this sending that was not done
			d.Outcome = outcomeUnknown
		}
	}
	if f, ok := errors.AsType[*fieldError](err); ok {
		d.Field = f.field
	}
	return d
}

// addPlace says where the caller should have gone.
func (e explainer) addPlace(d *ostrakapb.ErrorDetail, err error) {
	var leader shard.NodeID
	if placed, ok := errors.AsType[*shardError](err); ok {
		d.Shard, leader = uint32(placed.shard), placed.hint
	}
	if lead, ok := errors.AsType[*raftfsm.NotLeaderError](err); ok {
		d.Shard, leader = uint32(lead.Group), lead.Leader
	}
	if leader == e.node.NodeID() {
		leader = "" // raft names this node while it is on its way in or out of leadership
	}
	if leader == "" && d.Reason == ostrakapb.Reason_REASON_NOT_LEADER {
		d.Reason = ostrakapb.Reason_REASON_NO_LEADER
		d.RetryAfterMs = electionPause.Milliseconds()
	}
	if leader != "" {
		d.LeaderNode = string(leader)
		d.LeaderAddress, _ = e.node.Address(leader)
	}
}

func addLimit(d *ostrakapb.ErrorDetail, err error) {
	if l, ok := errors.AsType[*store.LimitError](err); ok {
		d.Limit, d.LimitMax, d.LimitGot = l.Limit, int64(l.Max), int64(l.Got)
	}
	if l, ok := errors.AsType[*limitError](err); ok {
		d.Limit, d.LimitMax, d.LimitGot = l.limit, int64(l.max), int64(l.got)
	}
	if m, ok := errors.AsType[*raftfsm.MemoryError](err); ok {
		d.Limit, d.LimitMax, d.LimitGot, d.Node = limitMemory, m.Limit, m.Used, string(m.Node)
	}
}

// shardError is an error met at a shard.
type shardError struct {
	shard shard.ID
	// hint is a node that may lead the shard; empty: none is known.
	hint shard.NodeID
	err  error
}

func (e *shardError) Error() string { return fmt.Sprintf("shard %d: %v", e.shard, e.err) }
func (e *shardError) Unwrap() error { return e.err }

// overdue is ErrDeadline where a call's time is up or its caller has gone, so that nothing need be done for it.
func overdue(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", raftfsm.ErrDeadline, err)
	}
	return nil
}
