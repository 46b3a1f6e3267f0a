package raftfsm

import (
	"fmt"
	"slices"

	"github.com/ostraka-db/ostraka/shard"
)

// Changes of who holds what. Each is a function of the state and the entry alone, and leaves the state as it is where that
// knows the change already. What contradicts the state is refused: an order that comes late, from a node that has not seen
// what happened meanwhile, must do nothing.

// withReplaced gives one replica's place to a fresh id, which does not vote yet.
func (s *ClusterState) withReplaced(ent *metaEntry) (*ClusterState, error) {
	c := s.change()
	if err := c.replace(ent.Group, ent.Replica); err != nil {
		return nil, err
	}
	return c.done()
}

// withRejoined gives fresh ids to all replicas of a node that came back without its data, and begins its next life.
func (s *ClusterState) withRejoined(ent *metaEntry) (*ClusterState, error) {
	node, ok := s.Map.Node(ent.Node)
	switch {
	case !ok:
		return nil, fmt.Errorf("node %q is not of this cluster", ent.Node)
	case node.Incarnation != ent.Incarnation:
		return nil, fmt.Errorf("%w: node %s is in start %d, not %d", ErrStaleReplica, node.ID, node.Incarnation, ent.Incarnation)
	}
	c := s.change()
	for _, group := range s.GroupsOn(node.ID) {
		held, _ := s.MemberOn(group, node.ID)
		if err := c.replace(group, held.Replica); err != nil {
			return nil, err
		}
	}
	node.Address, node.Incarnation = ent.Address, shard.NextLife(node.Incarnation)
	c.node = &node
	return c.done()
}

// withPromoted notes that a replica votes.
func (s *ClusterState) withPromoted(ent *metaEntry) (*ClusterState, error) {
	members, ok := s.Members(ent.Group)
	at := slices.IndexFunc(members, func(m Member) bool { return m.Replica == ent.Replica })
	switch {
	case !ok || at < 0:
		return nil, fmt.Errorf("%w: shard %d has no replica %d", ErrStaleReplica, ent.Group, ent.Replica)
	case members[at].Voter:
		return s, nil
	}
	c := s.change()
	c.promote(ent.Group, members[at])
	return c.done()
}

// stateChange is the next state in the making.
type stateChange struct {
	from        *ClusterState
	meta        []Member
	shards      []shard.Shard // all of the map, to be changed
	changed     map[shard.ID]bool
	node        *shard.Node // nil: none changes
	nextReplica shard.ReplicaID
}

func (s *ClusterState) change() *stateChange {
	c := &stateChange{from: s, meta: slices.Clone(s.Meta), shards: slices.Clone(s.Map.Shards()), changed: make(map[shard.ID]bool), nextReplica: s.NextReplica}
	for i := range c.shards {
		c.shards[i].Replicas = slices.Clone(c.shards[i].Replicas)
	}
	return c
}

func (c *stateChange) done() (*ClusterState, error) {
	next := *c.from
	next.Meta, next.NextReplica = c.meta, c.nextReplica
	var err error
	var changed []shard.Shard
	for _, s := range c.shards {
		if c.changed[s.ID] {
			changed = append(changed, s)
		}
	}
	// With no shard changed too: the epoch tells of every change.
	if next.Map, err = next.Map.WithReplicas(changed...); err != nil {
		return nil, err
	}
	if c.node != nil {
		if next.Map, err = next.Map.WithNode(*c.node); err != nil {
			return nil, err
		}
	}
	return &next, nil
}

