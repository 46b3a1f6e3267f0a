package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

const (
	// A message of a multi-operation carries at most so many operations and, unless one alone is larger, so
	// many bytes of keys and values. Larger messages save little and make others wait behind them.
	messageOpsMax   = 256
	messageBodyMax  = 1 << 20
	messagesAtOnce  = 16
	opOverheadBytes = 16
)

// GetResult is one key's part of a MultiGet. Err is as from Get; Value is valid where it is nil.
type GetResult struct {
	Value
	Err error
}

// MultiGet reads keys of any shards, with one request to each node, and returns a result for each key in
// order. It is not atomic: each key is read at its own moment. Errors are per key, as from Get.
func (c *Client) MultiGet(ctx context.Context, keys [][]byte, opts ...ReadOption) []GetResult {
	o := newReadOptions(opts)
	m := c.newMulti("multi-get", false, o.stale(), len(keys))
	for _, key := range keys {
		req := &ostrakapb.GetRequest{Key: key, Level: o.level}
		m.add(key, nil, nil, &ostrakapb.Op{Op: &ostrakapb.Op_Get{Get: req}})
	}
	m.run(ctx)
	results := make([]GetResult, len(keys))
	for i, p := range m.parts {
		if results[i].Err = p.err; p.err == nil {
			results[i].Value, results[i].Err = valueOf(p.result.GetGet())
		}
	}
	return results
}

// SetItem is one key to be written by MultiSet.
type SetItem struct {
	Key, Value []byte
	// TTL is the key's life from now; 0: no expiry.
	TTL time.Duration
}

// MultiSet writes keys of any shards, with one request to each node, and returns an error, or nil, for each
// item in order. It is not atomic: each item is a Set of its own, and some may be done where others fail. Two
// items of one key are written in an order that is not defined. Errors are as from Set.
func (c *Client) MultiSet(ctx context.Context, items []SetItem) []error {
	m := c.newMulti("multi-set", true, false, len(items))
	for _, item := range items {
		req := &ostrakapb.SetRequest{Key: item.Key, Value: item.Value}
		var err error
		if item.TTL != 0 {
			req.TtlMs, err = toMillis(item.TTL)
		}
		req.Header = m.add(item.Key, item.Value, err, &ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: req}})
	}
	m.run(ctx)
	errs := make([]error, len(items))
	for i, p := range m.parts {
		errs[i] = p.err
	}
	return errs
}

// MultiDelete deletes keys of any shards, with one request to each node, and returns for each key in order
// whether it existed, and an error or nil. It is not atomic. Errors are as from Delete.
func (c *Client) MultiDelete(ctx context.Context, keys [][]byte) ([]bool, []error) {
	m := c.newMulti("multi-delete", true, false, len(keys))
	for _, key := range keys {
		req := &ostrakapb.DeleteRequest{Key: key}
		req.Header = m.add(key, nil, nil, &ostrakapb.Op{Op: &ostrakapb.Op_Delete{Delete: req}})
	}
	m.run(ctx)
	deleted, errs := make([]bool, len(keys)), make([]error, len(keys))
	for i, p := range m.parts {
		if errs[i] = p.err; p.err == nil {
			deleted[i] = p.result.GetDelete().GetDeleted()
		}
	}
	return deleted, errs
}

// multi is one running multi-operation. It goes in rounds: route what is pending by the newest map, pack it
// into messages by node, send them side by side, settle what was answered.
type multi struct {
	c            *Client
	name         string
	write, stale bool
	parts        []*part
	// courses remembers per shard what earlier rounds met.
	courses map[shard.ID]*course
	// opsMax shrinks when a message turns out too large as a whole.
	opsMax int
}

// part is one key's operation. It is pending until it has a result or an error.
type part struct {
	slot   shard.Slot
	bytes  int
	op     *ostrakapb.Op
	header *ostrakapb.Header // nil: a read
	name   writeName         // of a write
	// result, failure or err: what the latest attempt came to, err for good.
	result  *ostrakapb.OpResult
	failure *failure
	err     error
}

func (p *part) pending() bool { return p.result == nil && p.err == nil }

func (c *Client) newMulti(name string, write, stale bool, size int) *multi {
	return &multi{
		c: c, name: name, write: write, stale: stale,
		parts:   make([]*part, 0, size),
		courses: make(map[shard.ID]*course),
		opsMax:  messageOpsMax,
	}
}

