package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// operation is one request of a single shard, on its way through as many attempts as it takes.
type operation struct {
	name string
	// write: an attempt may change something, so that it is not sent again once its outcome is unknown.
	write bool
	// stale: any replica may answer.
	stale bool
	// route finds the shard in the routes of the moment.
	route func(*routes) (*shardRoute, error)
	// send makes one attempt and keeps the answer.
	send func(ctx context.Context, kv ostrakapb.KVClient, h *ostrakapb.Header) error
}

// bySlot routes an operation on a key.
func bySlot(key []byte) func(*routes) (*shardRoute, error) {
	slot := shard.SlotOf(key)
	return func(r *routes) (*shardRoute, error) { return r.of(slot), nil }
}

// run sends an operation until it is answered, must not be sent again, or is out of time.
func (c *Client) run(ctx context.Context, op *operation) error {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	h := &ostrakapb.Header{ClientId: c.cfg.clientID[:]}
	if op.write {
		h.Request = c.session.begin()
		defer c.session.end(h.Request)
	}
	var way course
	for {
		if err := c.over(ctx, &way); err != nil {
			return fmt.Errorf("%s: %w", op.name, err)
		}
		rt := c.routes.Load()
		sr, err := op.route(rt)
		if err != nil {
			return err
		}
		n := way.next(sr, op.stale)
		h.Epoch = uint64(rt.m.Epoch())
		h.LowestUnanswered = c.session.lowestUnanswered()
		h.Attempt = uint32(way.attempts)
		f := c.attempt(ctx, []*shardRoute{sr}, n, op.write, func(ctx context.Context) error { return op.send(ctx, n.kv, h) })
		if f == nil {
			if !op.stale {
				sr.learn(n)
			}
			return nil
		}
		pause, err := c.settle(ctx, &way, rt, sr, n, f)
		if err != nil {
			return fmt.Errorf("%s: %w", op.name, err)
		}
		if !c.pause(ctx, pause) {
			return fmt.Errorf("%s: %w", op.name, c.ended(ctx, &way))
		}
	}
}

// over is the error of an operation that must not begin another attempt; nil: it may.
func (c *Client) over(ctx context.Context, way *course) error {
	if c.ctx.Err() != nil || ctx.Err() != nil {
		return c.ended(ctx, way)
	}
	return nil
}

// ended is the error of an operation that ran out of time, or of a client, between two attempts.
func (c *Client) ended(ctx context.Context, way *course) error {
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return overtime(ctx, way.attempts, way.last)
}

// course is what one operation, or one shard's part of a multi-operation, remembers between its attempts.
type course struct {
	attempts int
	// redirects counts answers that named another leader.
	redirects int
	// turn counts the replicas asked for want of a known leader.
	turn int
	// last is the latest failure as the caller would see it.
	last error
}

// next picks the node of the next attempt: the leader if it is known and not suspected; otherwise, and for
// stale reads, the replicas in turn, suspects only if there is nobody else.
func (w *course) next(sr *shardRoute, stale bool) *node {
	w.attempts++
	if stale && w.attempts == 1 {
		w.turn = rand.IntN(len(sr.replicas))
	}
	leader := sr.leader.Load()
	if !stale && leader != nil && !leader.suspected() {
		return leader
	}
	for range sr.replicas {
		n := sr.replicas[w.turn%len(sr.replicas)]
		w.turn++
		if !n.suspected() {
			return n
		}
	}
	// All are suspects, and the turn is back where it was. The known leader is as good a guess as any.
	if !stale && leader != nil && w.attempts%2 == 1 {
		return leader
	}
	n := sr.replicas[w.turn%len(sr.replicas)]
	w.turn++
	return n
}

// attempt sends once to one node, for these shards, and understands the failure; nil: it was answered.
//
// A read is given up after the attempt timeout. A write is given up only as long as nothing of it was sent;
// after that it waits for its answer, and the timeout merely makes the node suspect, so that other calls look
// for another leader.
func (c *Client) attempt(ctx context.Context, shards []*shardRoute, n *node, write bool, send func(context.Context) error) *failure {
	marked, mark := withSendMark(ctx)
	var cancel context.CancelFunc
	if write {
		marked, cancel = context.WithCancel(marked)
		timer := time.AfterFunc(c.cfg.attemptTimeout, func() {
			doubt(n, shards)
			if !mark.sent.Load() {
				cancel() // should it be sent just now, the mark will tell, and the outcome is unknown
			}
		})
		defer timer.Stop()
	} else {
		marked, cancel = context.WithTimeout(marked, c.cfg.attemptTimeout)
	}
	defer cancel()
	err := send(marked)
	if err == nil {
		n.trust()
		return nil
	}
	f := understand(err, write, mark.sent.Load())
	silent := f.detail == nil && (f.remedy == goElsewhere || errors.Is(f.err, ErrOutcomeUnknown))
	if silent && ctx.Err() == nil { // the caller's own end is not the node's fault
		doubt(n, shards)
	}
	return &f
}

// doubt makes a node that did not answer the last choice for a while, and no shard's leader.
func doubt(n *node, shards []*shardRoute) {
	n.suspect()
	for _, sr := range shards {
		sr.forget(n)
	}
}

// settle draws the consequences of a failed attempt: what it teaches about leaders and the map, and how long
// to pause before the next. An error means that there must be none.
func (c *Client) settle(ctx context.Context, way *course, rt *routes, sr *shardRoute, n *node, f *failure) (time.Duration, error) {
	way.last = f.err
	if f.detail != nil {
		n.trust()
		if shard.Epoch(f.detail.GetEpoch()) > rt.m.Epoch() && f.remedy != refreshMap {
			c.refreshSoon()
		}
	}
	c.cfg.logger.Debug("attempt failed", "node", n.address, "shard", sr.id, "attempt", way.attempts, "error", f.err)
	pause := backOff(way.attempts)
	switch f.remedy {
	case giveUp:
		return 0, f.err
	case followLeader:
		sr.forget(n)
		if leader := c.named(rt, f.detail); leader != nil && leader != n {
			sr.learn(leader)
			// Two nodes may each take the other for the leader for a while: only the first hops are free.
			if way.redirects++; way.redirects <= 2 && !leader.suspected() {
				pause = 0
			}
		}
	case refreshMap:
		c.refresh(ctx)
		if c.routes.Load() != rt {
			pause = 0
		}
	case goElsewhere:
		sr.forget(n)
		if f.detail == nil { // nobody answered there: the node may have moved, and only the others know
			c.refreshSoon()
		}
	}
	if wish := f.retryAfter(); wish > 0 {
		pause = max(pause, jitter(wish))
	}
	return pause, nil
}

// named is the leader that an answer names; nil: it names none that can be reached. The address of the answer
// comes first: it may be newer than the map.
func (c *Client) named(rt *routes, d *ostrakapb.ErrorDetail) *node {
	address := d.GetLeaderAddress()
	if address == "" {
		described, ok := rt.m.Node(shard.NodeID(d.GetLeaderNode()))
		if !ok {
			return nil
		}
		address = described.Address
	}
	n, err := c.pool.node(address)
	if err != nil {
		return nil
	}
	return n
}
