package store_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

const testSlot = 7

// newStore returns a store at time 1000 that owns testSlot.
func newStore(t testing.TB, limits store.Limits) *store.Store {
	t.Helper()
	s := store.New(limits)
	s.Own(testSlot)
	s.SetTime(1000)
	return s
}

// set is an unconditional write that must succeed.
func set(t testing.TB, s *store.Store, slot uint16, key, value string, ttl int64) store.Version {
	t.Helper()
	r := s.Apply(slot, &store.Op{Kind: store.OpSet, Key: []byte(key), Value: []byte(value), TTL: ttl})
	if r.Status != store.StatusOK {
		t.Fatalf("set %q: %v", key, r.Status)
	}
	return r.Version
}

// before is the state of key "k" that a case starts from.
type before struct {
	missing bool
	value   string
	ttl     int64 // from time 1000
	expired bool  // with ttl: time has passed it, and nobody reaped
}

// after is the state of key "k" that a case must end in.
type after struct {
	missing   bool
	value     string
	expiresAt store.Time
}

type opCase struct {
	name   string
	before before
	op     store.Op // its key is "k"
	want   store.Status
	number int64
	after  after
	wrote  bool // the version counter stepped
}

const lateTime = 5000 // the store's time in cases with an expired key

var opCases = []opCase{
	{name: "set a missing key", before: before{missing: true}, op: store.Op{Kind: store.OpSet, Value: []byte("v")},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set to the empty value", before: before{value: "x"}, op: store.Op{Kind: store.OpSet},
		want: store.StatusOK, after: after{value: ""}, wrote: true},
	{name: "set clears a TTL", before: before{value: "x", ttl: 500}, op: store.Op{Kind: store.OpSet, Value: []byte("v")},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set keeps a TTL when told", before: before{value: "x", ttl: 500}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), KeepTTL: true},
		want: store.StatusOK, after: after{value: "v", expiresAt: 1500}, wrote: true},
	{name: "set has no TTL to keep", before: before{missing: true}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), KeepTTL: true},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set does not keep the TTL of an expired key", before: before{value: "x", ttl: 500, expired: true},
		op:   store.Op{Kind: store.OpSet, Value: []byte("v"), KeepTTL: true},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set gives a TTL", before: before{value: "x"}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), TTL: 1},
		want: store.StatusOK, after: after{value: "v", expiresAt: 1001}, wrote: true},
	{name: "set holds a huge TTL at the end of time", before: before{missing: true}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), TTL: math.MaxInt64},
		want: store.StatusOK, after: after{value: "v", expiresAt: math.MaxInt64}, wrote: true},
	{name: "set refuses a negative TTL", before: before{value: "x"}, op: store.Op{Kind: store.OpSet, TTL: -1},
		want: store.StatusInvalid, after: after{value: "x"}},
	{name: "set refuses a TTL and to keep one", before: before{value: "x"}, op: store.Op{Kind: store.OpSet, TTL: 1, KeepTTL: true},
		want: store.StatusInvalid, after: after{value: "x"}},

	{name: "set if absent, missing", before: before{missing: true}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondAbsent},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set if absent, exists", before: before{value: "x", ttl: 500}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondAbsent},
		want: store.StatusConditionNotMet, after: after{value: "x", expiresAt: 1500}},
	{name: "set if absent, expired", before: before{value: "x", ttl: 500, expired: true},
		op:   store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondAbsent},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set if exists, missing", before: before{missing: true}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondExists},
		want: store.StatusConditionNotMet, after: after{missing: true}},
	{name: "set if exists, exists", before: before{value: "x"}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondExists},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set if exists, expired", before: before{value: "x", ttl: 500, expired: true},
		op:   store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondExists},
		want: store.StatusConditionNotMet, after: after{missing: true}},
	{name: "set if version, equal", before: before{value: "x"}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondVersion, IfVersion: 1},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set if version, other", before: before{value: "x"}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondVersion, IfVersion: 2},
		want: store.StatusConditionNotMet, after: after{value: "x"}},
	{name: "set if version 0, missing", before: before{missing: true}, op: store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondVersion},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "set if version, expired", before: before{value: "x", ttl: 500, expired: true},
		op:   store.Op{Kind: store.OpSet, Value: []byte("v"), Condition: store.CondVersion, IfVersion: 1},
		want: store.StatusConditionNotMet, after: after{missing: true}},

	{name: "delete", before: before{value: "x", ttl: 500}, op: store.Op{Kind: store.OpDelete},
		want: store.StatusOK, after: after{missing: true}, wrote: true},
	{name: "delete a missing key", before: before{missing: true}, op: store.Op{Kind: store.OpDelete},
		want: store.StatusNotFound, after: after{missing: true}},
	{name: "delete an expired key", before: before{value: "x", ttl: 500, expired: true}, op: store.Op{Kind: store.OpDelete},
		want: store.StatusNotFound, after: after{missing: true}},
	{name: "delete if version, equal", before: before{value: "x"}, op: store.Op{Kind: store.OpDelete, Condition: store.CondVersion, IfVersion: 1},
		want: store.StatusOK, after: after{missing: true}, wrote: true},
	{name: "delete if version, other", before: before{value: "x"}, op: store.Op{Kind: store.OpDelete, Condition: store.CondVersion, IfVersion: 9},
		want: store.StatusConditionNotMet, after: after{value: "x"}},
	{name: "delete if version, missing", before: before{missing: true}, op: store.Op{Kind: store.OpDelete, Condition: store.CondVersion, IfVersion: 9},
		want: store.StatusConditionNotMet, after: after{missing: true}},

	{name: "compare-and-set, equal, keeps the TTL", before: before{value: "x", ttl: 500},
		op:   store.Op{Kind: store.OpCompareAndSet, Old: []byte("x"), Value: []byte("v")},
		want: store.StatusOK, after: after{value: "v", expiresAt: 1500}, wrote: true},
	{name: "compare-and-set, other", before: before{value: "x"}, op: store.Op{Kind: store.OpCompareAndSet, Old: []byte("y"), Value: []byte("v")},
		want: store.StatusConditionNotMet, after: after{value: "x"}},
	{name: "compare-and-set, empty against empty", before: before{value: ""}, op: store.Op{Kind: store.OpCompareAndSet, Value: []byte("v")},
		want: store.StatusOK, after: after{value: "v"}, wrote: true},
	{name: "compare-and-set, empty against missing", before: before{missing: true}, op: store.Op{Kind: store.OpCompareAndSet, Value: []byte("v")},
		want: store.StatusConditionNotMet, after: after{missing: true}},
	{name: "compare-and-set, expired", before: before{value: "x", ttl: 500, expired: true},
		op:   store.Op{Kind: store.OpCompareAndSet, Old: []byte("x"), Value: []byte("v")},
		want: store.StatusConditionNotMet, after: after{missing: true}},
	{name: "compare-and-set, equal but another version", before: before{value: "x"},
		op:   store.Op{Kind: store.OpCompareAndSet, Old: []byte("x"), Value: []byte("v"), Condition: store.CondVersion, IfVersion: 9},
		want: store.StatusConditionNotMet, after: after{value: "x"}},

	{name: "increment a missing key", before: before{missing: true}, op: store.Op{Kind: store.OpIncrement, Delta: -5},
		want: store.StatusOK, number: -5, after: after{value: "-5"}, wrote: true},
	{name: "increment keeps the TTL", before: before{value: "41", ttl: 500}, op: store.Op{Kind: store.OpIncrement, Delta: 1},
		want: store.StatusOK, number: 42, after: after{value: "42", expiresAt: 1500}, wrote: true},
	{name: "increment an expired key", before: before{value: "41", ttl: 500, expired: true}, op: store.Op{Kind: store.OpIncrement, Delta: 1},
		want: store.StatusOK, number: 1, after: after{value: "1"}, wrote: true},
	{name: "increment to the maximum", before: before{value: "9223372036854775806"}, op: store.Op{Kind: store.OpIncrement, Delta: 1},
		want: store.StatusOK, number: math.MaxInt64, after: after{value: "9223372036854775807"}, wrote: true},
	{name: "increment past the maximum", before: before{value: "9223372036854775807"}, op: store.Op{Kind: store.OpIncrement, Delta: 1},
		want: store.StatusOverflow, after: after{value: "9223372036854775807"}},
	{name: "decrement to the minimum", before: before{value: "-1"}, op: store.Op{Kind: store.OpIncrement, Delta: -math.MaxInt64},
		want: store.StatusOK, number: math.MinInt64, after: after{value: "-9223372036854775808"}, wrote: true},
	{name: "decrement past the minimum", before: before{value: "-9223372036854775808"}, op: store.Op{Kind: store.OpIncrement, Delta: -1},
		want: store.StatusOverflow, after: after{value: "-9223372036854775808"}},
	{name: "add the minimum to the maximum", before: before{value: "9223372036854775807"}, op: store.Op{Kind: store.OpIncrement, Delta: math.MinInt64},
		want: store.StatusOK, number: -1, after: after{value: "-1"}, wrote: true},
	{name: "add the minimum to -1", before: before{value: "-1"}, op: store.Op{Kind: store.OpIncrement, Delta: math.MinInt64},
		want: store.StatusOverflow, after: after{value: "-1"}},
	{name: "increment by 0 is a write", before: before{value: "0"}, op: store.Op{Kind: store.OpIncrement},
		want: store.StatusOK, number: 0, after: after{value: "0"}, wrote: true},

	{name: "append to a missing key", before: before{missing: true}, op: store.Op{Kind: store.OpAppend, Value: []byte("v")},
		want: store.StatusOK, number: 1, after: after{value: "v"}, wrote: true},
	{name: "append keeps the TTL", before: before{value: "x", ttl: 500}, op: store.Op{Kind: store.OpAppend, Value: []byte("yz")},
		want: store.StatusOK, number: 3, after: after{value: "xyz", expiresAt: 1500}, wrote: true},
	{name: "append to an expired key", before: before{value: "x", ttl: 500, expired: true}, op: store.Op{Kind: store.OpAppend, Value: []byte("yz")},
		want: store.StatusOK, number: 2, after: after{value: "yz"}, wrote: true},
	{name: "append nothing to a missing key", before: before{missing: true}, op: store.Op{Kind: store.OpAppend},
		want: store.StatusOK, number: 0, after: after{value: ""}, wrote: true},

	{name: "expire", before: before{value: "x"}, op: store.Op{Kind: store.OpExpire, TTL: 5},
		want: store.StatusOK, after: after{value: "x", expiresAt: 1005}, wrote: true},
	{name: "expire replaces a TTL", before: before{value: "x", ttl: 500}, op: store.Op{Kind: store.OpExpire, TTL: 5},
		want: store.StatusOK, after: after{value: "x", expiresAt: 1005}, wrote: true},
	{name: "expire holds a huge TTL at the end of time", before: before{value: "x"}, op: store.Op{Kind: store.OpExpire, TTL: math.MaxInt64 - 999},
		want: store.StatusOK, after: after{value: "x", expiresAt: math.MaxInt64}, wrote: true},
	{name: "expire a missing key", before: before{missing: true}, op: store.Op{Kind: store.OpExpire, TTL: 5},
		want: store.StatusNotFound, after: after{missing: true}},
	{name: "expire an expired key", before: before{value: "x", ttl: 500, expired: true}, op: store.Op{Kind: store.OpExpire, TTL: 5},
		want: store.StatusNotFound, after: after{missing: true}},
	{name: "expire wants a TTL", before: before{value: "x"}, op: store.Op{Kind: store.OpExpire},
		want: store.StatusInvalid, after: after{value: "x"}},

	{name: "persist", before: before{value: "x", ttl: 500}, op: store.Op{Kind: store.OpPersist},
		want: store.StatusOK, number: 1, after: after{value: "x"}, wrote: true},
	{name: "persist without a TTL", before: before{value: "x"}, op: store.Op{Kind: store.OpPersist},
		want: store.StatusOK, after: after{value: "x"}},
	{name: "persist a missing key", before: before{missing: true}, op: store.Op{Kind: store.OpPersist},
		want: store.StatusNotFound, after: after{missing: true}},
	{name: "persist an expired key", before: before{value: "x", ttl: 500, expired: true}, op: store.Op{Kind: store.OpPersist},
		want: store.StatusNotFound, after: after{missing: true}},

	{name: "touch", before: before{value: "x", ttl: 500}, op: store.Op{Kind: store.OpTouch},
		want: store.StatusOK, after: after{value: "x", expiresAt: 1500}, wrote: true},
	{name: "touch a missing key", before: before{missing: true}, op: store.Op{Kind: store.OpTouch},
		want: store.StatusNotFound, after: after{missing: true}},
	{name: "touch takes no TTL", before: before{value: "x"}, op: store.Op{Kind: store.OpTouch, TTL: 5},
		want: store.StatusInvalid, after: after{value: "x"}},
	{name: "touch if exists, expired", before: before{value: "x", ttl: 500, expired: true}, op: store.Op{Kind: store.OpTouch, Condition: store.CondExists},
		want: store.StatusConditionNotMet, after: after{missing: true}},

	{name: "no such kind", before: before{value: "x"}, op: store.Op{Kind: 9}, want: store.StatusInvalid, after: after{value: "x"}},
	{name: "no kind", before: before{value: "x"}, op: store.Op{}, want: store.StatusInvalid, after: after{value: "x"}},
	{name: "no such condition", before: before{value: "x"}, op: store.Op{Kind: store.OpSet, Condition: 4}, want: store.StatusInvalid, after: after{value: "x"}},
	{name: "a negative value limit", before: before{value: "x"}, op: store.Op{Kind: store.OpSet, ValueBytesMax: -1}, want: store.StatusInvalid, after: after{value: "x"}},
}

