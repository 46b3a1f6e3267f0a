package raftfsm

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

const testMemoryLimit = 4 << 20

// newMemoryTest is a cluster of three, led by n1, of which only n2 has a limit.
func newMemoryTest(t *testing.T) (c *testCluster, lead, limited *testNode) {
	c = newTestCluster(t, 3, 3, 1, func(cfg *Config) {
		if cfg.Node == "n2" {
			cfg.MaxMemory = testMemoryLimit
		}
	})
	lead, limited = c.nodes[0], c.nodes[1]
	c.eventually("n1 leads", func() bool {
		now := c.leader(1)
		if now == lead {
			return true
		}
		now.group(1).TransferLeadership(lead.id) // may fail while it has not caught up
		return false
	})
	return c, lead, limited
}

// fill writes new keys until one is refused, and returns how many there are.
func (n *testNode) fill(from int) (keys int, refused error) {
	value := strings.Repeat("v", 1000)
	for keys = from; keys < 20_000; keys++ {
		time.Sleep(memoryBeat / 100) // virtual: else nothing but writes would ever happen
		if err := n.set(1, fmt.Sprint("key", keys), value); err != nil {
			return keys, err
		}
	}
	return keys, nil
}

func (n *testNode) write(op *store.Op) (store.Result, error) {
	ctx, cancel := background()
	defer cancel()
	return n.group(1).Write(ctx, op, Session{})
}

// A leader refuses growth, and nothing else, while a follower's node is over its limit; and takes it again once that is below its
// lower mark.
func TestGrowthIsRefusedOverALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, lead, limited := newMemoryTest(t)
		keys, err := lead.fill(0)
		var memory *MemoryError
		if !errors.Is(err, ErrMemory) || !errors.As(err, &memory) || memory.Node != "n2" || memory.Limit != testMemoryLimit || memory.Used < memory.Limit {
			t.Fatalf("after %d keys: %v", keys, err)
		}
		c.eventually("n2 says so itself", func() bool { return limited.host.Memory().Over })
		if use := limited.host.Memory(); use.Used > testMemoryLimit*5/4 {
			t.Errorf("over by far: %+v", use)
		}
		if use := lead.host.Memory(); use.Over || use.Limit != 0 || use.Refused != 1 {
			t.Errorf("the leader: %+v", use)
		}
		// All that doesn't grow goes on.
		if err := lead.set(1, "key1", strings.Repeat("w", 1000)); err != nil {
			t.Errorf("an overwrite: %v", err)
		}
		if _, ok, err := lead.get(1, "key1", Linearizable); !ok || err != nil {
			t.Errorf("a read: %v, %v", ok, err)
		}
		if r, err := lead.write(&store.Op{Kind: store.OpSet, Key: []byte("key1"), Value: []byte(strings.Repeat("w", 2000)), Condition: store.CondAbsent}); err != nil ||
			r.Status != store.StatusConditionNotMet {
			t.Errorf("a lost condition: %+v, %v", r, err)
		}
		if err := lead.set(1, "key1", strings.Repeat("w", 2000)); !errors.Is(err, ErrMemory) {
			t.Errorf("a longer value: %v", err)
		}
		// What may have been done before is asked of the log.
		ctx, cancel := background()
		defer cancel()
		born := lead.group(1).SessionTime()
		again := Session{ClientID: [16]byte{1}, Born: born, Request: 1, Lowest: 1, Attempt: 2}
		if r, err := lead.group(1).Write(ctx, &store.Op{Kind: store.OpSet, Key: []byte("sent again"), Value: []byte("v")}, again); err != nil || r.Status != store.StatusOK {
			t.Errorf("sent again: %+v, %v", r, err)
		}
		again.Request, again.Attempt = 2, 1
		if _, err := lead.group(1).Write(ctx, &store.Op{Kind: store.OpSet, Key: []byte("sent once"), Value: []byte("v")}, again); !errors.Is(err, ErrMemory) {
			t.Errorf("sent once: %v", err)
		}
		// Few deletes are not enough: it stays over until the lower mark, and never says otherwise on the way.
		deleted := 0
		for ; limited.host.Memory().Over; deleted++ {
			if r, err := lead.write(&store.Op{Kind: store.OpDelete, Key: fmt.Append(nil, "key", deleted)}); err != nil || r.Status != store.StatusOK {
				t.Fatalf("delete %d of %d: %+v, %v", deleted, keys, r, err)
			}
			time.Sleep(memoryBeat / 10) // virtual
		}
		if use := limited.host.Memory(); use.Used > lowerMark(testMemoryLimit) {
			t.Errorf("back before the lower mark: %+v", use)
		}
		t.Logf("%d keys fit, back after %d deletes", keys, deleted)
		c.eventually("growth is taken again", func() bool { return lead.set(1, "again", "v") == nil })
		if _, err := lead.fill(keys); !errors.Is(err, ErrMemory) {
			t.Errorf("filled again: %v", err)
		}
		c.converged(1)
	})
}

