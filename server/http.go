package server

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds of the HTTP listener.
const (
	httpReadTimeout = 5 * time.Second
	httpIdleTimeout = 2 * time.Minute
	// httpWriteTimeout is longer than a profile is usually taken; pprof refuses to take longer ones.
	httpWriteTimeout = 2 * time.Minute
	httpHeaderMax    = 16 << 10
	// A scrape asks every replica; more than a few at once would only slow each other down.
	scrapeTimeout = 10 * time.Second
	scrapesMax    = 4
)

// newHTTPServer serves what newHTTPHandler does, with bounds on everything a client could draw out.
func newHTTPServer(handler http.Handler) *http.Server {
	return &http.Server{Handler: handler, ReadHeaderTimeout: httpReadTimeout, ReadTimeout: httpReadTimeout,
		WriteTimeout: httpWriteTimeout, IdleTimeout: httpIdleTimeout, MaxHeaderBytes: httpHeaderMax}
}

// newHTTPHandler returns what the node shows over HTTP. All of it only reads.
//
//	/metrics       Prometheus
//	/livez         200 while the process answers at all: restart it otherwise
//	/readyz        200 while the node takes calls on keys: send it traffic
//	/debug/pprof/  profiles, only where asked for: they slow the node down and show its insides
func newHTTPHandler(node nodeView, health *healthService, m *metrics, profiles bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Registry: m.registry, Timeout: scrapeTimeout, MaxRequestsInFlight: scrapesMax}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		answerProbe(w, http.StatusOK, "alive")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if health.serving.Load() {
			answerProbe(w, http.StatusOK, "ready")
			return
		}
		answerProbe(w, http.StatusServiceUnavailable, whyNotReady(node))
	})
	if profiles {
		mux.HandleFunc("/debug/pprof/", pprof.Index) // and every named profile below it
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func answerProbe(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprintln(w, text)
}

func whyNotReady(node nodeView) string {
	if node.Draining() {
		return "this node is shutting down"
	}
	return whyNoMap(node).Error()
}
