package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// ChangeKind says what a change did to its key.
type ChangeKind uint8

const (
	// ChangeSet: the key has Value and TTL from now on. So it is told of every write that leaves the key there, by whatever call.
	ChangeSet ChangeKind = 1
	// ChangeDelete: the key was deleted.
	ChangeDelete ChangeKind = 2
	// ChangeExpire: the key had expired, and was removed for that. That may come some time after it expired; and not at all if it was
	// written meanwhile, which is then a set of a key that did not exist.
	ChangeExpire ChangeKind = 3
)

// String is "set", "delete" or "expire".
func (k ChangeKind) String() string {
	switch k {
	case ChangeSet:
		return "set"
	case ChangeDelete:
		return "delete"
	case ChangeExpire:
		return "expire"
	}
	return fmt.Sprintf("change %d", uint8(k))
}

// Change is one change of one key.
type Change struct {
	Kind  ChangeKind
	Key   []byte
	Value []byte // of a set
	// Version of the key after a set; of the shard's counter at a delete or an expiry. A key's changes come in ascending order of it.
	Version uint64
	// Time is when the change was made by its shard's own clock, to the millisecond.
	Time time.Time
	// TTL is the life that a set left the key with, from Time on; 0: it does not expire.
	TTL time.Duration
	// Previous is the key's state before; nil: it did not exist. Its Value is there only with [WithPrevious], and its TTL never.
	Previous *Value
}

// CompactedError ends a watch whose changes the cluster does not hold any more. errors.Is(err, ErrCompacted).
type CompactedError struct {
	// Restart is where to begin again: behind what this watch has yielded, and where it was too late, behind what had happened when it
	// learnt of that. What lies between is lost to watches: begin one from Restart, and then read the keys as they are now. In a
	// shard that this watch had not heard from, that one may be too late in turn, and tells of another Restart.
	Restart Token
}

func (e *CompactedError) Error() string {
	return "compacted: changes that the watch needs are not held any more"
}

// Is makes errors.Is(err, ErrCompacted) true.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }

// WatchOption changes what Watch does.
type WatchOption func(*watchOptions)

type watchOptions struct {
	from     *Token
	previous bool
	buffer   int
}

// From goes on behind a token of an earlier watch, which should have been one of the same keys.
func From(t Token) WatchOption { return func(o *watchOptions) { o.from = &t } }

// WithPrevious yields changes with the values that keys had before.
func WithPrevious() WatchOption { return func(o *watchOptions) { o.previous = true } }

// DefaultWatchBuffer is what a watch buffers at most, in bytes.
const DefaultWatchBuffer = 256 << 10

// Buffer bounds the bytes of changes that are held here because nobody has called Next for them yet; default DefaultWatchBuffer. Each
// shard is given its part of it, and may exceed that by one change. Beyond it the nodes hold the changes, as long as they can.
func Buffer(bytes int) WatchOption { return func(o *watchOptions) { o.buffer = bytes } }

// Watch follows the changes of some keys. Make it with [Client.Watch], and Close it. Next and Changes are for one goroutine at a
// time; Token and Close for any.
type Watch struct {
	c        *Client
	keys     KeyRange
	previous bool
	window   int64 // bytes, of each part
	parts    []*watchPart
	// arrived holds a token when there is something for Next.
	arrived chan struct{}

	mu sync.Mutex
	// queue holds the changes that Next has not returned, in order of arrival. The windows bound it.
	queue []arrival
	// err is what Next returns when the queue is empty; nil: it waits.
	err error
}

// watchPart is a watch's part in one shard.
type watchPart struct {
	watch  *Watch
	shard  shard.ID
	number uint64 // tells it from all others of the client
	// create is the number of the create by which the feed's stream was told of it; 0: it was not. Guarded by the feed's mu.
	create uint64

	// Guarded by watch.mu.
	feed *watchFeed
	// received is behind all that has arrived, delivered behind all that Next has returned, and what needed not be.
	received, delivered position
	waiting             int   // changes in watch.queue
	held                int64 // bytes that the node believes to be here: in the queue, or not given back
	owed                int64 // the latter
	// restart is where to begin again, if the part turns out to be compacted: zero, unless a replica has said so and none has served
	// it since.
	restart position
}

