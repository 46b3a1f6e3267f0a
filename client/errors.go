package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// The errors of this package, to be told apart with errors.Is. A write that failed matches exactly one of
// ErrUnavailable (nothing was changed, sending it again is safe), ErrOutcomeUnknown (it may have been done,
// or may yet be), or an error that says why the cluster refused it for good.
var (
	// ErrNotFound: the key does not exist, or has expired.
	ErrNotFound = errors.New("key not found")
	// ErrConditionNotMet: the key was not as the write demanded, and nothing was written. The error is a
	// *ConditionError, which carries the key's version.
	ErrConditionNotMet = errors.New("condition not met")
	// ErrUnavailable: not done, within the deadline no node that could have done it took it. Safe to retry.
	ErrUnavailable = errors.New("unavailable")
	// ErrOutcomeUnknown: the write reached a node, and what became of it could not be learnt within the deadline. It may have
	// been done, or may yet be done.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrNotBootstrapped: the node does not belong to a cluster yet. Matches ErrUnavailable too.
	ErrNotBootstrapped error = &unavailableError{"not bootstrapped"}
	// ErrNoEndpoint: none of the endpoints answered. Matches ErrUnavailable too.
	ErrNoEndpoint error = &unavailableError{"no endpoint answered"}
	// ErrMemory: a node that holds the key's shard is over its memory limit, and the write would take more. Not done, and not
	// tried again by the client: room comes by deletes and expiry. The error is a *MemoryError. Matches ErrUnavailable too.
	ErrMemory error = &unavailableError{"over the memory limit"}
	// ErrLimit: something is over a limit, and nothing was written. The error is a *LimitError.
	ErrLimit = errors.New("over a limit")
	// ErrInvalid: an argument is missing or contradicts another. The error is an *InvalidError.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotInteger: Increment met a value that is not a decimal int64.
	ErrNotInteger = errors.New("value is not an integer")
	// ErrOverflow: Increment would leave the range of int64.
	ErrOverflow = errors.New("integer overflow")
	// ErrAlreadyMember: Bootstrap met a node that belongs to a cluster, or to another plan.
	ErrAlreadyMember = errors.New("node already belongs to a cluster")
	// ErrWrongCluster: a node of another cluster answered.
	ErrWrongCluster = errors.New("wrong cluster")
	// ErrUnsupported: the request needs a feature or format level that the cluster does not have.
	ErrUnsupported = errors.New("not supported by the cluster")
	// ErrCompacted: a watch was too late, or too slow: changes that it needs are not held any more. The error is a *CompactedError,
	// which says where to begin again.
	ErrCompacted = errors.New("compacted")
	// ErrClosed: the client was closed. Nothing was sent.
	ErrClosed = errors.New("client is closed")
)

// unavailableError is a kind of ErrUnavailable with a name of its own.
type unavailableError struct{ text string }

func (e *unavailableError) Error() string        { return e.text }
func (e *unavailableError) Is(target error) bool { return target == ErrUnavailable }

// ConditionError is the answer to a write whose condition was not met. errors.Is(err, ErrConditionNotMet).
type ConditionError struct {
	// Version is the key's version now; 0: the key does not exist.
	Version uint64
	// Previous is the key's state, where the write asked for it with ReturnPrevious.
	Previous *Value
}

func (e *ConditionError) Error() string {
	if e.Version == 0 {
		return "condition not met: the key does not exist"
	}
	return fmt.Sprintf("condition not met: the key has version %d", e.Version)
}

// Is makes errors.Is(err, ErrConditionNotMet) true.
func (e *ConditionError) Is(target error) bool { return target == ErrConditionNotMet }

// LimitError names the limit that a request broke. errors.Is(err, ErrLimit).
type LimitError struct {
	// Limit is the limit's name, as in the server's configuration: "key_bytes_max", "value_bytes_max", ….
	Limit string
	// Max is the most allowed and Got what the request had, in bytes or pieces as the name says; 0: not known.
	Max, Got int64
	// Message is the server's explanation, for people; it may be empty.
	Message string
}

func (e *LimitError) Error() string {
	text := fmt.Sprintf("over the limit %s", e.Limit)
	if e.Max > 0 {
		text += fmt.Sprintf(": %d, at most %d allowed", e.Got, e.Max)
	}
	return withMessage(text, e.Message)
}

// Is makes errors.Is(err, ErrLimit) true.
func (e *LimitError) Is(target error) bool { return target == ErrLimit }

