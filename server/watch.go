package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// Names of limits on watches.
const (
	limitWatches      = "watches_max"
	limitWatchBytes   = "watch_bytes_max"
	limitWatchCreates = "watch_creates_max"
)

const (
	// watchCreatesMax bounds the watches that one message begins.
	watchCreatesMax = 4096
	// watchMessageBytes is about what one message of changes carries; a larger change goes alone.
	watchMessageBytes = 64 << 10
	// watchTurnChanges is how many changes of one watch are sent before others have their turn.
	watchTurnChanges = 64
	// changeOverhead is what a change takes of a client's room beside its key and values. It is part of the protocol.
	changeOverhead = 64
	// endBytes is about what the news of a watch's end takes.
	endBytes = 512
	// watchOverhead is about what a watch takes beside its keys.
	watchOverhead = 512
	// watchCreditMax bounds what a client can say that it has room for.
	watchCreditMax = 1 << 40
)

// errDraining: the node is about to stop, and watches should go on elsewhere.
var errDraining = errors.New("the node is stopping")

// Position implements ostrakapb.KVServer.
func (s *kvService) Position(ctx context.Context, r *ostrakapb.PositionRequest) (*ostrakapb.PositionResponse, error) {
	id := shard.ID(r.GetShard())
	found, err := s.replicaOf(ctx, id)
	if err != nil {
		return nil, err
	}
	at, err := found.Position(ctx)
	if err != nil {
		return nil, readFailed(id, err)
	}
	return &ostrakapb.PositionResponse{Position: positionMessage(at)}, nil
}

// replicaOf finds a shard's replica here.
func (s *kvService) replicaOf(ctx context.Context, id shard.ID) (replica, error) {
	m, err := s.admit(ctx)
	if err != nil {
		return nil, err
	}
	return s.find(m, id)
}

// Watch implements ostrakapb.KVServer.
//
//	history ──► hub (one goroutine for a shard) ── offsets ──► queues of watches ──► sender (this goroutine)
//	                                                                ▲
//	                        receiver (a goroutine of the node's) ───┘ creates, credits, cancels
//
// The receiver ends after this returns: only that ends its waiting for the client.
func (s *kvService) Watch(stream grpc.BidiStreamingServer[ostrakapb.WatchRequest, ostrakapb.WatchResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	id := shard.ID(first.GetShard())
	found, err := s.replicaOf(stream.Context(), id)
	if err != nil {
		return err
	}
	hub, err := s.watches.acquire(id, found)
	if err != nil {
		return err
	}
	defer s.watches.release(hub)
	w := &watchCall{hub: hub, hubs: s.watches, limits: s.node.Limits(), explain: s.explain, wake: make(chan struct{}, 1),
		all: make(map[uint64]*watch)}
	hub.attach(w)
	defer w.close()
	if err := w.take(first); err != nil {
		return err
	}
	s.watches.goes(func() { w.receive(stream) })
	return w.send(stream, s.stopping)
}

// watchCall is one running Watch call.
type watchCall struct {
	hub     *watchHub
	hubs    *watchHubs
	limits  Limits
	explain explainer
	// wake holds a token when there is something for the sender.
	wake chan struct{}

	// The sender's own.
	message *ostrakapb.WatchResponse
	size    int
	offsets []uint64

	// mu is taken with hub.mu held, never the other way round.
	mu sync.Mutex
	// created counts the creates that were taken.
	created uint64
	// all are the watches that have not ended, by number.
	all map[uint64]*watch
	// turns has the watches with changes and credit, in the order in which they are served.
	turns []*watch
	ends  []*ostrakapb.WatchEnd
	// over: the stream is to end, with an error or, at the client's wish, without.
	over   bool
	failed error
	closed bool
}

func (s *watchCall) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// fail ends the stream; nil: the client wants no more.
func (s *watchCall) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over, s.failed = true, err
	}
	s.signal()
}

// close ends the stream's watches.
func (s *watchCall) close() {
	s.mu.Lock()
	s.closed = true
	all := s.all
	s.all = nil
	s.mu.Unlock()
	s.hub.detach(s, all)
	for _, w := range all {
		s.hubs.counts.give(w)
	}
}

