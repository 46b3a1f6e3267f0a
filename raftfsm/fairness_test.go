package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// slowConn sends so many bytes a second.
type slowConn struct {
	net.Conn
	bytesPerSecond int
	sending        chan struct{} // holds a token while somebody sends; a channel, so that virtual time passes
}

func (c slowConn) Write(b []byte) (int, error) {
	c.sending <- struct{}{}
	defer func() { <-c.sending }()
	time.Sleep(time.Duration(len(b)) * time.Second / time.Duration(c.bytesPerSecond)) // virtual
	return c.Conn.Write(b)
}

// TestBusyShardDelaysNoOther: one shard has as much to write as its queue holds, over a network that is the bottleneck. A single
// write to another shard, over the same streams and to the same logs, waits for the frame that is on its way and one more, never
// for what the busy shard has waiting (Config.Proposer.InFlightMax and the transport's FrameBytesMax see to that); and the busy
// shard's full queue refuses nobody else.
func TestBusyShardDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			bytesPerSecond = 100 << 20
			valueBytes     = 64 << 10
			frameBytes     = 1 << 20 // transport.Config.FrameBytesMax
			busy, quiet    = shard.ID(1), shard.ID(2)
		)
		bounded := func(c *Config) { c.Proposer.QueueBytesMax = 16 << 20 }
		c := newTestClusterWith(t, 3, 3, 2, bounded, func(n *testNode) {
			n.syncTakes = func() time.Duration { return time.Millisecond }
		})
		c.linkBytes.Store(bytesPerSecond)
		for _, n := range c.nodes { // streams that stand know of no limit
			c.isolate(n.id)
		}
		c.heal()
		lead := c.leader(busy)
		if other := c.leader(quiet); other != lead {
			if err := other.group(quiet).TransferLeadership(lead.id); err != nil {
				t.Fatal(err)
			}
			c.eventually("one node leads both", func() bool { return lead.group(quiet).IsLeader() })
		}

		over := make(chan struct{})
		var callers sync.WaitGroup
		var refused, written atomic.Int64
		var slowest atomic.Int64
		tag, value := keyOf(c, busy), make([]byte, valueBytes)
		for i := range 400 {
			callers.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					began := time.Now()
					op := &store.Op{Kind: store.OpSet, Key: fmt.Appendf(nil, "{%s}%d", tag, i), Value: value}
					_, err := lead.group(busy).Write(ctx, op, Session{})
					cancel()
					switch took := int64(time.Since(began)); {
					case errors.Is(err, ErrOverloaded):
						refused.Add(1)
						time.Sleep(10 * time.Millisecond)
					case err != nil:
						t.Errorf("busy shard: %v", err)
						return
					default:
						written.Add(1)
						slowest.Store(max(slowest.Load(), took))
					}
				}
			})
		}
		c.eventually("the busy shard's queue is full", func() bool { return refused.Load() > 0 && written.Load() > 0 })
		worst := time.Duration(0)
		for i := range 50 {
			began := time.Now()
			lead.mustSet(quiet, keyOf(c, quiet), fmt.Sprint(i))
			worst = max(worst, time.Since(began))
			time.Sleep(7 * time.Millisecond)
		}
		close(over)
		callers.Wait()
		t.Logf("quiet shard: at most %s; busy shard: %s, %d written, %d refused", worst, time.Duration(slowest.Load()), written.Load(), refused.Load())
		frame := time.Second * frameBytes / bytesPerSecond
		if most := 3 * frame; worst > most {
			t.Errorf("a single write waited %s, want at most %s", worst, most)
		}
		if waited := time.Duration(slowest.Load()); waited < 10*frame {
			t.Errorf("the busy shard's own waited only %s: it was not busy", waited)
		}
	})
}
