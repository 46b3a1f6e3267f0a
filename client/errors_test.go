package client

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// Every reason of the protocol has a row, and the row gives the error it should: for reads, and for writes
// whose outcome the server knows.
func TestEveryReasonHasItsError(t *testing.T) {
	want := map[ostrakapb.Reason]error{
		ostrakapb.Reason_REASON_UNSPECIFIED:      ErrUnavailable,
		ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED: ErrNotBootstrapped,
		ostrakapb.Reason_REASON_NOT_LEADER:       ErrUnavailable,
		ostrakapb.Reason_REASON_STALE_EPOCH:      ErrUnavailable,
		ostrakapb.Reason_REASON_NO_LEADER:        ErrUnavailable,
		ostrakapb.Reason_REASON_OVERLOADED:       ErrUnavailable,
		ostrakapb.Reason_REASON_DRAINING:         ErrUnavailable,
		ostrakapb.Reason_REASON_OUTCOME_UNKNOWN:  ErrUnavailable, // for a read
		ostrakapb.Reason_REASON_LIMIT:            ErrLimit,
		ostrakapb.Reason_REASON_INVALID:          ErrInvalid,
		ostrakapb.Reason_REASON_NOT_INTEGER:      ErrNotInteger,
		ostrakapb.Reason_REASON_OVERFLOW:         ErrOverflow,
		ostrakapb.Reason_REASON_ALREADY_MEMBER:   ErrAlreadyMember,
		ostrakapb.Reason_REASON_WRONG_CLUSTER:    ErrWrongCluster,
		ostrakapb.Reason_REASON_DEADLINE:         ErrUnavailable,
		ostrakapb.Reason_REASON_UNSUPPORTED:      ErrUnsupported,
		ostrakapb.Reason_REASON_SESSION_UNKNOWN:  ErrUnavailable, // whether it is, is the write's name to judge
		ostrakapb.Reason_REASON_RESULT_FORGOTTEN: ErrUnavailable,
		ostrakapb.Reason_REASON_COMPACTED:        ErrCompacted,
		ostrakapb.Reason_REASON_MEMORY:           ErrMemory,
	}
	for number, name := range ostrakapb.Reason_name {
		reason := ostrakapb.Reason(number)
		if want[reason] == nil {
			t.Errorf("%s is new: say what it means here and in the table of reasons", name)
			continue
		}
		err := detailed(notDone(reason))
		if f := understand(err, false, true); !errors.Is(f.err, want[reason]) {
			t.Errorf("%s of a read: %v", name, f.err)
		}
		f := understand(err, true, true)
		if errors.Is(f.err, ErrOutcomeUnknown) != (reason == ostrakapb.Reason_REASON_OUTCOME_UNKNOWN && f.remedy == giveUp) {
			t.Errorf("%s of a write that the server says is not done: %v", name, f.err)
		}
		if reasons[reason].remedy == newName {
			continue // it speaks of this sending only
		}
		detail := notDone(reason)
		detail.Outcome = ostrakapb.Outcome_OUTCOME_UNKNOWN
		if f := understand(detailed(detail), true, true); !errors.Is(f.err, ErrOutcomeUnknown) || f.remedy != giveUp {
			t.Errorf("%s of a write with unknown outcome: %v, remedy %d", name, f.err, f.remedy)
		}
	}
}

func TestTheFieldsOfTypedErrors(t *testing.T) {
	d := notDone(ostrakapb.Reason_REASON_MEMORY)
	d.Node, d.LimitMax, d.LimitGot = "n2", 10, 11
	var memory *MemoryError
	if f := understand(detailed(d), true, true); !errors.As(f.err, &memory) || *memory != (MemoryError{"n2", 11, 10}) || f.remedy != giveUp ||
		!errors.Is(f.err, ErrUnavailable) {
		t.Errorf("%v, remedy %d", f.err, f.remedy)
	}
	d = notDone(ostrakapb.Reason_REASON_LIMIT)
	d.Limit, d.LimitMax, d.LimitGot, d.Message = "value_bytes_max", 10, 11, "too much"
	var limit *LimitError
	if err := understand(detailed(d), true, true).err; !errors.As(err, &limit) || *limit != (LimitError{"value_bytes_max", 10, 11, "too much"}) {
		t.Errorf("limit: %v", err)
	}
	d = notDone(ostrakapb.Reason_REASON_INVALID)
	d.Field, d.Message = "ttl_ms", "negative"
	var invalid *InvalidError
	if err := understand(detailed(d), true, true).err; !errors.As(err, &invalid) || *invalid != (InvalidError{"ttl_ms", "negative"}) {
		t.Errorf("invalid: %v", err)
	}
}

func TestErrorsOfTheTransport(t *testing.T) {
	for _, row := range []struct {
		code        codes.Code
		write, sent bool
		want        error
		remedy      remedy
	}{
		{codes.Unavailable, true, false, ErrUnavailable, goElsewhere},
		{codes.Unavailable, true, true, ErrOutcomeUnknown, giveUp},
		{codes.Unavailable, false, true, ErrUnavailable, goElsewhere},
		{codes.DeadlineExceeded, true, true, ErrOutcomeUnknown, giveUp},
		{codes.DeadlineExceeded, true, false, ErrUnavailable, goElsewhere},
		{codes.Canceled, true, true, ErrOutcomeUnknown, giveUp},
		{codes.Internal, true, true, ErrOutcomeUnknown, giveUp},
		{codes.Internal, false, true, ErrUnavailable, goElsewhere},
		{codes.Unimplemented, true, true, ErrUnsupported, giveUp},
		{codes.ResourceExhausted, true, false, ErrLimit, giveUp},
		{codes.ResourceExhausted, true, true, ErrOutcomeUnknown, giveUp},
		{codes.ResourceExhausted, false, true, ErrLimit, giveUp},
	} {
		f := understand(status.Error(row.code, "text"), row.write, row.sent)
		if !errors.Is(f.err, row.want) || f.remedy != row.remedy || f.detail != nil {
			t.Errorf("%v, write %v, sent %v: %v, remedy %d", row.code, row.write, row.sent, f.err, f.remedy)
		}
		if errors.Is(f.err, ErrUnavailable) && errors.Is(f.err, ErrOutcomeUnknown) {
			t.Errorf("%v: both kinds at once", row.code)
		}
	}
}

func TestKindsOfUnavailable(t *testing.T) {
	for _, err := range []error{ErrNotBootstrapped, ErrNoEndpoint} {
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%v is not a kind of unavailable", err)
		}
	}
	if errors.Is(ErrNotBootstrapped, ErrNoEndpoint) || errors.Is(ErrUnavailable, ErrNoEndpoint) {
		t.Error("the kinds are not told apart")
	}
}
