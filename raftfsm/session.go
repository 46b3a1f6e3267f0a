package raftfsm

import (
	"slices"

	"github.com/ostraka-db/ostraka/store"
)

// Sessions make a write that is sent again be done once. A client that did not hear what became of a write sends it again
// under the same number; the machine has kept the result of the first, and gives that out instead of doing it twice.
//
// A session is one client's with one shard. It is named by the client's id and by when it was born: the shard's time, as
// some replica had applied it, when the client first asked. Nobody opens one: the first write that names it does.
// That is safe although the table forgets sessions, because of the horizon, which is not below when any forgotten one was
// last used. A session was used at its birth at the earliest; so one born after the horizon was never forgotten, and if the
// table doesn't know it, none of its writes was ever done. One born at or before the horizon may have been forgotten: its
// writes are refused, and the client must not take the refusal for "not done" unless it knows that by itself. So are those of
// a session born in the shard's future: what a replica has applied is committed, and time never goes back, so that nobody can
// have told of it, but a shard that has lost its end since (ostraka recover) or a liar, who would push the horizon on.
//
//	born  …………… used ………… used            born ………… used
//	 │   session A       │                  │  session B
//	─┴───────────────────┴──────────────────┴─────────────► shard time
//	                     ▲ A is forgotten: the horizon moves here, and stays though it may be reached again by others
//
// Within a session writes are told apart by their numbers, and three bounds say what has become of one:
//
//	         forgotten            highest
//	            │                    │
//	 ───────────┼──●──●─────●──●─●───●······►  number        ● a result that is kept
//	     ▲         ▲
//	     │         lowest: the client waits for nothing below
//	     refused: was it done? Nobody knows any more
//
//   - below lowest: it comes too late, its caller has gone. Refused.
//   - up to forgotten: results were dropped for want of room. Refused, unless it is one of those kept.
//   - kept: its result is given out again, and nothing is done.
//   - any other was never done: it is done now, and its result kept.
//
// All of this is part of the replicated state: it depends on entries and on nothing else, and stands in snapshots.

// sessionBounds bound a shard's sessions.
type sessionBounds struct {
	// sessions of a shard: the one that has not been used for longest makes room.
	sessions int
	// idle is how long, in shard time, a session is kept that is not used.
	idle store.Time
	// records, results that is, of one session: the lowest number makes room.
	records int
	// bytes that all results of a shard take together, recordBytes for each and the previous values: sessions that have not
	// been used for longest make room, or the lowest numbers of the only one.
	bytes int
	// previous is the largest previous value that is kept with a result, in bytes. Of a write that brings back a larger one
	// it is known later that it was done, but not what it answered.
	previous int
}

// formatBounds are those in use. They are part of the formats: replicas with different ones would come to differ. A session
// keeps as many results as a stream may carry unanswered calls (server.pipelineCallsMax): a client that waits for its answers
// can hardly have more under way.
var formatBounds = sessionBounds{sessions: 1 << 16, idle: 60 * 60 * 1000, records: 1 << 14, bytes: 16 << 20, previous: 64 << 10}

// agedAtOnce bounds how many idle sessions one entry lets go.
const agedAtOnce = 64

// A session that is not used for trimAfter gives back the room of more than trimRecords records that it doesn't need.
// Of use to this process only: replicas may differ in that.
const (
	trimAfter   = store.Time(10 * 1000)
	trimRecords = 32
)

// refusal says why a write of a session was not applied.
type refusal uint8

const (
	refusedNot refusal = iota
	// refusedUnknown: the session may have been forgotten, or is born in the shard's future: the shard is not what it was.
	refusedUnknown
	// refusedForgotten: whether the write was done before is not known any more, or nobody waits for it.
	refusedForgotten
)

// err is the refusal of a write, at shard time now.
func (r refusal) err(now store.Time, attempt uint32) error {
	switch r {
	case refusedUnknown:
		return &SessionUnknownError{Now: now, Resent: attempt > 1}
	case refusedForgotten:
		return ErrResultForgotten
	}
	return nil
}

// sessionName tells sessions of a shard apart.
type sessionName struct {
	client [16]byte
	born   store.Time
}

// session is one session's state. The table changes it in place unless a snapshot that is being written has it, in which
// case the table goes on with a copy (own).
type session struct {
	sessionName
	// used is the shard time of the last entry with a write of it, born <= used. turn orders uses, also within one time.
	used store.Time
	turn uint64
	// lowest is the lowest number that the client waits for; no record is below it.
	lowest uint64
	// forgotten is the highest number whose record was dropped for want of room; no record is at or below it.
	forgotten uint64
	// records are results by ascending number, from first on; what is before first is room.
	records []record
	first   int
	// previous holds the previous values of records that have one, by number.
	previous map[uint64][]byte
	// generation is the table's when this copy was made.
	generation uint32
}

