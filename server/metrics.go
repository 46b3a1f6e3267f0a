package server

import (
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// metrics are what a node counts of itself, in a registry of its own, so that several nodes fit into one
// process. Its methods may be called from any goroutine.
type metrics struct {
	registry *prometheus.Registry

	requests *prometheus.HistogramVec // service, method, code
	errors   *prometheus.CounterVec   // service, method, reason; operations of batches too
	inFlight *prometheus.GaugeVec     // service, method; streams too
	panics   prometheus.Counter

	connections        prometheus.Gauge
	refusedConnections prometheus.Counter
}

// latencyBuckets double from 100 µs, below which only the network is, to over 13 s, above the default deadline.
var latencyBuckets = prometheus.ExponentialBuckets(100e-6, 2, 18)

func newMetrics(node nodeView) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "ostraka_request_duration_seconds",
			Help: "Duration of calls in seconds, by how they ended.", Buckets: latencyBuckets}, []string{"service", "method", "code"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ostraka_request_errors_total",
			Help: "Calls and operations of batches that failed, by the reason given to the caller."}, []string{"service", "method", "reason"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ostraka_requests_in_flight",
			Help: "Calls and streams under way."}, []string{"service", "method"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "ostraka_handler_panics_total",
			Help: "Calls whose handler panicked. Each is a bug."}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ostraka_connections",
			Help: "Open connections to the gRPC port."}),
		refusedConnections: prometheus.NewCounter(prometheus.CounterOpts{Name: "ostraka_connections_refused_total",
			Help: "Connections closed because connections_max were open."}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ostraka_build_info", Help: "1, with the build in its labels.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "node": string(node.NodeID())}})
	build.Set(1)
	m.registry.MustRegister(m.requests, m.errors, m.inFlight, m.panics, m.connections, m.refusedConnections, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newReplicaCollector(hostReplicas{node}.statuses), newNodeCollector(node), newVerifyCollector(node))
	return m
}

// began counts a call in; the function it returns counts it out.
func (m *metrics) began(fullMethod string) (ended func()) {
	g := m.inFlight.WithLabelValues(splitMethod(fullMethod))
	g.Inc()
	return g.Dec
}

// ended notes how a call ended. err is a gRPC status or nil.
func (m *metrics) ended(fullMethod string, err error, took time.Duration) {
	service, method := splitMethod(fullMethod)
	s := status.Convert(err)
	m.requests.WithLabelValues(service, method, s.Code().String()).Observe(took.Seconds())
	for _, d := range s.Details() {
		if detail, ok := d.(*ostrakapb.ErrorDetail); ok {
			m.errors.WithLabelValues(service, method, reasonLabel(detail)).Inc()
		}
	}
}

// batchErrors counts the operations that failed inside a batch that did not.
func (m *metrics) batchErrors(fullMethod string, r *ostrakapb.BatchResponse) {
	service, method := splitMethod(fullMethod)
	for _, result := range r.GetResults() {
		if detail := result.GetError(); detail != nil {
			m.errors.WithLabelValues(service, method, reasonLabel(detail)).Inc()
		}
	}
}

// pipelineError counts a call of a stream that failed.
func (m *metrics) pipelineError(d *ostrakapb.ErrorDetail) {
	service, method := splitMethod(ostrakapb.KV_Pipeline_FullMethodName)
	m.errors.WithLabelValues(service, method, reasonLabel(d)).Inc()
}

// pipelinePanic counts and logs a call of a stream that panicked.
func (m *metrics) pipelinePanic(logger *slog.Logger) func(what string, stack []byte) {
	return func(what string, stack []byte) {
		logger.Error("a call panicked", "method", ostrakapb.KV_Pipeline_FullMethodName, "panic", what, "stack", string(stack))
		m.panics.Inc()
	}
}

func reasonLabel(d *ostrakapb.ErrorDetail) string {
	return strings.ToLower(strings.TrimPrefix(d.GetReason().String(), "REASON_"))
}

// splitMethod cuts "/ostraka.v1.KV/Get" into "ostraka.v1.KV" and "Get".
func splitMethod(fullMethod string) (service, method string) {
	service, method, _ = strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	return service, method
}

// watchTransport adds what the nodes say to each other.
func (m *metrics) watchTransport(stats func() map[shard.NodeID]transport.PeerStats) {
	m.registry.MustRegister(newPeerCollector(stats))
}

// buildVersion is the module's version, or the commit it was built from.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "devel"
}
