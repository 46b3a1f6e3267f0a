package client

import (
	"context"
	"fmt"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// unary carries an operation out by the method of its kind: large ones, and all where a node has no stream.
func unary(ctx context.Context, kv ostrakapb.KVClient, op *ostrakapb.Op) (*ostrakapb.OpResult, error) {
	switch o := op.GetOp().(type) {
	case *ostrakapb.Op_Get:
		r, err := kv.Get(ctx, o.Get)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Get{Get: r}}, err
	case *ostrakapb.Op_Ttl:
		r, err := kv.TTL(ctx, o.Ttl)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Ttl{Ttl: r}}, err
	case *ostrakapb.Op_Set:
		r, err := kv.Set(ctx, o.Set)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Set{Set: r}}, err
	case *ostrakapb.Op_Delete:
		r, err := kv.Delete(ctx, o.Delete)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Delete{Delete: r}}, err
	case *ostrakapb.Op_CompareAndSet:
		r, err := kv.CompareAndSet(ctx, o.CompareAndSet)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_CompareAndSet{CompareAndSet: r}}, err
	case *ostrakapb.Op_Increment:
		r, err := kv.Increment(ctx, o.Increment)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Increment{Increment: r}}, err
	case *ostrakapb.Op_Append:
		r, err := kv.Append(ctx, o.Append)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Append{Append: r}}, err
	case *ostrakapb.Op_Expire:
		r, err := kv.Expire(ctx, o.Expire)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Expire{Expire: r}}, err
	case *ostrakapb.Op_Persist:
		r, err := kv.Persist(ctx, o.Persist)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Persist{Persist: r}}, err
	case *ostrakapb.Op_Touch:
		r, err := kv.Touch(ctx, o.Touch)
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Touch{Touch: r}}, err
	}
	panic(fmt.Sprintf("client: operation %T", op.GetOp()))
}
