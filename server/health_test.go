package server

import (
	"testing"

	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	healthy   = grpc_health_v1.HealthCheckResponse_SERVING
	unhealthy = grpc_health_v1.HealthCheckResponse_NOT_SERVING
)

func TestHealth(t *testing.T) {
	f := serve(t, newFakeNode(t))
	client := grpc_health_v1.NewHealthClient(f.conn)
	check := func(when string, kv, others grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for service, want := range map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
			"": kv, "ostraka.v1.KV": kv, "ostraka.v1.Admin": others, "ostraka.v1.Raft": others,
		} {
			got, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
			if err != nil || got.GetStatus() != want {
				t.Errorf("%s, service %q: %v, %v, want %v", when, service, got.GetStatus(), err, want)
			}
		}
	}
	check("blank", unhealthy, healthy)
	f.health.setServing(true)
	check("ready", healthy, healthy)
	f.health.setServing(false)
	check("draining", unhealthy, healthy)
	f.health.setServing(true)
	f.health.shutdown()
	f.health.setServing(true)
	check("over", unhealthy, unhealthy)
}

// TestWatchersDoNotHoldUpTheEnd: a stream of Watch ends with the node, not with its client.
func TestWatchersDoNotHoldUpTheEnd(t *testing.T) {
	f := serve(t, newFakeNode(t))
	stream, err := grpc_health_v1.NewHealthClient(f.conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.GetStatus() != unhealthy {
		t.Fatalf("%v, %v", first, err)
	}
	f.health.setServing(true)
	if next, err := stream.Recv(); err != nil || next.GetStatus() != healthy {
		t.Fatalf("%v, %v", next, err)
	}
	f.health.shutdown()
	f.grpc.GracefulStop() // would wait for the stream
	for {
		got, err := stream.Recv()
		if err != nil {
			return
		}
		if got.GetStatus() != unhealthy {
			t.Fatalf("after shutdown: %v", got)
		}
	}
}
