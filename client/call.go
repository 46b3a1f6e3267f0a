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

// kind is what an operation's attempts have in common.
type kind struct {
	name string
	// write: an attempt may change something, so that it needs a name to be sent again once its outcome is unknown.
	write bool
	// stale: any replica may answer.
	stale bool
}

// operation is a request to one shard, on its way through as many attempts as it takes.
type operation interface {
	// route finds the shard in the routes of the moment.
	route(*routes) (*shardRoute, error)
	// try makes one attempt and keeps the answer; nil: there is one.
	try(context.Context, *Client, *attempt) *failure
}

// keyOperation is an operation on one key, which may share its way with others. It holds all that its way takes, so that it
// is made with one allocation.
type keyOperation struct {
	kind
	key []byte
	// bytes of keys and values.
	bytes int
	op    *ostrakapb.Op
	// header is the one in op.
	header *ostrakapb.Header

	slot    shard.Slot
	attempt attempt
	result  *ostrakapb.OpResult
}

func (o *keyOperation) route(r *routes) (*shardRoute, error) { return r.of(o.slot), nil }

// runKey sends an operation on one key until it is answered, must not be sent again, or is out of time.
func (c *Client) runKey(ctx context.Context, o *keyOperation) (*ostrakapb.OpResult, error) {
	o.slot = shard.SlotOf(o.key)
	if err := c.repeat(ctx, &o.kind, o, &o.attempt); err != nil {
		return nil, err
	}
	return o.result, nil
}

// attempt is one sending of one operation.
type attempt struct {
	write  bool
	name   writeName // of a write
	number uint32    // counted from 1
	epoch  uint64
	route  *shardRoute
	node   *node
	// deadline is the operation's.
	deadline time.Time
}

// held: it must not be made again unless nothing of it was sent, so it waits for its answer.
func (a *attempt) held() bool { return a.write && !a.name.repeatable() }

// fill gives the header of an operation what belongs to the attempt. What else there is to say is in the message's header, or
// the operation goes by itself.
func (c *Client) fill(h *ostrakapb.Header, a *attempt, alone bool) {
	if alone {
		h.Epoch, h.ClientId = a.epoch, c.cfg.clientID[:]
	}
	if a.write {
		h.Attempt = a.number
		a.name.fill(h)
	}
}

// repeat is the loop behind every operation of one shard. a is room for its attempts.
func (c *Client) repeat(ctx context.Context, k *kind, o operation, a *attempt) error {
	a.write = k.write
	deadline, bounded := ctx.Deadline()
	if a.deadline = deadline; !bounded {
		a.deadline = time.Now().Add(c.cfg.timeout)
	}
	defer a.name.drop()
	var way course
	for {
		if err := c.over(ctx, &way, &a.name); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		rt := c.routes.Load()
		sr, err := o.route(rt)
		if err != nil {
			return err
		}
		a.route, a.node = sr, way.next(sr, k.stale)
		a.epoch, a.number = uint64(rt.m.Epoch()), uint32(way.attempts)
		if k.write {
			if err := a.name.take(sr.session, c.haveSessions()); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
		}
		f := o.try(ctx, c, a)
		if f == nil {
			if !k.stale {
				sr.learn(a.node)
			}
			return nil
		}
		if !bounded {
			// Attempts keep the deadline by themselves; what comes between them needs a context that does. Nearly every
			// operation is settled by its first attempt and spared it.
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, a.deadline)
			defer cancel()
			bounded = true
		}
		if k.write {
			a.name.judge(f)
		}
		if f.remedy != giveUp && ctx.Err() != nil { // its end is the caller's, and says nothing of nodes
			way.last = f.err
			return fmt.Errorf("%s: %w", k.name, c.ended(ctx, &way, &a.name))
		}
		pause, err := c.settle(ctx, &way, rt, sr, a.node, f)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		if !c.pause(ctx, pause) {
			return fmt.Errorf("%s: %w", k.name, c.ended(ctx, &way, &a.name))
		}
	}
}

// try makes one attempt over the node's stream, or by a call of its own where the operation is large or the node has no stream.
func (o *keyOperation) try(ctx context.Context, c *Client, a *attempt) *failure {
	if o.bytes <= pipelineValueBytesMax && !a.node.pipeline.absent() {
		c.fill(o.header, a, false)
		f, absent := o.piped(ctx, c, a)
		if !absent {
			return f
		}
	}
	c.fill(o.header, a, true)
	return c.alone(ctx, a, o.bytes, func(ctx context.Context) (err error) {
		o.result, err = unary(ctx, a.node.kv, o.op)
		return err
	})
}

// piped makes an attempt over the node's stream. absent: nothing was done, the node has none.
func (o *keyOperation) piped(ctx context.Context, c *Client, a *attempt) (f *failure, absent bool) {
	out := a.node.pipeline.call(ctx, c.newCall(a, o.op))
	if errors.Is(out.err, errPipelineAbsent) {
		return nil, true
	}
	o.result, f = c.understood(ctx, a, out)
	return f, false
}