func TestApply(t *testing.T) {
	for _, c := range opCases {
		for _, returnPrevious := range []bool{false, true} {
			name := c.name
			if returnPrevious {
				name += ", returning the previous value"
			}
			t.Run(name, func(t *testing.T) { runOpCase(t, c, returnPrevious) })
		}
	}
}

func runOpCase(t *testing.T, c opCase, returnPrevious bool) {
	s := newStore(t, store.DefaultLimits())
	if !c.before.missing {
		set(t, s, testSlot, "k", c.before.value, c.before.ttl)
	}
	if c.before.expired {
		s.SetTime(lateTime)
	}
	existed := !c.before.missing && !c.before.expired
	counter := s.Version()
	op := c.op
	op.Key, op.ReturnPrevious = []byte("k"), returnPrevious
	r := s.Apply(testSlot, &op)

	if r.Status != c.want || r.Number != c.number {
		t.Errorf("status %v, number %d, want %v, %d", r.Status, r.Number, c.want, c.number)
	}
	steps := store.Version(0)
	if c.wrote {
		steps = 1
	}
	if got := s.Version() - counter; got != steps {
		t.Errorf("the counter moved by %d, want %d", got, steps)
	}
	if c.want != store.StatusInvalid {
		checkBefore(t, r, c.before.value, existed, returnPrevious)
		wantVersion := s.Version()
		if !c.wrote && !existed {
			wantVersion = 0
		}
		if r.Version != wantVersion {
			t.Errorf("result's version %d, want %d", r.Version, wantVersion)
		}
	}

	value, m, ok := s.Get(testSlot, []byte("k"), nil)
	if ok == c.after.missing || string(value) != c.after.value || m.ExpiresAt != c.after.expiresAt {
		t.Errorf("ends as %q, %+v, %v, want %+v", value, m, ok, c.after)
	}
	if ok && m.ValueBytes != len(value) {
		t.Errorf("ValueBytes %d of %q", m.ValueBytes, value)
	}
	if ok && m.Version != s.Version() {
		t.Errorf("ends at version %d, counter %d", m.Version, s.Version())
	}
}

