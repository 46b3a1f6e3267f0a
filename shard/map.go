package shard

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

var (
	// ErrInvalidMap is wrapped by every error of NewMap, with the field that breaks the rule.
	ErrInvalidMap = errors.New("invalid map")

	// ErrStaleEpoch says that something was routed, or proposed, by a map older than the one in force.
	ErrStaleEpoch = errors.New("stale epoch")

	// ErrStaleIncarnation says that a fact about a node comes from an earlier boot than the one already known.
	ErrStaleIncarnation = errors.New("stale incarnation of the node")
)

// ID names a shard, from 1 up. A shard's raft group carries the same number.
type ID uint32

// MetaGroup is the id of the meta group, which is a raft group but no shard: no map lists it.
const MetaGroup ID = 0

// Epoch is a map's version, from 1 up; 0 means that no map is known. Each new map's epoch is higher.
type Epoch uint64

// NodeID is the name an operator gave to a node. Never empty; kept when the address changes.
type NodeID string

// ReplicaID names one copy of one shard on one node, from 1 up. Never reused, cluster-wide: a replica that lost
// its data is replaced under a fresh id, so that what it once promised cannot be mistaken for its successor's.
type ReplicaID uint64

// NodeState is what the cluster intends with a node; whether the node is up is no part of a map.
type NodeState uint8

const (
	NodeActive  NodeState = iota // holds replicas and may be given more
	NodeLeaving                  // gets no more replicas, and is forgotten once the last has moved away
)

