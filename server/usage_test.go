package server

import (
	"testing"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/store"
)

// TestUsageIsMerged: what a shard holds and is written is its leader's word, what is read all replicas' together.
func TestUsageIsMerged(t *testing.T) {
	uses := func(leads bool, reads uint64) *ostrakapb.UsageResponse {
		answer := new(ostrakapb.UsageResponse)
		addShardUse(answer, &raftfsm.ShardUse{Shard: 3, Leads: leads, Window: 2 * time.Second,
			Slots: []store.SlotUse{{Slot: 7, Stats: store.Stats{Keys: 5, Bytes: 50, Expiring: 1}, Reads: reads, Writes: 100}, {Slot: 9}},
			Hottest: []store.HotKey{{Slot: 7, Key: []byte("hot"), Reads: reads, Writes: 60, Error: 2},
				{Slot: 7, Key: []byte("written"), Writes: 40}},
			Largest: []store.LargeKey{{Slot: 7, Key: []byte("large"), Bytes: 40}}})
		return answer
	}
	got := mergeUsage([]*ostrakapb.UsageResponse{uses(false, 20), nil, uses(true, 10), uses(false, 0)}, 2)
	if len(got.Slots) != 1 || got.Slots[0].Slot != 7 || got.Slots[0].Shard != 3 || got.Slots[0].Keys != 5 || got.Slots[0].Bytes != 50 ||
		got.Slots[0].Expiring != 1 || got.Slots[0].ReadsPerSecond != 15 || got.Slots[0].WritesPerSecond != 50 {
		t.Errorf("slots: %v", got.Slots)
	}
	if len(got.Hottest) != 2 || string(got.Hottest[0].Key) != "hot" || got.Hottest[0].ReadsPerSecond != 15 || got.Hottest[0].WritesPerSecond != 30 ||
		got.Hottest[0].ErrorPerSecond != 2 || string(got.Hottest[1].Key) != "written" || got.Hottest[1].WritesPerSecond != 20 {
		t.Errorf("hottest: %v", got.Hottest)
	}
	if len(got.Largest) != 1 || got.Largest[0].Bytes != 40 {
		t.Errorf("largest: %v", got.Largest)
	}
	if few := mergeUsage([]*ostrakapb.UsageResponse{uses(true, 10)}, 1); len(few.Hottest) != 1 || string(few.Hottest[0].Key) != "hot" {
		t.Errorf("at most one: %v", few.Hottest)
	}
}

func TestUsageBeforeTheFirstWindow(t *testing.T) {
	answer := new(ostrakapb.UsageResponse)
	addShardUse(answer, &raftfsm.ShardUse{Leads: true, Slots: []store.SlotUse{{Slot: 1, Stats: store.Stats{Keys: 1}, Reads: 5, Writes: 5}}})
	if len(answer.Slots) != 1 || answer.Slots[0].ReadsPerSecond != 0 || answer.Slots[0].WritesPerSecond != 0 {
		t.Errorf("%v", answer.Slots)
	}
}
