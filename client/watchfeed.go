package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

const (
	// watchBeat is how often a node that has nothing to tell says so. It is part of the protocol.
	watchBeat = time.Second
	// watchCreatesAtOnce bounds the watches that one message begins.
	watchCreatesAtOnce = 512
)

// watching is a client's feeds: one for each shard that it watches anything of.
type watching struct {
	number atomic.Uint64

	mu     sync.Mutex
	feeds  map[shard.ID]*watchFeed
	closed bool
	// running joins the feeds' goroutines.
	running sync.WaitGroup
}

// follow makes a part be fed; false: the client is closed.
func (ws *watching) follow(c *Client, p *watchPart) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed {
		return false
	}
	f := ws.feeds[p.shard]
	if f == nil {
		f = newWatchFeed(c, p.shard)
		if ws.feeds == nil {
			ws.feeds = make(map[shard.ID]*watchFeed)
		}
		ws.feeds[p.shard] = f
		ws.running.Go(f.run)
	}
	f.add(p)
	return true
}

// apart feeds a part by itself, by a replica that is not of those that have not the changes that it needs. The client may be closed.
func (ws *watching) apart(c *Client, p *watchPart, lacking *node) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed {
		return
	}
	f := newWatchFeed(c, p.shard)
	f.lacking, f.apart = map[*node]bool{lacking: true}, true
	f.add(p)
	ws.running.Go(f.run)
}

// unfollow ends the feeding of a part, and the feed if it was the last one.
func (ws *watching) unfollow(p *watchPart) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	p.watch.mu.Lock()
	f := p.feed
	p.feed = nil
	p.watch.mu.Unlock()
	if f != nil && f.remove(p) == 0 {
		ws.leave(f)
	}
}

// leave ends a feed. mu is held.
func (ws *watching) leave(f *watchFeed) {
	f.cancel()
	if ws.feeds[f.shard] == f {
		delete(ws.feeds, f.shard)
	}
}

// close waits for all feeds. The client's context has ended.
func (ws *watching) close() {
	ws.mu.Lock()
	ws.closed = true
	ws.mu.Unlock()
	ws.running.Wait()
}

// watchFeed follows one shard's changes for parts of any number of watches, over one stream to one replica at a time: the leader, where
// that is known and well, else any. Its goroutine (run) opens the stream and receives; a second one sends.
//
//	run ─► stream to a node ─► changes, progress ─► parts
//	  ▲        │ broken, ended, or silent for too long
//	  └────────┘ the next node, each part behind what it has received
type watchFeed struct {
	c      *Client
	shard  shard.ID
	ctx    context.Context
	cancel context.CancelFunc
	// wake holds a token when there is something to send.
	wake chan struct{}
	// lacking are the replicas that are known not to have, or could not be asked for, what the only part needs; nil: this is not
	// in question. The goroutine's own.
	lacking map[*node]bool
	// apart: see watching.apart.
	apart bool

	mu    sync.Mutex
	parts map[uint64]*watchPart
	// live: there is a stream. All below is what it was not told yet; creates hold parts that may have left since.
	live    bool
	created uint64 // creates that were sent
	creates []*watchPart
	cancels []uint64
	credits map[uint64]int64
}

func newWatchFeed(c *Client, id shard.ID) *watchFeed {
	f := &watchFeed{c: c, shard: id, wake: make(chan struct{}, 1), parts: make(map[uint64]*watchPart), credits: make(map[uint64]int64)}
	f.ctx, f.cancel = context.WithCancel(c.ctx)
	return f
}

func (f *watchFeed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *watchFeed) add(p *watchPart) {
	p.watch.mu.Lock()
	p.feed = f
	p.watch.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.parts[p.number] = p
	p.create = 0
	if f.live {
		f.creates = append(f.creates, p)
		f.signal()
	}
}

// remove returns how many parts are left.
func (f *watchFeed) remove(p *watchPart) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.parts, p.number)
	delete(f.credits, p.number)
	if f.live {
		f.cancels = append(f.cancels, p.number)
		f.signal()
	}
	return len(f.parts)
}