type arrival struct {
	part   *watchPart
	change *ostrakapb.Change
	bytes  int64
}

// Watch follows the changes of all keys in a range: [Key], [Prefix], [All] or any other. Without [From] it yields no change that was
// acknowledged before the call, and every one that is made after it has returned; with it, every one behind the token. Each change
// comes exactly once; changes of one key in their order, of different keys in one as they arrive. When nodes fail or
// leaders change the watch goes on elsewhere by itself, for as long as that takes.
//
// What is not read in time waits in this process up to [Buffer], and in the nodes' histories as far as those reach. Then, or where
// the token is too old, the watch ends with a [*CompactedError]. Writes never wait for watches.
//
// To follow keys from their present state on, begin a watch first and then [Client.Scan]: a change whose version is not above that of
// the key scanned is part of what was scanned.
//
// ctx, or the client's timeout, bounds the call, not the watch. Errors: ErrInvalid (for a token that is none, too), ErrWrongCluster,
// ErrUnavailable, ErrUnsupported where nodes keep no history.
func (c *Client) Watch(ctx context.Context, keys KeyRange, opts ...WatchOption) (*Watch, error) {
	o := watchOptions{buffer: DefaultWatchBuffer}
	for _, opt := range opts {
		opt(&o)
	}
	if err := c.checkWatch(keys, &o); err != nil {
		return nil, err
	}
	w := &Watch{c: c, keys: keys, previous: o.previous, arrived: make(chan struct{}, 1)}
	rt := c.routes.Load()
	for _, id := range shardsOf(rt.m, keys) {
		w.parts = append(w.parts, &watchPart{watch: w, shard: id, number: c.watching.number.Add(1)})
	}
	w.window = max(int64(o.buffer/len(w.parts)), 1)
	if err := w.place(ctx, rt, o.from); err != nil {
		return nil, err
	}
	for _, p := range w.parts {
		if !c.watching.follow(c, p) {
			w.Close()
			return nil, ErrClosed
		}
	}
	return w, nil
}

func (c *Client) checkWatch(keys KeyRange, o *watchOptions) error {
	if o.buffer < 1 {
		return &InvalidError{Field: "buffer", Message: "must be positive"}
	}
	if len(keys.End) > 0 && bytes.Compare(keys.Start, keys.End) >= 0 {
		return &InvalidError{Field: "range", Message: "ends before it begins"}
	}
	// The end of the range of one key is a byte longer than that.
	if most := c.routes.Load().keyBytesMax; most > 0 {
		if got := int64(max(len(keys.Start), len(keys.End)-1)); got > most {
			return &LimitError{Limit: "key_bytes_max", Max: most, Got: got}
		}
	}
	return nil
}

// place gives every part its position: a token's, or that of now.
func (w *Watch) place(ctx context.Context, rt *routes, from *Token) error {
	if from != nil {
		positions, err := from.read(clusterMark(w.c.ClusterID()))
		if err != nil {
			return err
		}
		for id := range positions {
			if rt.shards[id] == nil {
				return &InvalidError{Field: "token", Message: fmt.Sprintf("names shard %d, which there is not", id)}
			}
		}
		for _, p := range w.parts {
			p.received = positions[p.shard] // the very beginning, for one that it does not name: it is held, or not
			p.delivered = p.received
		}
		return nil
	}
	ctx, cancel := w.c.bounded(ctx)
	defer cancel()
	asking, ctx := errgroup.WithContext(ctx)
	asking.SetLimit(pagesAtOnce)
	for _, p := range w.parts {
		asking.Go(func() error {
			o := &positionOperation{kind: kind{name: "watch"}, shard: p.shard}
			if err := w.c.repeat(ctx, &o.kind, o, new(attempt)); err != nil {
				return err
			}
			p.received = positionOf(o.response.GetPosition())
			p.delivered = p.received
			return nil
		})
	}
	return asking.Wait()
}

