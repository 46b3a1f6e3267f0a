package store

import (
	"cmp"
	"errors"
	"fmt"
)

// Bounds that no configuration can widen.
const (
	keyBytesHardMax   = 32 << 10
	valueBytesHardMax = 64 << 20

	// A store's items are reached by references that span at least 64 GiB. With so many keys and bytes, all longest headers and the most
	// padding, 54 of them are used; the rest is for what views keep.
	keysHardMax  = 1 << 29
	bytesHardMax = 32 << 30
)

// BytesMax is the most that keys and values of a store may come to, in bytes.
const BytesMax int64 = bytesHardMax

var (
	ErrKeyEmpty      = errors.New("store: empty key")
	ErrKeyTooLarge   = errors.New("store: key too large")
	ErrValueTooLarge = errors.New("store: value too large")
)

// Names of limits, as LimitError gives them.
const (
	LimitKeyBytes   = "key_bytes_max"
	LimitValueBytes = "value_bytes_max"
)

// LimitError says which limit was exceeded. It unwraps to ErrKeyTooLarge or ErrValueTooLarge.
type LimitError struct {
	Limit string // LimitKeyBytes or LimitValueBytes
	Got   int    // bytes
	Max   int    // bytes
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%v: %d bytes, %s is %d", e.Unwrap(), e.Got, e.Limit, e.Max)
}

func (e *LimitError) Unwrap() error {
	if e.Limit == LimitKeyBytes {
		return ErrKeyTooLarge
	}
	return ErrValueTooLarge
}

// Limits bound the sizes of keys and values. See the package comment: they decide results, so all
// replicas of a shard need the same.
type Limits struct {
	KeyBytesMax   int // bytes of a key, 1..32 KiB
	ValueBytesMax int // bytes of a value, 1..64 MiB

	// What a store holds at most; 0 stands for the most there may be. A write that would take it further is answered StatusFull.
	KeysMax  int64 // keys, expired ones that were not reaped among them; up to 2^29
	BytesMax int64 // Stats.Bytes, up to 32 GiB
}

// DefaultLimits returns what a server accepts unless configured otherwise: 32 KiB and 8 MiB.
func DefaultLimits() Limits {
	return Limits{KeyBytesMax: keyBytesHardMax, ValueBytesMax: 8 << 20}
}

// MaxLimits returns the widest limits there are: 32 KiB and 64 MiB.
func MaxLimits() Limits {
	return Limits{KeyBytesMax: keyBytesHardMax, ValueBytesMax: valueBytesHardMax}
}

// Validate says which bound is outside of its range, if one is.
func (l Limits) Validate() error {
	if l.KeyBytesMax < 1 || l.KeyBytesMax > keyBytesHardMax {
		return fmt.Errorf("store: %s is %d, want 1..%d", LimitKeyBytes, l.KeyBytesMax, keyBytesHardMax)
	}
	if l.ValueBytesMax < 1 || l.ValueBytesMax > valueBytesHardMax {
		return fmt.Errorf("store: %s is %d, want 1..%d", LimitValueBytes, l.ValueBytesMax, valueBytesHardMax)
	}
	if l.KeysMax < 0 || l.KeysMax > keysHardMax || l.BytesMax < 0 || l.BytesMax > bytesHardMax {
		return fmt.Errorf("store: at most %d keys and %d bytes, want up to %d and %d", l.KeysMax, l.BytesMax, keysHardMax, int64(bytesHardMax))
	}
	return nil
}

// admit reports whether a store that holds has may hold keys and bytes more. Fewer bytes always are welcome.
func (l Limits) admit(has Stats, keys, bytes int64) bool {
	return (keys <= 0 || has.Keys+keys <= cmp.Or(l.KeysMax, keysHardMax)) &&
		(bytes <= 0 || has.Bytes+bytes <= cmp.Or(l.BytesMax, bytesHardMax))
}

// CheckKey returns nil, ErrKeyEmpty, or a *LimitError that is ErrKeyTooLarge.
func (l Limits) CheckKey(key []byte) error {
	switch {
	case len(key) == 0:
		return ErrKeyEmpty
	case len(key) > l.KeyBytesMax:
		return &LimitError{Limit: LimitKeyBytes, Got: len(key), Max: l.KeyBytesMax}
	}
	return nil
}

// CheckValue returns nil, or a *LimitError that is ErrValueTooLarge. An empty value is a value.
func (l Limits) CheckValue(value []byte) error {
	if len(value) > l.ValueBytesMax {
		return &LimitError{Limit: LimitValueBytes, Got: len(value), Max: l.ValueBytesMax}
	}
	return nil
}
