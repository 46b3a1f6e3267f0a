package client

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// The calls of a KVClient that can travel over the stream.

// over sends an operation over the stream, unless it is too large or the node has none; then it goes by itself.
func over[R any](ctx context.Context, p *pipelined, op *ostrakapb.Op, h *ostrakapb.Header, bytes int, of func(*ostrakapb.OpResult) R, alone func() (R, error)) (R, error) {
	if bytes > pipelineValueBytesMax || p.unsupported.Load() {
		return alone()
	}
	result, err := p.call(ctx, op, h, bytes)
	if errors.Is(err, errPipelineUnsupported) {
		return alone()
	}
	if err != nil {
		var none R
		return none, err
	}
	return of(result), nil
}

// Get implements ostrakapb.KVClient.
func (p *pipelined) Get(ctx context.Context, r *ostrakapb.GetRequest, opts ...grpc.CallOption) (*ostrakapb.GetResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Get{Get: r}}, r.GetHeader(), len(r.GetKey()), (*ostrakapb.OpResult).GetGet,
		func() (*ostrakapb.GetResponse, error) { return p.KVClient.Get(ctx, r, opts...) })
}

// TTL implements ostrakapb.KVClient.
func (p *pipelined) TTL(ctx context.Context, r *ostrakapb.TTLRequest, opts ...grpc.CallOption) (*ostrakapb.TTLResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Ttl{Ttl: r}}, r.GetHeader(), len(r.GetKey()), (*ostrakapb.OpResult).GetTtl,
		func() (*ostrakapb.TTLResponse, error) { return p.KVClient.TTL(ctx, r, opts...) })
}

// Set implements ostrakapb.KVClient.
func (p *pipelined) Set(ctx context.Context, r *ostrakapb.SetRequest, opts ...grpc.CallOption) (*ostrakapb.SetResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: r}}, r.GetHeader(), len(r.GetKey())+len(r.GetValue()), (*ostrakapb.OpResult).GetSet,
		func() (*ostrakapb.SetResponse, error) { return p.KVClient.Set(ctx, r, opts...) })
}

// Delete implements ostrakapb.KVClient.
func (p *pipelined) Delete(ctx context.Context, r *ostrakapb.DeleteRequest, opts ...grpc.CallOption) (*ostrakapb.DeleteResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Delete{Delete: r}}, r.GetHeader(), len(r.GetKey()), (*ostrakapb.OpResult).GetDelete,
		func() (*ostrakapb.DeleteResponse, error) { return p.KVClient.Delete(ctx, r, opts...) })
}

// CompareAndSet implements ostrakapb.KVClient.
func (p *pipelined) CompareAndSet(ctx context.Context, r *ostrakapb.CompareAndSetRequest, opts ...grpc.CallOption) (*ostrakapb.CompareAndSetResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_CompareAndSet{CompareAndSet: r}}, r.GetHeader(), len(r.GetKey())+len(r.GetOld())+len(r.GetNew()), (*ostrakapb.OpResult).GetCompareAndSet,
		func() (*ostrakapb.CompareAndSetResponse, error) { return p.KVClient.CompareAndSet(ctx, r, opts...) })
}

// Increment implements ostrakapb.KVClient.
func (p *pipelined) Increment(ctx context.Context, r *ostrakapb.IncrementRequest, opts ...grpc.CallOption) (*ostrakapb.IncrementResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Increment{Increment: r}}, r.GetHeader(), len(r.GetKey()), (*ostrakapb.OpResult).GetIncrement,
		func() (*ostrakapb.IncrementResponse, error) { return p.KVClient.Increment(ctx, r, opts...) })
}

// Append implements ostrakapb.KVClient.
func (p *pipelined) Append(ctx context.Context, r *ostrakapb.AppendRequest, opts ...grpc.CallOption) (*ostrakapb.AppendResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Append{Append: r}}, r.GetHeader(), len(r.GetKey())+len(r.GetValue()), (*ostrakapb.OpResult).GetAppend,
		func() (*ostrakapb.AppendResponse, error) { return p.KVClient.Append(ctx, r, opts...) })
}

// Expire implements ostrakapb.KVClient.
func (p *pipelined) Expire(ctx context.Context, r *ostrakapb.ExpireRequest, opts ...grpc.CallOption) (*ostrakapb.ExpireResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Expire{Expire: r}}, r.GetHeader(), len(r.GetKey()), (*ostrakapb.OpResult).GetExpire,
		func() (*ostrakapb.ExpireResponse, error) { return p.KVClient.Expire(ctx, r, opts...) })
}

// Persist implements ostrakapb.KVClient.
func (p *pipelined) Persist(ctx context.Context, r *ostrakapb.PersistRequest, opts ...grpc.CallOption) (*ostrakapb.PersistResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Persist{Persist: r}}, r.GetHeader(), len(r.GetKey()), (*ostrakapb.OpResult).GetPersist,
		func() (*ostrakapb.PersistResponse, error) { return p.KVClient.Persist(ctx, r, opts...) })
}

// Touch implements ostrakapb.KVClient.
func (p *pipelined) Touch(ctx context.Context, r *ostrakapb.TouchRequest, opts ...grpc.CallOption) (*ostrakapb.TouchResponse, error) {
	return over(ctx, p, &ostrakapb.Op{Op: &ostrakapb.Op_Touch{Touch: r}}, r.GetHeader(), len(r.GetKey()), (*ostrakapb.OpResult).GetTouch,
		func() (*ostrakapb.TouchResponse, error) { return p.KVClient.Touch(ctx, r, opts...) })
}