// lend tells the node that a part has room again.
func (f *watchFeed) lend(p *watchPart, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.parts[p.number] == p {
		f.credits[p.number] += bytes
		f.signal()
	}
}

// part finds a part; nil: it has left.
func (f *watchFeed) part(number uint64) *watchPart {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.parts[number]
}

func (f *watchFeed) all() []*watchPart {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]*watchPart, 0, len(f.parts))
	for _, p := range f.parts {
		all = append(all, p)
	}
	return all
}

// run is the feed's goroutine. It ends with the feed's context: at the latest with the client's.
func (f *watchFeed) run() {
	defer f.cancel()
	var way course
	for f.ctx.Err() == nil {
		rt := f.c.routes.Load()
		sr := rt.shards[f.shard]
		if sr == nil { // its slots are elsewhere, with histories of their own
			f.giveUp(ErrCompacted)
			continue
		}
		n := f.choose(sr, &way)
		if n == nil {
			f.giveUp(ErrCompacted)
			continue
		}
		failed := f.follow(n, &way)
		if f.ctx.Err() != nil {
			return
		}
		if f.lacking != nil {
			f.lacking[n] = true
			continue
		}
		if failed.silent() {
			doubt(n, sr)
		}
		pause, err := f.c.settle(f.ctx, &way, rt, sr, n, failed)
		if err != nil {
			f.giveUp(err)
			continue
		}
		if !f.c.pause(f.ctx, pause) {
			return
		}
	}
}

// choose picks the node to follow; nil: there is none that could have what is needed.
func (f *watchFeed) choose(sr *shardRoute, way *course) *node {
	if f.lacking == nil {
		return way.next(sr, false)
	}
	for _, n := range sr.replicas {
		if !f.lacking[n] {
			return n
		}
	}
	return nil
}

// giveUp ends the watches of all parts, and with them the feed, unless others have joined meanwhile.
func (f *watchFeed) giveUp(err error) {
	for _, p := range f.all() {
		if err == ErrCompacted {
			p.watch.compacted(p)
		} else {
			p.watch.fail(err)
		}
	}
}

// follow feeds the parts from one node until that fails.
func (f *watchFeed) follow(n *node, way *course) *failure {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	patience := 3*watchBeat + f.c.cfg.attemptTimeout
	silence := time.AfterFunc(patience, cancel)
	defer silence.Stop()
	stream, err := n.kv.Watch(ctx)
	if err != nil {
		fail := understand(err, false, true)
		return &fail
	}
	f.begin()
	defer f.pause()
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	sending.Go(func() {
		if f.send(ctx, stream) != nil {
			cancel() // what went wrong the receiver hears
		}
	})
	for {
		r, err := stream.Recv()
		if err != nil {
			fail := understand(err, false, true)
			return &fail
		}
		silence.Reset(patience)
		n.trust()
		*way = course{attempts: 1}
		if fail := f.receive(n, r); fail != nil {
			return fail
		}
	}
}

// begin makes all parts ones that the stream is to be told of.
func (f *watchFeed) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live, f.created, f.creates, f.cancels = true, 0, nil, nil
	for _, p := range f.parts {
		p.create = 0
		f.creates = append(f.creates, p)
	}
	clear(f.credits)
	f.signal()
}

// pause notes that there is no stream.
func (f *watchFeed) pause() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live, f.creates, f.cancels = false, nil, nil
}

type watchClientStream interface {
	Send(*ostrakapb.WatchRequest) error
}

