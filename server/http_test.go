package server

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// fetch asks a real HTTP server for a path.
func fetch(t *testing.T, s *httptest.Server, method, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func serveHTTP(t *testing.T, node nodeView, health *healthService, m *metrics, profiles bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.Config = newHTTPServer(newHTTPHandler(node, health, m, profiles))
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func TestProbes(t *testing.T) {
	node, health := newFakeNode(t), newHealthService()
	s := serveHTTP(t, node, health, newMetrics(node), false)
	for _, step := range []struct {
		name   string
		change func()
		code   int
		says   string
	}{
		{"blank", func() { node.clusterID = "" }, 503, "bootstrap"},
		{"adopting", func() { node.clusterID, node.adopting = "c1", true }, 503, "unfinished"},
		{"starting", func() { node.adopting = false }, 503, "starting"},
		{"ready", func() { health.setServing(true) }, 200, "ready"},
		{"draining", func() { health.setServing(false); node.draining = true }, 503, "shutting down"},
	} {
		step.change()
		if code, body := fetch(t, s, "GET", "/readyz"); code != step.code || !strings.Contains(body, step.says) {
			t.Errorf("%s: ready? %d %s", step.name, code, body)
		}
		if code, _ := fetch(t, s, "GET", "/livez"); code != 200 {
			t.Errorf("%s: alive? %d", step.name, code)
		}
	}
	if code, _ := fetch(t, s, "POST", "/readyz"); code != 405 {
		t.Errorf("POST: %d", code)
	}
}

func TestProfilesOnlyWhereAskedFor(t *testing.T) {
	node := newFakeNode(t)
	without := serveHTTP(t, node, newHealthService(), newMetrics(node), false)
	with := serveHTTP(t, node, newHealthService(), newMetrics(node), true)
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=1"} {
		if code, _ := fetch(t, without, "GET", path); code != 404 {
			t.Errorf("%s without: %d", path, code)
		}
		if code, _ := fetch(t, with, "GET", path); code != 200 {
			t.Errorf("%s with: %d", path, code)
		}
	}
}

func TestMetricsPage(t *testing.T) {
	f := serve(t, newFakeNode(t))
	f.metrics.registry.Unregister(newReplicaCollector(nil)) // found by its names; the node's own has no replicas here
	f.metrics.registry.MustRegister(newReplicaCollector(f.replicas.statuses))
	f.metrics.watchTransport(func() map[shard.NodeID]transport.PeerStats {
		return map[shard.NodeID]transport.PeerStats{"n2": {Sent: transport.Traffic{Frames: 3, Envelopes: 9, Heartbeats: 4, Bytes: 77},
			Received: transport.Traffic{Frames: 2}, Dials: 1, Connected: true}}
	})
	f.replicas[2].status = raftfsm.Status{Shard: 2, Replica: 4, Role: "follower"}
	if _, err := f.kv.Set(t.Context(), &ostrakapb.SetRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	code, page := fetch(t, serveHTTP(t, f.node, f.health, f.metrics, false), "GET", "/metrics")
	if code != 200 {
		t.Fatalf("%d: %s", code, page)
	}
	for _, line := range []string{
		`ostraka_request_duration_seconds_count{code="OK",method="Set",service="ostraka.v1.KV"} 1`,
		`ostraka_replica_leader{replica="1",shard="1"} 1`,
		`ostraka_replica_leader{replica="4",shard="2"} 0`,
		`ostraka_replica_term{replica="1",shard="1"} 2`,
		`ostraka_replica_applied_index{replica="1",shard="1"} 9`,
		`ostraka_replica_restarts_total{replica="1",shard="1"} 1`,
		`ostraka_replica_keys{replica="1",shard="1"} 3`,
		`ostraka_replica_bytes{replica="1",shard="1"} 100`,
		`ostraka_peer_envelopes_total{direction="sent",peer="n2"} 9`,
		`ostraka_peer_frames_total{direction="received",peer="n2"} 2`,
		`ostraka_peer_connected{peer="n2"} 1`,
		`ostraka_map_epoch 5`,
		`ostraka_bootstrapped 1`,
		`ostraka_connections 1`,
		`ostraka_build_info{`,
		`go_goroutines `,
		`process_open_fds `,
	} {
		if !strings.Contains(page, "\n"+line) {
			t.Errorf("no line %s", line)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}
