package server

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

const (
	// watchBeat is how often a stream hears how far its watches are, and a replica is looked at for a leader.
	watchBeat = time.Second
	// leaderlessBeats is how often in a row a replica may have no leader before its watches are sent elsewhere: longer than elections
	// take. A replica that is cut off from its group would tell of nothing, and nobody could see why.
	leaderlessBeats = 3
	// watchQueueMax is how many changes may wait for one watch, eight bytes each. One that is slower has to read them again, from the
	// shard's history.
	watchQueueMax = 256
	// watchGather is how long a hub leaves changes alone after it has looked at some: under load one look, and one message to each
	// stream, are for many of them. The first one after a rest is told of at once.
	watchGather = time.Millisecond
	// watchSliceBytes is about how much of the history is looked through while the hub is locked.
	watchSliceBytes = 64 << 10
)

// watch is one watch of a stream.
type watch struct {
	number   uint64
	serial   uint64 // tells it from all others of the node
	stream   *watchCall
	start    []byte
	end      []byte // empty: none
	single   bool   // start is the only key
	previous bool

	// Guarded by hub.mu.
	node  watchNode
	state watchState
	// behind: changes up to it are not for this watch.
	behind store.Position
	// queue holds the offsets, in the history, of changes that are to be sent.
	queue []uint64
	// from is, for one that is stalled, joining or catching up, the offset of the first change that was not looked at for it.
	from uint64

	// Guarded by stream.mu.
	credit int64
	listed bool // it is in stream.turns
}

// watchState says where a watch stands.
//
//	create ──► joining ──► catchingUp ──► current ──queue full──► stalled ──queue sent──► joining …
//	    └────────── nothing to catch up with ──►┘
type watchState uint8

const (
	watchJoining    watchState = iota // waits for the next pass
	watchCatchingUp                   // in the pass under way
	watchCurrent                      // hears of changes as they come
	watchStalled                      // waits until its queue is sent
	watchGone
)

// watchHub tells the watches of one shard's replica here of its changes. Its goroutine, which runs as long as there are streams, looks
// up each change once for all watches that are up to date; the others catch up together, in passes over the history:
//
//	history ──────────────┬──────────────────────────┬───────────────► end
//	                      │ pass: those behind       │ cursor: all current ones
//
// To a watch's queue it adds the offset of the change only; the stream's sender reads that from the history when it is the watch's turn.
// So a watch that nobody reads from holds a few bytes, and when the history has gone on without it, it is ended.
type watchHub struct {
	shard   shard.ID
	changes raftfsm.Changes
	leader  func() shard.NodeID
	counts  *watchCounts
	// wake holds a token when watches have joined.
	wake chan struct{}
	quit chan struct{}
	done chan struct{} // closed when the goroutine has ended
	// streams is how many use the hub. Guarded by watchHubs.mu.
	streams int

	mu sync.Mutex
	// All changes before cursor, the last of which is at, have been looked at for the current watches.
	cursor  uint64
	at      store.Position
	current watchIndex
	// pass is the same for those catching up; pass <= cursor.
	pass       uint64
	catchingUp watchIndex
	joining    []*watch
	members    map[*watchCall]struct{}
	// over is why the hub has ended; nil: it has not.
	over    error
	matched []*watch // room
}

func newWatchHub(id shard.ID, changes raftfsm.Changes, leader func() shard.NodeID, counts *watchCounts) *watchHub {
	h := &watchHub{shard: id, changes: changes, leader: leader, counts: counts, wake: make(chan struct{}, 1),
		quit: make(chan struct{}), done: make(chan struct{}), members: make(map[*watchCall]struct{})}
	h.cursor, h.at = changes.End()
	return h
}

