package store_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

func TestLimits(t *testing.T) {
	l := store.Limits{KeyBytesMax: 4, ValueBytesMax: 8}
	for _, c := range []struct {
		name string
		got  error
		want error
	}{
		{"key at its limit", l.CheckKey(make([]byte, 4)), nil},
		{"key over its limit", l.CheckKey(make([]byte, 5)), store.ErrKeyTooLarge},
		{"empty key", l.CheckKey(nil), store.ErrKeyEmpty},
		{"value at its limit", l.CheckValue(make([]byte, 8)), nil},
		{"value over its limit", l.CheckValue(make([]byte, 9)), store.ErrValueTooLarge},
		{"empty value", l.CheckValue(nil), nil},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
	var limitErr *store.LimitError
	if err := l.CheckValue(make([]byte, 9)); !errors.As(err, &limitErr) || *limitErr != (store.LimitError{Limit: store.LimitValueBytes, Got: 9, Max: 8}) {
		t.Errorf("%#v", err)
	}
}

func TestLimitsValidate(t *testing.T) {
	for _, c := range []struct {
		limits store.Limits
		valid  bool
	}{
		{store.DefaultLimits(), true},
		{store.MaxLimits(), true},
		{store.Limits{KeyBytesMax: 1, ValueBytesMax: 1}, true},
		{store.Limits{KeyBytesMax: 0, ValueBytesMax: 1}, false},
		{store.Limits{KeyBytesMax: 1, ValueBytesMax: 0}, false},
		{store.Limits{KeyBytesMax: 32<<10 + 1, ValueBytesMax: 1}, false},
		{store.Limits{KeyBytesMax: 1, ValueBytesMax: 64<<20 + 1}, false},
	} {
		if err := c.limits.Validate(); (err == nil) != c.valid {
			t.Errorf("%+v: %v", c.limits, err)
		}
	}
}

func TestApplyHoldsLimits(t *testing.T) {
	limits := store.Limits{KeyBytesMax: 4, ValueBytesMax: 8}
	key := []byte("k")
	for _, c := range []struct {
		name string
		op   store.Op
		want store.Status
	}{
		{"key at its limit", store.Op{Kind: store.OpSet, Key: []byte("1234")}, store.StatusOK},
		{"key over its limit", store.Op{Kind: store.OpSet, Key: []byte("12345")}, store.StatusTooLarge},
		{"empty key", store.Op{Kind: store.OpSet}, store.StatusInvalid},
		{"value at its limit", store.Op{Kind: store.OpSet, Key: key, Value: make([]byte, 8)}, store.StatusOK},
		{"value over its limit", store.Op{Kind: store.OpSet, Key: key, Value: make([]byte, 9)}, store.StatusTooLarge},
		{"value over the op's own limit", store.Op{Kind: store.OpSet, Key: key, Value: make([]byte, 4), ValueBytesMax: 3}, store.StatusTooLarge},
		{"the op's own limit doesn't widen", store.Op{Kind: store.OpSet, Key: key, Value: make([]byte, 9), ValueBytesMax: 99}, store.StatusTooLarge},
		{"compare-and-set over the limit", store.Op{Kind: store.OpCompareAndSet, Key: key, Old: []byte("12345"), Value: make([]byte, 9)}, store.StatusTooLarge},
		{"append up to the limit", store.Op{Kind: store.OpAppend, Key: key, Value: make([]byte, 3)}, store.StatusOK},
		{"append over the limit", store.Op{Kind: store.OpAppend, Key: key, Value: make([]byte, 4)}, store.StatusTooLarge},
		{"append over the op's own limit", store.Op{Kind: store.OpAppend, Key: key, Value: []byte("6"), ValueBytesMax: 5}, store.StatusTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, limits)
			set(t, s, testSlot, "k", "12345", 0)
			stats := s.Stats()
			if r := s.Apply(testSlot, &c.op); r.Status != c.want {
				t.Errorf("%v, want %v", r.Status, c.want)
			}
			if c.want != store.StatusOK && (s.Stats() != stats || s.Version() != 1) {
				t.Errorf("a refused op wrote: %+v, counter %d", s.Stats(), s.Version())
			}
		})
	}
}

func TestBinaryAndLargeKeysAndValues(t *testing.T) {
	s := newStore(t, store.MaxLimits())
	allBytes := make([]byte, 256)
	for i := range allBytes {
		allBytes[i] = byte(i)
	}
	large := bytes.Repeat(allBytes, 8<<20/256)
	keys := [][]byte{{0}, {0, 0}, {255}, allBytes, bytes.Repeat([]byte{255}, 32<<10)}
	for _, key := range keys {
		for _, value := range [][]byte{{}, {0}, allBytes, large} {
			if r := s.Apply(testSlot, &store.Op{Kind: store.OpSet, Key: key, Value: value}); r.Status != store.StatusOK {
				t.Fatalf("%d-byte key, %d-byte value: %v", len(key), len(value), r.Status)
			}
			got, _, ok := s.Get(testSlot, key, nil)
			if !ok || !bytes.Equal(got, value) {
				t.Errorf("%d-byte key: %d bytes came back of %d", len(key), len(got), len(value))
			}
		}
	}
	if got := s.Stats().Keys; got != int64(len(keys)) {
		t.Errorf("%d keys, want %d: some were taken for the same", got, len(keys))
	}
}