// newCall puts an attempt into the form in which it travels over a stream.
func (c *Client) newCall(a *attempt, op *ostrakapb.Op) *pipelineCall {
	call := newPipelineCall()
	var err error
	if call.op, err = ostrakapb.AppendOp(call.op, op); err != nil {
		panic(fmt.Sprintf("client: an operation does not encode: %v", err)) // it has no field that could fail to
	}
	call.write, call.held, call.epoch, call.route, call.deadline = a.write, a.held(), a.epoch, a.route, a.deadline
	call.patience = time.Now().Add(c.cfg.attemptTimeout)
	return call
}

// understood draws the consequences of one answer that came over a stream, or of its absence.
func (c *Client) understood(ctx context.Context, a *attempt, o outcome) (*ostrakapb.OpResult, *failure) {
	if o.err == nil {
		a.node.trust()
		detail := o.result.GetError()
		if detail == nil {
			return o.result, nil
		}
		f := understandDetail(detail, a.write)
		return nil, &f
	}
	f := understandTransport(o.err, a.write, o.sent)
	callersEnd := ctx.Err() != nil || errors.Is(o.err, errDeadline)
	if f.silent() && !callersEnd {
		doubt(a.node, a.route)
	}
	return nil, &f
}

// over is the error of an operation that must not begin another attempt; nil: it may.
func (c *Client) over(ctx context.Context, way *course, name *writeName) error {
	if c.ctx.Err() != nil || ctx.Err() != nil {
		return c.ended(ctx, way, name)
	}
	return nil
}

// ended is the error of an operation that ran out of time, or of a client, between two attempts.
func (c *Client) ended(ctx context.Context, way *course, name *writeName) error {
	switch {
	case c.ctx.Err() == nil:
		return overtime(ctx, way.attempts, way.last, name.maybeDone)
	case name.maybeDone:
		return fmt.Errorf("%w: %w, the last: %v", ErrOutcomeUnknown, errClosedMeanwhile, way.last)
	}
	return ErrClosed
}

var errClosedMeanwhile = errors.New("the client was closed meanwhile")

// course is what one operation, or one shard's part of a multi-operation, remembers between its attempts.
type course struct {
	attempts int
	// redirects counts answers that named another leader.
	redirects int
	// renamed counts answers that gave the operation another name.
	renamed int
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

// alone makes one attempt by a call of its own, and understands the failure; nil: it was answered.
func (c *Client) alone(ctx context.Context, a *attempt, bytes int, send func(context.Context) error) *failure {
	ctx, cancel := context.WithDeadline(ctx, a.deadline)
	defer cancel()
	return c.send(ctx, []*shardRoute{a.route}, a.node, sending{write: a.write, held: a.held(), bytes: bytes}, send)
}

// sending is what a request that goes by itself carries.
type sending struct {
	write bool
	// held: as in attempt; of any part.
	held  bool
	bytes int
}

// sendBytesPerSecond is how slowly a large write may go without being given up.
const sendBytesPerSecond = 4 << 20

// send sends once to one node, for these shards, and understands the failure; nil: it was answered.
//
// A read is given up after the attempt timeout. A write makes the node suspect then, so that other calls look for another
// leader, and is given up if nothing of it was sent. One that was sent waits for its answer, as long as it takes if it is held;
// else as long again as it took to be suspect, and what its bytes may take.
func (c *Client) send(ctx context.Context, shards []*shardRoute, n *node, what sending, send func(context.Context) error) *failure {
	marked, mark := withSendMark(ctx)
	var cancel context.CancelFunc
	if what.write {
		marked, cancel = context.WithCancel(marked)
		timer := time.AfterFunc(c.cfg.attemptTimeout, func() {
			doubt(n, shards...)
			if !mark.sent.Load() {
				cancel() // should it be sent just now, the mark will tell, and the outcome is unknown
			}
		})
		defer timer.Stop()
		if !what.held {
			patience := 2*c.cfg.attemptTimeout + time.Duration(what.bytes)*time.Second/sendBytesPerSecond
			defer time.AfterFunc(patience, cancel).Stop()
		}
	} else {
		marked, cancel = context.WithTimeout(marked, c.cfg.attemptTimeout)
	}
	defer cancel()
	err := send(marked)
	if err == nil {
		n.trust()
		return nil
	}
	f := understand(err, what.write, mark.sent.Load())
	if f.silent() && ctx.Err() == nil { // the caller's own end is not the node's fault
		doubt(n, shards...)
	}
	return &f
}

// doubt makes a node that did not answer the last choice for a while, and no shard's leader.
func doubt(n *node, shards ...*shardRoute) {
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
			way.redirects++
			switch down := leader.hurry(); {
			case down && way.redirects <= 4: // what is sent before it is connected fails
				pause = min(pause, pauseFirst)
			case way.redirects <= 2 && !leader.suspected():
				pause = 0
			}
		}
	case newName:
		if way.renamed++; way.renamed <= 2 {
			pause = 0
		}
	case refreshMap:
		c.refresh(ctx)
		if c.routes.Load() != rt {
			pause = 0
		}
	case goElsewhere:
		sr.forget(n)
		// Nobody answered there: the node may have moved, and only the others know. One that took the request was there.
		if f.detail == nil && !errors.Is(f.err, ErrOutcomeUnknown) {
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