// run is the hub's goroutine.
func (h *watchHub) run() {
	defer close(h.done)
	beat := time.NewTicker(watchBeat)
	defer beat.Stop()
	leaderless := 0
	for {
		for more := true; more; {
			more = h.turn()
			select {
			case <-h.quit:
				return
			default:
			}
		}
		looked := time.Now()
		select {
		case <-h.changes.Changed():
			if wait := watchGather - time.Since(looked); wait > 0 {
				select {
				case <-time.After(wait):
				case <-h.quit:
					return
				}
			}
		case <-h.wake:
		case <-beat.C:
			if leaderless++; h.leader() != "" {
				leaderless = 0
			}
			if leaderless >= leaderlessBeats {
				h.end(fmt.Errorf("%w: the replica knows no leader", raftfsm.ErrNotConfirmed))
				return
			}
		case <-h.changes.Ended:
			h.end(raftfsm.ErrStopped)
			return
		case <-h.quit:
			return
		}
	}
}

// end sends every stream away.
func (h *watchHub) end(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = &shardError{shard: h.shard, err: why}
	for s := range h.members {
		s.fail(h.over)
	}
}

func (h *watchHub) signal() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// attach makes a stream hear of the hub's end.
func (h *watchHub) attach(s *watchCall) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.members[s] = struct{}{}
	if h.over != nil {
		s.fail(h.over)
	}
}

// detach ends all of a stream's watches.
func (h *watchHub) detach(s *watchCall, all map[uint64]*watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range all {
		h.removeLocked(w)
	}
	delete(h.members, s)
}

// add begins a watch behind its position. Errors: store.ErrCompacted.
func (h *watchHub) add(w *watch) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	from, err := h.changes.Seek(w.behind)
	if err != nil {
		return err
	}
	if from >= h.cursor {
		w.state = watchCurrent
		h.current.add(w)
		return nil
	}
	h.joinLocked(w, from)
	return nil
}

func (h *watchHub) joinLocked(w *watch, from uint64) {
	w.state, w.from = watchJoining, from
	h.joining = append(h.joining, w)
	h.signal()
}

// remove ends a watch.
func (h *watchHub) remove(w *watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removeLocked(w)
}

func (h *watchHub) removeLocked(w *watch) {
	switch w.state {
	case watchCurrent:
		h.current.remove(w)
	case watchCatchingUp:
		h.catchingUp.remove(w)
	case watchJoining:
		if i := slices.Index(h.joining, w); i >= 0 {
			h.joining = slices.Delete(h.joining, i, i+1)
		}
	}
	w.state, w.queue = watchGone, nil
}

// compactLocked ends a watch that is in no index and for which changes are lost.
func (h *watchHub) compactLocked(w *watch) {
	w.state, w.queue = watchGone, nil
	_, restart := h.changes.End()
	w.stream.compacted(w, restart)
}

// turn looks through a slice of what is new, and a slice of what those behind have missed. It reports whether there is more.
func (h *watchHub) turn() (more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current.count == 0 {
		h.cursor, h.at = h.changes.End()
	} else if next, err := h.lookLocked(&h.current, h.cursor); err != nil {
		h.skipLocked()
	} else {
		h.cursor = next
	}
	if h.catchingUp.count == 0 {
		h.beginPassLocked()
	}
	if h.catchingUp.count > 0 {
		h.passLocked()
	}
	end, _ := h.changes.End()
	return h.cursor < end || h.catchingUp.count > 0 || len(h.joining) > 0
}

// lookLocked offers changes from an offset on to the watches of an index, and returns the offset of the next.
func (h *watchHub) lookLocked(index *watchIndex, from uint64) (uint64, error) {
	current := index == &h.current
	return h.changes.Read(from, watchSliceBytes, func(offset uint64, c *store.Change) bool {
		if !current && offset >= h.cursor {
			return false
		}
		h.matched = index.match(c.Key, h.matched[:0])
		for _, w := range h.matched {
			if !c.Position.After(w.behind) || !current && offset < w.from {
				continue
			}
			if len(w.queue) == watchQueueMax {
				index.remove(w)
				w.state, w.from = watchStalled, offset
				continue
			}
			w.queue = append(w.queue, offset)
			if len(w.queue) == 1 {
				w.stream.ready(w)
			}
		}
		if current {
			h.at = c.Position
		}
		return true
	})
}

