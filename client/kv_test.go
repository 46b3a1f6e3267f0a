package client

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

func TestConditionsOfSet(t *testing.T) {
	c := newFakeCluster(t, 1, 1).client()
	key := []byte("k")
	first := mustSet(t, c, "k", "one")
	var lost *ConditionError
	_, err := c.Set(t.Context(), key, []byte("x"), IfAbsent(), ReturnPrevious())
	if !errors.Is(err, ErrConditionNotMet) || !errors.As(err, &lost) || lost.Version != first.Version || string(lost.Previous.Value) != "one" {
		t.Errorf("if-absent on a key that exists: %v", err)
	}
	second, err := c.Set(t.Context(), key, []byte("two"), IfVersion(first.Version), ReturnPrevious())
	if err != nil || second.Version <= first.Version || string(second.Previous.Value) != "one" {
		t.Errorf("if-version: %v, %v", second, err)
	}
	if _, err = c.Set(t.Context(), key, []byte("x"), IfVersion(first.Version)); !errors.As(err, &lost) || lost.Version != second.Version {
		t.Errorf("if-version with an old one: %v", err)
	}
	mustGet(t, c, "k", "two")
	if _, err = c.Delete(t.Context(), key, IfVersion(first.Version)); !errors.As(err, &lost) || lost.Version != second.Version {
		t.Errorf("delete with an old version: %v", err)
	}
	if r, err := c.Delete(t.Context(), key, IfVersion(second.Version)); err != nil || !r.Deleted {
		t.Errorf("delete: %v, %v", r, err)
	}
	if r, err := c.Delete(t.Context(), key); err != nil || r.Deleted {
		t.Errorf("delete of nothing: %v, %v", r, err)
	}
}

func TestOptionsThatContradict(t *testing.T) {
	c := newFakeCluster(t, 1, 1).client()
	for name, opts := range map[string][]SetOption{
		"two conditions":    {IfAbsent(), IfExists()},
		"ttl and keep":      {WithTTL(time.Second), KeepTTL()},
		"keep and ttl":      {KeepTTL(), WithTTL(time.Second)},
		"a ttl of nothing":  {WithTTL(0)},
		"a ttl in the past": {WithTTL(-time.Second)},
	} {
		if _, err := c.Set(t.Context(), []byte("k"), nil, opts...); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Expire(t.Context(), []byte("k"), 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("expire now: %v", err)
	}
}

func TestTTLsAreRoundedUp(t *testing.T) {
	for ttl, want := range map[time.Duration]int64{1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, time.Second: 1000, 1<<63 - 1: 9223372036855} {
		if got, err := toMillis(ttl); got != want || err != nil {
			t.Errorf("%d ns: %d ms, %v, want %d", ttl, got, err, want)
		}
	}
}

// The verbs that the fake does not serve itself: each result field and each way to fail.
func TestVerbs(t *testing.T) {
	var answer any
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	f.node("n1").play(func(context.Context, any) (any, error) { return answer, nil })
	ctx, k := t.Context(), []byte("k")
	expect := func(what string, got, want any, err, wantErr error) {
		t.Helper()
		if got != want || !errors.Is(err, wantErr) {
			t.Errorf("%s: %v, %v, want %v, %v", what, got, err, want, wantErr)
		}
	}

	answer = &ostrakapb.TTLResponse{Found: true, Version: 4, TtlMs: 1500, ValueSize: 9}
	info, err := c.TTL(ctx, k)
	expect("ttl", info, KeyInfo{TTL: 1500 * time.Millisecond, Version: 4, Size: 9}, err, nil)
	answer = &ostrakapb.TTLResponse{}
	info, err = c.TTL(ctx, k)
	expect("ttl of nothing", info, KeyInfo{}, err, ErrNotFound)

	answer = &ostrakapb.CompareAndSetResponse{Swapped: true, Found: true, Version: 5}
	version, err := c.CompareAndSet(ctx, k, []byte("a"), []byte("b"))
	expect("cas", version, uint64(5), err, nil)
	answer = &ostrakapb.CompareAndSetResponse{Found: true, Version: 5}
	version, err = c.CompareAndSet(ctx, k, []byte("a"), []byte("b"))
	expect("cas lost", version, uint64(0), err, ErrConditionNotMet)
	answer = &ostrakapb.CompareAndSetResponse{Version: 17}
	version, err = c.CompareAndSet(ctx, k, []byte("a"), []byte("b"))
	expect("cas of nothing", version, uint64(0), err, ErrConditionNotMet)
	if lost := new(*ConditionError); !errors.As(err, lost) || (*lost).Version != 0 {
		t.Errorf("cas of nothing: version %v", err)
	}

	answer = &ostrakapb.IncrementResponse{Value: -3, Version: 6}
	count, err := c.Increment(ctx, k, -4)
	expect("increment", count, IncrementResult{Value: -3, Version: 6}, err, nil)
	answer = &ostrakapb.AppendResponse{Length: 12, Version: 7}
	length, err := c.Append(ctx, k, []byte("x"))
	expect("append", length, AppendResult{Length: 12, Version: 7}, err, nil)

	answer = &ostrakapb.ExpireResponse{Found: true, Version: 8}
	version, err = c.Expire(ctx, k, time.Second)
	expect("expire", version, uint64(8), err, nil)
	answer = &ostrakapb.PersistResponse{}
	version, err = c.Persist(ctx, k)
	expect("persist", version, uint64(0), err, ErrNotFound)
	answer = &ostrakapb.TouchResponse{Found: true, Version: 9}
	version, err = c.Touch(ctx, k)
	expect("touch", version, uint64(9), err, nil)
	answer = &ostrakapb.DeleteResponse{Version: 3}
	_, err = c.Delete(ctx, k, IfExists())
	expect("delete if-exists", nil, nil, err, ErrConditionNotMet)
}

func TestLimitsAreCheckedBeforeSending(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	f.limits.key, f.limits.value = 8, 16
	c := f.client()
	var limit *LimitError
	_, err := c.Set(t.Context(), bytes.Repeat([]byte("k"), 9), nil)
	if !errors.As(err, &limit) || limit.Limit != "key_bytes_max" || limit.Max != 8 || limit.Got != 9 {
		t.Errorf("key: %v", err)
	}
	_, err = c.Append(t.Context(), []byte("k"), make([]byte, 17))
	if !errors.As(err, &limit) || limit.Limit != "value_bytes_max" || limit.Max != 16 || limit.Got != 17 {
		t.Errorf("value: %v", err)
	}
	var invalid *InvalidError
	if _, err = c.Get(t.Context(), nil); !errors.As(err, &invalid) || invalid.Field != "key" {
		t.Errorf("empty key: %v", err)
	}
	errs := c.MultiSet(t.Context(), []SetItem{{Key: []byte("fits"), Value: []byte("v")}, {Key: []byte("too long a key")}})
	if errs[0] != nil || !errors.Is(errs[1], ErrLimit) {
		t.Errorf("multi-set: %v", errs)
	}
	if _, err = c.Set(t.Context(), []byte("12345678"), make([]byte, 16)); err != nil {
		t.Errorf("the largest allowed: %v", err)
	}
	if got := len(f.node("n1").sets()); got != 2 {
		t.Errorf("%d sets were sent", got)
	}
}