// receive takes the client's messages until there are no more.
func (s *watchCall) receive(stream grpc.BidiStreamingServer[ostrakapb.WatchRequest, ostrakapb.WatchResponse]) {
	for {
		r, err := stream.Recv()
		if err == nil {
			err = s.take(r)
		}
		if errors.Is(err, io.EOF) {
			err = nil
			s.fail(nil)
			return
		}
		if err != nil {
			s.fail(err)
			return
		}
	}
}

// take does what a message asks for.
func (s *watchCall) take(r *ostrakapb.WatchRequest) error {
	if n := len(r.GetCreate()); n > watchCreatesMax {
		return &limitError{limit: limitWatchCreates, max: watchCreatesMax, got: n}
	}
	if n := s.endsWaiting(); n > watchCreatesMax {
		return &limitError{limit: limitWatchCreates, max: watchCreatesMax, got: n}
	}
	for _, c := range r.GetCreate() {
		if err := s.create(c); err != nil {
			return err
		}
		s.mu.Lock()
		s.created++ // now: before, the watch may be in no list
		s.mu.Unlock()
	}
	for _, number := range r.GetCancel() {
		if w := s.forget(number); w != nil {
			s.hub.remove(w)
		}
	}
	for _, c := range r.GetCredit() {
		s.lend(c.GetWatch(), c.GetBytes())
	}
	return nil
}

// create begins a watch. What is wrong with the watch ends it alone; an error is one of the stream's.
func (s *watchCall) create(c *ostrakapb.WatchCreate) error {
	w, err := s.newWatch(c)
	if err == nil {
		err = s.hubs.counts.take(w, s.limits)
	}
	if err != nil {
		s.refuse(c.GetWatch(), err, nil)
		return nil
	}
	s.mu.Lock()
	_, twice := s.all[w.number]
	refused := twice || s.closed
	if !refused {
		s.all[w.number] = w
	}
	s.mu.Unlock()
	if refused {
		s.hubs.counts.give(w)
		if twice {
			return &fieldError{"watch", "the number is in use"}
		}
		return nil
	}
	if err := s.hub.add(w); err != nil {
		s.forget(w.number)
		s.hubs.counts.compacted.Add(1)
		_, restart := s.hub.changes.End()
		s.refuse(w.number, err, positionMessage(restart))
		return nil
	}
	if s.isClosed() { // since: nobody else would take it out of the hub
		s.hub.remove(w)
	}
	return nil
}

func (s *watchCall) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// endsWaiting is how many watches have ended that the client was not told of: one that reads nothing can't make more and more of them.
func (s *watchCall) endsWaiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ends)
}

func (s *watchCall) newWatch(c *ostrakapb.WatchCreate) (*watch, error) {
	w := &watch{number: c.GetWatch(), serial: s.hubs.counts.serial.Add(1), stream: s, start: c.GetStart(), end: c.GetEnd(), previous: c.GetPrevious(),
		behind: store.Position{Version: store.Version(c.GetBehind().GetVersion()), Index: c.GetBehind().GetIndex()},
		credit: min(max(c.GetCredit(), 0), watchCreditMax)}
	// One byte more than a key may have: the end of the range of one key of the longest.
	for _, key := range [][]byte{w.start, w.end} {
		if len(key) > s.limits.KeyBytesMax+1 {
			return nil, &store.LimitError{Limit: store.LimitKeyBytes, Got: len(key), Max: s.limits.KeyBytesMax}
		}
	}
	if len(w.end) > 0 && bytes.Compare(w.start, w.end) >= 0 {
		return nil, &fieldError{"end", "not behind start"}
	}
	n := len(w.start)
	w.single = n > 0 && len(w.end) == n+1 && w.end[n] == 0 && bytes.Equal(w.end[:n], w.start)
	return w, nil
}

// forget takes a watch off the list; nil: it is not there any more.
func (s *watchCall) forget(number uint64) *watch {
	s.mu.Lock()
	w := s.all[number]
	delete(s.all, number)
	s.mu.Unlock()
	if w != nil {
		s.hubs.counts.give(w)
	}
	return w
}

