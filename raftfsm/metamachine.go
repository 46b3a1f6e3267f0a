package raftfsm

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/ostraka-db/ostraka/shard"
)

// ClusterState is what the meta group replicates. It is immutable: a change makes another one.
type ClusterState struct {
	ClusterID string
	// FormatLevel is the highest version of entries, snapshots and messages that anyone may write. It is raised
	// by command once every node supports the next.
	FormatLevel uint32
	Map         *shard.Map
	// Meta are the meta group's own replicas, one on each node.
	Meta []Member
	// NextReplica is the next replica id to give out; ids are never used again.
	NextReplica shard.ReplicaID
}

// FormatLevel is the highest level this build reads and writes.
//
//	1  the first
//	2  writes with sessions: entries of ops and snapshots in format 2 (entry.go, snapshot.go)
const FormatLevel = 2

// SessionsLevel is the first level at which writes may carry sessions.
const SessionsLevel = 2

// A meta entry, and the meta group's snapshot, is a msgpack map with short names: rare, small, and easy to
// extend. An entry of a higher format or an unknown kind stops the replica.
const metaFormat = 1

type metaKind uint8

const (
	metaInit     metaKind = 1
	metaSetNode  metaKind = 2
	metaReplace  metaKind = 3
	metaPromoted metaKind = 4
	metaRejoin   metaKind = 5
)

// changes are the kinds of entries that make the next state of the one before. All were there before the first release:
// none needs a higher format level than 1. A build that doesn't know a kind stops at it.
var changes = map[metaKind]func(*ClusterState, *metaEntry) (*ClusterState, error){
	metaSetNode:  (*ClusterState).withNode,
	metaReplace:  (*ClusterState).withReplaced,
	metaPromoted: (*ClusterState).withPromoted,
	metaRejoin:   (*ClusterState).withRejoined,
}

type metaEntry struct {
	Format  uint8        `msgpack:"f"`
	Kind    metaKind     `msgpack:"k"`
	Node    shard.NodeID `msgpack:"n,omitempty"`
	Address string       `msgpack:"a,omitempty"`
	// Incarnation is a node's: with metaSetNode the one in which it has the address, with metaRejoin the one it is known in.
	Incarnation uint64 `msgpack:"i,omitempty"`
	// Group and Replica name the replica that is replaced, or was promoted.
	Group   shard.ID        `msgpack:"g,omitempty"`
	Replica shard.ReplicaID `msgpack:"r,omitempty"`
	Record  *stateRecord    `msgpack:"s,omitempty"`
	State   *ClusterState   `msgpack:"-"`
}

// stateRecord is ClusterState as stored.
type stateRecord struct {
	Format      uint8           `msgpack:"f"`
	Index       uint64          `msgpack:"i"`
	ClusterID   string          `msgpack:"c"`
	FormatLevel uint32          `msgpack:"l"`
	Epoch       shard.Epoch     `msgpack:"e"`
	Nodes       []shard.Node    `msgpack:"n"`
	Shards      []shard.Shard   `msgpack:"s"`
	Meta        []Member        `msgpack:"m"`
	NextReplica shard.ReplicaID `msgpack:"r"`
}

func recordOf(s *ClusterState, index uint64) *stateRecord {
	return &stateRecord{Format: metaFormat, Index: index, ClusterID: s.ClusterID, FormatLevel: s.FormatLevel,
		Epoch: s.Map.Epoch(), Nodes: s.Map.Nodes(), Shards: s.Map.Shards(), Meta: s.Meta, NextReplica: s.NextReplica}
}

func (r *stateRecord) state() (*ClusterState, error) {
	if r.Format != metaFormat {
		return nil, fmt.Errorf("cluster state of format %d, this build reads up to %d", r.Format, metaFormat)
	}
	if r.FormatLevel > FormatLevel {
		return nil, fmt.Errorf("the cluster is at format level %d, this build reads up to %d", r.FormatLevel, FormatLevel)
	}
	m, err := shard.NewMap(r.Epoch, r.Nodes, r.Shards)
	if err != nil {
		return nil, err
	}
	return &ClusterState{ClusterID: r.ClusterID, FormatLevel: r.FormatLevel, Map: m, Meta: r.Meta, NextReplica: r.NextReplica}, nil
}