// record is what a write came to. It holds no pointers: there may be many, and nobody looks at most of them.
type record struct {
	request         uint64
	version         store.Version
	number          int64
	previousVersion store.Version
	slot            uint16
	status          store.Status
	flags           recordFlags
}

type recordFlags uint8

const (
	recordExisted     recordFlags = 1 << iota
	recordHasPrevious             // the value is in session.previous
	recordCutShort                // it had a previous value, which was too large to keep
)

// recordBytes is what a record counts beside its previous value.
const recordBytes = 40

func (s *session) kept() []record { return s.records[s.first:] }

// find returns where a number's record stands among those kept, or would.
func (s *session) find(request uint64) (at int, found bool) {
	kept := s.kept()
	// Nearly every write is the newest of its session.
	if n := len(kept); n == 0 || kept[n-1].request < request {
		return n, false
	}
	return slices.BinarySearchFunc(kept, request, func(r record, request uint64) int {
		switch {
		case r.request < request:
			return -1
		case r.request > request:
			return 1
		}
		return 0
	})
}

// result is what the write was answered with. The previous value must not be modified.
func (s *session) result(r *record) store.Result {
	result := store.Result{Status: r.status, Version: r.version, Number: r.number, Existed: r.flags&recordExisted != 0,
		PreviousVersion: r.previousVersion}
	if r.flags&recordHasPrevious != 0 {
		result.HasPrevious, result.Previous = true, s.previous[r.request]
	}
	return result
}

// insert adds a record at its place among those kept.
func (s *session) insert(at int, r record) {
	if len(s.records) == cap(s.records) && s.first > len(s.records)/2 {
		s.records = s.records[:copy(s.records, s.kept())]
		s.first = 0
	}
	s.records = slices.Insert(s.records, s.first+at, r)
}

// drop lets the lowest n records go, and returns what they counted.
func (s *session) drop(n int) (bytes int) {
	for i := range s.kept()[:n] {
		r := &s.kept()[i]
		bytes += s.bytesOf(r)
		if r.flags&recordHasPrevious != 0 {
			delete(s.previous, r.request)
		}
	}
	if s.first += n; s.first == len(s.records) {
		s.records, s.first = s.records[:0], 0
	}
	return bytes
}

func (s *session) bytesOf(r *record) int {
	bytes := recordBytes
	if r.flags&recordHasPrevious != 0 {
		bytes += len(s.previous[r.request])
	}
	return bytes
}

// nobody stands for no session in the table's lists.
const nobody = -1

// sessionTable is the sessions of a shard. Raft's FSM goroutine only, but for what freeze returns.
//
// Sessions stand at places of parallel lists, so that freeze copies one list of pointers, whatever they hold. The places
// are linked from the one not used for longest to the one used last.
type sessionTable struct {
	bounds       sessionBounds
	places       map[sessionName]int32
	all          []*session // by place; nil: free
	older, newer []int32    // by place
	oldest       int32
	newest       int32
	free         []int32

	// horizon: see above. 0 at first, and never goes back.
	horizon store.Time
	// bytes is what all records count, <= bounds.bytes except while a record is being added.
	bytes   int
	records int
	// turn counts uses.
	turn uint64
	// generation counts freezes: sessions of an earlier one may be in a snapshot's hands.
	generation uint32
	// evictions counts forgotten sessions: one that was found before the last of them may be gone.
	evictions uint64
	// trimmed is the place that was looked at last for room to give back.
	trimmed int
}

func newSessionTable(bounds sessionBounds) *sessionTable {
	return &sessionTable{bounds: bounds, places: make(map[sessionName]int32), oldest: nobody, newest: nobody}
}

func (t *sessionTable) unlink(p int32) {
	if before := t.older[p]; before == nobody {
		t.oldest = t.newer[p]
	} else {
		t.newer[before] = t.newer[p]
	}
	if after := t.newer[p]; after == nobody {
		t.newest = t.older[p]
	} else {
		t.older[after] = t.older[p]
	}
}

func (t *sessionTable) linkNewest(p int32) {
	t.older[p], t.newer[p] = t.newest, nobody
	if t.newest == nobody {
		t.oldest = p
	} else {
		t.newer[t.newest] = p
	}
	t.newest = p
}

// own returns the session at a place to be changed: a copy where a snapshot may have it.
func (t *sessionTable) own(p int32) *session {
	s := t.all[p]
	if s.generation != t.generation {
		c := *s
		c.records, c.first = slices.Clone(s.kept()), 0
		if s.previous != nil {
			c.previous = make(map[uint64][]byte, len(s.previous))
			for request, value := range s.previous {
				c.previous[request] = value
			}
		}
		c.generation = t.generation
		s = &c
		t.all[p] = s
	}
	return s
}