// positionOperation asks a shard's leader where its changes stand.
type positionOperation struct {
	kind
	shard    shard.ID
	response *ostrakapb.PositionResponse
}

func (o *positionOperation) route(r *routes) (*shardRoute, error) {
	if sr := r.shards[o.shard]; sr != nil {
		return sr, nil
	}
	return nil, fmt.Errorf("%w: shard %d is gone", ErrUnavailable, o.shard)
}

func (o *positionOperation) try(ctx context.Context, c *Client, a *attempt) *failure {
	return c.alone(ctx, a, 0, func(ctx context.Context) (err error) {
		o.response, err = a.node.kv.Position(ctx, &ostrakapb.PositionRequest{Epoch: a.epoch, Shard: uint32(o.shard)})
		return err
	})
}

// Key is the range of one key.
func Key(key []byte) KeyRange { return KeyRange{Start: key, End: successor(key)} }

// shardsOf returns the shards that may hold keys of a range: one, if they are known to share a slot.
func shardsOf(m *shard.Map, keys KeyRange) []shard.ID {
	if slot, ok := commonSlot(keys); ok {
		return []shard.ID{m.ShardOf(slot)}
	}
	var all []shard.ID
	for _, s := range m.Shards() {
		all = append(all, s.ID)
	}
	return all
}

// commonSlot returns the slot of all keys of a range, where it is one key, or its keys share a beginning with a whole hash tag.
func commonSlot(keys KeyRange) (shard.Slot, bool) {
	if len(keys.Start) > 0 && bytes.Equal(keys.End, successor(keys.Start)) {
		return shard.SlotOf(keys.Start), true
	}
	shared := keys.Start
	if !bytes.Equal(keys.End, Prefix(keys.Start).End) {
		n := 0
		for n < min(len(keys.Start), len(keys.End)) && keys.Start[n] == keys.End[n] {
			n++
		}
		shared = keys.Start[:n]
	}
	open := bytes.IndexByte(shared, '{')
	if open < 0 || bytes.IndexByte(shared[open+1:], '}') <= 0 {
		return 0, false
	}
	return shard.SlotOf(shared), true
}

// Next returns the next change, and waits for it. Errors: ctx's, after which the watch goes on; and those that end it: a
// *CompactedError, ErrClosed, ErrLimit where a node has too many watches, ErrUnsupported.
func (w *Watch) Next(ctx context.Context) (Change, error) {
	for {
		change, found, err := w.pop()
		if found || err != nil {
			return change, err
		}
		select {
		case <-w.arrived:
		case <-ctx.Done():
			return Change{}, ctx.Err()
		case <-w.c.ctx.Done():
			return Change{}, ErrClosed
		}
	}
}

// Changes yields what Next returns. An error ends the iteration: it is yielded with an empty change.
func (w *Watch) Changes(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for {
			change, err := w.Next(ctx)
			if !yield(change, err) || err != nil {
				return
			}
		}
	}
}

// pop takes the first change out of the queue.
func (w *Watch) pop() (change Change, found bool, err error) {
	w.mu.Lock()
	if len(w.queue) == 0 {
		defer w.mu.Unlock()
		return Change{}, false, w.err
	}
	first := w.queue[0]
	w.queue[0] = arrival{}
	w.queue = w.queue[1:]
	p := first.part
	p.delivered = positionOf(first.change.GetPosition())
	if p.waiting--; p.waiting == 0 && p.received.after(p.delivered) {
		p.delivered = p.received // what lies between is not this watch's
	}
	p.owed += first.bytes
	back, feed := p.giveBackLocked(), p.feed
	w.mu.Unlock()
	if back > 0 && feed != nil {
		feed.lend(p, back)
	}
	return changeOf(first.change), true, nil
}