// add appends a part and returns the header that its operation is to carry; nil: none. err, or a size over
// its limit, fails the part before anything is sent.
func (m *multi) add(key, value []byte, err error, op *ostrakapb.Op) *ostrakapb.Header {
	p := &part{op: op, bytes: len(key) + len(value) + opOverheadBytes}
	m.parts = append(m.parts, p)
	if err == nil {
		err = m.c.checkSizes(key, value)
	}
	if err != nil {
		p.err = err
		return nil
	}
	p.slot = shard.SlotOf(key)
	if m.write {
		p.header = new(ostrakapb.Header)
	}
	return p.header
}

func (m *multi) run(ctx context.Context) {
	ctx, cancel := m.c.bounded(ctx)
	defer cancel()
	pending := slices.Clone(m.parts)
	for {
		pending = slices.DeleteFunc(pending, func(p *part) bool {
			if !p.pending() {
				p.name.drop()
			}
			return !p.pending()
		})
		if len(pending) == 0 {
			return
		}
		if m.c.ctx.Err() != nil || ctx.Err() != nil {
			m.giveUp(ctx, pending)
			continue
		}
		rt := m.c.routes.Load()
		messages := m.pack(rt, pending)
		m.sendAll(ctx, rt, messages)
		if pause, again := m.settle(ctx, rt, messages); again && !m.c.pause(ctx, pause) {
			m.giveUp(ctx, pending)
		}
	}
}

// giveUp fails what is still pending. None of it is done, but what may have been done by a sending before.
func (m *multi) giveUp(ctx context.Context, pending []*part) {
	for _, p := range pending {
		if p.pending() {
			way := m.courses[m.c.routes.Load().m.ShardOf(p.slot)]
			if way == nil {
				way = new(course)
			}
			p.err = fmt.Errorf("%s: %w", m.name, m.c.ended(ctx, way, &p.name))
		}
	}
}

// message is the part of a round that goes to one node in one request.
type message struct {
	node   *node
	parts  []*part
	shards []*shardRoute // shards[i] is the route of parts[i]
	bytes  int
	// large: its parts are too large for the stream. held: as in attempt, of any part.
	large, held bool
	// calls are its parts on the way over pipe, unless pushErr kept them from it; nil: it goes by itself.
	calls   []*pipelineCall
	pipe    *pipe
	pushErr error
	// failure of the request as a whole; nil: it was answered.
	failure *failure
}

// pack chooses a node for each shard and fills messages, in the order of the parts.
func (m *multi) pack(rt *routes, pending []*part) []*message {
	var messages []*message
	nodes := make(map[shard.ID]*node)
	type kind struct {
		node  *node
		large bool
	}
	open := make(map[kind]*message)
	for _, p := range pending {
		sr := rt.of(p.slot)
		n := nodes[sr.id]
		if n == nil {
			n = m.course(sr.id).next(sr, m.stale)
			nodes[sr.id] = n
		}
		if p.header != nil {
			if err := p.name.take(sr.session, m.c.haveSessions()); err != nil {
				p.err = fmt.Errorf("%s: %w", m.name, err)
				continue
			}
			p.header.Attempt++
			p.name.fill(p.header)
		}
		to := kind{n, p.bytes > pipelineValueBytesMax}
		msg := open[to]
		if msg == nil || len(msg.parts) >= m.opsMax || msg.bytes+p.bytes > messageBodyMax {
			msg = &message{node: n, large: to.large}
			open[to] = msg
			messages = append(messages, msg)
		}
		msg.held = msg.held || p.header != nil && !p.name.repeatable()
		msg.parts = append(msg.parts, p)
		msg.shards = append(msg.shards, sr)
		msg.bytes += p.bytes
	}
	return messages
}

func (m *multi) course(id shard.ID) *course {
	way := m.courses[id]
	if way == nil {
		way = new(course)
		m.courses[id] = way
	}
	return way
}

// sendAll sends the messages, a few at once, and returns when all have been answered or have failed.
func (m *multi) sendAll(ctx context.Context, rt *routes, messages []*message) {
	for window := range slices.Chunk(messages, messagesAtOnce) {
		var alone []*message
		for _, msg := range window {
			if !m.push(ctx, rt, msg) {
				alone = append(alone, msg)
			}
		}
		m.sendAlone(ctx, rt, alone)
		alone = alone[:0]
		for _, msg := range window {
			if msg.calls != nil && !m.await(ctx, msg) {
				alone = append(alone, msg)
			}
		}
		m.sendAlone(ctx, rt, alone)
	}
}