func checkBefore(t *testing.T, r store.Result, value string, existed, returnPrevious bool) {
	t.Helper()
	if r.Existed != existed || (r.PreviousVersion != 0) != existed {
		t.Errorf("existed %v, previous version %d, want %v", r.Existed, r.PreviousVersion, existed)
	}
	if r.HasPrevious != (existed && returnPrevious) {
		t.Errorf("has previous %v", r.HasPrevious)
	}
	if r.HasPrevious && string(r.Previous) != value {
		t.Errorf("previous %q, want %q", r.Previous, value)
	}
}

func TestIncrementTakesDecimalTextOnly(t *testing.T) {
	for _, text := range []string{"", " 1", "1 ", "+1", "01", "-0", "00", "-", "1.0", "0x1", "1_0", "a", "9223372036854775808",
		"-9223372036854775809", "١", strings.Repeat("1", 100)} {
		s := newStore(t, store.DefaultLimits())
		set(t, s, testSlot, "k", text, 0)
		r := s.Apply(testSlot, &store.Op{Kind: store.OpIncrement, Key: []byte("k"), Delta: 1})
		if r.Status != store.StatusNotInteger || s.Version() != 1 {
			t.Errorf("%q: %v, counter %d", text, r.Status, s.Version())
		}
	}
}