// giveBackLocked returns what the node is to hear of room that has become free, once that is worth a message.
func (p *watchPart) giveBackLocked() (back int64) {
	if p.owed >= (p.watch.window+1)/2 {
		back, p.owed = p.owed, 0
		p.held -= back
	}
	return back
}

func changeOf(m *ostrakapb.Change) Change {
	c := Change{Kind: ChangeKind(m.GetKind()), Key: m.GetKey(), Value: m.GetValue(), Version: m.GetPosition().GetVersion(),
		Time: time.UnixMilli(m.GetTimeMs()), TTL: fromMillis(m.GetTtlMs())}
	if m.GetExisted() {
		c.Previous = &Value{Value: m.GetPrevious(), Version: m.GetPreviousVersion()}
	}
	return c
}

// Token returns the place behind the last change that Next has returned. It moves on while nothing happens to the watch's keys, too:
// whoever keeps it should do so now and then, not only with changes.
func (w *Watch) Token() Token {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tokenLocked()
}

func (w *Watch) tokenLocked() Token {
	positions := make(map[shard.ID]position, len(w.parts))
	for _, p := range w.parts {
		positions[p.shard] = p.delivered
	}
	return newToken(clusterMark(w.c.ClusterID()), positions)
}

// Close ends the watch: what waits to be read is dropped, and Next returns ErrClosed. It may be called again.
func (w *Watch) Close() error {
	w.mu.Lock()
	w.queue = nil
	w.mu.Unlock()
	w.fail(ErrClosed)
	return nil
}

// fail ends the watch with an error, once what has arrived is read.
func (w *Watch) fail(err error) {
	w.mu.Lock()
	if w.err == nil || errors.Is(err, ErrClosed) {
		w.err = err
	}
	w.mu.Unlock()
	for _, p := range w.parts {
		w.c.watching.unfollow(p)
	}
	w.signal()
}

// compacted ends the watch for a part that no replica has the changes for.
func (w *Watch) compacted(p *watchPart) {
	w.mu.Lock()
	positions := make(map[shard.ID]position, len(w.parts))
	for _, other := range w.parts {
		// All that has arrived is read before the error is. Others that a replica has refused will hardly do better.
		positions[other.shard] = other.received
		if other == p || other.restart.after(other.received) {
			positions[other.shard] = other.restart
		}
	}
	if w.err == nil {
		w.err = &CompactedError{Restart: newToken(clusterMark(w.c.ClusterID()), positions)}
	}
	err := w.err
	w.mu.Unlock()
	w.fail(err)
}

func (w *Watch) signal() {
	select {
	case w.arrived <- struct{}{}:
	default:
	}
}

// changeOverhead is what a change takes of a window beside its key and values. It is part of the protocol.
const changeOverhead = 64

// arrive takes changes in. Those that have come before, from another node, are left out. It returns room that is to be given back.
func (p *watchPart) arrive(changes []*ostrakapb.Change) (back int64) {
	w := p.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		size := int64(len(c.GetKey()) + len(c.GetValue()) + len(c.GetPrevious()) + changeOverhead)
		p.held += size
		at := positionOf(c.GetPosition())
		if w.err != nil || !at.after(p.received) {
			p.owed += size
			continue
		}
		p.received, p.restart = at, position{}
		p.waiting++
		w.queue = append(w.queue, arrival{p, c, size})
	}
	w.signal()
	return p.giveBackLocked()
}

// pass notes that there is nothing for the part up to a position.
func (p *watchPart) pass(at position) {
	w := p.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil || !at.after(p.received) {
		return
	}
	p.received, p.restart = at, position{}
	if p.waiting == 0 {
		p.delivered = at
	}
}

// request is the part as a node is asked for it.
func (p *watchPart) request() *ostrakapb.WatchCreate {
	w := p.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	p.held -= p.owed // the node begins to count anew
	p.owed = 0
	return &ostrakapb.WatchCreate{Watch: p.number, Start: w.keys.Start, End: w.keys.End, Behind: p.received.message(), Previous: w.previous,
		Credit: max(w.window-p.held, 0)}
}
