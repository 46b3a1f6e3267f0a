package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// routes is where requests go: one map, and what the client has learnt about leaders since. Immutable but for
// the leaders; a newer map makes a new routes, which the client swaps in.
type routes struct {
	m      *shard.Map
	shards map[shard.ID]*shardRoute
	// Limits of keys and values in bytes, told by the node that gave the map; 0: not known.
	keyBytesMax, valueBytesMax int64
}

// shardRoute is the way to one shard.
type shardRoute struct {
	id shard.ID
	// replicas, never empty: the preferred leader first, then voters, then the rest.
	replicas []*node
	// leader is the node that last answered as leader or was last named as leader; nil: not known.
	// It is not always one of replicas: an answer can be newer than the map.
	leader atomic.Pointer[node]
	// session is the client's with the shard: the same in every newer map.
	session *shardSession
}

// of returns the route of a slot's shard. A valid map has one for every slot.
func (r *routes) of(s shard.Slot) *shardRoute { return r.shards[r.m.ShardOf(s)] }

// forget drops a leader that turned out not to be, unless another has been learnt meanwhile.
func (r *shardRoute) forget(n *node) { r.leader.CompareAndSwap(n, nil) }

// learn notes a leader. It writes only changes: it is called for every answer.
func (r *shardRoute) learn(n *node) {
	if r.leader.Load() != n {
		r.leader.Store(n)
	}
}

// newRoutes resolves a map's nodes to connections and carries over the leaders that old knew and that still
// hold a replica; hints fill in the others.
func newRoutes(p *pool, m *shard.Map, old *routes, hints map[shard.ID]shard.NodeID) (*routes, error) {
	r := &routes{m: m, shards: make(map[shard.ID]*shardRoute)}
	for _, s := range m.Shards() {
		sr := &shardRoute{id: s.ID}
		for _, replica := range inAskingOrder(s) {
			described, ok := m.Node(replica.Node)
			if !ok {
				return nil, fmt.Errorf("shard %d: replica on unknown node %q", s.ID, replica.Node)
			}
			n, err := p.node(described.Address)
			if err != nil {
				return nil, err
			}
			sr.replicas = append(sr.replicas, n)
			if replica.Node == hints[s.ID] {
				sr.leader.Store(n)
			}
		}
		if old != nil {
			if before := old.shards[s.ID]; before != nil {
				if leader := before.leader.Load(); leader != nil && slices.Contains(sr.replicas, leader) {
					sr.leader.Store(leader)
				}
			}
		}
		r.shards[s.ID] = sr
	}
	return r, nil
}

func inAskingOrder(s shard.Shard) []shard.Replica {
	rank := func(r shard.Replica) int {
		switch {
		case r.Node == s.Preferred:
			return 0
		case r.Voter:
			return 1
		}
		return 2
	}
	replicas := slices.Clone(s.Replicas)
	slices.SortStableFunc(replicas, func(a, b shard.Replica) int { return cmp.Compare(rank(a), rank(b)) })
	return replicas
}

// refresher lets one goroutine at a time fetch the map, for all who wait for it.
type refresher struct {
	mu sync.Mutex
	// running is closed when the fetch under way ends; nil: none is.
	running chan struct{}
	// closed refuses new fetches, so that Close can wait for the last.
	closed bool
	wg     sync.WaitGroup
}

