package server

import (
	"fmt"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// mapFormat is the form of ostrakapb.Map that this build writes, and the newest it reads. Fields that are
// merely added don't raise it; a change of meaning does, since a node that missed it would route wrongly.
const mapFormat = 1

// encodeMap puts a map into a message.
func encodeMap(m *shard.Map) *ostrakapb.Map {
	p := &ostrakapb.Map{Format: mapFormat, Epoch: uint64(m.Epoch())}
	for _, n := range m.Nodes() {
		p.Nodes = append(p.Nodes, &ostrakapb.MapNode{Id: string(n.ID), Address: n.Address, Zone: n.Zone,
			Incarnation: n.Incarnation, State: uint32(n.State)})
	}
	for _, s := range m.Shards() {
		described := &ostrakapb.MapShard{Id: uint32(s.ID), Preferred: string(s.Preferred)}
		for _, r := range s.Ranges {
			described.Ranges = append(described.Ranges, &ostrakapb.SlotRange{From: uint32(r.From), To: uint32(r.To)})
		}
		for _, r := range s.Replicas {
			described.Replicas = append(described.Replicas, &ostrakapb.MapReplica{Id: uint64(r.ID), Node: string(r.Node), Voter: r.Voter})
		}
		p.Shards = append(p.Shards, described)
	}
	return p
}

// decodeMap is the inverse of encodeMap. A message of a newer format is errUnsupported, one that is no valid
// map shard.ErrInvalidMap.
func decodeMap(p *ostrakapb.Map) (*shard.Map, error) {
	switch format := p.GetFormat(); {
	case format == 0:
		return nil, fmt.Errorf("%w: no format", shard.ErrInvalidMap)
	case format > mapFormat:
		return nil, fmt.Errorf("%w: map of format %d, this build reads up to %d", errUnsupported, format, mapFormat)
	}
	nodes := make([]shard.Node, 0, len(p.GetNodes()))
	for _, n := range p.GetNodes() {
		state := shard.NodeState(n.GetState())
		if uint32(state) != n.GetState() {
			return nil, fmt.Errorf("%w: node %q: unknown state %d", shard.ErrInvalidMap, n.GetId(), n.GetState())
		}
		nodes = append(nodes, shard.Node{ID: shard.NodeID(n.GetId()), Address: n.GetAddress(), Zone: n.GetZone(),
			Incarnation: n.GetIncarnation(), State: state})
	}
	shards := make([]shard.Shard, 0, len(p.GetShards()))
	for _, described := range p.GetShards() {
		s, err := decodeShard(described)
		if err != nil {
			return nil, err
		}
		shards = append(shards, s)
	}
	return shard.NewMap(shard.Epoch(p.GetEpoch()), nodes, shards)
}

func decodeShard(p *ostrakapb.MapShard) (shard.Shard, error) {
	s := shard.Shard{ID: shard.ID(p.GetId()), Preferred: shard.NodeID(p.GetPreferred())}
	for _, r := range p.GetRanges() {
		// Checked before they are narrowed: 65537 must not pass for slot 1.
		if r.GetFrom() >= r.GetTo() || r.GetTo() > shard.SlotCount {
			return s, fmt.Errorf("%w: shard %d: slots [%d, %d)", shard.ErrInvalidMap, p.GetId(), r.GetFrom(), r.GetTo())
		}
		s.Ranges = append(s.Ranges, shard.Range{From: uint16(r.GetFrom()), To: uint16(r.GetTo())})
	}
	for _, r := range p.GetReplicas() {
		s.Replicas = append(s.Replicas, shard.Replica{ID: shard.ReplicaID(r.GetId()), Node: shard.NodeID(r.GetNode()), Voter: r.GetVoter()})
	}
	return s, nil
}