// Of writes that come together, those that grow are given back, each once, and the others are done.
func TestSubmitOverALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, lead, _ := newMemoryTest(t)
		lead.fill(0)
		var ended collected
		writes := []*Write{
			{Op: store.Op{Kind: store.OpSet, Key: []byte("key5"), Value: []byte("short")}, Number: 1, To: &ended},
			{Op: store.Op{Kind: store.OpSet, Key: []byte("new"), Value: []byte("v")}, Number: 2, To: &ended},
			{Op: store.Op{Kind: store.OpDelete, Key: []byte("key6")}, Number: 3, To: &ended},
			{Op: store.Op{Kind: store.OpAppend, Key: []byte("key7"), Value: []byte("v")}, Number: 4, To: &ended},
		}
		if n, err := lead.group(1).Submit(writes); n != len(writes) || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		got := ended.all()
		if len(got) != 4 {
			t.Fatalf("%d of 4 came back", len(got))
		}
		for number, grows := range map[uint64]bool{1: false, 2: true, 3: false, 4: true} {
			if w := got[number]; errors.Is(w.Err, ErrMemory) != grows || !grows && w.Result.Status != store.StatusOK {
				t.Errorf("write %d: %+v, %v", number, w.Result, w.Err)
			}
		}
	})
}

// collected is a Receiver that keeps what it gets.
type collected struct {
	mu    sync.Mutex
	ended []*Write
}

func (c *collected) Written(writes []*Write) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = append(c.ended, writes...)
}

func (c *collected) all() map[uint64]*Write {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[uint64]*Write)
	for _, w := range c.ended {
		all[w.Number] = w
	}
	return all
}

// A node that is away does not hold growth up for ever, and does again when it is back.
func TestOldReportsDontCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, lead, limited := newMemoryTest(t)
		if _, err := lead.fill(0); !errors.Is(err, ErrMemory) {
			t.Fatal(err)
		}
		c.isolate(limited.id)
		if err := lead.set(1, "more", "v"); !errors.Is(err, ErrMemory) {
			t.Errorf("at once: %v", err)
		}
		time.Sleep(4 * time.Second)
		if err := lead.set(1, "more", "v"); err != nil {
			t.Errorf("after four elections: %v", err)
		}
		c.heal()
		i := 0
		c.eventually("it is heard of again", func() bool {
			i++
			return errors.Is(lead.set(1, fmt.Sprint("and more", i), "v"), ErrMemory)
		})
	})
}

// Many reports come and go: only what was said last counts, and what nobody is over costs nothing.
func TestReportsAreKept(t *testing.T) {
	m := &memory{clock: NewSystemClock(), life: time.Hour}
	voters := []voter{{node: "a"}, {node: "b"}}
	report := func(over bool) transport.MemoryReport {
		return transport.MemoryReport{Used: 9, Limit: 8, Over: over}
	}
	m.note("c", report(true))
	if err := m.pressed(voters); err != nil {
		t.Errorf("another group's node: %v", err)
	}
	m.note("b", report(true))
	if err := m.pressed(voters); err == nil || err.Node != shard.NodeID("b") || err.Used != 9 || err.Limit != 8 {
		t.Errorf("%v", err)
	}
	m.note("b", report(false))
	if err := m.pressed(voters); err != nil {
		t.Errorf("after it got well: %v", err)
	}
	m.note("c", report(false))
	if m.over.Load() != nil {
		t.Error("nobody is over, and yet something is kept")
	}
}
