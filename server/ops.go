package server

import (
	"errors"
	"fmt"
	"math"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// Translation between the wire's requests and answers and the store's operations and results.

// errField is a field that is missing, or contradicts another. It comes as a *fieldError.
var errField = errors.New("invalid field")

// errSessionsLevel: writes with sessions need a format level that the cluster, as far as this node knows, does not have.
var errSessionsLevel = errors.New("the cluster's format level, as this node knows it, does not allow sessions")

// errUnsupported is asked of a newer node than this.
var errUnsupported = errors.New("not supported by this node")

// What increment answers with where the key's value stands in its way.
var (
	errNotInteger = errors.New("the value is not a decimal int64")
	errOverflow   = errors.New("the sum would leave the range of int64")
)

// fieldError names the request's field at fault. It is errField.
type fieldError struct{ field, problem string }

func (e *fieldError) Error() string        { return e.field + ": " + e.problem }
func (e *fieldError) Is(target error) bool { return target == errField }

// clientIDBytes is the length of a client's identity.
const clientIDBytes = len(raftfsm.Session{}.ClientID)

// sessionOf reads who sends a write. In a batch, the batch's header says which client it is and each operation's own header
// the rest; elsewhere both are one. open: the caller only asks when a session may be born.
func sessionOf(client, request *ostrakapb.Header) (session raftfsm.Session, open bool, err error) {
	if err := checkClient(client); err != nil {
		return session, false, err
	}
	if len(client.GetClientId()) == 0 {
		return session, false, nil
	}
	if request.GetRequest() == 0 {
		return session, false, &fieldError{"header.request", "a write with a client_id needs a number from 1"}
	}
	if request.GetSessionBorn() < 0 {
		return session, false, &fieldError{"header.session_born", "is negative"}
	}
	if request.GetSessionBorn() > 0 && request.GetLowestUnanswered() > request.GetRequest() {
		return session, false, &fieldError{"header.lowest_unanswered", "is above the request's own number"}
	}
	lowest := request.GetLowestUnanswered()
	if request.GetSessionBorn() == 0 {
		lowest = client.GetLowestUnanswered() // as builds say it that know no sessions
	}
	return raftfsm.Session{
		ClientID: [clientIDBytes]byte(client.GetClientId()),
		Born:     store.Time(request.GetSessionBorn()),
		Request:  request.GetRequest(),
		Lowest:   lowest,
		Attempt:  max(request.GetAttempt(), 1),
	}, request.GetOpenSession() && request.GetSessionBorn() == 0, nil
}

// admitSession refuses a write that only asks for a session, with the answer to that, and one of a session as long as this
// node does not know that the cluster's level allows them: it may be behind.
func (s *kvService) admitSession(r replica, session *raftfsm.Session, open bool) error {
	switch {
	case !open && session.Born == 0:
		return nil
	case s.node.FormatLevel() < raftfsm.SessionsLevel:
		return errSessionsLevel
	case open:
		return &raftfsm.SessionUnknownError{Now: r.SessionTime()}
	}
	return nil
}

func checkClient(h *ostrakapb.Header) error {
	if n := len(h.GetClientId()); n != 0 && n != clientIDBytes {
		return &fieldError{"header.client_id", fmt.Sprintf("want 0 or %d bytes, got %d", clientIDBytes, n)}
	}
	return nil
}

func readLevel(asked ostrakapb.ReadLevel) (raftfsm.ReadLevel, error) {
	switch asked {
	case ostrakapb.ReadLevel_READ_LEVEL_LINEARIZABLE:
		return raftfsm.Linearizable, nil
	case ostrakapb.ReadLevel_READ_LEVEL_STALE:
		return raftfsm.Stale, nil
	}
	return 0, fmt.Errorf("%w: read level %d", errUnsupported, asked)
}

// checkOp says which limit or field keeps an operation from being tried.
func checkOp(op *store.Op, limits store.Limits) error {
	if err := limits.CheckKey(op.Key); err != nil {
		return err
	}
	if err := limits.CheckValue(op.Value); err != nil {
		return err
	}
	if err := limits.CheckValue(op.Old); err != nil {
		return err
	}
	if n := len(op.Old) + len(op.Value); op.Kind == store.OpCompareAndSet && n > compareAndSetBytesMax {
		return &limitError{limit: limitCompareAndSet, max: compareAndSetBytesMax, got: n}
	}
	return op.Validate()
}

// refusal is the error of an operation that the store refused for what the key holds, or for whose it is.
// Everything else is a result.
func refusal(op *store.Op, r store.Result) error {
	switch r.Status {
	case store.StatusNotInteger:
		return errNotInteger
	case store.StatusOverflow:
		return errOverflow
	case store.StatusTooLarge:
		return &limitError{limit: store.LimitValueBytes, max: op.ValueBytesMax}
	case store.StatusFull:
		return &limitError{limit: limitShardBytes, max: int(min(store.BytesMax, int64(math.MaxInt)))}
	case store.StatusNotOwned:
		return fmt.Errorf("%w: slot %d is another shard's by now", shard.ErrStaleEpoch, shard.SlotOf(op.Key))
	case store.StatusInvalid:
		return store.ErrOpInvalid
	}
	return nil
}

// ttlMillisMax is what a time.Duration holds, some 292 years: answers give a TTL back as one.
const ttlMillisMax = math.MaxInt64 / int64(time.Millisecond)

// The next ones fill in an operation that is zero.

func setOp(op *store.Op, r *ostrakapb.SetRequest) error {
	op.Kind, op.Key, op.Value, op.TTL, op.KeepTTL = store.OpSet, r.GetKey(), r.GetValue(), r.GetTtlMs(), r.GetKeepTtl()
	op.ReturnPrevious = r.GetReturnPrevious()
	switch {
	case op.TTL < 0 || op.TTL > ttlMillisMax:
		return &fieldError{"ttl_ms", fmt.Sprintf("want 0 to %d, got %d", ttlMillisMax, op.TTL)}
	case op.TTL != 0 && op.KeepTTL:
		return &fieldError{"keep_ttl", "contradicts ttl_ms"}
	}
	return setCondition(op, r.GetCondition())
}

func deleteOp(op *store.Op, r *ostrakapb.DeleteRequest) error {
	op.Kind, op.Key, op.ReturnPrevious = store.OpDelete, r.GetKey(), r.GetReturnPrevious()
	return setCondition(op, r.GetCondition())
}

func setCondition(op *store.Op, c *ostrakapb.Condition) error {
	switch c := c.GetCondition().(type) {
	case nil:
		return nil
	case *ostrakapb.Condition_IfAbsent:
		if !c.IfAbsent {
			return &fieldError{"condition.if_absent", "false says nothing: leave it out, or give if_exists"}
		}
		op.Condition = store.CondAbsent
	case *ostrakapb.Condition_IfExists:
		if !c.IfExists {
			return &fieldError{"condition.if_exists", "false says nothing: leave it out, or give if_absent"}
		}
		op.Condition = store.CondExists
	case *ostrakapb.Condition_IfVersion:
		op.Condition, op.IfVersion = store.CondVersion, store.Version(c.IfVersion)
	default:
		return fmt.Errorf("%w: condition %T", errUnsupported, c)
	}
	return nil
}

func compareAndSetOp(op *store.Op, r *ostrakapb.CompareAndSetRequest) error {
	op.Kind, op.Key, op.Old, op.Value = store.OpCompareAndSet, r.GetKey(), r.GetOld(), r.GetNew()
	return nil
}

func incrementOp(op *store.Op, r *ostrakapb.IncrementRequest) error {
	op.Kind, op.Key, op.Delta = store.OpIncrement, r.GetKey(), r.GetDelta()
	return nil
}

func appendOp(op *store.Op, r *ostrakapb.AppendRequest) error {
	op.Kind, op.Key, op.Value = store.OpAppend, r.GetKey(), r.GetValue()
	return nil
}

func expireOp(op *store.Op, r *ostrakapb.ExpireRequest) error {
	if ttl := r.GetTtlMs(); ttl < 1 || ttl > ttlMillisMax {
		return &fieldError{"ttl_ms", fmt.Sprintf("want 1 to %d, got %d", ttlMillisMax, ttl)}
	}
	op.Kind, op.Key, op.TTL = store.OpExpire, r.GetKey(), r.GetTtlMs()
	return nil
}

func persistOp(op *store.Op, r *ostrakapb.PersistRequest) error {
	op.Kind, op.Key = store.OpPersist, r.GetKey()
	return nil
}

func touchOp(op *store.Op, r *ostrakapb.TouchRequest) error {
	op.Kind, op.Key = store.OpTouch, r.GetKey()
	return nil
}

func setResponse(op *store.Op, r store.Result) *ostrakapb.SetResponse {
	return &ostrakapb.SetResponse{Done: r.Status == store.StatusOK, Version: uint64(r.Version), Previous: previous(op, r)}
}

func deleteResponse(op *store.Op, r store.Result) *ostrakapb.DeleteResponse {
	answer := &ostrakapb.DeleteResponse{Deleted: r.Status == store.StatusOK,
		ConditionMet: r.Status != store.StatusConditionNotMet, Previous: previous(op, r)}
	if !answer.ConditionMet {
		answer.Version = uint64(r.Version)
	}
	return answer
}

// previous is nil unless the operation asked for it.
func previous(op *store.Op, r store.Result) *ostrakapb.Previous {
	if !op.ReturnPrevious {
		return nil
	}
	return &ostrakapb.Previous{Found: r.Existed, Value: r.Previous, Version: uint64(r.PreviousVersion)}
}

func compareAndSetResponse(_ *store.Op, r store.Result) *ostrakapb.CompareAndSetResponse {
	return &ostrakapb.CompareAndSetResponse{Swapped: r.Status == store.StatusOK, Found: r.Existed, Version: uint64(r.Version)}
}

func incrementResponse(_ *store.Op, r store.Result) *ostrakapb.IncrementResponse {
	return &ostrakapb.IncrementResponse{Value: r.Number, Version: uint64(r.Version)}
}

func appendResponse(_ *store.Op, r store.Result) *ostrakapb.AppendResponse {
	return &ostrakapb.AppendResponse{Length: r.Number, Version: uint64(r.Version)}
}

func expireResponse(_ *store.Op, r store.Result) *ostrakapb.ExpireResponse {
	return &ostrakapb.ExpireResponse{Found: r.Status == store.StatusOK, Version: uint64(r.Version)}
}

func persistResponse(_ *store.Op, r store.Result) *ostrakapb.PersistResponse {
	return &ostrakapb.PersistResponse{Found: r.Status == store.StatusOK, Version: uint64(r.Version)}
}

func touchResponse(_ *store.Op, r store.Result) *ostrakapb.TouchResponse {
	return &ostrakapb.TouchResponse{Found: r.Status == store.StatusOK, Version: uint64(r.Version)}
}
