package raftfsm

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/store"
)

// Thousands of slots have a key that expires at the same moment: they go at the share that was given, all of them in the end, and writes are taken
// meanwhile. Time is virtual, so applying takes none, and what is spent is reapEntryCost for each slot.
func TestReapingKeepsToItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, share = 4000, 2
		c := newTestCluster(t, 3, 3, 1, func(cfg *Config) { cfg.Reaping.Share = share })
		lead := c.leader(1)
		due := time.Now().Add(20 * time.Second)
		for i := range keys {
			ctx, cancel := background()
			op := &store.Op{Kind: store.OpSet, Key: fmt.Append(nil, "key", i), Value: []byte("v"), TTL: time.Until(due).Milliseconds()}
			_, err := lead.group(1).Write(ctx, op, Session{})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Until(due) + 100*time.Millisecond)
		before := lead.host.ReapStats().Keys
		const watched = 2 * time.Second
		slots := uint64(watched * share / 100 / reapEntryCost) // 800
		time.Sleep(watched)
		lead.mustSet(1, "other", "v")
		// A slot has one of the keys, seldom two or three.
		if removed := lead.host.ReapStats().Keys - before; removed < slots/2 || removed > 2*slots {
			t.Errorf("%d keys went in %s, the share is %d slots", removed, watched, slots)
		}
		c.eventually("all are gone", func() bool { return lead.group(1).Status().Keys == 1 })
		if removed := lead.host.ReapStats().Keys; removed != keys {
			t.Errorf("%d of %d keys are counted", removed, keys)
		}
		c.converged(1)
	})
}