func (c *stateChange) replace(group shard.ID, old shard.ReplicaID) error {
	if group == shard.MetaGroup {
		at := slices.IndexFunc(c.meta, func(m Member) bool { return m.Replica == old })
		if at < 0 {
			return fmt.Errorf("%w: the meta group has no replica %d", ErrStaleReplica, old)
		}
		if !slices.ContainsFunc(c.meta, func(m Member) bool { return m.Voter && m.Replica != old }) {
			return fmt.Errorf("%w: replica %d is the only voter of the meta group", ErrLastVoter, old)
		}
		c.meta[at].Replica, c.meta[at].Voter = c.fresh(), false
		return nil
	}
	s := c.shard(group)
	at := -1
	if s != nil {
		at = slices.IndexFunc(s.Replicas, func(r shard.Replica) bool { return r.ID == old })
	}
	if at < 0 {
		return fmt.Errorf("%w: shard %d has no replica %d", ErrStaleReplica, group, old)
	}
	node := s.Replicas[at].Node
	s.Replicas[at].ID, s.Replicas[at].Voter = c.fresh(), false
	c.changed[group] = true
	if s.Preferred != node {
		return nil
	}
	s.Preferred = c.leastPreferred(s)
	if s.Preferred == "" {
		return fmt.Errorf("%w: replica %d is the only voter of shard %d", ErrLastVoter, old, group)
	}
	return nil
}

func (c *stateChange) fresh() shard.ReplicaID {
	c.nextReplica++
	return c.nextReplica - 1
}

func (c *stateChange) shard(group shard.ID) *shard.Shard {
	at := slices.IndexFunc(c.shards, func(s shard.Shard) bool { return s.ID == group })
	if at < 0 {
		return nil
	}
	return &c.shards[at]
}

// promote makes a replica a voter. If its node is preferred by at least two shards fewer than the one preferred now, the
// shard prefers it from now on: after all replicas of a node were replaced, leaderships are even again.
func (c *stateChange) promote(group shard.ID, m Member) {
	if group == shard.MetaGroup {
		c.meta[slices.Index(c.meta, m)].Voter = true
		return
	}
	s := c.shard(group)
	c.changed[group] = true
	for i := range s.Replicas {
		if s.Replicas[i].ID == m.Replica {
			s.Replicas[i].Voter = true
		}
	}
	if c.preferredBy(m.Node)+2 <= c.preferredBy(s.Preferred) {
		s.Preferred = m.Node
	}
}

// leastPreferred is the node that the fewest shards prefer among those of a shard's voters; the first of them by id.
func (c *stateChange) leastPreferred(s *shard.Shard) (least shard.NodeID) {
	for _, r := range s.Replicas {
		switch by, best := c.preferredBy(r.Node), c.preferredBy(least); {
		case !r.Voter:
		case least == "", by < best, by == best && r.Node < least:
			least = r.Node
		}
	}
	return least
}

func (c *stateChange) preferredBy(node shard.NodeID) (shards int) {
	for _, s := range c.shards {
		if s.Preferred == node {
			shards++
		}
	}
	return shards
}

// Members are a group's replicas, as the cluster wants them. ok is false for a group that it doesn't know.
func (s *ClusterState) Members(group shard.ID) (members []Member, ok bool) {
	if group == shard.MetaGroup {
		return s.Meta, true
	}
	described, ok := s.Map.Shard(group)
	return MembersOf(described), ok
}

// MembersOf are a shard's replicas, as members of its group.
func MembersOf(s shard.Shard) []Member {
	members := make([]Member, len(s.Replicas))
	for i, r := range s.Replicas {
		members[i] = memberOf(r)
	}
	return members
}

func memberOf(r shard.Replica) Member { return Member{Node: r.Node, Replica: r.ID, Voter: r.Voter} }

// MemberOn is a group's replica on a node.
func (s *ClusterState) MemberOn(group shard.ID, node shard.NodeID) (Member, bool) {
	if group != shard.MetaGroup {
		r, ok := s.Map.ReplicaOn(group, node)
		return memberOf(r), ok
	}
	at := slices.IndexFunc(s.Meta, func(m Member) bool { return m.Node == node })
	if at < 0 {
		return Member{}, false
	}
	return s.Meta[at], true
}

// GroupsOn are the groups with a replica on a node, the meta group first.
func (s *ClusterState) GroupsOn(node shard.NodeID) (groups []shard.ID) {
	if _, ok := s.MemberOn(shard.MetaGroup, node); ok {
		groups = append(groups, shard.MetaGroup)
	}
	for _, described := range s.Map.Shards() {
		if _, ok := s.Map.ReplicaOn(described.ID, node); ok {
			groups = append(groups, described.ID)
		}
	}
	return groups
}
