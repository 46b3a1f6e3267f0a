package client

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// A write is known to the cluster by its name: the client's id, the session, and its number there. All sendings of one write
// carry the same one, so that the shard recognises a write that it has done already.
//
// A session is this client's with one shard, born at a time of that shard's that a node told: with the map, or with the
// refusal of a write of a session that the shard doesn't know. Shards forget sessions, and results; then they say so, and it
// is the client that knows whether an earlier sending may have been done. If so, the outcome is unknown; if not, the write gets
// another name.

// sessionsLevel is the format level from which on the cluster's shards have sessions. Below it writes have none.
const sessionsLevel = 2

// sessions are a client's, for all shards that it ever knew: a name must not be given twice, whatever becomes of the shard.
type sessions struct {
	mu      sync.Mutex
	byShard map[shard.ID]*shardSession
}

// of returns a shard's. born is for a new one; 0: not known.
func (s *sessions) of(id shard.ID, born int64) *shardSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.byShard[id]
	if known == nil {
		known = new(shardSession)
		known.current.Store(newSession(born, 1))
		if s.byShard == nil {
			s.byShard = make(map[shard.ID]*shardSession)
		}
		s.byShard[id] = known
	}
	return known
}

// shardSession is the session with a shard in which writes are numbered at the moment.
type shardSession struct{ current atomic.Pointer[session] }

// renew puts a session that is born then in the place of one that the shard doesn't know. The same time again changes nothing:
// asked once more, the shard will have come further. Numbers go on, so that none is given twice even by a shard that has lost
// its end and tells a time from before.
func (h *shardSession) renew(old *session, born int64) {
	if born > 0 && born != old.born {
		h.current.CompareAndSwap(old, newSession(born, old.next()))
	}
}

// session numbers the writes of one client to one shard. Every write also tells the lowest number still waited for, below
// which results can be dropped.
//
// Safe for use by many goroutines.
type session struct {
	// born is the shard's time at which the session began, in milliseconds; 0: the shard has none, or hasn't told its time yet.
	born int64

	mu sync.Mutex
	// Numbers in [lowest, lowest+len(answered)) have been given out; answered[i] belongs to lowest+i, and
	// answered[0], where there is one, is false. The slice is as long as the spread between the oldest write
	// still waited for and the newest, which deadlines bound.
	lowest   uint64
	answered []bool
}

// newSession's numbers begin at first.
func newSession(born int64, first uint64) *session { return &session{born: born, lowest: first} }

// begin gives out the next number.
func (s *session) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = append(s.answered, false)
	return s.lowest + uint64(len(s.answered)) - 1
}

// next is the number that begin would give out.
func (s *session) next() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lowest + uint64(len(s.answered))
}

// end says that nobody waits for the number any more: it was answered, or its caller has been told that the
// outcome is unknown, after which the client does not send it again.
func (s *session) end(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered[number-s.lowest] = true
	done := 0
	for done < len(s.answered) && s.answered[done] {
		done++
	}
	s.answered = s.answered[done:]
	s.lowest += uint64(done)
}

// lowestUnanswered is the lowest number still waited for, or the next to be given out.
func (s *session) lowestUnanswered() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lowest
}

// writeName is the name of a write that is under way. Its zero value has none yet.
type writeName struct {
	with    *shardSession
	session *session // nil: none
	number  uint64
	// asks: the sending only asks when a session may be born.
	asks bool
	// maybeDone: a sending may have been done, or may yet be.
	maybeDone bool
}

// errMoved: a write may have been done by one shard, and its key is another's by now, which would not recognise it.
var errMoved = errors.New("the key has moved to another shard meanwhile")

// take gives the write a name for its next sending, to this shard, unless it has one. opening: the cluster has sessions.
func (w *writeName) take(with *shardSession, opening bool) error {
	if w.session != nil && w.with != with {
		if w.maybeDone {
			return fmt.Errorf("%w: %w", ErrOutcomeUnknown, errMoved)
		}
		w.drop()
	}
	if w.session == nil {
		w.with, w.session = with, with.current.Load()
		w.number = w.session.begin()
	}
	w.asks = opening && w.session.born == 0
	return nil
}

// drop ends the name: nobody waits for it any more.
func (w *writeName) drop() {
	if w.session != nil {
		w.session.end(w.number)
		w.session = nil
	}
}

// fill puts the name into a header.
func (w *writeName) fill(h *ostrakapb.Header) {
	h.Request, h.LowestUnanswered = w.number, w.session.lowestUnanswered()
	h.SessionBorn, h.OpenSession = w.session.born, w.asks
}

// repeatable: the write may be sent again though the outcome of a sending is not known.
func (w *writeName) repeatable() bool { return w.asks || w.session.born != 0 }

// judge decides what a failed sending means for the write.
func (w *writeName) judge(f *failure) {
	switch {
	case f.remedy == newName:
		if f.detail.GetReason() == ostrakapb.Reason_REASON_SESSION_UNKNOWN {
			w.with.renew(w.session, f.detail.GetShardTimeMs())
		}
		if w.maybeDone {
			f.err, f.remedy = fmt.Errorf("%w: %s", ErrOutcomeUnknown, explanation(f.detail)), giveUp
			return
		}
		w.drop()
	case errors.Is(f.err, ErrOutcomeUnknown):
		if w.repeatable() {
			w.maybeDone = w.maybeDone || !w.asks
			f.remedy = goElsewhere
		}
	case f.remedy == giveUp && w.maybeDone && !errors.Is(f.err, ErrNotInteger) && !errors.Is(f.err, ErrOverflow):
		// The node has not looked whether it was done; those two say that it has.
		f.err = fmt.Errorf("%w: sent again it was refused: %v", ErrOutcomeUnknown, f.err)
	}
}