// MemoryError says which node is over its memory limit. errors.Is(err, ErrMemory), and ErrUnavailable.
type MemoryError struct {
	Node string
	// Used and Limit are the node's, in bytes.
	Used, Limit int64
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("node %s is over its memory limit: it uses %d bytes, max-memory is %d", e.Node, e.Used, e.Limit)
}

// Is makes errors.Is(err, ErrMemory) and errors.Is(err, ErrUnavailable) true.
func (e *MemoryError) Is(target error) bool { return target == ErrMemory || target == ErrUnavailable }

// InvalidError names the field of a request that is missing or contradicts another. errors.Is(err, ErrInvalid).
type InvalidError struct {
	Field   string
	Message string
}

func (e *InvalidError) Error() string {
	return withMessage(fmt.Sprintf("invalid argument %s", e.Field), e.Message)
}

// Is makes errors.Is(err, ErrInvalid) true.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

func withMessage(text, message string) string {
	if message == "" {
		return text
	}
	return text + ": " + message
}

// remedy is what a client does about a failed attempt.
type remedy int

const (
	// giveUp: return the error. Sending the same again cannot help, or must not happen.
	giveUp remedy = iota
	// followLeader: go to the leader that the answer names, or look for one.
	followLeader
	// refreshMap: the map is out of date; fetch it and route again.
	refreshMap
	// goElsewhere: this node cannot serve now; another replica may.
	goElsewhere
	// waitThere: the node asks for patience; send to it again later.
	waitThere
	// newName: the shard does not know the write's session, or what became of its number, any more: see writeName.judge.
	newName
)

// failure is a failed attempt, understood.
type failure struct {
	// err is what the caller sees if this was the last attempt.
	err    error
	remedy remedy
	// detail is the server's own account; nil: the failure came from the transport.
	detail *ostrakapb.ErrorDetail
}

// silent holds where the node said nothing at all.
func (f failure) silent() bool {
	return f.detail == nil && (f.remedy == goElsewhere || errors.Is(f.err, ErrOutcomeUnknown))
}

// retryAfter is the pause that the server asked for; 0: none.
func (f failure) retryAfter() time.Duration {
	return time.Duration(f.detail.GetRetryAfterMs()) * time.Millisecond
}

// reasons is the inverse of the server's table of errors: one row for each ostrakapb.Reason. A row's err is
// wrapped with the server's message; rows of typed errors build them instead.
var reasons = map[ostrakapb.Reason]struct {
	err    error
	remedy remedy
	build  func(*ostrakapb.ErrorDetail) error
}{
	ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED: {err: ErrNotBootstrapped, remedy: goElsewhere},
	ostrakapb.Reason_REASON_NOT_LEADER:       {err: ErrUnavailable, remedy: followLeader},
	ostrakapb.Reason_REASON_STALE_EPOCH:      {err: ErrUnavailable, remedy: refreshMap},
	ostrakapb.Reason_REASON_NO_LEADER:        {err: ErrUnavailable, remedy: goElsewhere},
	ostrakapb.Reason_REASON_OVERLOADED:       {err: ErrUnavailable, remedy: waitThere},
	ostrakapb.Reason_REASON_DRAINING:         {err: ErrUnavailable, remedy: goElsewhere},
	ostrakapb.Reason_REASON_OUTCOME_UNKNOWN:  {err: ErrOutcomeUnknown, remedy: giveUp},
	ostrakapb.Reason_REASON_LIMIT:            {remedy: giveUp, build: limitError},
	ostrakapb.Reason_REASON_INVALID:          {remedy: giveUp, build: invalidError},
	ostrakapb.Reason_REASON_NOT_INTEGER:      {err: ErrNotInteger, remedy: giveUp},
	ostrakapb.Reason_REASON_OVERFLOW:         {err: ErrOverflow, remedy: giveUp},
	ostrakapb.Reason_REASON_ALREADY_MEMBER:   {err: ErrAlreadyMember, remedy: giveUp},
	ostrakapb.Reason_REASON_WRONG_CLUSTER:    {err: ErrWrongCluster, remedy: giveUp},
	ostrakapb.Reason_REASON_DEADLINE:         {err: ErrUnavailable, remedy: waitThere},
	ostrakapb.Reason_REASON_UNSUPPORTED:      {err: ErrUnsupported, remedy: giveUp},
	ostrakapb.Reason_REASON_SESSION_UNKNOWN:  {err: ErrUnavailable, remedy: newName},
	ostrakapb.Reason_REASON_RESULT_FORGOTTEN: {err: ErrUnavailable, remedy: newName},
	ostrakapb.Reason_REASON_COMPACTED:        {err: ErrCompacted, remedy: giveUp},
	ostrakapb.Reason_REASON_MEMORY:           {remedy: giveUp, build: memoryError},
}

