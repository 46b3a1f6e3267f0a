package client

import (
	"context"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// Value is a key's state.
type Value struct {
	Value []byte
	// Version is the shard's write counter at the key's last write, from 1.
	Version uint64
	// TTL is the life left when the node answered, to the millisecond; 0: the key does not expire.
	TTL time.Duration
}

// ReadOption is for Get, TTL, MultiGet and Scan.
type ReadOption interface {
	ScanOption
	read(*readOptions)
}

type readOptions struct{ level ostrakapb.ReadLevel }

func (o *readOptions) stale() bool { return o.level == ostrakapb.ReadLevel_READ_LEVEL_STALE }

func newReadOptions(opts []ReadOption) *readOptions {
	o := new(readOptions)
	for _, opt := range opts {
		opt.read(o)
	}
	return o
}

type staleOption struct{}

func (staleOption) read(o *readOptions) { o.level = ostrakapb.ReadLevel_READ_LEVEL_STALE }
func (staleOption) scan(o *scanOptions) { o.read.level = ostrakapb.ReadLevel_READ_LEVEL_STALE }

// Stale reads some past state from any replica: cheaper, spread over all nodes, served without a leader, and
// possibly older than a write that was acknowledged. Without it, reads are linearizable.
func Stale() ReadOption { return staleOption{} }

// Get reads a key. Errors: ErrNotFound, ErrUnavailable, ErrLimit, ErrInvalid.
func (c *Client) Get(ctx context.Context, key []byte, opts ...ReadOption) (Value, error) {
	o := newReadOptions(opts)
	var m struct { // one allocation for the five
		op     ostrakapb.Op
		kind   ostrakapb.Op_Get
		get    ostrakapb.GetRequest
		header ostrakapb.Header
		run    keyOperation
	}
	m.op.Op, m.kind.Get, m.get.Header = &m.kind, &m.get, &m.header
	m.get.Key, m.get.Level = key, o.level
	m.run = keyOperation{kind: kind{name: "get", stale: o.stale()}, key: key, header: &m.header, op: &m.op}
	result, err := c.keyed(ctx, &m.run, nil)
	resp := result.GetGet()
	if err != nil {
		return Value{}, err
	}
	return valueOf(resp)
}

func valueOf(resp *ostrakapb.GetResponse) (Value, error) {
	if !resp.GetFound() {
		return Value{}, ErrNotFound
	}
	return Value{Value: resp.GetValue(), Version: resp.GetVersion(), TTL: fromMillis(resp.GetTtlMs())}, nil
}

// KeyInfo is what TTL tells of a key.
type KeyInfo struct {
	// TTL is the life left; 0: the key does not expire.
	TTL     time.Duration
	Version uint64
	// Size of the value in bytes.
	Size int64
}

// TTL reads a key's remaining life, version and size without its value. Errors: as Get.
func (c *Client) TTL(ctx context.Context, key []byte, opts ...ReadOption) (KeyInfo, error) {
	o := newReadOptions(opts)
	req := &ostrakapb.TTLRequest{Header: new(ostrakapb.Header), Key: key, Level: o.level}
	result, err := c.keyed(ctx, &keyOperation{kind: kind{name: "ttl", stale: o.stale()}, key: key, header: req.Header,
		op: &ostrakapb.Op{Op: &ostrakapb.Op_Ttl{Ttl: req}}}, nil)
	resp := result.GetTtl()
	switch {
	case err != nil:
		return KeyInfo{}, err
	case !resp.GetFound():
		return KeyInfo{}, ErrNotFound
	}
	return KeyInfo{TTL: fromMillis(resp.GetTtlMs()), Version: resp.GetVersion(), Size: resp.GetValueSize()}, nil
}

// SetResult is what a successful Set tells.
type SetResult struct {
	// Version of the key now.
	Version uint64
	// Previous is the key's state before; nil unless ReturnPrevious was given and the key existed.
	Previous *Value
}

// Set writes a key. It clears the key's TTL unless WithTTL or KeepTTL is given.
//
// Errors: a *ConditionError (ErrConditionNotMet), ErrUnavailable, ErrOutcomeUnknown, ErrLimit, ErrInvalid.
func (c *Client) Set(ctx context.Context, key, value []byte, opts ...SetOption) (SetResult, error) {
	var m struct { // one allocation for the five
		op     ostrakapb.Op
		kind   ostrakapb.Op_Set
		set    ostrakapb.SetRequest
		header ostrakapb.Header
		run    keyOperation
	}
	m.op.Op, m.kind.Set, m.set.Header = &m.kind, &m.set, &m.header
	m.set.Key, m.set.Value = key, value
	for _, opt := range opts {
		if err := opt.set(&m.set); err != nil {
			return SetResult{}, err
		}
	}
	m.run = keyOperation{kind: kind{name: "set", write: true}, key: key, header: &m.header, op: &m.op}
	result, err := c.keyed(ctx, &m.run, value)
	resp := result.GetSet()
	if err != nil {
		return SetResult{}, err
	}
	previous := previousOf(resp.GetPrevious())
	if !resp.GetDone() {
		return SetResult{}, &ConditionError{Version: resp.GetVersion(), Previous: previous}
	}
	return SetResult{Version: resp.GetVersion(), Previous: previous}, nil
}

func previousOf(p *ostrakapb.Previous) *Value {
	if !p.GetFound() {
		return nil
	}
	return &Value{Value: p.GetValue(), Version: p.GetVersion()}
}

// DeleteResult is what a Delete tells.
type DeleteResult struct {
	// Deleted: the key existed and is gone. False: there was nothing to delete.
	Deleted bool
	// Previous is the key's state before; nil unless ReturnPrevious was given and the key existed.
	Previous *Value
}

// Delete removes a key. Deleting a key that does not exist is no error: the result says so.
//
// Errors: a *ConditionError (ErrConditionNotMet), ErrUnavailable, ErrOutcomeUnknown, ErrLimit, ErrInvalid.
func (c *Client) Delete(ctx context.Context, key []byte, opts ...DeleteOption) (DeleteResult, error) {
	req := &ostrakapb.DeleteRequest{Header: new(ostrakapb.Header), Key: key}
	for _, opt := range opts {
		if err := opt.delete(req); err != nil {
			return DeleteResult{}, err
		}
	}
	result, err := c.keyed(ctx, &keyOperation{kind: kind{name: "delete", write: true}, key: key, header: req.Header,
		op: &ostrakapb.Op{Op: &ostrakapb.Op_Delete{Delete: req}}}, nil)
	resp := result.GetDelete()
	if err != nil {
		return DeleteResult{}, err
	}
	previous := previousOf(resp.GetPrevious())
	// A server need not fill condition_met where no condition was given.
	if req.Condition != nil && !resp.GetConditionMet() {
		return DeleteResult{}, &ConditionError{Version: resp.GetVersion(), Previous: previous}
	}
	return DeleteResult{Deleted: resp.GetDeleted(), Previous: previous}, nil
}

// CompareAndSet writes a key if its value is old, keeps its TTL, and returns its new version. A missing key
// meets no old value, not even an empty one: Set with IfAbsent is for that.
//
// Errors: a *ConditionError (ErrConditionNotMet), ErrUnavailable, ErrOutcomeUnknown, ErrLimit, ErrInvalid.
func (c *Client) CompareAndSet(ctx context.Context, key, old, new []byte) (uint64, error) {
	req := &ostrakapb.CompareAndSetRequest{Header: &ostrakapb.Header{}, Key: key, Old: old, New: new}
	result, err := c.keyed(ctx, &keyOperation{kind: kind{name: "compare-and-set", write: true}, key: key, bytes: len(old), header: req.Header,
		op: &ostrakapb.Op{Op: &ostrakapb.Op_CompareAndSet{CompareAndSet: req}}}, new)
	resp := result.GetCompareAndSet()
	switch {
	case err != nil:
		return 0, err
	case !resp.GetSwapped() && !resp.GetFound():
		return 0, &ConditionError{}
	case !resp.GetSwapped():
		return 0, &ConditionError{Version: resp.GetVersion()}
	}
	return resp.GetVersion(), nil
}

// IncrementResult is a counter's state after an Increment.
type IncrementResult struct {
	Value   int64
	Version uint64
}

// Increment adds delta to a key's decimal int64; a missing key counts as 0. It keeps the key's TTL.
//
// Errors: ErrNotInteger, ErrOverflow, ErrUnavailable, ErrOutcomeUnknown, ErrLimit, ErrInvalid.
func (c *Client) Increment(ctx context.Context, key []byte, delta int64) (IncrementResult, error) {
	req := &ostrakapb.IncrementRequest{Header: new(ostrakapb.Header), Key: key, Delta: delta}
	result, err := c.keyed(ctx, &keyOperation{kind: kind{name: "increment", write: true}, key: key, header: req.Header,
		op: &ostrakapb.Op{Op: &ostrakapb.Op_Increment{Increment: req}}}, nil)
	resp := result.GetIncrement()
	if err != nil {
		return IncrementResult{}, err
	}
	return IncrementResult{Value: resp.GetValue(), Version: resp.GetVersion()}, nil
}

// AppendResult is a key's state after an Append.
type AppendResult struct {
	// Length of the value in bytes.
	Length  int64
	Version uint64
}

// Append adds bytes to the end of a key's value; a missing key counts as empty. It keeps the key's TTL.
//
// Errors: ErrUnavailable, ErrOutcomeUnknown, ErrLimit, ErrInvalid.
func (c *Client) Append(ctx context.Context, key, value []byte) (AppendResult, error) {
	req := &ostrakapb.AppendRequest{Header: new(ostrakapb.Header), Key: key, Value: value}
	result, err := c.keyed(ctx, &keyOperation{kind: kind{name: "append", write: true}, key: key, header: req.Header,
		op: &ostrakapb.Op{Op: &ostrakapb.Op_Append{Append: req}}}, value)
	resp := result.GetAppend()
	if err != nil {
		return AppendResult{}, err
	}
	return AppendResult{Length: resp.GetLength(), Version: resp.GetVersion()}, nil
}

// Expire gives a key a life of ttl from now, at least a millisecond, and returns its new version.
//
// Errors: ErrNotFound, ErrUnavailable, ErrOutcomeUnknown, ErrLimit, ErrInvalid.
func (c *Client) Expire(ctx context.Context, key []byte, ttl time.Duration) (uint64, error) {
	millis, err := toMillis(ttl)
	if err != nil {
		return 0, err
	}
	req := &ostrakapb.ExpireRequest{Header: new(ostrakapb.Header), Key: key, TtlMs: millis}
	result, err := c.keyed(ctx, &keyOperation{kind: kind{name: "expire", write: true}, key: key, header: req.Header,
		op: &ostrakapb.Op{Op: &ostrakapb.Op_Expire{Expire: req}}}, nil)
	resp := result.GetExpire()
	return found(resp.GetFound(), resp.GetVersion(), err)
}

// Persist takes a key's TTL away and returns its new version. Errors: as Expire.
func (c *Client) Persist(ctx context.Context, key []byte) (uint64, error) {
	req := &ostrakapb.PersistRequest{Header: new(ostrakapb.Header), Key: key}
	result, err := c.keyed(ctx, &keyOperation{kind: kind{name: "persist", write: true}, key: key, header: req.Header,
		op: &ostrakapb.Op{Op: &ostrakapb.Op_Persist{Persist: req}}}, nil)
	resp := result.GetPersist()
	return found(resp.GetFound(), resp.GetVersion(), err)
}

// Touch steps a key's version, leaves value and TTL as they are, and returns the new version. Errors: as Expire.
func (c *Client) Touch(ctx context.Context, key []byte) (uint64, error) {
	req := &ostrakapb.TouchRequest{Header: new(ostrakapb.Header), Key: key}
	result, err := c.keyed(ctx, &keyOperation{kind: kind{name: "touch", write: true}, key: key, header: req.Header,
		op: &ostrakapb.Op{Op: &ostrakapb.Op_Touch{Touch: req}}}, nil)
	resp := result.GetTouch()
	return found(resp.GetFound(), resp.GetVersion(), err)
}

func found(ok bool, version uint64, err error) (uint64, error) {
	switch {
	case err != nil:
		return 0, err
	case !ok:
		return 0, ErrNotFound
	}
	return version, nil
}

// keyed checks an operation on one key and runs it. value is checked against the limit; nil: there is none.
func (c *Client) keyed(ctx context.Context, o *keyOperation, value []byte) (*ostrakapb.OpResult, error) {
	if err := c.checkSizes(o.key, value); err != nil {
		return nil, err
	}
	o.bytes += len(o.key) + len(value)
	return c.runKey(ctx, o)
}

// checkSizes refuses here what the cluster would refuse, by the limits that came with the map.
func (c *Client) checkSizes(key, value []byte) error {
	rt := c.routes.Load()
	switch {
	case len(key) == 0:
		return &InvalidError{Field: "key", Message: "must not be empty"}
	case rt.keyBytesMax > 0 && int64(len(key)) > rt.keyBytesMax:
		return &LimitError{Limit: "key_bytes_max", Max: rt.keyBytesMax, Got: int64(len(key))}
	case rt.valueBytesMax > 0 && int64(len(value)) > rt.valueBytesMax:
		return &LimitError{Limit: "value_bytes_max", Max: rt.valueBytesMax, Got: int64(len(value))}
	}
	return nil
}

func fromMillis(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

// toMillis rounds up: a key lives at least as long as was asked.
func toMillis(ttl time.Duration) (int64, error) {
	if ttl <= 0 {
		return 0, &InvalidError{Field: "ttl", Message: "must be positive"}
	}
	ms := ttl.Milliseconds()
	if fromMillis(ms) < ttl {
		ms++
	}
	return ms, nil
}