// push gives a message's parts to the node's stream, without waiting; false: they are large, or the node has none.
func (m *multi) push(ctx context.Context, rt *routes, msg *message) bool {
	if msg.large || msg.node.pipeline.absent() {
		return false
	}
	a := attempt{write: m.write, epoch: uint64(rt.m.Epoch()), node: msg.node}
	a.deadline, _ = ctx.Deadline() // run gave it one
	msg.calls = make([]*pipelineCall, len(msg.parts))
	for i, p := range msg.parts {
		a.route, a.name = msg.shards[i], p.name
		msg.calls[i] = m.c.newCall(&a, p.op)
	}
	msg.pipe, msg.pushErr = msg.node.pipeline.push(msg.calls...)
	return true
}

// await waits for the answers to what was pushed, and hands them to the parts; false: the node has no stream, and nothing
// was done.
func (m *multi) await(ctx context.Context, msg *message) bool {
	a := attempt{write: m.write, node: msg.node}
	for i, call := range msg.calls {
		o := outcome{err: msg.pushErr}
		if msg.pushErr == nil {
			o = msg.pipe.wait(ctx, call)
		}
		a.route = msg.shards[i]
		p := msg.parts[i]
		if errors.Is(o.err, errPipelineAbsent) { // then it is so for all, whatever has become of some meanwhile
			for _, p := range msg.parts {
				p.result, p.failure = nil, nil
			}
			return false
		}
		p.result, p.failure = m.c.understood(ctx, &a, o)
	}
	return true
}

// sendAlone sends messages by calls of their own, side by side.
func (m *multi) sendAlone(ctx context.Context, rt *routes, messages []*message) {
	var wg sync.WaitGroup
	for i, msg := range messages {
		if i == len(messages)-1 {
			m.send(ctx, rt, msg)
			break
		}
		wg.Go(func() { m.send(ctx, rt, msg) })
	}
	wg.Wait()
}

// send makes one request and hands its results to the parts.
func (m *multi) send(ctx context.Context, rt *routes, msg *message) {
	req := &ostrakapb.BatchRequest{Header: &ostrakapb.Header{
		Epoch:    uint64(rt.m.Epoch()),
		ClientId: m.c.cfg.clientID[:],
	}}
	for _, p := range msg.parts {
		req.Ops = append(req.Ops, p.op)
	}
	what := sending{write: m.write, held: msg.held, bytes: msg.bytes}
	msg.failure = m.c.send(ctx, msg.shards, msg.node, what, func(ctx context.Context) error {
		resp, err := msg.node.kv.Batch(ctx, req)
		if err != nil {
			return err
		}
		if len(resp.GetResults()) != len(msg.parts) {
			return fmt.Errorf("%d results for %d operations", len(resp.GetResults()), len(msg.parts))
		}
		for i, p := range msg.parts {
			p.result = resp.GetResults()[i]
		}
		return nil
	})
}

// settle looks at all answers of a round. Parts that may be sent again become pending again, and each of
// their shards draws its consequences once; pause is the longest that one of them asks for.
func (m *multi) settle(ctx context.Context, rt *routes, messages []*message) (pause time.Duration, again bool) {
	drawn := make(map[shard.ID]bool)
	for _, msg := range messages {
		if m.tooLarge(msg) {
			again = true
			continue
		}
		for i, p := range msg.parts {
			sr, f := msg.shards[i], m.failureOf(msg, p)
			if f == nil {
				if !m.stale {
					sr.learn(msg.node)
				}
				continue
			}
			if m.write {
				p.name.judge(f)
			}
			if f.remedy == giveUp {
				p.err = fmt.Errorf("%s: %w", m.name, f.err)
				continue
			}
			again = true
			if !drawn[sr.id] {
				drawn[sr.id] = true
				wait, _ := m.c.settle(ctx, m.course(sr.id), rt, sr, msg.node, f)
				pause = max(pause, wait)
			}
		}
	}
	return pause, again
}

// failureOf is why a part of a message failed, the part's own; nil: it has its result.
func (m *multi) failureOf(msg *message, p *part) *failure {
	if msg.failure != nil {
		f := *msg.failure
		return &f
	}
	f := p.failure
	if detail := p.result.GetError(); detail != nil {
		understood := understandDetail(detail, m.write)
		f = &understood
	}
	if f != nil {
		p.result, p.failure = nil, nil
	}
	return f
}

// tooLarge says whether a message was refused for its size as a whole, and halves the next ones.
func (m *multi) tooLarge(msg *message) bool {
	if msg.failure == nil || len(msg.parts) == 1 || !errors.Is(msg.failure.err, ErrLimit) {
		return false
	}
	m.opsMax = min(m.opsMax, max(1, len(msg.parts)/2))
	return true
}
