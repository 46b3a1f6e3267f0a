package transport

import (
	"errors"
	"fmt"
	"sync"

	"github.com/ostraka-db/ostraka/shard"
)

// Why a message that arrived is not handed to raft.
var (
	// ErrOvertaken: a later message of the same sender was delivered before this one.
	ErrOvertaken = errors.New("transport: overtaken by a later message")
	// ErrDeposed: a TimeoutNow of a leader whose term has passed here.
	ErrDeposed = errors.New("transport: of a leader that has been deposed")
)

// history is what one local replica has been sent, by whom. It outlives the Facade: a group that is restarted inside
// the process must not forget what overtook a message that is still on its way. It need not outlive the process, for
// neither do the connections that could hold such a message.
//
// Why it is needed: raft installs any snapshot of the current term, without looking at its own log. One that was sent
// first, held up (it travels beside the appends) and installed after newer appends would empty the log and take back
// entries that this replica has vouched for:
//
//	leader of term 3      sequence 7: snapshot up to 100 ──────────── held up ───────────┐
//	  (gives up on 7)     sequence 8: entries 101..120 ─► appended, counted, committed    ▼
//	                                                            7 < 8: ErrOvertaken, not back to 100
//
// The same comparison keeps appends and TimeoutNow in order when a stream is replaced by another.
type history struct {
	mu sync.Mutex
	// delivered is the last ordered message of each sending replica that was handed to raft.
	delivered map[shard.ReplicaID]position
	// term is the highest in which this replica is known to be.
	term uint64
}

// position orders the messages of one sender: by term, and by sequence within a term. A replica that leads again after a
// restart does so in a newer term, so its counters may start anew.
type position struct {
	term, sequence uint64
}

func (p position) before(q position) bool {
	return p.term < q.term || p.term == q.term && p.sequence < q.sequence
}

func newHistory() *history {
	return &history{delivered: make(map[shard.ReplicaID]position)}
}

// deliver notes an ordered message that is about to be handed to raft, or says why it must not be.
func (h *history) deliver(from shard.ReplicaID, at position) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if last := h.delivered[from]; !last.before(at) {
		return fmt.Errorf("%w: %d of term %d came after %d of term %d", ErrOvertaken, at.sequence, at.term, last.sequence, last.term)
	}
	h.delivered[from] = at
	return nil
}

// overtaken tells whether anything was delivered after a message that was.
func (h *history) overtaken(from shard.ReplicaID, at position) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return at.before(h.delivered[from])
}

// reached notes that the replica is, or is about to be, in a term.
func (h *history) reached(term uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.term = max(h.term, term)
}

// checkTerm refuses a TimeoutNow of a term that the replica has left. raft itself would follow any: the message has no
// term there, and a late one unseats the present leader. Only terms that the replica is known to have reached count
// (its own answers and requests, appends handed to it), not those that others merely campaign for: a candidate that
// nobody has voted for does not depose a leader.
func (h *history) checkTerm(term uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if term < h.term {
		return fmt.Errorf("%w: TimeoutNow of term %d in term %d", ErrDeposed, term, h.term)
	}
	return nil
}