func TestApplyOutsideOfOwnedSlots(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	for _, slot := range []uint16{testSlot + 1, store.SlotCount - 1, store.SlotCount, 65535} {
		r := s.Apply(slot, &store.Op{Kind: store.OpSet, Key: []byte("k")})
		if r.Status != store.StatusNotOwned || s.Version() != 0 {
			t.Errorf("slot %d: %v, counter %d", slot, r.Status, s.Version())
		}
		if _, _, ok := s.Get(slot, []byte("k"), nil); ok || s.Owns(slot) {
			t.Errorf("slot %d is there", slot)
		}
	}
}

func TestStoreCopiesWhatItKeeps(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	key, value := []byte("key"), []byte("value")
	for _, kind := range []store.OpKind{store.OpSet, store.OpAppend, store.OpCompareAndSet} {
		copy(key, "key")
		copy(value, "value")
		old, _, _ := s.Get(testSlot, key, nil)
		if r := s.Apply(testSlot, &store.Op{Kind: kind, Key: key, Value: value, Old: old}); r.Status != store.StatusOK {
			t.Fatal(kind, r.Status)
		}
		copy(key, "xxx")
		copy(value, "yyyyy")
		if got, _, ok := s.Get(testSlot, []byte("key"), nil); !ok || bytes.ContainsAny(got, "y") {
			t.Errorf("kind %d: %q, %v after the caller reused its slices", kind, got, ok)
		}
	}
}

