package server

import (
	"cmp"
	"context"
	"slices"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// usageKeysMax bounds the keys that are told.
const usageKeysMax = 128

// Usage implements ostrakapb.AdminServer. What the whole cluster says is merged from every node's part: what shards hold and what is written
// from their leaders, what is read from all replicas.
func (s *adminService) Usage(ctx context.Context, r *ostrakapb.UsageRequest) (*ostrakapb.UsageResponse, error) {
	m := s.node.Map()
	if m == nil {
		return nil, whyNoMap(s.node)
	}
	request := &ostrakapb.UsageRequest{Local: true, Slots: r.GetSlots(), Keys: min(r.GetKeys(), usageKeysMax)}
	local := func() *ostrakapb.UsageResponse { return usageOf(s.node.Host(), request) }
	if r.GetLocal() {
		return local(), nil
	}
	parts := askEach(ctx, s.node.NodeID(), m, local, func(ctx context.Context, node shard.NodeID) (*ostrakapb.UsageResponse, error) {
		conn, err := s.node.PeerConn(node)
		if err != nil {
			return nil, err
		}
		return ostrakapb.NewAdminClient(conn).Usage(ctx, request)
	})
	answer := mergeUsage(parts, int(request.Keys))
	for i, described := range m.Nodes() {
		if parts[i] == nil {
			answer.Silent = append(answer.Silent, string(described.ID))
		}
	}
	return answer, nil
}

// usageOf is one node's part. host is nil while the node is starting.
func usageOf(host *raftfsm.Host, r *ostrakapb.UsageRequest) *ostrakapb.UsageResponse {
	answer := new(ostrakapb.UsageResponse)
	if host == nil {
		return answer
	}
	for _, u := range host.Use(r.GetSlots(), int(r.GetKeys())) {
		addShardUse(answer, &u)
	}
	return answer
}

func addShardUse(answer *ostrakapb.UsageResponse, u *raftfsm.ShardUse) {
	rate := func(n uint64) float64 {
		if u.Window <= 0 {
			return 0
		}
		return float64(n) / u.Window.Seconds()
	}
	for _, s := range u.Slots {
		told := &ostrakapb.SlotUsage{Shard: uint32(u.Shard), Slot: uint32(s.Slot), ReadsPerSecond: rate(s.Reads)}
		if u.Leads {
			told.Keys, told.Bytes, told.Expiring, told.WritesPerSecond = s.Stats.Keys, s.Stats.Bytes, s.Stats.Expiring, rate(s.Writes)
		}
		if told.Keys > 0 || told.ReadsPerSecond > 0 || told.WritesPerSecond > 0 {
			answer.Slots = append(answer.Slots, told)
		}
	}
	for _, h := range u.Hottest {
		told := &ostrakapb.HotKey{Shard: uint32(u.Shard), Slot: uint32(h.Slot), Key: h.Key, ReadsPerSecond: rate(h.Reads), ErrorPerSecond: rate(h.Error)}
		if u.Leads {
			told.WritesPerSecond = rate(h.Writes)
		}
		if told.ReadsPerSecond > 0 || told.WritesPerSecond > 0 {
			answer.Hottest = append(answer.Hottest, told)
		}
	}
	if !u.Leads {
		return
	}
	for _, l := range u.Largest {
		answer.Largest = append(answer.Largest, &ostrakapb.LargeKey{Shard: uint32(u.Shard), Slot: uint32(l.Slot), Key: l.Key, Bytes: l.Bytes})
	}
}

// mergeUsage adds nodes' parts up.
func mergeUsage(parts []*ostrakapb.UsageResponse, keys int) *ostrakapb.UsageResponse {
	slots := make(map[uint32]*ostrakapb.SlotUsage)
	hot := make(map[string]*ostrakapb.HotKey)
	answer := new(ostrakapb.UsageResponse)
	for _, part := range parts {
		for _, s := range part.GetSlots() {
			if sum := slots[s.GetSlot()]; sum != nil {
				sum.Keys, sum.Bytes, sum.Expiring = sum.Keys+s.Keys, sum.Bytes+s.Bytes, sum.Expiring+s.Expiring
				sum.ReadsPerSecond, sum.WritesPerSecond = sum.ReadsPerSecond+s.ReadsPerSecond, sum.WritesPerSecond+s.WritesPerSecond
				continue
			}
			slots[s.GetSlot()] = s
			answer.Slots = append(answer.Slots, s)
		}
		for _, h := range part.GetHottest() {
			if sum := hot[string(h.GetKey())]; sum != nil {
				sum.ReadsPerSecond, sum.WritesPerSecond = sum.ReadsPerSecond+h.ReadsPerSecond, sum.WritesPerSecond+h.WritesPerSecond
				sum.ErrorPerSecond += h.ErrorPerSecond
				continue
			}
			hot[string(h.GetKey())] = h
			answer.Hottest = append(answer.Hottest, h)
		}
		answer.Largest = append(answer.Largest, part.GetLargest()...)
	}
	slices.SortFunc(answer.Slots, func(a, b *ostrakapb.SlotUsage) int { return cmp.Compare(a.Slot, b.Slot) })
	slices.SortFunc(answer.Hottest, func(a, b *ostrakapb.HotKey) int {
		return cmp.Or(cmp.Compare(b.ReadsPerSecond+b.WritesPerSecond, a.ReadsPerSecond+a.WritesPerSecond), slices.Compare(a.Key, b.Key))
	})
	slices.SortFunc(answer.Largest, func(a, b *ostrakapb.LargeKey) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), slices.Compare(a.Key, b.Key))
	})
	answer.Hottest = answer.Hottest[:min(len(answer.Hottest), keys)]
	answer.Largest = answer.Largest[:min(len(answer.Largest), keys)]
	return answer
}