// send is the goroutine that tells the node what is wanted. An error is the stream's.
func (f *watchFeed) send(ctx context.Context, stream watchClientStream) error {
	for first := true; ; {
		r := f.outgoing()
		if first {
			r.Shard, first = uint32(f.shard), false
		} else if len(r.Create)+len(r.Cancel)+len(r.Credit) == 0 {
			select {
			case <-f.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if err := stream.Send(r); err != nil {
			return err
		}
	}
}

// outgoing takes what the node was not told yet, or a part of it.
func (f *watchFeed) outgoing() *ostrakapb.WatchRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := new(ostrakapb.WatchRequest)
	for len(f.creates) > 0 && len(r.Create) < watchCreatesAtOnce {
		p := f.creates[0]
		f.creates[0] = nil
		f.creates = f.creates[1:]
		if f.parts[p.number] == p {
			r.Create = append(r.Create, p.request())
			f.created++
			p.create = f.created
			delete(f.credits, p.number)
		}
	}
	if len(f.creates) > 0 { // what else there is may be of watches that the node does not know yet
		return r
	}
	r.Cancel, f.cancels = f.cancels, nil
	for number, bytes := range f.credits {
		r.Credit = append(r.Credit, &ostrakapb.WatchCredit{Watch: number, Bytes: bytes})
	}
	clear(f.credits)
	return r
}

// receive deals with one message. A failure is the stream's.
func (f *watchFeed) receive(n *node, r *ostrakapb.WatchResponse) *failure {
	for _, c := range r.GetChanges() {
		if p := f.part(c.GetWatch()); p != nil {
			f.lacking = nil
			if back := p.arrive(c.GetChanges()); back > 0 {
				f.lend(p, back)
			}
		}
	}
	for _, end := range r.GetEnds() {
		p := f.part(end.GetWatch())
		if p == nil {
			continue
		}
		switch fail := understandDetail(end.GetError(), false); {
		case end.GetError().GetReason() == ostrakapb.Reason_REASON_COMPACTED:
			if fail := f.compacted(n, p, positionOf(end.GetRestart())); fail != nil {
				return fail
			}
		case fail.remedy == giveUp:
			p.watch.fail(fail.err)
		default:
			return &fail
		}
	}
	if progress := r.GetProgress(); progress != nil {
		f.progress(progress)
		return f.betterPlace(n, progress)
	}
	return nil
}

// betterPlace is a failure that leads to the shard's leader, if that is not the node that is followed: nil, if it is. Parts that were
// refused elsewhere, perhaps by the leader, stay until they have caught up.
func (f *watchFeed) betterPlace(n *node, progress *ostrakapb.WatchProgress) *failure {
	if progress.GetLeaderNode() == "" || f.apart && len(progress.GetExcept()) > 0 {
		return nil
	}
	d := &ostrakapb.ErrorDetail{Reason: ostrakapb.Reason_REASON_NOT_LEADER, LeaderNode: progress.GetLeaderNode()}
	leader := f.c.named(f.c.routes.Load(), d)
	if leader == nil || leader == n || leader.suspected() {
		return nil
	}
	fail := understandDetail(d, false)
	return &fail
}

// compacted is told of a part whose changes a node does not hold. Another replica may: one that was not restarted meanwhile.
func (f *watchFeed) compacted(n *node, p *watchPart, restart position) *failure {
	p.watch.mu.Lock()
	if restart.after(p.restart) {
		p.restart = restart
	}
	p.watch.mu.Unlock()
	if f.lacking != nil {
		return &failure{err: ErrCompacted, remedy: goElsewhere}
	}
	ws := &f.c.watching
	ws.mu.Lock()
	p.watch.mu.Lock()
	mine := p.feed == f
	p.watch.mu.Unlock()
	if mine && f.remove(p) == 0 {
		ws.leave(f)
	}
	ws.mu.Unlock()
	if mine {
		ws.apart(f.c, p, n)
	}
	return nil
}

// progress moves all parts on that the node vouches for.
func (f *watchFeed) progress(progress *ostrakapb.WatchProgress) {
	except := make(map[uint64]bool, len(progress.GetExcept()))
	for _, number := range progress.GetExcept() {
		except[number] = true
	}
	at := positionOf(progress.GetPosition())
	for _, p := range f.all() {
		if !except[p.number] && f.knownAmong(p, progress.GetCreates()) {
			f.lacking = nil
			p.pass(at)
		}
	}
}

// knownAmong reports whether the node knows the part, that having taken so many creates.
func (f *watchFeed) knownAmong(p *watchPart, creates uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return p.create != 0 && p.create <= creates
}