// refresh fetches the map, or joins a fetch under way, and returns when that has ended or ctx has. Whether it
// brought a newer map is seen in c.routes: the caller routes again either way.
func (c *Client) refresh(ctx context.Context) {
	if done := c.refreshSoon(); done != nil {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// refreshSoon starts a fetch unless one is under way, and returns the channel that its end closes; nil after
// Close. The goroutine is joined by Close, which also cancels it.
func (c *Client) refreshSoon() <-chan struct{} {
	r := &c.refresher
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running != nil || r.closed {
		return r.running
	}
	done := make(chan struct{})
	r.running = done
	r.wg.Go(func() {
		if err := c.fetchAny(c.ctx); err != nil {
			c.cfg.logger.Debug("no newer map", "error", err)
		}
		r.mu.Lock()
		r.running = nil
		r.mu.Unlock()
		close(done)
	})
	return done
}

// fetchAny asks nodes in a random order, suspects last, until one has a newer map. The error of one that all
// nodes answered is nil: then the map is as new as they know.
func (c *Client) fetchAny(ctx context.Context) error {
	var errs []error
	for _, n := range c.askingOrder() {
		before := c.routes.Load()
		if err := c.fetch(ctx, n, before); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.address, err))
		}
		if c.routes.Load() != before {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// askingOrder lists the nodes of the map, then the endpoints that are none.
func (c *Client) askingOrder() []*node {
	var all []*node
	add := func(address string) {
		if n, err := c.pool.node(address); err == nil && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	if rt := c.routes.Load(); rt != nil {
		for _, n := range rt.m.Nodes() {
			add(n.Address)
		}
	}
	members := len(all)
	rand.Shuffle(members, func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, e := range c.endpoints {
		add(e)
	}
	slices.SortStableFunc(all, func(a, b *node) int {
		switch {
		case a.suspected() == b.suspected():
			return 0
		case b.suspected():
			return -1
		}
		return 1
	})
	return all
}

// fetch asks one node for a map newer than have's, and swaps it in. have is nil at the start.
func (c *Client) fetch(ctx context.Context, n *node, have *routes) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.attemptTimeout)
	defer cancel()
	req := &ostrakapb.MapRequest{}
	if have != nil {
		req.KnownEpoch = uint64(have.m.Epoch())
	}
	resp, err := n.admin.Map(ctx, req)
	if err != nil {
		f := understand(err, false, false)
		if f.detail == nil {
			n.suspect()
		}
		return f.err
	}
	n.trust()
	if want := c.clusterID.Load(); want != nil && resp.GetClusterId() != *want {
		return fmt.Errorf("%w: it is of cluster %s, not %s", ErrWrongCluster, resp.GetClusterId(), *want)
	}
	if resp.GetFormatLevel() > 0 {
		c.level.Store(resp.GetFormatLevel())
	}
	if resp.GetMap() == nil {
		return nil
	}
	m, err := mapFromProto(resp.GetMap())
	if err != nil {
		return err
	}
	return c.adopt(m, resp, have)
}

// adopt swaps a newer map in. At most one fetch runs at a time (New's, then the refresher's), so nothing is
// overtaken between the load and the store.
func (c *Client) adopt(m *shard.Map, resp *ostrakapb.MapResponse, have *routes) error {
	if have != nil && m.Epoch() <= have.m.Epoch() {
		return nil
	}
	hints := make(map[shard.ID]shard.NodeID, len(resp.GetLeaders()))
	born := make(map[shard.ID]int64)
	for _, h := range resp.GetLeaders() {
		hints[shard.ID(h.GetShard())] = shard.NodeID(h.GetNode())
		if c.haveSessions() {
			born[shard.ID(h.GetShard())] = h.GetShardTimeMs()
		}
	}
	next, err := newRoutes(c.pool, m, have, hints)
	if err != nil {
		return err
	}
	for id, sr := range next.shards {
		sr.session = c.sessions.of(id, born[id])
	}
	next.keyBytesMax, next.valueBytesMax = resp.GetKeyBytesMax(), resp.GetValueBytesMax()
	id := resp.GetClusterId()
	c.clusterID.Store(&id)
	c.routes.Store(next)
	c.cfg.logger.Debug("map adopted", "epoch", m.Epoch(), "nodes", len(m.Nodes()), "shards", len(m.Shards()))

	inUse := make(map[string]bool)
	for _, n := range m.Nodes() {
		inUse[n.Address] = true
	}
	for _, e := range c.endpoints {
		inUse[e] = true
	}
	c.pool.keep(inUse)
	return nil
}
