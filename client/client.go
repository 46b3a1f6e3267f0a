package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// Client talks to one cluster. All methods are safe for use by many goroutines; one Client per process is
// enough, and shares its connections among them.
type Client struct {
	cfg       config
	endpoints []string
	pool      *pool
	sessions  sessions
	budget    *budget
	refresher refresher
	watching  watching

	// ctx ends at Close, and with it everything that the client does.
	ctx    context.Context
	cancel context.CancelCauseFunc

	// routes is never nil once New has returned. Written by one fetch at a time.
	routes atomic.Pointer[routes]
	// clusterID is set with the first map.
	clusterID atomic.Pointer[string]
	// level is the cluster's format level, as a node told it last; 0: not known.
	level atomic.Uint32
}

// New reaches a cluster through any of its nodes' addresses ("host:port") and fetches its map; after that the
// client finds the other nodes by itself.
//
// Errors: ErrNoEndpoint if no endpoint answered, ErrNotBootstrapped if one answered that belongs to no cluster
// yet, ErrInvalid for a bad option. New does not retry: whoever wants to wait for a cluster calls it again.
func New(ctx context.Context, endpoints []string, opts ...Option) (*Client, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	if endpoints, err = cleanEndpoints(endpoints); err != nil {
		return nil, err
	}
	c := &Client{
		cfg:       cfg,
		endpoints: endpoints,
		pool:      newPool(&cfg),
		budget:    newBudget(cfg.retryRate, cfg.retryBurst, time.Now()),
	}
	c.pool.header = func() *ostrakapb.Header {
		return &ostrakapb.Header{ClientId: cfg.clientID[:]}
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	if err := c.start(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) start(ctx context.Context) error {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	err := c.fetchAny(ctx)
	switch {
	case c.routes.Load() != nil:
		return nil
	case errors.Is(err, ErrNotBootstrapped):
		return fmt.Errorf("%w; make a cluster with `ostraka cluster bootstrap --nodes ID=ADDRESS,…`", err)
	case errors.Is(err, ErrUnavailable):
		return fmt.Errorf("%w: %w", ErrNoEndpoint, err)
	case err == nil:
		return fmt.Errorf("%w: a node answered without a map", ErrNoEndpoint)
	}
	return err
}

// haveSessions reports whether the cluster's shards know sessions.
func (c *Client) haveSessions() bool { return c.level.Load() >= sessionsLevel }

// Close ends the calls that are under way, closes all connections and waits for the client's goroutines.
// Writes that were sent and not answered report ErrOutcomeUnknown. Close may be called again.
func (c *Client) Close() error {
	c.refresher.mu.Lock()
	c.refresher.closed = true
	c.refresher.mu.Unlock()
	c.cancel(ErrClosed)
	c.pool.close()
	c.refresher.wg.Wait()
	c.watching.close()
	return nil
}

// Map returns the map by which the client routes at the moment. It is immutable.
func (c *Client) Map() *shard.Map { return c.routes.Load().m }

// ShardOf returns the shard that holds a key by the map known here.
func (c *Client) ShardOf(key []byte) shard.ID { return c.Map().ShardOf(shard.SlotOf(key)) }

// ClusterID returns the identity that the cluster was given at its bootstrap.
func (c *Client) ClusterID() string { return *c.clusterID.Load() }

// bounded gives ctx the default timeout where it has no deadline.
func (c *Client) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.cfg.timeout)
}
