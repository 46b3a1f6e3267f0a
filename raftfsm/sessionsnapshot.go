package raftfsm

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/ostraka-db/ostraka/store"
)

// A snapshot's sessions, in the order in which they were used last; see snapshot.go for what stands around them.
//
//	[tagSessions, horizon]
//	[tagSession, client, born, used, lowest, forgotten]         for each session, the one used last at the end:
//	  [tagRecord, request, slot, status, flags, version, number, previous version, previous]
//	                                                               its results, by ascending request
//
// A result names its slot, so that it can move with that. Its previous value is empty unless the flags say that there is one.
const (
	sessionsFields = 2
	sessionFields  = 6
	recordFields   = 9
)

// frozenSessions is a table's state at one index. The table does not change these sessions any more.
type frozenSessions struct {
	horizon           store.Time
	all               []*session // with gaps
	sessions, records int
}

// freeze copies one pointer for each session.
func (t *sessionTable) freeze() frozenSessions {
	t.generation++
	return frozenSessions{horizon: t.horizon, all: slices.Clone(t.all), sessions: len(t.places), records: t.records}
}

// none holds for a shard that never had a session, whose snapshot needs not speak of them.
func (f *frozenSessions) none() bool { return f.sessions == 0 && f.horizon == 0 }

func (f *frozenSessions) write(w *fieldWriter) {
	w.array(sessionsFields)
	w.uint(tagSessions)
	w.int(int64(f.horizon))
	all := slices.DeleteFunc(f.all, func(s *session) bool { return s == nil })
	slices.SortFunc(all, func(a, b *session) int { return cmp.Compare(a.turn, b.turn) })
	for _, s := range all {
		w.array(sessionFields)
		w.uint(tagSession)
		w.bytes(s.client[:])
		w.int(int64(s.born))
		w.int(int64(s.used))
		w.uint(s.lowest)
		w.uint(s.forgotten)
		for _, r := range s.kept() {
			w.array(recordFields)
			w.uint(tagRecord)
			w.uint(r.request)
			w.uint(uint64(r.slot))
			w.uint(uint64(r.status))
			w.uint(uint64(r.flags))
			w.uint(uint64(r.version))
			w.int(r.number)
			w.uint(uint64(r.previousVersion))
			w.bytes(s.previous[r.request])
		}
	}
}

// sessionBuilder takes a snapshot's sessions in, and refuses what no table could have held.
type sessionBuilder struct {
	table   *sessionTable
	current *session
	begun   bool
}

func newSessionBuilder(bounds sessionBounds) *sessionBuilder {
	return &sessionBuilder{table: newSessionTable(bounds)}
}

// sessions reads what follows tagSessions.
func (b *sessionBuilder) sessions(r *snapshotReader) error {
	if b.begun {
		return errors.New("sessions stand twice")
	}
	b.begun = true
	b.table.horizon = store.Time(r.int())
	if r.err == nil && b.table.horizon < 0 {
		return fmt.Errorf("horizon %d", b.table.horizon)
	}
	return r.err
}

// session reads what follows tagSession.
func (b *sessionBuilder) session(r *snapshotReader) error {
	if !b.begun {
		return errors.New("a session stands by itself")
	}
	s := new(session)
	client := r.bytes()
	s.born, s.used = store.Time(r.int()), store.Time(r.int())
	s.lowest, s.forgotten = r.uint(), r.uint()
	t := b.table
	switch {
	case r.err != nil:
		return r.err
	case len(client) != len(s.client):
		return fmt.Errorf("client id of %d bytes", len(client))
	case len(t.places) == t.bounds.sessions:
		return fmt.Errorf("more than %d sessions", t.bounds.sessions)
	case s.born > s.used || s.used > r.at:
		return fmt.Errorf("a session of %d was used at %d, and the snapshot is of %d", s.born, s.used, r.at)
	case t.newest != nobody && s.used < t.all[t.newest].used:
		return errors.New("sessions are not in the order of their use")
	}
	s.client = [16]byte(client)
	if _, known := t.places[s.sessionName]; known {
		return errors.New("a session stands twice")
	}
	t.turn++
	s.turn = t.turn
	t.open(s)
	b.current = s
	return nil
}

// record reads what follows tagRecord.
func (b *sessionBuilder) record(r *snapshotReader) error {
	s, t := b.current, b.table
	if s == nil {
		return errors.New("a result stands without its session")
	}
	rec := record{request: r.uint(), slot: uint16(r.uintMax(store.SlotCount - 1)), status: store.Status(r.uintMax(255)),
		flags: recordFlags(r.uintMax(255)), version: store.Version(r.uint()), number: r.int(), previousVersion: store.Version(r.uint())}
	previous := r.bytes()
	kept := s.kept()
	switch {
	case r.err != nil:
		return r.err
	case rec.request < s.lowest || rec.request <= s.forgotten || rec.request == 0:
		return fmt.Errorf("result %d in a session that keeps those from %d, above %d", rec.request, s.lowest, s.forgotten)
	case len(kept) > 0 && kept[len(kept)-1].request >= rec.request:
		return errors.New("results are not in ascending order")
	case len(kept) == t.bounds.records:
		return fmt.Errorf("more than %d results of one session", t.bounds.records)
	case len(previous) > t.bounds.previous || len(previous) > 0 && rec.flags&recordHasPrevious == 0:
		return fmt.Errorf("a previous value of %d bytes where none belongs", len(previous))
	}
	if rec.flags&recordHasPrevious != 0 {
		if s.previous == nil {
			s.previous = make(map[uint64][]byte)
		}
		s.previous[rec.request] = previous
	}
	s.insert(len(kept), rec)
	t.records++
	if t.bytes += s.bytesOf(&rec); t.bytes > t.bounds.bytes {
		return fmt.Errorf("results of more than %d bytes", t.bounds.bytes)
	}
	return nil
}