func encodeMetaEntry(ent *metaEntry) ([]byte, error) {
	out := *ent
	out.Format = metaFormat
	if ent.State != nil {
		out.Record = recordOf(ent.State, 0)
	}
	return msgpack.Marshal(&out)
}

func decodeMetaEntry(data []byte) (*metaEntry, error) {
	var ent metaEntry
	if err := msgpack.Unmarshal(data, &ent); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknownEntry, err)
	}
	if ent.Format != metaFormat {
		return nil, fmt.Errorf("%w: meta format %d, this build reads up to %d", ErrUnknownEntry, ent.Format, metaFormat)
	}
	if ent.Record != nil {
		state, err := ent.Record.state()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnknownEntry, err)
		}
		ent.State = state
	}
	return &ent, nil
}

// metaMachine is the replicated state of the meta group.
type metaMachine struct {
	state   atomic.Pointer[ClusterState]
	changed func()
}

func newMetaMachine(changed func()) *metaMachine { return &metaMachine{changed: changed} }

// apply implements machine. A refused change is the response, an error of type ErrBadMeta.
func (m *metaMachine) apply(_ uint64, data []byte) (any, error) {
	ent, err := decodeMetaEntry(data)
	if err != nil {
		return nil, err
	}
	current := m.state.Load()
	change := changes[ent.Kind]
	switch {
	case ent.Kind == metaInit && ent.State != nil:
		if current == nil { // two leaders may both log the same first state
			m.set(ent.State)
		}
	case change == nil:
		return nil, fmt.Errorf("%w: meta kind %d", ErrUnknownEntry, ent.Kind)
	case current == nil:
		return fmt.Errorf("%w: there is no state yet", ErrBadMeta), nil
	default:
		next, err := change(current, ent)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadMeta, err), nil
		}
		if next != current {
			m.set(next)
		}
	}
	return nil, nil
}

// withNode returns the state with a node's newer address, or the same state where it knows that or a newer one.
func (s *ClusterState) withNode(ent *metaEntry) (*ClusterState, error) {
	node, ok := s.Map.Node(ent.Node)
	if !ok {
		return nil, fmt.Errorf("node %q is not of this cluster", ent.Node)
	}
	if ent.Incarnation <= node.Incarnation {
		return s, nil
	}
	node.Address, node.Incarnation = ent.Address, ent.Incarnation
	next, err := s.Map.WithNode(node)
	if err != nil {
		return nil, err
	}
	changed := *s
	changed.Map = next
	return &changed, nil
}

func (m *metaMachine) set(s *ClusterState) {
	m.state.Store(s)
	m.changed()
}

// frozenMeta implements frozen.
type frozenMeta struct{ record *stateRecord }

func (m *metaMachine) freeze(index uint64) (frozen, error) {
	s := m.state.Load()
	if s == nil {
		return nil, errors.New("the cluster has no state yet")
	}
	return frozenMeta{record: recordOf(s, index)}, nil
}

func (f frozenMeta) persist(w io.Writer) error { return msgpack.NewEncoder(w).Encode(f.record) }
func (f frozenMeta) release()                  {}

// metaSnapshotBytesMax bounds what a meta snapshot may make a node allocate: 256 shards and thousands of nodes
// take far less.
const metaSnapshotBytesMax = 64 << 20

// restore implements machine.
func (m *metaMachine) restore(source io.Reader) (uint64, error) {
	data, err := io.ReadAll(io.LimitReader(source, metaSnapshotBytesMax))
	if err != nil {
		return 0, err
	}
	var record stateRecord
	if err := msgpack.Unmarshal(data, &record); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	state, err := record.state()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	m.set(state)
	return record.Index, nil
}

// broadcast wakes all who wait for the next change.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