func TestPreviousOutlivesTheKey(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	set(t, s, testSlot, "k", "first", 0)
	r := s.Apply(testSlot, &store.Op{Kind: store.OpSet, Key: []byte("k"), Value: []byte("other"), ReturnPrevious: true})
	s.Apply(testSlot, &store.Op{Kind: store.OpAppend, Key: []byte("k"), Value: []byte("more")})
	s.Apply(testSlot, &store.Op{Kind: store.OpDelete, Key: []byte("k")})
	if string(r.Previous) != "first" {
		t.Errorf("previous became %q", r.Previous)
	}
}

func TestValidateSaysWhy(t *testing.T) {
	for _, c := range []struct {
		op   store.Op
		want error
	}{
		{store.Op{Kind: store.OpSet, TTL: 1}, nil},
		{store.Op{Kind: store.OpTouch, Condition: store.CondVersion}, nil},
		{store.Op{Kind: 0}, store.ErrOpUnknown},
		{store.Op{Kind: store.OpTouch + 1}, store.ErrOpUnknown},
		{store.Op{Kind: store.OpSet, Condition: store.CondVersion + 1}, store.ErrOpUnknown},
		{store.Op{Kind: store.OpExpire}, store.ErrTTLInvalid},
		{store.Op{Kind: store.OpExpire, TTL: -1}, store.ErrTTLInvalid},
		{store.Op{Kind: store.OpAppend, TTL: 1}, store.ErrTTLInvalid},
		{store.Op{Kind: store.OpAppend, KeepTTL: true}, store.ErrTTLInvalid},
		{store.Op{Kind: store.OpSet, TTL: 1, KeepTTL: true}, store.ErrTTLInvalid},
		{store.Op{Kind: store.OpSet, ValueBytesMax: -1}, store.ErrOpInvalid},
	} {
		if err := c.op.Validate(); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.op, err, c.want)
		}
	}
}
