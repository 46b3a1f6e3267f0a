package client

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// Pipeline answers each call as the unary method would. What a unary method answers without a detail, a broken connection
// for example, breaks the stream.
func (n *fakeNode) Pipeline(stream grpc.BidiStreamingServer[ostrakapb.PipelineRequest, ostrakapb.PipelineResponse]) error {
	if n.cluster.unary {
		return n.UnimplementedKVServer.Pipeline(stream)
	}
	n.mu.Lock()
	stop := make(chan struct{})
	n.stops = append(n.stops, stop)
	n.mu.Unlock()

	var sending sync.Mutex
	var calls sync.WaitGroup
	var starting sync.Mutex // guards calls.Go against calls.Wait
	over := false
	defer func() {
		starting.Lock()
		over = true
		starting.Unlock()
		calls.Wait()
	}()
	start := func(call func()) {
		starting.Lock()
		defer starting.Unlock()
		if !over {
			calls.Go(call)
		}
	}
	broken := make(chan error, 1)
	breakWith := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	send := func(r *ostrakapb.PipelineResponse) {
		sending.Lock()
		defer sending.Unlock()
		if err := stream.Send(r); err != nil {
			breakWith(err)
		}
	}
	go func() {
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				calls.Wait()
			}
			if err != nil {
				breakWith(err)
				return
			}
			for _, c := range r.GetCalls() {
				start(func() {
					result, err := n.pipelined(stream, r.GetHeader(), c.GetOp())
					if err != nil {
						breakWith(err)
						return
					}
					send(&ostrakapb.PipelineResponse{Answers: []*ostrakapb.PipelineAnswer{{Number: c.GetNumber(), Result: result}}})
				})
			}
		}
	}()
	for {
		select {
		case err := <-broken:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-stop:
			stop = nil
			send(&ostrakapb.PipelineResponse{Draining: true})
		}
	}
}

// complete gives an operation's header what the message's has for all, so that scripts see it as they would see a call of
// its own.
func complete(op *ostrakapb.Op, client *ostrakapb.Header) {
	op.ProtoReflect().Range(func(_ protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if one, ok := v.Message().Interface().(interface{ GetHeader() *ostrakapb.Header }); ok {
			if h := one.GetHeader(); h != nil {
				h.Epoch, h.ClientId = client.GetEpoch(), client.GetClientId()
			}
		}
		return true
	})
}

// drain makes the node say on its streams that it is about to stop.
func (n *fakeNode) drain() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, stop := range n.stops {
		close(stop)
	}
	n.stops = nil
}

func (n *fakeNode) pipelined(stream grpc.ServerStream, client *ostrakapb.Header, op *ostrakapb.Op) (*ostrakapb.OpResult, error) {
	ctx := stream.Context()
	complete(op, client)
	ask := func(req any, do func() (any, error)) (any, error) {
		return n.intercept(ctx, req, nil, func(context.Context, any) (any, error) { return do() })
	}
	var resp any
	var err error
	switch o := op.GetOp().(type) {
	case *ostrakapb.Op_Get:
		resp, err = ask(o.Get, func() (any, error) { return n.Get(ctx, o.Get) })
	case *ostrakapb.Op_Ttl:
		resp, err = ask(o.Ttl, func() (any, error) { return n.TTL(ctx, o.Ttl) })
	case *ostrakapb.Op_Set:
		resp, err = ask(o.Set, func() (any, error) { return n.Set(ctx, o.Set) })
	case *ostrakapb.Op_Delete:
		resp, err = ask(o.Delete, func() (any, error) { return n.Delete(ctx, o.Delete) })
	case *ostrakapb.Op_CompareAndSet:
		resp, err = ask(o.CompareAndSet, func() (any, error) { return n.CompareAndSet(ctx, o.CompareAndSet) })
	case *ostrakapb.Op_Increment:
		resp, err = ask(o.Increment, func() (any, error) { return n.Increment(ctx, o.Increment) })
	case *ostrakapb.Op_Append:
		resp, err = ask(o.Append, func() (any, error) { return n.Append(ctx, o.Append) })
	case *ostrakapb.Op_Expire:
		resp, err = ask(o.Expire, func() (any, error) { return n.Expire(ctx, o.Expire) })
	case *ostrakapb.Op_Persist:
		resp, err = ask(o.Persist, func() (any, error) { return n.Persist(ctx, o.Persist) })
	case *ostrakapb.Op_Touch:
		resp, err = ask(o.Touch, func() (any, error) { return n.Touch(ctx, o.Touch) })
	}
	if err != nil {
		for _, d := range status.Convert(err).Details() {
			if detail, ok := d.(*ostrakapb.ErrorDetail); ok {
				return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Error{Error: detail}}, nil
			}
		}
		return nil, err
	}
	switch r := resp.(type) {
	case *ostrakapb.GetResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Get{Get: r}}, nil
	case *ostrakapb.TTLResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Ttl{Ttl: r}}, nil
	case *ostrakapb.SetResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Set{Set: r}}, nil
	case *ostrakapb.DeleteResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Delete{Delete: r}}, nil
	case *ostrakapb.CompareAndSetResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_CompareAndSet{CompareAndSet: r}}, nil
	case *ostrakapb.IncrementResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Increment{Increment: r}}, nil
	case *ostrakapb.AppendResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Append{Append: r}}, nil
	case *ostrakapb.ExpireResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Expire{Expire: r}}, nil
	case *ostrakapb.PersistResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Persist{Persist: r}}, nil
	case *ostrakapb.TouchResponse:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Touch{Touch: r}}, nil
	}
	return nil, status.Errorf(codes.Internal, "%T", resp)
}
