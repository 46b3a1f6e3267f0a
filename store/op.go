package store

import (
	"errors"
	"fmt"
	"math"
)

// SlotCount is the number of slots keys hash to. It equals shard.SlotCount, which this package may not
// import.
const SlotCount = 16384

// Version is a key's modification number: the store's write counter at the key's last write. 0 stands
// for a key that does not exist.
type Version uint64

// Time is shard time in milliseconds since the Unix epoch. It travels in log entries and never goes back.
type Time int64

// after returns the time ttl milliseconds later, held at the end of time where the sum would overflow.
func (t Time) after(ttl int64) Time {
	if ttl > math.MaxInt64-int64(t) {
		return math.MaxInt64
	}
	return t + Time(ttl)
}

// OpKind says what an Op does. The numbers stand in log entries: they are never changed or reused.
type OpKind uint8

const (
	OpSet           OpKind = 1 // write Value; the TTL becomes Op.TTL, or stays with KeepTTL
	OpDelete        OpKind = 2
	OpCompareAndSet OpKind = 3 // write Value where the key exists and holds Old; the TTL stays
	OpIncrement     OpKind = 4 // add Delta to a decimal int64, a missing key counts as 0; the TTL stays
	OpAppend        OpKind = 5 // write the old value followed by Value, a missing key counts as empty; the TTL stays
	OpExpire        OpKind = 6 // set the TTL of a key that exists
	OpPersist       OpKind = 7 // remove the TTL of a key that exists
	OpTouch         OpKind = 8 // step the version of a key that exists; value and TTL stay
)

// Condition restricts an op to a state of its key. The numbers stand in log entries.
type Condition uint8

const (
	CondNone    Condition = 0
	CondAbsent  Condition = 1 // the key does not exist
	CondExists  Condition = 2 // the key exists
	CondVersion Condition = 3 // the key's version is Op.IfVersion; 0 means that it does not exist
)

// Op is one operation on one key. The store copies what it keeps: after Apply the slices are the caller's again.
type Op struct {
	Kind  OpKind
	Key   []byte
	Value []byte // OpSet, OpCompareAndSet, OpAppend
	Old   []byte // OpCompareAndSet
	Delta int64  // OpIncrement

	// TTL is the key's life from the store's time on, in milliseconds. OpSet: 0 means that the key does
	// not expire. OpExpire: at least 1. A sum past the end of Time is held there. Other kinds: 0.
	TTL     int64
	KeepTTL bool // OpSet, and contradicts TTL

	// Condition may go with any kind. For OpCompareAndSet both it and Old must match.
	Condition Condition
	IfVersion Version // CondVersion

	// ValueBytesMax narrows the store's limit on the resulting value, in bytes; 0 leaves it alone. The
	// leader stamps it, so that replicas agree although their configurations may not.
	ValueBytesMax int

	ReturnPrevious bool
}

// Errors of Op.Validate.
var (
	// ErrOpUnknown is a kind or condition that this build does not know. A replica that finds one in
	// its log must stop: answering with a status would make it differ from those that know it.
	ErrOpUnknown = errors.New("store: unknown operation")
	// ErrTTLInvalid is a TTL out of range, or where none belongs.
	ErrTTLInvalid = errors.New("store: invalid TTL")
	// ErrOpInvalid is any other op that no store would apply.
	ErrOpInvalid = errors.New("store: invalid operation")
)

// Validate checks what does not depend on limits or on the key's state. Apply answers StatusInvalid
// where it fails; a server asks first, to refuse with a reason.
func (op *Op) Validate() error {
	switch {
	case op.Kind < OpSet || op.Kind > OpTouch || op.Condition > CondVersion:
		return ErrOpUnknown
	case op.TTL < 0, op.KeepTTL && op.TTL != 0, op.Kind == OpExpire && op.TTL == 0:
		return ErrTTLInvalid
	case op.TTL != 0 && op.Kind != OpSet && op.Kind != OpExpire, op.KeepTTL && op.Kind != OpSet:
		return ErrTTLInvalid
	case op.ValueBytesMax < 0:
		return ErrOpInvalid
	}
	return nil
}

// Status says what became of an op. Everything but StatusOK means that nothing was written. The numbers
// are kept in snapshots, with retry records: they are never changed or reused.
type Status uint8

const (
	StatusOK              Status = 1
	StatusNotFound        Status = 2 // the op needs a key that exists
	StatusConditionNotMet Status = 3 // Condition, or Old of OpCompareAndSet, did not match
	StatusNotInteger      Status = 4 // OpIncrement on a value that is not a decimal int64
	StatusOverflow        Status = 5 // OpIncrement past int64
	StatusTooLarge        Status = 6 // key or resulting value over its limit
	StatusNotOwned        Status = 7 // the store does not own the slot
	StatusInvalid         Status = 8 // Op.Validate fails, or the key is empty
	StatusFull            Status = 9 // the store holds as much as Limits allow it
)

var statusNames = [...]string{
	StatusOK:              "ok",
	StatusNotFound:        "not found",
	StatusConditionNotMet: "condition not met",
	StatusNotInteger:      "not an integer",
	StatusOverflow:        "overflow",
	StatusTooLarge:        "too large",
	StatusNotOwned:        "slot not owned",
	StatusInvalid:         "invalid",
	StatusFull:            "full",
}

func (s Status) String() string {
	if s >= StatusOK && int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Result is an op's answer.
type Result struct {
	Status Status

	// Version is the key's version after the op. Where nothing was written that is its current version, 0
	// if it does not exist. After a delete it is the counter's value at the delete.
	Version Version

	// Number is, with StatusOK: OpIncrement the new value, OpAppend the new length in bytes, OpPersist 1
	// if a TTL was removed and 0 if there was none. Else 0.
	Number int64

	// The key's state before the op. Previous is filled where Op.ReturnPrevious was set and the key
	// existed, whatever the status. It must not be modified and stays valid.
	Existed         bool
	PreviousVersion Version
	HasPrevious     bool
	Previous        []byte
}