// use finds the session of a write, or begins it, and notes that it was used now. lowest is what the write says of the client.
func (t *sessionTable) use(name sessionName, lowest uint64, now store.Time) (*session, refusal) {
	p, known := t.places[name]
	switch {
	case known:
		t.unlink(p)
		t.linkNewest(p)
	case name.born <= t.horizon, name.born > now:
		return nil, refusedUnknown
	default:
		if len(t.places) == t.bounds.sessions {
			t.evict(t.oldest)
		}
		p = t.open(&session{sessionName: name, generation: t.generation})
	}
	s := t.own(p)
	t.turn++
	s.used, s.turn = now, t.turn
	if lowest > s.lowest {
		s.lowest = lowest
		kept := s.kept()
		n := 0
		for n < len(kept) && kept[n].request < lowest {
			n++
		}
		if n > 0 {
			t.drop(s, n)
		}
	}
	return s, refusedNot
}

// open gives a session a place, as the one used last.
func (t *sessionTable) open(s *session) int32 {
	var p int32
	if n := len(t.free); n > 0 {
		p = t.free[n-1]
		t.free = t.free[:n-1]
		t.all[p] = s
	} else {
		p = int32(len(t.all))
		t.all = append(t.all, s)
		t.older, t.newer = append(t.older, nobody), append(t.newer, nobody)
	}
	t.places[s.sessionName] = p
	t.linkNewest(p)
	return p
}

// has reports whether a session that was in use is so still.
func (t *sessionTable) has(s *session) bool {
	_, known := t.places[s.sessionName]
	return known
}

// drop lets a session's lowest n records go.
func (t *sessionTable) drop(s *session, n int) {
	t.bytes -= s.drop(n)
	t.records -= n
}

// evict forgets a session.
func (t *sessionTable) evict(p int32) {
	s := t.all[p]
	t.horizon = max(t.horizon, s.used)
	for i := range s.kept() {
		t.bytes -= s.bytesOf(&s.kept()[i])
	}
	t.records -= len(s.kept())
	t.unlink(p)
	delete(t.places, s.sessionName)
	t.all[p] = nil
	t.free = append(t.free, p)
	t.evictions++
}

// lookUp says what is known of a write of a session in use. done: its result is there. Else, without a refusal, it was never
// done, and its result is to be kept at that place.
func (t *sessionTable) lookUp(s *session, request uint64) (result store.Result, done bool, at int, refused refusal) {
	at, found := s.find(request)
	switch {
	case request < s.lowest:
		return result, false, 0, refusedForgotten
	case found:
		r := &s.kept()[at]
		if r.flags&recordCutShort != 0 {
			return result, false, 0, refusedForgotten
		}
		return s.result(r), true, at, refusedNot
	case request <= s.forgotten:
		return result, false, 0, refusedForgotten
	}
	return result, false, at, refusedNot
}

// keep adds the result of a write at the place that lookUp named, and makes room: first of the session's own records, then
// by forgetting sessions that have not been used for long.
func (t *sessionTable) keep(s *session, at int, request uint64, slot uint16, result *store.Result) {
	r := record{request: request, version: result.Version, number: result.Number, previousVersion: result.PreviousVersion,
		slot: slot, status: result.Status}
	if result.Existed {
		r.flags |= recordExisted
	}
	if result.HasPrevious {
		if len(result.Previous) > t.bounds.previous {
			r.flags |= recordCutShort
		} else {
			r.flags |= recordHasPrevious
			if s.previous == nil {
				s.previous = make(map[uint64][]byte)
			}
			s.previous[request] = result.Previous
		}
	}
	s.insert(at, r)
	t.bytes += s.bytesOf(&r)
	t.records++
	if len(s.kept()) > t.bounds.records {
		t.forget(s)
	}
	for t.bytes > t.bounds.bytes {
		if oldest := t.all[t.oldest]; oldest != s {
			t.evict(t.oldest)
		} else if len(s.kept()) > 1 {
			t.forget(s)
		} else {
			break // cannot be: one record is far smaller
		}
	}
}

// forget drops a session's lowest record for want of room.
func (t *sessionTable) forget(s *session) {
	s.forgotten = max(s.forgotten, s.kept()[0].request)
	t.drop(s, 1)
}

// age forgets sessions that have not been used for too long, a few at once.
func (t *sessionTable) age(now store.Time) {
	for n := 0; n < agedAtOnce && t.oldest != nobody && t.all[t.oldest].used < now-t.bounds.idle; n++ {
		t.evict(t.oldest)
	}
}

// trim looks at one session after the other, one a call, for room to give back.
func (t *sessionTable) trim(now store.Time) {
	if len(t.all) == 0 {
		return
	}
	t.trimmed = (t.trimmed + 1) % len(t.all)
	s := t.all[t.trimmed]
	if s != nil && s.used < now-trimAfter && cap(s.records) > max(trimRecords, 2*len(s.kept())) {
		s = t.own(int32(t.trimmed))
		s.records, s.first = slices.Clip(slices.Clone(s.kept())), 0
	}
}