func (s NodeState) String() string {
	switch s {
	case NodeActive:
		return "active"
	case NodeLeaving:
		return "leaving"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Node is one process of the cluster.
type Node struct {
	ID          NodeID
	Address     string // host:port of the gRPC listener; empty while not known
	Zone        string // failure domain, empty if none is named
	Incarnation uint64 // the node's boot counter when Address was learnt: of two addresses the higher one wins
	State       NodeState
}

// Replica is one shard's copy on one node.
type Replica struct {
	ID    ReplicaID
	Node  NodeID
	Voter bool // false while it catches up: it gets the log but doesn't count
}

// Shard is a set of slots with the replicas that hold them.
type Shard struct {
	ID        ID
	Ranges    []Range   // sorted, disjoint, never touching; empty for a shard that is yet to receive slots
	Replicas  []Replica // sorted by id; each on another node; at least one voter
	Preferred NodeID    // where leadership belongs when all is well; holds a voter of this shard
}

// Slots is the number of slots the shard owns.
func (s Shard) Slots() int { return countSlots(s.Ranges) }

// Map is the routing value: slot → shard → replicas, at an epoch. Immutable: the slices it returns are its own
// and must not be changed.
type Map struct {
	epoch  Epoch
	nodes  []Node         // sorted by id
	shards []Shard        // sorted by id
	owner  *[SlotCount]ID // every entry is the id of one of shards; shared by maps that cut the slots alike
}

// NewMap checks and copies its arguments, sorts them and joins ranges that touch. The rules, each broken one an
// ErrInvalidMap: the epoch isn't 0; every slot is owned exactly once; node, shard and replica ids are unique and
// not zero; a shard's replicas are on known, distinct nodes; its preferred leader's node holds one of its voters.
func NewMap(epoch Epoch, nodes []Node, shards []Shard) (*Map, error) {
	if epoch == 0 {
		return nil, invalid("epoch: is 0")
	}
	m := &Map{epoch: epoch, nodes: slices.Clone(nodes), shards: make([]Shard, 0, len(shards)), owner: new([SlotCount]ID)}
	slices.SortFunc(m.nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	if err := checkNodes(m.nodes); err != nil {
		return nil, err
	}
	seen := make(map[ReplicaID]ID)
	for _, s := range shards {
		s.Ranges, s.Replicas = slices.Clone(s.Ranges), slices.Clone(s.Replicas)
		if err := m.checkReplicas(s, seen); err != nil {
			return nil, err
		}
		if err := m.claim(s); err != nil {
			return nil, err
		}
		s.Ranges = coalesce(s.Ranges)
		slices.SortFunc(s.Replicas, func(a, b Replica) int { return cmp.Compare(a.ID, b.ID) })
		m.shards = append(m.shards, s)
	}
	slices.SortFunc(m.shards, func(a, b Shard) int { return cmp.Compare(a.ID, b.ID) })
	for i := 1; i < len(m.shards); i++ {
		if m.shards[i].ID == m.shards[i-1].ID {
			return nil, invalid("shard %d: listed twice", m.shards[i].ID)
		}
	}
	if free := slices.Index(m.owner[:], 0); free >= 0 {
		return nil, invalid("slot %d: has no owner", free)
	}
	return m, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidMap, fmt.Sprintf(format, args...))
}

// checkNodes wants nodes sorted by id.
func checkNodes(nodes []Node) error {
	for i, n := range nodes {
		switch {
		case n.ID == "":
			return invalid("node at %q: has no id", n.Address)
		case i > 0 && nodes[i-1].ID == n.ID:
			return invalid("node %q: listed twice", n.ID)
		case n.State > NodeLeaving:
			return invalid("node %q: unknown %v", n.ID, n.State)
		}
	}
	return nil
}

// checkReplicas checks one shard's replicas and adds them to seen, where each replica id points to its shard.
func (m *Map) checkReplicas(s Shard, seen map[ReplicaID]ID) error {
	preferredVotes := false
	for i, r := range s.Replicas {
		if r.ID == 0 {
			return invalid("shard %d: replica on node %q: id is 0", s.ID, r.Node)
		}
		if other, taken := seen[r.ID]; taken {
			return invalid("shard %d: replica %d: id already used in shard %d", s.ID, r.ID, other)
		}
		seen[r.ID] = s.ID
		if _, known := m.Node(r.Node); !known {
			return invalid("shard %d: replica %d: node %q is unknown", s.ID, r.ID, r.Node)
		}
		if slices.ContainsFunc(s.Replicas[:i], func(o Replica) bool { return o.Node == r.Node }) {
			return invalid("shard %d: replica %d: node %q already holds one", s.ID, r.ID, r.Node)
		}
		preferredVotes = preferredVotes || r.Voter && r.Node == s.Preferred
	}
	if !preferredVotes {
		return invalid("shard %d: preferred leader %q: holds no voter", s.ID, s.Preferred)
	}
	return nil
}

// claim enters one shard's slots into the owner table.
func (m *Map) claim(s Shard) error {
	if s.ID == MetaGroup {
		return invalid("shard: id is 0, the meta group's")
	}
	for _, r := range s.Ranges {
		if !r.valid() {
			return invalid("shard %d: range [%d, %d)", s.ID, r.From, r.To)
		}
		for slot := r.From; slot < r.To; slot++ {
			if other := m.owner[slot]; other != 0 {
				return invalid("shard %d: slot %d is already owned by shard %d", s.ID, slot, other)
			}
			m.owner[slot] = s.ID
		}
	}
	return nil
}

// Epoch is the map's version.
func (m *Map) Epoch() Epoch { return m.epoch }

// Nodes are all nodes, sorted by id. The slice must not be changed.
func (m *Map) Nodes() []Node { return m.nodes }

// Node finds a node by its id.
func (m *Map) Node(id NodeID) (Node, bool) {
	i, found := slices.BinarySearchFunc(m.nodes, id, func(n Node, id NodeID) int { return cmp.Compare(n.ID, id) })
	if !found {
		return Node{}, false
	}
	return m.nodes[i], true
}

// Shards are all shards, sorted by id. Neither the slice nor what it holds may be changed.
func (m *Map) Shards() []Shard { return m.shards }

// Shard finds a shard by its id. Its slices must not be changed.
func (m *Map) Shard(id ID) (Shard, bool) {
	i, found := slices.BinarySearchFunc(m.shards, id, func(s Shard, id ID) int { return cmp.Compare(s.ID, id) })
	if !found {
		return Shard{}, false
	}
	return m.shards[i], true
}

// ShardOf is the shard that owns the slot: one table look-up. It panics unless slot < SlotCount.
func (m *Map) ShardOf(slot Slot) ID { return m.owner[slot] }

// SlotsOf is the number of slots that the shard owns, 0 if the map doesn't know it.
func (m *Map) SlotsOf(id ID) int {
	s, _ := m.Shard(id)
	return s.Slots()
}

// ReplicaOn finds the shard's replica on the node.
func (m *Map) ReplicaOn(id ID, node NodeID) (Replica, bool) {
	s, _ := m.Shard(id)
	for _, r := range s.Replicas {
		if r.Node == node {
			return r, true
		}
	}
	return Replica{}, false
}

// Ring is how this map cuts the slots into shards: where Resize starts from.
func (m *Map) Ring() Ring {
	ring := make(Ring, len(m.shards))
	for i, s := range m.shards {
		ring[i] = Arcs{Shard: s.ID, Ranges: s.Ranges}
	}
	return ring
}

// WithNode is the map at the next epoch with the node added, or put in the place of the one with its id. A node
// whose Incarnation is below the known one is refused with ErrStaleIncarnation: its address is old news.
func (m *Map) WithNode(n Node) (*Map, error) {
	nodes := slices.Clone(m.nodes)
	i, known := slices.BinarySearchFunc(nodes, n.ID, func(o Node, id NodeID) int { return cmp.Compare(o.ID, id) })
	switch {
	case known && n.Incarnation < nodes[i].Incarnation:
		return nil, fmt.Errorf("node %q: %w: %d is below %d", n.ID, ErrStaleIncarnation, n.Incarnation, nodes[i].Incarnation)
	case known:
		nodes[i] = n
	default:
		nodes = slices.Insert(nodes, i, n)
	}
	if err := checkNodes(nodes); err != nil {
		return nil, err
	}
	return &Map{epoch: m.epoch + 1, nodes: nodes, shards: m.shards, owner: m.owner}, nil
}

// coalesce sorts ranges in place and joins those that touch.
func coalesce(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.From, b.From) })
	joined := ranges[:0]
	for _, r := range ranges {
		if last := len(joined) - 1; last >= 0 && joined[last].To == r.From {
			joined[last].To = r.To
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

func countSlots(ranges []Range) (slots int) {
	for _, r := range ranges {
		slots += r.Len()
	}
	return slots
}
