package client

import (
	"fmt"
	"math"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// mapFormat is the newest form of ostrakapb.Map that this client reads. A map of a newer form may mean
// something that would be lost here, so it is refused; fields that are merely added don't raise the format.
const mapFormat = 1

// mapFromProto is the inverse of the server's encoding. shard.NewMap validates what comes out.
func mapFromProto(p *ostrakapb.Map) (*shard.Map, error) {
	if p.GetFormat() > mapFormat {
		return nil, fmt.Errorf("%w: map of format %d, this client reads %d", ErrUnsupported, p.GetFormat(), mapFormat)
	}
	nodes := make([]shard.Node, 0, len(p.GetNodes()))
	for _, n := range p.GetNodes() {
		if n.GetState() > math.MaxUint8 {
			return nil, fmt.Errorf("map: node %q: bad state %d", n.GetId(), n.GetState())
		}
		nodes = append(nodes, shard.Node{
			ID:          shard.NodeID(n.GetId()),
			Address:     n.GetAddress(),
			Zone:        n.GetZone(),
			Incarnation: n.GetIncarnation(),
			State:       shard.NodeState(n.GetState()),
		})
	}
	shards := make([]shard.Shard, 0, len(p.GetShards()))
	for _, s := range p.GetShards() {
		decoded, err := shardFromProto(s)
		if err != nil {
			return nil, err
		}
		shards = append(shards, decoded)
	}
	m, err := shard.NewMap(shard.Epoch(p.GetEpoch()), nodes, shards)
	if err != nil {
		return nil, fmt.Errorf("map of epoch %d: %w", p.GetEpoch(), err)
	}
	return m, nil
}

func shardFromProto(p *ostrakapb.MapShard) (shard.Shard, error) {
	s := shard.Shard{ID: shard.ID(p.GetId()), Preferred: shard.NodeID(p.GetPreferred())}
	for _, r := range p.GetRanges() {
		if r.GetFrom() >= r.GetTo() || r.GetTo() > shard.SlotCount {
			return s, fmt.Errorf("map: shard %d: bad slot range [%d, %d)", p.GetId(), r.GetFrom(), r.GetTo())
		}
		s.Ranges = append(s.Ranges, shard.Range{From: uint16(r.GetFrom()), To: uint16(r.GetTo())})
	}
	for _, r := range p.GetReplicas() {
		s.Replicas = append(s.Replicas, shard.Replica{
			ID:    shard.ReplicaID(r.GetId()),
			Node:  shard.NodeID(r.GetNode()),
			Voter: r.GetVoter(),
		})
	}
	return s, nil
}