// refuse tells the client that a watch has ended.
func (s *watchCall) refuse(number uint64, err error, restart *ostrakapb.Position) {
	end := s.endOf(number, err, restart)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends = append(s.ends, end)
	s.signal()
}

func (s *watchCall) endOf(number uint64, err error, restart *ostrakapb.Position) *ostrakapb.WatchEnd {
	return &ostrakapb.WatchEnd{Watch: number, Error: s.explain.detail(&shardError{shard: s.hub.shard, err: err}), Restart: restart}
}

// compacted is called by the hub for a watch that it has ended: changes that it needs are lost.
func (s *watchCall) compacted(w *watch, restart store.Position) {
	end := s.endOf(w.number, store.ErrCompacted, positionMessage(restart))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[w.number] != w {
		return
	}
	// At once: progress is made of both lists.
	delete(s.all, w.number)
	s.ends = append(s.ends, end)
	s.hubs.counts.give(w)
	s.hubs.counts.compacted.Add(1)
	s.signal()
}

// ready is called by the hub when a watch has changes.
func (s *watchCall) ready(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listLocked(w)
}

func (s *watchCall) listLocked(w *watch) {
	if w.listed || w.credit <= 0 {
		return
	}
	w.listed = true
	s.turns = append(s.turns, w)
	s.signal()
}

// lend gives a watch credit.
func (s *watchCall) lend(number uint64, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.all[number]; w != nil && bytes > 0 {
		w.credit = min(w.credit+min(bytes, watchCreditMax), watchCreditMax)
		s.listLocked(w) // whether there is anything, its turn will tell
	}
}

// send is the stream's sender. It ends with the stream.
func (s *watchCall) send(stream grpc.BidiStreamingServer[ostrakapb.WatchRequest, ostrakapb.WatchResponse], stopping <-chan struct{}) error {
	beat := time.NewTicker(watchBeat)
	defer beat.Stop()
	s.message = new(ostrakapb.WatchResponse)
	flush := func() error {
		if s.size == 0 {
			return nil
		}
		err := stream.Send(s.message)
		s.message, s.size = new(ostrakapb.WatchResponse), 0
		return err
	}
	for {
		w, ends, over := s.next()
		if over {
			return errors.Join(flush(), s.failed)
		}
		for _, end := range ends {
			s.message.Ends = append(s.message.Ends, end)
			s.size += endBytes
		}
		if w != nil {
			s.turn(w)
		}
		if w == nil || s.size >= watchMessageBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		wake := s.wake
		if w != nil {
			wake = always
		}
		select {
		case <-beat.C:
			if err := flush(); err != nil {
				return err
			}
			if err := stream.Send(s.progress()); err != nil {
				return err
			}
		case <-stopping:
			return errors.Join(flush(), errDraining)
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-wake:
		}
	}
}

// always can be received from at any time.
var always = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// next returns what there is to do.
func (s *watchCall) next() (w *watch, ends []*ostrakapb.WatchEnd, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ends, s.ends = s.ends, nil
	if len(s.turns) > 0 {
		w = s.turns[0]
		s.turns[0] = nil
		s.turns = s.turns[1:]
		w.listed = false
	}
	return w, ends, s.over
}

// turn adds changes of a watch to the message, as its credit allows.
func (s *watchCall) turn(w *watch) {
	s.mu.Lock()
	credit := w.credit
	gone := s.all[w.number] != w
	s.mu.Unlock()
	if gone || credit <= 0 {
		return
	}
	var used int64
	changes := &ostrakapb.WatchChanges{Watch: w.number}
	s.offsets = s.hub.peek(w, watchTurnChanges, s.offsets[:0])
	for _, offset := range s.offsets {
		if used >= credit || s.size >= watchMessageBytes {
			break
		}
		_, err := s.hub.changes.Read(offset, 1, func(_ uint64, c *store.Change) bool {
			size := len(c.Key) + len(c.Value) + changeOverhead
			if w.previous {
				size += len(c.Previous)
			}
			changes.Changes = append(changes.Changes, changeMessage(c, w.previous))
			used += int64(size)
			s.size += size
			return true
		})
		if err != nil {
			s.hub.lapse(w)
			break
		}
	}
	sent := len(changes.Changes)
	if sent == 0 {
		return
	}
	s.message.Changes = append(s.message.Changes, changes)
	s.hubs.counts.changes.Add(uint64(sent))
	more := s.hub.drop(w, sent)
	s.mu.Lock()
	defer s.mu.Unlock()
	w.credit -= used
	if more && s.all[w.number] == w {
		s.listLocked(w)
	}
}

