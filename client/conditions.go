package client

import (
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// SetOption changes what Set does.
type SetOption interface {
	set(*ostrakapb.SetRequest) error
}

// DeleteOption changes what Delete does.
type DeleteOption interface {
	delete(*ostrakapb.DeleteRequest) error
}

// WriteOption is for Set and Delete.
type WriteOption interface {
	SetOption
	DeleteOption
}

// WithTTL gives the key a life from now, rounded up to a millisecond.
func WithTTL(ttl time.Duration) SetOption {
	return setOption(func(req *ostrakapb.SetRequest) error {
		millis, err := toMillis(ttl)
		if err != nil {
			return err
		}
		if req.KeepTtl {
			return &InvalidError{Field: "ttl", Message: "contradicts keeping the TTL"}
		}
		req.TtlMs = millis
		return nil
	})
}

// KeepTTL leaves the key the TTL that it has.
func KeepTTL() SetOption {
	return setOption(func(req *ostrakapb.SetRequest) error {
		if req.TtlMs != 0 {
			return &InvalidError{Field: "keep_ttl", Message: "contradicts a TTL"}
		}
		req.KeepTtl = true
		return nil
	})
}

// IfAbsent writes only if the key does not exist.
func IfAbsent() SetOption {
	return setOption(func(req *ostrakapb.SetRequest) error {
		return condition(&req.Condition, &ostrakapb.Condition{
			Condition: &ostrakapb.Condition_IfAbsent{IfAbsent: true}})
	})
}

// IfExists writes or deletes only if the key exists. Without it, deleting nothing is a result; with it, a lost
// condition.
func IfExists() WriteOption {
	return conditionOption(func(at **ostrakapb.Condition) error {
		return condition(at, &ostrakapb.Condition{Condition: &ostrakapb.Condition_IfExists{IfExists: true}})
	})
}

// IfVersion writes or deletes only if the key has this version, which an earlier answer told.
func IfVersion(version uint64) WriteOption {
	return conditionOption(func(at **ostrakapb.Condition) error {
		return condition(at, &ostrakapb.Condition{Condition: &ostrakapb.Condition_IfVersion{IfVersion: version}})
	})
}

// ReturnPrevious asks for the key's state before the write, also where the condition was not met.
func ReturnPrevious() WriteOption { return previousOption{} }

func condition(at **ostrakapb.Condition, c *ostrakapb.Condition) error {
	if *at != nil {
		return &InvalidError{Field: "condition", Message: "at most one may be given"}
	}
	*at = c
	return nil
}

type setOption func(*ostrakapb.SetRequest) error

func (o setOption) set(req *ostrakapb.SetRequest) error { return o(req) }

// conditionOption sets a condition at its place in either request.
type conditionOption func(**ostrakapb.Condition) error

func (o conditionOption) set(req *ostrakapb.SetRequest) error       { return o(&req.Condition) }
func (o conditionOption) delete(req *ostrakapb.DeleteRequest) error { return o(&req.Condition) }

type previousOption struct{}

func (previousOption) set(req *ostrakapb.SetRequest) error {
	req.ReturnPrevious = true
	return nil
}

func (previousOption) delete(req *ostrakapb.DeleteRequest) error {
	req.ReturnPrevious = true
	return nil
}
