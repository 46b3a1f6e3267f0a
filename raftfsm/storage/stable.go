package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
)

// The keys that raft v1.7.3 uses (raft.go, persistVote and setCurrentTerm). No other is taken.
const (
	keyCurrentTerm   = "CurrentTerm"
	keyLastVoteTerm  = "LastVoteTerm"
	keyLastVoteCand  = "LastVoteCand"
	recordTerm       = "term"
	recordVote       = "vote"
	recordMinIndex   = "min-index"
	recordRemoved    = "removed"
	voteTermBytes    = 8
	uint64RecordSize = 8
)

var (
	// ErrNotFound has the text by which raft recognises a missing key.
	ErrNotFound = errors.New("not found")
	// ErrUnknownKey means a key that raft does not use.
	ErrUnknownKey = errors.New("storage: unknown stable key")
	// ErrVoteLost means an order to forget: a lower term, another candidate in a term that has been voted in, or
	// a candidate without a term.
	ErrVoteLost = errors.New("storage: refusing to forget a term or a vote")
)

// Stable is one replica's raft.StableStore: its term and its vote, each one record that is durable in two files
// before a Set returns.
//
// raft stores a vote by two Sets, the term and then the candidate. Were each durable by itself, a crash between
// them would pair the new term with the old candidate: in the worst case a vote for somebody who was never
// given one, or one that can be given twice (raft#661). So the term is only staged, and both are written as one
// value when the candidate comes.
//
// A Set that changes nothing is skipped, since raft writes its term again at every start. Setting the candidate
// is never skipped while a term is staged: the same candidate in a new term is a new vote.
type Stable struct {
	node *Node
	who  identity

	// writing is held from looking at the records to the end of a change on the disk. It is taken before mu.
	writing turn
	// stagedTerm is the term of a vote whose candidate hasn't come yet; 0: none. Guarded by writing.
	stagedTerm uint64

	mu sync.Mutex
	// records holds the newest durable state of each record, by its name; a missing one has counter 0.
	records map[string]record
}

var _ raft.StableStore = (*Stable)(nil)

