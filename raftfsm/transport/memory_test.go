package transport

import (
	"testing"
	"testing/synctest"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// A node's memory report travels with the answers to heartbeats, and at once when it changes sides; small enough for every frame.
func TestMemoryReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMany(t, 1)
		acceptAll(t, m.followers[0])
		heard := make(chan MemoryReport, 100)
		m.n1.OnMemory(func(node shard.NodeID, r MemoryReport) {
			if node != "n2" {
				t.Errorf("heard of %s", node)
			}
			heard <- r
		})
		settleLinks(t, m.leaders[0], m.followers[0])
		wantSuccess(t, m.beat()[0])
		if len(heard) > 0 {
			t.Errorf("%+v of a node that says nothing", <-heard)
		}
		calm, over := MemoryReport{Used: 1 << 40, Limit: 1 << 41}, MemoryReport{Used: 1 << 41, Limit: 1 << 41, Over: true}
		m.n2.ReportMemory(calm)
		time.Sleep(m.n1.cfg.HeartbeatGather)
		if len(heard) > 0 {
			t.Errorf("%+v without an answer to travel with", <-heard)
		}
		wantSuccess(t, m.beat()[0])
		if got := <-heard; got != calm {
			t.Errorf("%+v", got)
		}
		for _, r := range []MemoryReport{over, calm} {
			m.n2.ReportMemory(r)
			synctest.Wait()
			if len(heard) != 1 {
				t.Fatalf("%d reports at once of a change", len(heard))
			}
			if got := <-heard; got != r {
				t.Errorf("%+v", got)
			}
			m.n2.ReportMemory(r)
			synctest.Wait()
			if len(heard) > 0 {
				t.Error("told again, though nothing changed")
			}
		}
		if n := heartbeatBytes(&ostrakapb.Frame{Memory: &ostrakapb.NodeMemory{Used: 1<<64 - 1, Limit: 1<<64 - 1, Over: true}}); n > 24 {
			t.Errorf("a report takes %d bytes", n)
		}
	})
}
