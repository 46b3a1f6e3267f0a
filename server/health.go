package server

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// healthService tells load balancers and probes, by the gRPC health protocol, what this node serves. Admin and
// Raft serve as soon as there is a port, blank or not. KV, and with it the node as a whole (the service
// named ""), serves from setServing(true) to setServing(false).
type healthService struct {
	*health.Server
	serving atomic.Bool
	// over ends with shutdown.
	over context.Context
	end  context.CancelFunc
}

func newHealthService() *healthService {
	h := &healthService{Server: health.NewServer()}
	h.over, h.end = context.WithCancel(context.Background())
	h.setServing(false)
	for _, always := range []string{ostrakapb.Admin_ServiceDesc.ServiceName, ostrakapb.Raft_ServiceDesc.ServiceName} {
		h.SetServingStatus(always, grpc_health_v1.HealthCheckResponse_SERVING)
	}
	return h
}

func (h *healthService) register(s grpc.ServiceRegistrar) {
	grpc_health_v1.RegisterHealthServer(s, h)
}

// setServing says whether the node takes calls on keys: once it is bootstrapped and ready, until it drains.
func (h *healthService) setServing(serving bool) {
	h.serving.Store(serving)
	state := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if serving {
		state = grpc_health_v1.HealthCheckResponse_SERVING
	}
	h.SetServingStatus("", state)
	h.SetServingStatus(ostrakapb.KV_ServiceDesc.ServiceName, state)
}

// shutdown says for good that nothing serves any more, and ends the streams of those who watch.
func (h *healthService) shutdown() {
	h.serving.Store(false)
	h.Shutdown()
	h.end()
}

// Watch implements grpc_health_v1.HealthServer. health.Server's own ends only with its client, so that one
// watcher would keep a graceful stop waiting for ever.
func (h *healthService) Watch(r *grpc_health_v1.HealthCheckRequest, stream grpc_health_v1.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(h.over, cancel)()
	return h.Server.Watch(r, watchStream{stream, ctx})
}

// watchStream is a stream with a context of its own.
type watchStream struct {
	grpc_health_v1.Health_WatchServer
	ctx context.Context
}

func (s watchStream) Context() context.Context { return s.ctx }