// skipLocked goes on behind changes that were dropped before they were looked at: the history was reset, or this goroutine was
// slower than the writes. Watches that needed them are ended.
func (h *watchHub) skipLocked() {
	base := h.changes.Base()
	at := h.at
	if cursor, err := h.changes.Seek(at); err == nil {
		h.cursor = cursor
		return
	}
	h.cursor, h.at = h.changes.End()
	h.current.drain(func(w *watch) {
		if !base.After(w.behind) { // it is ahead of this replica
			if from, err := h.changes.Seek(w.behind); err == nil {
				h.joinLocked(w, from)
				return
			}
		}
		h.compactLocked(w)
	})
}

// beginPassLocked makes those that have joined the ones that catch up, from the offset on that the first of them needs.
func (h *watchHub) beginPassLocked() {
	if len(h.joining) == 0 {
		return
	}
	joined := h.joining
	h.joining = nil
	h.pass = h.cursor
	for _, w := range joined {
		if _, err := h.changes.Read(w.from, 0, nil); err != nil {
			h.compactLocked(w)
			continue
		}
		h.pass = min(h.pass, w.from)
		w.state = watchCatchingUp
		h.catchingUp.add(w)
	}
}

// passLocked goes on with the pass. At its end those that took part are current.
func (h *watchHub) passLocked() {
	if h.pass < h.cursor {
		next, err := h.lookLocked(&h.catchingUp, h.pass)
		if err != nil { // dropped meanwhile: who needs it is found out at the beginning of the next pass
			h.catchingUp.drain(func(w *watch) { h.joinLocked(w, max(w.from, h.pass)) })
			return
		}
		h.pass = next
	}
	if h.pass >= h.cursor {
		h.catchingUp.drain(func(w *watch) {
			w.state = watchCurrent
			h.current.add(w)
		})
	}
}

// peek appends the offsets of up to n changes that are to be sent next.
func (h *watchHub) peek(w *watch, n int, to []uint64) []uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(to, w.queue[:min(n, len(w.queue))]...)
}

// drop takes the first n changes, which were sent, out of a watch's queue. It reports whether more wait.
func (h *watchHub) drop(w *watch, n int) (more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n < len(w.queue) {
		w.queue = slices.Delete(w.queue, 0, n)
		return true
	}
	w.queue = nil // most watches are quiet: they should take nothing
	if w.state == watchStalled {
		h.joinLocked(w, w.from)
	}
	return false
}

// lapse ends a watch whose next change is not held any more.
func (h *watchHub) lapse(w *watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.state != watchGone {
		h.removeLocked(w)
		h.compactLocked(w)
	}
}

// progress returns the position up to which all of a stream's watches but those in except have no change that was not taken.
func (h *watchHub) progress(all map[uint64]*watch) (at store.Position, except []uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range all {
		if w.state != watchCurrent || len(w.queue) > 0 {
			except = append(except, w.number)
		}
	}
	return h.at, except
}

// watchHubs are the hubs of a node, one for each shard with watches.
type watchHubs struct {
	// goes starts a goroutine that whoever closes the node waits for.
	goes   func(func())
	counts watchCounts

	mu   sync.Mutex
	hubs map[shard.ID]*watchHub
}

// acquire returns the hub of a shard's replica. Release it.
func (hs *watchHubs) acquire(id shard.ID, r replica) (*watchHub, error) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h := hs.hubs[id]; h != nil {
		h.mu.Lock()
		over := h.over
		h.mu.Unlock()
		if over == nil {
			h.streams++
			return h, nil
		}
		<-h.done // there is one taker of a history's news at a time
	}
	changes, err := r.Changes()
	if err != nil {
		return nil, &shardError{shard: id, err: err}
	}
	h := newWatchHub(id, changes, r.Leader, &hs.counts)
	h.streams = 1
	if hs.hubs == nil {
		hs.hubs = make(map[shard.ID]*watchHub)
	}
	hs.hubs[id] = h
	hs.goes(h.run)
	return h, nil
}

func (hs *watchHubs) release(h *watchHub) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h.streams--; h.streams > 0 {
		return
	}
	close(h.quit)
	<-h.done
	if hs.hubs[h.shard] == h {
		delete(hs.hubs, h.shard)
	}
}
