package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// errPanicked is what a caller hears of a handler that panicked; the log has the rest.
var errPanicked = errors.New("internal error")

// gate stands around every handler: it counts and times the call, gives it a deadline if it has none, and
// turns the handler's error into a status.
type gate struct {
	limits  Limits
	explain explainer
	metrics *metrics
	logger  *slog.Logger
}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	defer g.metrics.began(info.FullMethod)()
	if _, given := ctx.Deadline(); !given {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, g.limits.RequestTimeout)
		defer cancel()
	}
	started := time.Now()
	resp, err := g.guard(ctx, req, info, handler)
	err = g.explain.status(err)
	g.metrics.ended(info.FullMethod, err, time.Since(started))
	if err != nil {
		return nil, err
	}
	if batch, ok := resp.(*ostrakapb.BatchResponse); ok {
		g.metrics.batchErrors(info.FullMethod, batch)
	}
	return resp, nil
}

// guard calls the handler and survives its panic: one caller's request must not end the service for all. Not
// so for what nodes say to each other: a broken invariant there is the cluster's, and ends the process, as
// one on raft's own goroutines does.
func (g *gate) guard(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	if !fromNode(info.FullMethod) {
		defer func() {
			if p := recover(); p != nil {
				g.logger.Error("a handler panicked", "method", info.FullMethod, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				g.metrics.panics.Inc()
				resp, err = nil, errPanicked
			}
		}()
	}
	return handler(ctx, req)
}

func (g *gate) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	defer g.metrics.began(info.FullMethod)()
	started := time.Now()
	err := g.explain.status(handler(srv, stream))
	g.metrics.ended(info.FullMethod, err, time.Since(started))
	return err
}

// fromNode reports whether only nodes call the method.
func fromNode(fullMethod string) bool {
	for _, service := range []string{ostrakapb.Raft_ServiceDesc.ServiceName, ostrakapb.Members_ServiceDesc.ServiceName} {
		if strings.HasPrefix(fullMethod, "/"+service+"/") {
			return true
		}
	}
	return false
}