// openStable reads a replica's records and repairs what a crash between two writes left.
func openStable(n *Node, who identity) (*Stable, error) {
	s := &Stable{node: n, who: who, writing: newTurn(), records: make(map[string]record)}
	if n.wasRemoved(who) {
		return nil, ErrReplicaRemoved
	}
	for _, name := range []string{recordTerm, recordVote, recordMinIndex} {
		r, behind, err := readRecord(n.copies, who, name)
		if err != nil {
			return nil, err
		}
		if err := checkPayload(name, r); err != nil {
			return nil, fmt.Errorf("%w: record %q of %s: %w", ErrVoteRecordDamaged, name, who, err)
		}
		s.records[name] = r
		if !behind {
			continue
		}
		n.cfg.Logger.Warn("a record's second copy was behind; written again", "record", name, "replica", who.String(), "file", n.copies[1].name())
		if err := s.put(name, r); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func checkPayload(name string, r record) error {
	switch {
	case r.counter == 0 || name == recordRemoved:
		return nil
	case name == recordVote && len(r.payload) > voteTermBytes:
		return nil
	case name != recordVote && len(r.payload) == uint64RecordSize:
		return nil
	}
	return fmt.Errorf("payload of %d bytes", len(r.payload))
}

// SetUint64 implements raft.StableStore for the current term and the term of a vote.
func (s *Stable) SetUint64(key []byte, value uint64) error {
	s.writing.take()
	defer s.writing.give()
	switch string(key) {
	case keyCurrentTerm:
		old := s.currentTerm()
		if value < old {
			return fmt.Errorf("%w: term %d after %d", ErrVoteLost, value, old)
		}
		if value == old {
			return nil
		}
		return s.write(recordTerm, binary.BigEndian.AppendUint64(nil, value))
	case keyLastVoteTerm:
		s.stagedTerm = value
		return nil
	}
	return fmt.Errorf("%w: %q", ErrUnknownKey, key)
}

// Set implements raft.StableStore for the candidate of a vote.
func (s *Stable) Set(key, value []byte) error {
	if string(key) != keyLastVoteCand {
		return fmt.Errorf("%w: %q", ErrUnknownKey, key)
	}
	s.writing.take()
	defer s.writing.give()
	term, candidate := s.vote()
	staged := s.stagedTerm
	switch {
	case len(value) == 0:
		return fmt.Errorf("%w: a vote without a candidate", ErrVoteLost)
	case staged == 0 && bytes.Equal(candidate, value):
		return nil
	case staged == 0:
		return fmt.Errorf("%w: candidate %q without a term", ErrVoteLost, value)
	case staged < term:
		return fmt.Errorf("%w: a vote in term %d after one in term %d", ErrVoteLost, staged, term)
	case staged == term && !bytes.Equal(candidate, value):
		return fmt.Errorf("%w: candidate %q in term %d after %q", ErrVoteLost, value, term, candidate)
	}
	if staged > term {
		payload := append(binary.BigEndian.AppendUint64(nil, staged), value...)
		if err := s.write(recordVote, payload); err != nil {
			return err
		}
	}
	s.stagedTerm = 0
	return nil
}

// GetUint64 implements raft.StableStore. A staged term isn't visible: it isn't durable.
func (s *Stable) GetUint64(key []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(key) {
	case keyCurrentTerm:
		if s.records[recordTerm].counter == 0 {
			return 0, ErrNotFound
		}
		return s.uint64Locked(recordTerm), nil
	case keyLastVoteTerm:
		term, candidate := s.voteLocked()
		if candidate == nil {
			return 0, ErrNotFound
		}
		return term, nil
	}
	return 0, fmt.Errorf("%w: %q", ErrUnknownKey, key)
}

// Get implements raft.StableStore.
func (s *Stable) Get(key []byte) ([]byte, error) {
	if string(key) != keyLastVoteCand {
		return nil, fmt.Errorf("%w: %q", ErrUnknownKey, key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, candidate := s.voteLocked()
	if candidate == nil {
		return nil, ErrNotFound
	}
	return bytes.Clone(candidate), nil
}

// MinIndex is the index that the replica has durably held, by its snapshots. It never starts below it.
func (s *Stable) MinIndex() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uint64Locked(recordMinIndex)
}

// raiseMinIndex records that the replica durably holds everything up to index. Call it only when that is a
// fact: raised too early, a crash would bar an honest replica.
func (s *Stable) raiseMinIndex(index uint64) error {
	s.writing.take()
	defer s.writing.give()
	if index <= s.MinIndex() {
		return nil
	}
	return s.write(recordMinIndex, binary.BigEndian.AppendUint64(nil, index))
}

// currentTerm returns 0 if there is none.
func (s *Stable) currentTerm() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uint64Locked(recordTerm)
}

func (s *Stable) uint64Locked(name string) uint64 {
	r := s.records[name]
	if r.counter == 0 {
		return 0
	}
	return binary.BigEndian.Uint64(r.payload)
}

// vote returns the durable vote; a nil candidate: there is none.
func (s *Stable) vote() (term uint64, candidate []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.voteLocked()
}

func (s *Stable) voteLocked() (term uint64, candidate []byte) {
	r := s.records[recordVote]
	if r.counter == 0 {
		return 0, nil
	}
	return binary.BigEndian.Uint64(r.payload), r.payload[voteTermBytes:]
}

// write changes a record. writing is held.
func (s *Stable) write(name string, payload []byte) error {
	s.mu.Lock()
	r := record{counter: s.records[name].counter + 1, payload: payload}
	s.mu.Unlock()
	if err := s.put(name, r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[name] = r
	return nil
}

func (s *Stable) put(name string, r record) error {
	if knownbad.Vote && (name == recordTerm || name == recordVote) {
		return nil
	}
	return s.node.write(fmt.Sprintf("writing the %s record of %s", name, s.who), func() error {
		return writeRecord(s.node.copies, s.who, name, r)
	})
}

// wasRemoved tells whether a replica's id is used up. Either copy will do: what the log had of it goes with it.
func (n *Node) wasRemoved(who identity) bool {
	for _, c := range n.copies {
		raw, err := c.get(who, recordRemoved)
		if err != nil {
			continue
		}
		if r, err := decodeRecord(recordKey(who, recordRemoved), raw); err == nil && r.counter > 0 {
			return true
		}
	}
	return false
}

// markRemoved records that a replica's id is used up. A replica with damaged records can be removed too.
func (n *Node) markRemoved(who identity) error {
	s := &Stable{node: n, who: who}
	return s.put(recordRemoved, record{counter: 1})
}
