package client

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"time"
)

// Defaults of the options.
const (
	// DefaultTimeout bounds a call whose context has no deadline.
	DefaultTimeout = 5 * time.Second
	// DefaultAttemptTimeout bounds one sending.
	DefaultAttemptTimeout = time.Second
	// DefaultRetriesPerSecond and DefaultRetryBurst are the retry budget of a client.
	DefaultRetriesPerSecond = 1000
	DefaultRetryBurst       = 1000
)

// Option configures a Client or an Admin.
type Option func(*config)

type config struct {
	timeout        time.Duration
	attemptTimeout time.Duration
	dialer         func(ctx context.Context, address string) (net.Conn, error)
	logger         *slog.Logger
	retryRate      float64
	retryBurst     int
	// clientID is drawn at random: two clients with one identity would be taken for each other.
	clientID [16]byte
}

// WithTimeout bounds every call whose context has no deadline of its own; a scan is bounded page by page.
// Default: DefaultTimeout.
func WithTimeout(d time.Duration) Option { return func(c *config) { c.timeout = d } }

// WithAttemptTimeout bounds one sending: a node that has not answered a read by then is passed over, and the read goes to
// another replica. So does a write if it was not sent, or if the node has said nothing at all for as long; else it waits for its
// answer. Default: DefaultAttemptTimeout.
func WithAttemptTimeout(d time.Duration) Option { return func(c *config) { c.attemptTimeout = d } }

// WithDialer replaces the way in which connections are made, for proxies and tests.
func WithDialer(dial func(ctx context.Context, address string) (net.Conn, error)) Option {
	return func(c *config) { c.dialer = dial }
}

// WithLogger receives what the client does about failures, at level debug. Default: nothing is logged.
func WithLogger(l *slog.Logger) Option { return func(c *config) { c.logger = l } }

// WithRetryBudget bounds the retries of all calls of the client together: perSecond on average, burst at
// once. A retry over the budget waits for its turn within its call's deadline, so that a cluster in trouble
// meets a steady trickle instead of a storm, and calls do not fail for the budget's sake alone.
func WithRetryBudget(perSecond float64, burst int) Option {
	return func(c *config) { c.retryRate, c.retryBurst = perSecond, burst }
}

func newConfig(opts []Option) (config, error) {
	cfg := config{
		timeout:        DefaultTimeout,
		attemptTimeout: DefaultAttemptTimeout,
		logger:         slog.New(slog.DiscardHandler),
		retryRate:      DefaultRetriesPerSecond,
		retryBurst:     DefaultRetryBurst,
	}
	rand.Read(cfg.clientID[:]) // never fails: it ends the process instead
	for _, opt := range opts {
		opt(&cfg)
	}
	switch {
	case cfg.timeout <= 0:
		return config{}, &InvalidError{Field: "timeout", Message: "must be positive"}
	case cfg.attemptTimeout <= 0:
		return config{}, &InvalidError{Field: "attempt timeout", Message: "must be positive"}
	case cfg.retryRate <= 0 || cfg.retryBurst < 1:
		return config{}, &InvalidError{Field: "retry budget", Message: "must be positive"}
	}
	return cfg, nil
}

// cleanEndpoints drops repetitions and refuses an empty list or name.
func cleanEndpoints(endpoints []string) ([]string, error) {
	var clean []string
	seen := make(map[string]bool, len(endpoints))
	for _, e := range endpoints {
		if e == "" {
			return nil, &InvalidError{Field: "endpoints", Message: "an endpoint is empty"}
		}
		if !seen[e] {
			seen[e] = true
			clean = append(clean, e)
		}
	}
	if len(clean) == 0 {
		return nil, errors.Join(ErrNoEndpoint, &InvalidError{Field: "endpoints", Message: "none given"})
	}
	return clean, nil
}
