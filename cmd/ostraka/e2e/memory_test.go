package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// A cluster is filled until its nodes are at their memory limits: what would take more is refused with a typed error, the processes
// stay within bounds, everything else goes on; deletes make room, and writes are taken again.
func TestMemoryLimit(t *testing.T) {
	notWithRace(t)
	const limit = 64 << 20
	c := startCluster(t, cluster.Options{HTTP: true, ServerArgs: []string{"--election-timeout", "500ms", "--max-memory", "64MiB", "--snapshot-log-bytes", "20000000"}})
	await(t, c, cluster.Healthy)
	cl := connect(t, c)
	ctx := testContext(t)
	before := residentBytes(t, c)
	value := []byte(strings.Repeat("0123456789abcdef", 64))
	key := func(i int64) []byte { return fmt.Appendf(nil, "key%07d", i) }

	fill := func(next *atomic.Int64) (refused error) {
		t.Helper()
		var once sync.Once
		var writers sync.WaitGroup
		for range 16 {
			writers.Go(func() {
				for {
					i := next.Add(1)
					_, err := cl.Set(ctx, key(i), value)
					if err == nil && i < 200_000 {
						continue
					}
					once.Do(func() { refused = err })
					return
				}
			})
		}
		writers.Wait()
		return refused
	}
	var next atomic.Int64
	refused := fill(&next)
	var memory *client.MemoryError
	if !errors.Is(refused, client.ErrMemory) || !errors.Is(refused, client.ErrUnavailable) || !errors.As(refused, &memory) || memory.Limit != limit || memory.Used < limit {
		t.Fatalf("after %d keys: %v", next.Load(), refused)
	}
	t.Logf("after %d keys of %d bytes: %v", next.Load(), len(value), refused)
	s := await(t, c, func(s *client.Status) bool {
		return s.Nodes[0].MemoryOver || s.Nodes[1].MemoryOver || s.Nodes[2].MemoryOver
	})
	for _, n := range s.Nodes {
		if n.MemoryLimitBytes != limit || n.MemoryBytes > limit*5/4 {
			t.Errorf("%+v", n)
		}
	}
	endpoints := strings.Join(c.Endpoints(), ",")
	if status, _, stderr := ostraka(t, "", "set", "one-more", "v", "--endpoints", endpoints); status != 5 || !strings.Contains(stderr, "max-memory") {
		t.Errorf("the command line: status %d, %s", status, stderr)
	}

	// For a while all goes on that takes no more, and nothing that does.
	for until, i := time.Now().Add(3*time.Second), int64(1); time.Now().Before(until); i++ {
		if _, err := cl.Set(ctx, key(i%1000+1), value); err != nil {
			t.Fatalf("an overwrite: %v", err)
		}
		if _, err := cl.Get(ctx, key(i%1000+1)); err != nil {
			t.Fatalf("a read: %v", err)
		}
		if _, err := cl.Set(ctx, key(1_000_000+i), value); !errors.Is(err, client.ErrMemory) {
			t.Fatalf("growth: %v", err)
		}
	}
	for i, after := range residentBytes(t, c) {
		grown := after - before[i]
		t.Logf("%s: resident %d MB, %d MB before, engine limit %d MB", c.Nodes()[i].ID, after>>20, before[i]>>20, limit>>20)
		if grown > 3*limit {
			t.Errorf("%s took %d bytes more, the limit is %d", c.Nodes()[i].ID, grown, limit)
		}
	}

	// Deletes make room; and it fills again.
	deleted := int64(0)
	for ; deleted < next.Load()/4; deleted++ {
		if _, err := cl.Delete(ctx, key(deleted+1)); err != nil && !errors.Is(err, client.ErrNotFound) {
			t.Fatalf("a delete: %v", err)
		}
	}
	await(t, c, func(s *client.Status) bool {
		return !s.Nodes[0].MemoryOver && !s.Nodes[1].MemoryOver && !s.Nodes[2].MemoryOver
	})
	again := next.Load()
	if refused := fill(&next); !errors.Is(refused, client.ErrMemory) || next.Load()-again < deleted/4 {
		t.Errorf("after %d deletes there was room for %d more keys: %v", deleted, next.Load()-again, refused)
	}
	t.Logf("%d deletes made room for %d keys", deleted, next.Load()-again)
	if refused := metricSum(t, c, "ostraka_memory_refused_total"); refused == 0 {
		t.Error("nobody counted a refusal")
	}
	await(t, c, func(s *client.Status) bool { return cluster.Healthy(s) && cluster.Converged(s) })
}

// residentBytes is what each process has in memory.
func residentBytes(t *testing.T, c *cluster.Cluster) (bytes []int64) {
	t.Helper()
	for _, p := range c.Nodes() {
		var resident float64
		if err := p.Metrics(testContext(t), func(name, _ string, value float64) {
			if name == "process_resident_memory_bytes" {
				resident = value
			}
		}); err != nil || resident == 0 {
			t.Fatal(resident, err)
		}
		bytes = append(bytes, int64(resident))
	}
	return bytes
}

// metricSum sums a metric up over all nodes and labels.
func metricSum(t *testing.T, c *cluster.Cluster, wanted string) (sum float64) {
	t.Helper()
	for _, p := range c.Nodes() {
		if err := p.Metrics(testContext(t), func(name, _ string, value float64) {
			if name == wanted {
				sum += value
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	return sum
}
