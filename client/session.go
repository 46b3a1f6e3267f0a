package client

import "sync"

// session numbers the writes of one client. With the client's identity, a number names a write for ever: all
// attempts of one write carry the same one, so that the cluster can recognise a write that it has done
// already. Every request also tells the lowest number still waited for, below which records can be dropped.
//
// Safe for use by many goroutines.
type session struct {
	mu sync.Mutex
	// Numbers in [lowest, lowest+len(answered)) have been given out; answered[i] belongs to lowest+i, and
	// answered[0], where there is one, is false. The slice is as long as the spread between the oldest write
	// still waited for and the newest, which deadlines bound.
	lowest   uint64
	answered []bool
}

func newSession() *session { return &session{lowest: 1} }

// begin gives out the next number, from 1.
func (s *session) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = append(s.answered, false)
	return s.lowest + uint64(len(s.answered)) - 1
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
