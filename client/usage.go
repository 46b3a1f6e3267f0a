package client

import (
	"context"
	"fmt"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// Usage is what slots hold and how they are used, as the last few seconds show it.
type Usage struct {
	// Slots in ascending order, without those that hold nothing and were not used.
	Slots []SlotUsage `json:"slots,omitempty"`
	// Hottest and Largest keys, the hottest and largest first.
	Hottest []HotKey   `json:"hottest,omitempty"`
	Largest []LargeKey `json:"largest,omitempty"`
	// Silent are nodes that did not answer: what they know is missing.
	Silent []string `json:"silent,omitempty"`
}

// SlotUsage is one slot. Reads are those of all replicas, estimated from samples.
type SlotUsage struct {
	Slot            shard.Slot `json:"slot"`
	Shard           shard.ID   `json:"shard"`
	Keys            int64      `json:"keys"`
	Bytes           int64      `json:"bytes"`
	Expiring        int64      `json:"expiring"`
	ReadsPerSecond  float64    `json:"reads_per_second"`
	WritesPerSecond float64    `json:"writes_per_second"`
}

// HotKey is a key that is used often. The rates are estimated from samples, and together too high by ErrorPerSecond at most.
type HotKey struct {
	Key             []byte     `json:"-"`
	Slot            shard.Slot `json:"slot"`
	Shard           shard.ID   `json:"shard"`
	ReadsPerSecond  float64    `json:"reads_per_second"`
	WritesPerSecond float64    `json:"writes_per_second"`
	ErrorPerSecond  float64    `json:"error_per_second"`
}

// LargeKey is a key with the bytes of it and its value.
type LargeKey struct {
	Key   []byte     `json:"-"`
	Slot  shard.Slot `json:"slot"`
	Shard shard.ID   `json:"shard"`
	Bytes int64      `json:"bytes"`
}

// Usage tells how the cluster is used: of all slots if slots is set, and of at most keys of the hottest and of the largest keys (up to 128;
// of the largest 16 of each shard are known). Errors: ErrNoEndpoint, ErrUnavailable.
func (a *Admin) Usage(ctx context.Context, slots bool, keys int) (*Usage, error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	var resp *ostrakapb.UsageResponse
	if err := a.any(ctx, func(ctx context.Context, n *node) (err error) {
		resp, err = n.admin.Usage(ctx, &ostrakapb.UsageRequest{Slots: slots, Keys: uint32(max(keys, 0))})
		return err
	}); err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	u := &Usage{Silent: resp.GetSilent()}
	for _, s := range resp.GetSlots() {
		u.Slots = append(u.Slots, SlotUsage{Slot: shard.Slot(s.GetSlot()), Shard: shard.ID(s.GetShard()), Keys: s.GetKeys(), Bytes: s.GetBytes(),
			Expiring: s.GetExpiring(), ReadsPerSecond: s.GetReadsPerSecond(), WritesPerSecond: s.GetWritesPerSecond()})
	}
	for _, h := range resp.GetHottest() {
		u.Hottest = append(u.Hottest, HotKey{Key: h.GetKey(), Slot: shard.Slot(h.GetSlot()), Shard: shard.ID(h.GetShard()),
			ReadsPerSecond: h.GetReadsPerSecond(), WritesPerSecond: h.GetWritesPerSecond(), ErrorPerSecond: h.GetErrorPerSecond()})
	}
	for _, l := range resp.GetLargest() {
		u.Largest = append(u.Largest, LargeKey{Key: l.GetKey(), Slot: shard.Slot(l.GetSlot()), Shard: shard.ID(l.GetShard()), Bytes: l.GetBytes()})
	}
	return u, nil
}
