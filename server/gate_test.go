package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
)

// TestDeadlines: a call without one is given RequestTimeout, any other keeps its own.
func TestDeadlines(t *testing.T) {
	f := serve(t, newFakeNode(t))
	var left time.Duration
	for _, r := range f.replicas {
		r.beforeWrite = func(ctx context.Context) {
			deadline, _ := ctx.Deadline()
			left = time.Until(deadline)
		}
	}
	set := func(ctx context.Context) {
		t.Helper()
		if _, err := f.kv.Set(ctx, &ostrakapb.SetRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
	}
	limit := f.node.limits.RequestTimeout
	set(t.Context())
	if left > limit || left < limit/2 {
		t.Errorf("a call without a deadline has %v left, want about %v", left, limit)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	set(ctx)
	if left < time.Hour/2 {
		t.Errorf("a call with an hour has %v left", left)
	}
}

// TestTooLateIsNotDone: a call whose time is up reaches no replica.
func TestTooLateIsNotDone(t *testing.T) {
	node := newFakeNode(t)
	kv := newKVService(node)
	replicas := newFakeReplicas(node.m)
	kv.replicas = replicas
	g := &gate{limits: node.limits, explain: explainer{node}, metrics: newMetrics(node), logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	_, err := g.unary(ctx, &ostrakapb.SetRequest{Key: []byte("k")}, &grpc.UnaryServerInfo{FullMethod: ostrakapb.KV_Set_FullMethodName},
		func(ctx context.Context, req any) (any, error) { return kv.Set(ctx, req.(*ostrakapb.SetRequest)) })
	if d := wantReason(t, err, ostrakapb.Reason_REASON_DEADLINE); d.GetOutcome() != notDone || status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v: %v", err, d)
	}
	if len(replicas.of(node.m, "k").ops) != 0 {
		t.Error("it was done all the same")
	}
}

func TestPanics(t *testing.T) {
	f := serve(t, newFakeNode(t))
	for _, r := range f.replicas {
		r.beforeWrite = func(context.Context) { panic("as the test wants") }
	}
	_, err := f.kv.Set(t.Context(), &ostrakapb.SetRequest{Key: []byte("k")})
	if d := detailOf(t, err); status.Code(err) != codes.Internal || d.GetOutcome() != outcomeUnknown {
		t.Errorf("%v: %v", err, d)
	}
	if _, err := f.kv.Get(t.Context(), &ostrakapb.GetRequest{Key: []byte("k")}); err != nil {
		t.Errorf("after a panic: %v", err)
	}
	if n := sample(t, f.metrics, "ostraka_handler_panics_total"); n != 1 {
		t.Errorf("%v panics counted", n)
	}

	g := &gate{limits: f.node.limits, explain: explainer{f.node}, metrics: f.metrics, logger: slog.Default()}
	defer func() {
		if recover() == nil {
			t.Error("a broken invariant between nodes was survived")
		}
	}()
	_, _ = g.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: ostrakapb.Raft_Adopt_FullMethodName},
		func(context.Context, any) (any, error) { panic("as the test wants") })
}

func TestCallsAreCounted(t *testing.T) {
	f := serve(t, newFakeNode(t))
	r := f.replicas.of(f.node.m, "k")
	r.readErr = raftfsm.ErrNotConfirmed
	get := func() { f.kv.Get(t.Context(), &ostrakapb.GetRequest{Key: []byte("k")}) }
	get()
	batchOf(t, f, getOps(0, "k", "k")...)
	r.readErr = nil
	get()
	get()
	for line, want := range map[string]float64{
		`ostraka_request_errors_total{method="Get",reason="no_leader",service="ostraka.v1.KV"}`:           1,
		`ostraka_request_errors_total{method="Batch",reason="no_leader",service="ostraka.v1.KV"}`:         2,
		`ostraka_request_duration_seconds_count{code="Unavailable",method="Get",service="ostraka.v1.KV"}`: 1,
		`ostraka_request_duration_seconds_count{code="OK",method="Get",service="ostraka.v1.KV"}`:          2,
		`ostraka_request_duration_seconds_count{code="OK",method="Batch",service="ostraka.v1.KV"}`:        1,
		`ostraka_requests_in_flight{method="Get",service="ostraka.v1.KV"}`:                                0,
	} {
		if got := sample(t, f.metrics, line); got != want {
			t.Errorf("%s is %v, want %v", line, got, want)
		}
	}
}

// sample reads one figure off the metrics page; a line that is missing is an error.
func sample(t *testing.T, m *metrics, line string) float64 {
	t.Helper()
	page := httptest.NewRecorder()
	newHTTPHandler(nil, newHealthService(), m, false).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for got := range strings.Lines(page.Body.String()) {
		if text, found := strings.CutPrefix(got, line+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no line %s in\n%s", line, page.Body)
	return 0
}
