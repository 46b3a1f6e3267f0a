package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/store"
)

// onceCaller increments a key as a client does: one write after the other, each sent to one node after the other, under one
// number, until it is answered. The way back to it is bad: some answers are lost.
type onceCaller struct {
	c       *testCluster
	session Session
	// acknowledged counts writes, resent those that were sent again though they may have been done.
	acknowledged, resent *atomic.Int64
}

// increment sends one write until it has its result; false: the test is over, and it may have been done.
func (o *onceCaller) increment(ctx context.Context, at int) bool {
	o.session.Request++
	o.session.Lowest = o.session.Request
	maybeDone := false
	for attempt := uint32(1); ctx.Err() == nil; attempt++ {
		o.session.Attempt = attempt
		n := o.c.nodes[(at+int(attempt))%len(o.c.nodes)]
		life := n.lives.Load()
		g, ok := n.answering.Load().Group(1)
		if !ok {
			time.Sleep(time.Millisecond)
			continue
		}
		call, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		_, err := g.Write(call, &store.Op{Kind: store.OpIncrement, Key: []byte("n"), Delta: 1}, o.session)
		cancel()
		// Nor does anybody hear what a node says that was killed meanwhile.
		answered := life > 0 && n.lives.Load() == life && (o.session.Request%5 != 0 || attempt > 3)
		switch {
		case err == nil && answered:
			o.acknowledged.Add(1)
			if maybeDone {
				o.resent.Add(1)
			}
			return true
		case errors.Is(err, ErrOutcomeUnknown) || !answered:
			maybeDone = true
		case errors.Is(err, ErrSessionUnknown) || errors.Is(err, ErrResultForgotten):
			o.c.t.Errorf("%+v: %v", o.session, err)
			return false
		}
		time.Sleep(5 * time.Millisecond) // virtual
	}
	return !maybeDone
}

// Leaders are cut off, killed and told to hand over while callers increment, and snapshots are taken and installed all the time:
// in the end the sum is what was acknowledged, though many writes were sent more than once.
func TestWritesAreDoneOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, func(cfg *Config) { cfg.Snapshots = SnapshotConfig{LogBytes: 5000, TrailingEntries: 5} })
		born := c.leader(1).group(1).SessionTime()
		ctx, stop := context.WithCancel(context.Background())
		var callers sync.WaitGroup
		t.Cleanup(func() { stop(); callers.Wait() }) // before the nodes are stopped
		var acknowledged, resent, open atomic.Int64
		for i := range 12 {
			o := &onceCaller{c: c, session: Session{ClientID: [16]byte{1, byte(i)}, Born: born}, acknowledged: &acknowledged, resent: &resent}
			callers.Go(func() {
				for ctx.Err() == nil {
					if !o.increment(ctx, i) {
						open.Add(1)
					}
					time.Sleep(3 * time.Millisecond) // virtual, and else none would pass
				}
			})
		}
		progress := func() {
			goal := acknowledged.Load() + 100
			c.eventually("writes are answered", func() bool { return acknowledged.Load() >= goal })
		}
		for round := range 12 {
			progress()
			lead := c.leader(1)
			switch round % 3 {
			case 0:
				c.isolate(lead.id)
				c.leader(1, lead.id)
				progress()
				c.heal()
			case 1:
				lead.kill()
				progress()
				lead.restart()
			case 2:
				if err := lead.group(1).replica.handOver(); err != nil {
					t.Log(err)
				}
			}
		}
		progress()
		stop()
		callers.Wait()
		c.heal()
		// A write of its own, after which nothing of theirs can come.
		c.leader(1).mustSet(1, "end", "v")
		c.converged(1)
		got, _, err := c.leader(1).get(1, "n", Linearizable)
		if err != nil {
			t.Fatal(err)
		}
		var sum int64
		if _, err := fmt.Sscan(got, &sum); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d acknowledged, %d of them sent again, %d open at the end; the sum is %d", acknowledged.Load(), resent.Load(), open.Load(), sum)
		if sum < acknowledged.Load() || sum > acknowledged.Load()+open.Load() {
			t.Errorf("the sum is %d after %d acknowledged increments and %d that were broken off", sum, acknowledged.Load(), open.Load())
		}
		if resent.Load() < 10 {
			t.Errorf("only %d writes were sent again: the test proves little", resent.Load())
		}
		for _, n := range c.nodes {
			if n.group(1).Status().Snapshot == 0 {
				t.Errorf("%s took no snapshot", n.id)
			}
		}
	})
}