func limitError(d *ostrakapb.ErrorDetail) error {
	return &LimitError{Limit: d.GetLimit(), Max: d.GetLimitMax(), Got: d.GetLimitGot(), Message: d.GetMessage()}
}

func memoryError(d *ostrakapb.ErrorDetail) error {
	return &MemoryError{Node: d.GetNode(), Used: d.GetLimitGot(), Limit: d.GetLimitMax()}
}

func invalidError(d *ostrakapb.ErrorDetail) error {
	return &InvalidError{Field: d.GetField(), Message: d.GetMessage()}
}

// understand explains a failed attempt. write says whether the attempt could change anything, sent whether
// its request may have reached the node (see sendMark).
func understand(err error, write, sent bool) failure {
	for _, any := range status.Convert(err).Details() {
		if d, ok := any.(*ostrakapb.ErrorDetail); ok {
			return understandDetail(d, write)
		}
	}
	return understandTransport(err, write, sent)
}

// understandDetail explains an error that the server described. The outcome outranks the reason, unless the reason says that
// it is this sending that was not done, and that the client must know about others.
func understandDetail(d *ostrakapb.ErrorDetail, write bool) failure {
	row, known := reasons[d.GetReason()]
	switch {
	case write && row.remedy != newName && outcomeUnknown(d, known):
		return failure{err: fmt.Errorf("%w: %s", ErrOutcomeUnknown, explanation(d)), remedy: giveUp, detail: d}
	case !known, !write && row.err == ErrOutcomeUnknown:
		// A reason of a newer server, or a read that met a lost leadership: nothing was changed, so another
		// attempt is safe, and bounded by the deadline.
		return failure{err: fmt.Errorf("%w: %s", ErrUnavailable, explanation(d)), remedy: goElsewhere, detail: d}
	case row.build != nil:
		return failure{err: row.build(d), remedy: row.remedy, detail: d}
	}
	return failure{err: fmt.Errorf("%w: %s", row.err, explanation(d)), remedy: row.remedy, detail: d}
}

// outcomeUnknown takes the server's word; where it gives none, only a known reason other than
// OUTCOME_UNKNOWN vouches that nothing was changed.
func outcomeUnknown(d *ostrakapb.ErrorDetail, reasonKnown bool) bool {
	switch d.GetOutcome() {
	case ostrakapb.Outcome_OUTCOME_NOT_DONE:
		return false
	case ostrakapb.Outcome_OUTCOME_UNKNOWN:
		return true
	default:
		return !reasonKnown || d.GetReason() == ostrakapb.Reason_REASON_OUTCOME_UNKNOWN
	}
}

func explanation(d *ostrakapb.ErrorDetail) string {
	if d.GetMessage() != "" {
		return d.GetMessage()
	}
	return d.GetReason().String()
}

// understandTransport explains an error without a detail: it was made by gRPC on either side.
func understandTransport(err error, write, sent bool) failure {
	code := status.Code(err)
	switch {
	case code == codes.Unimplemented:
		return failure{err: fmt.Errorf("%w: %w", ErrUnsupported, err), remedy: giveUp}
	case write && sent:
		return failure{err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, err), remedy: giveUp}
	case code == codes.ResourceExhausted:
		return failure{err: &LimitError{Limit: "message_bytes_max", Message: status.Convert(err).Message()}, remedy: giveUp}
	}
	return failure{err: fmt.Errorf("%w: %w", ErrUnavailable, err), remedy: goElsewhere}
}

// overtime is the error of an operation that its deadline, or its caller, ended while nothing of it was
// under way. last is the latest attempt's error; nil: there was none. maybeDone: an attempt may have been carried out.
func overtime(ctx context.Context, attempts int, last error, maybeDone bool) error {
	cause := context.Cause(ctx)
	if cause == nil {
		cause = context.DeadlineExceeded // the next pause would have outlasted it
	}
	switch {
	case maybeDone: // and it must not look like one that was not done
		return fmt.Errorf("%w: %w after %d attempts, the last: %v", ErrOutcomeUnknown, cause, attempts, last)
	case last == nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, cause)
	}
	return fmt.Errorf("%w: %w after %d attempts, the last: %w", ErrUnavailable, cause, attempts, last)
}