func (s *watchCall) progress() *ostrakapb.WatchResponse {
	s.mu.Lock()
	all := make(map[uint64]*watch, len(s.all))
	for number, w := range s.all {
		all[number] = w
	}
	var ended []uint64
	for _, end := range s.ends { // which the client hears of only after this
		ended = append(ended, end.GetWatch())
	}
	created := s.created
	s.mu.Unlock()
	at, except := s.hub.progress(all)
	return &ostrakapb.WatchResponse{Progress: &ostrakapb.WatchProgress{Position: positionMessage(at), Except: append(except, ended...), Creates: created,
		LeaderNode: string(s.hub.leader())}}
}

func positionMessage(p store.Position) *ostrakapb.Position {
	return &ostrakapb.Position{Version: uint64(p.Version), Index: p.Index}
}

var changeKinds = [...]ostrakapb.ChangeKind{
	store.ChangeSet:    ostrakapb.ChangeKind_CHANGE_KIND_SET,
	store.ChangeDelete: ostrakapb.ChangeKind_CHANGE_KIND_DELETE,
	store.ChangeExpire: ostrakapb.ChangeKind_CHANGE_KIND_EXPIRE,
}

// changeMessage copies a change.
func changeMessage(c *store.Change, previous bool) *ostrakapb.Change {
	before := c.Previous
	if !previous {
		before = nil
	}
	var m struct { // one allocation for the two, and one for all bytes
		change   ostrakapb.Change
		position ostrakapb.Position
	}
	b := make([]byte, 0, len(c.Key)+len(c.Value)+len(before))
	cut := func(part []byte) []byte {
		at := len(b)
		b = append(b, part...)
		return b[at:len(b):len(b)]
	}
	m.position.Version, m.position.Index = uint64(c.Position.Version), c.Position.Index
	m.change.Kind, m.change.Position, m.change.TimeMs = changeKinds[c.Kind], &m.position, int64(c.Time)
	m.change.Key, m.change.Value, m.change.Previous = cut(c.Key), cut(c.Value), cut(before)
	m.change.Existed, m.change.PreviousVersion = c.Existed, uint64(c.PreviousVersion)
	if c.ExpiresAt != 0 {
		m.change.TtlMs = int64(max(c.ExpiresAt-c.Time, 1))
	}
	return &m.change
}

// watchCounts count the watches of a node.
type watchCounts struct {
	serial                          atomic.Uint64
	watches, bytes                  atomic.Int64
	changes, compacted, refusedOnes atomic.Uint64
}

// take makes room for a watch. Errors: *limitError.
func (c *watchCounts) take(w *watch, l Limits) error {
	if n := c.watches.Add(1); n > int64(l.WatchesMax) {
		c.watches.Add(-1)
		c.refusedOnes.Add(1)
		return &limitError{limit: limitWatches, max: l.WatchesMax, got: int(n)}
	}
	if n := c.bytes.Add(w.bytes()); n > int64(l.WatchBytesMax) {
		c.bytes.Add(-w.bytes())
		c.watches.Add(-1)
		c.refusedOnes.Add(1)
		return &limitError{limit: limitWatchBytes, max: l.WatchBytesMax, got: int(n)}
	}
	return nil
}

func (c *watchCounts) give(w *watch) {
	c.watches.Add(-1)
	c.bytes.Add(-w.bytes())
}

// bytes is what a watch takes while it is quiet.
func (w *watch) bytes() int64 { return int64(len(w.start) + len(w.end) + watchOverhead) }

func (w *watch) String() string { return fmt.Sprintf("watch %d of [%q, %q)", w.number, w.start, w.end) }
