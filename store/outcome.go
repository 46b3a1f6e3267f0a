package store

import (
	"bytes"
	"math"
	"strconv"
)

// effect is what an op does to its key.
type effect uint8

const (
	effectNone   effect = iota // nothing is written and the version counter stays
	effectWrite                // the key holds outcome.value and outcome.expiresAt from now on
	effectRemove               // the key is gone
)

// outcome is an op worked out against the current state of its key, before anything is written.
type outcome struct {
	status    Status
	effect    effect
	value     []byte // the op's, the current record's, or digits
	tail      []byte // follows value: OpAppend
	expiresAt Time
	number    int64
}

func refused(status Status) outcome {
	return outcome{status: status}
}

func written(value []byte, expiresAt Time) outcome {
	return outcome{status: StatusOK, effect: effectWrite, value: value, expiresAt: expiresAt}
}

// workOut decides what op does to a key that is now current, nil if it is missing or expired. The op is
// valid, and its own key and value are within limits. It reads nothing but its arguments: this is the
// whole of what replicas must agree on. A number is written into digits.
func workOut(op *Op, current *record, now Time, valueBytesMax int, digits []byte) outcome {
	if !conditionMet(op, current) {
		return refused(StatusConditionNotMet)
	}
	switch op.Kind {
	case OpSet:
		return written(op.Value, expiryOfSet(op, current, now))
	case OpIncrement:
		return increment(op, current, digits)
	case OpAppend:
		return appendValue(op, current, valueBytesMax)
	}
	if current == nil {
		return refused(StatusNotFound)
	}
	switch op.Kind {
	case OpDelete:
		return outcome{status: StatusOK, effect: effectRemove}
	case OpCompareAndSet:
		return written(op.Value, current.expiresAt)
	case OpExpire:
		return written(current.value, now.after(op.TTL))
	case OpPersist:
		return persist(current)
	default: // OpTouch, the last kind that Validate lets pass
		return written(current.value, current.expiresAt)
	}
}

// conditionMet also holds compare-and-set's comparison, which a missing key loses.
func conditionMet(op *Op, current *record) bool {
	var met bool
	switch op.Condition {
	case CondAbsent:
		met = current == nil
	case CondExists:
		met = current != nil
	case CondVersion:
		met = op.IfVersion == current.versionOrZero()
	default:
		met = true
	}
	if met && op.Kind == OpCompareAndSet {
		met = current != nil && bytes.Equal(current.value, op.Old)
	}
	return met
}

func expiryOfSet(op *Op, current *record, now Time) Time {
	switch {
	case op.TTL != 0:
		return now.after(op.TTL)
	case op.KeepTTL && current != nil:
		return current.expiresAt
	}
	return 0
}

func increment(op *Op, current *record, digits []byte) outcome {
	var number int64
	var expiresAt Time
	if current != nil {
		parsed, ok := parseDecimal(current.value)
		if !ok {
			return refused(StatusNotInteger)
		}
		number, expiresAt = parsed, current.expiresAt
	}
	if (op.Delta > 0 && number > math.MaxInt64-op.Delta) || (op.Delta < 0 && number < math.MinInt64-op.Delta) {
		return refused(StatusOverflow)
	}
	number += op.Delta
	o := written(strconv.AppendInt(digits, number, 10), expiresAt)
	o.number = number
	return o
}

// parseDecimal accepts exactly what increment writes: no sign +, no leading zero, no -0, no space. So a
// value's text and number determine each other.
func parseDecimal(text []byte) (int64, bool) {
	const textMax = len("-9223372036854775808")
	if len(text) == 0 || len(text) > textMax {
		return 0, false
	}
	number, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return 0, false
	}
	var canonical [textMax]byte
	return number, bytes.Equal(text, strconv.AppendInt(canonical[:0], number, 10))
}

func appendValue(op *Op, current *record, valueBytesMax int) outcome {
	var old []byte
	var expiresAt Time
	if current != nil {
		old, expiresAt = current.value, current.expiresAt
	}
	length := len(old) + len(op.Value)
	if length > valueBytesMax {
		return refused(StatusTooLarge)
	}
	o := written(old, expiresAt)
	o.tail = op.Value
	o.number = int64(length)
	return o
}

// persist writes nothing where there is no TTL to remove.
func persist(current *record) outcome {
	if current.expiresAt == 0 {
		return outcome{status: StatusOK}
	}
	o := written(current.value, 0)
	o.number = 1
	return o
}
