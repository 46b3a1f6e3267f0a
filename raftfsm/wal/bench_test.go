package wal

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/shard"
)

func diskConfig(b testing.TB, dir string) Config {
	return Config{Dir: dir, Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { b.Error(err) }}
}

// A caller appends an entry of 160 bytes and waits until it is durable; 16 do so for each replica.
func BenchmarkAppend(b *testing.B) {
	for _, replicas := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("replicas=%d", replicas), func(b *testing.B) {
			l, err := Open(diskConfig(b, b.TempDir()))
			must(b, err)
			defer func() { must(b, l.Close()) }()
			b.ReportAllocs()
			before := l.Stats()
			b.ResetTimer()
			appendBy(b, l, replicas, 16, b.N)
			b.StopTimer()
			after := l.Stats()
			b.ReportMetric(float64(after.Syncs-before.Syncs)/float64(b.N), "syncs/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(after.Syncing-before.Syncing)/float64(after.Syncs-before.Syncs)/1000, "µs/sync")
		})
	}
}

// appendBy appends n entries, by so many callers to each of so many replicas, each of whom waits for his own.
func appendBy(b testing.TB, l *Log, replicas, callers, n int) {
	data := make([]byte, 160)
	var left atomic.Int64
	left.Store(int64(n))
	var all sync.WaitGroup
	for i := range replicas {
		r := l.Replica(ID{shard.ID(i + 1), shard.ReplicaID(i + 1)})
		var mu sync.Mutex // changes of a replica come one at a time
		for range callers {
			all.Go(func() {
				told := make(chan error, 1)
				done := func(err error) { told <- err }
				for left.Add(-1) >= 0 {
					mu.Lock()
					_, last := r.Bounds()
					err := r.Append(1, func(int) Entry { return Entry{Index: last + 1, Term: 1, Data: data} })
					upTo := r.Appended()
					if err == nil && last%10000 == 9999 {
						err = r.Compact(last - 1000)
					}
					mu.Unlock()
					if err == nil && !l.Notify(upTo, done) {
						err = <-told
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
	}
	all.Wait()
}

// Appending costs the processor little, and the garbage collector next to nothing: no entry is allocated for.
func BenchmarkAppendInMemory(b *testing.B) {
	for _, size := range []int{160, 4096} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			l, err := Open(testConfigOf(b, disk.NewMem()))
			must(b, err)
			defer func() { must(b, l.Close()) }()
			b.ReportAllocs()
			b.SetBytes(int64(size))
			appendBatches(b, l, size, b.N)
		})
	}
}

func testConfigOf(t testing.TB, m *disk.Mem) Config {
	must(t, disk.MkdirAll(m, "/wal"))
	cfg := testConfig(t, m)
	cfg.SegmentBytes = 4 << 20
	return cfg
}

// appendBatches appends n entries, 64 at a time, and compacts what came long before.
func appendBatches(t testing.TB, l *Log, size, n int) {
	r := l.Replica(victim)
	data := make([]byte, size)
	_, last := r.Bounds()
	e := Entry{Term: 1, Data: data}
	at := func(i int) Entry {
		e.Index = last + 1 + uint64(i)
		return e
	}
	for done := 0; done < n; done += 64 {
		must(t, r.Append(64, at))
		if last += 64; last%4096 == 0 {
			must(t, r.Compact(last-1024))
		}
	}
}

func TestAppendDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	l := open(t, testConfigOf(t, disk.NewMem()))
	appendBatches(t, l, 160, 100_000) // until buffers have their size
	const entries = 64 * 100
	allocations := testing.AllocsPerRun(20, func() {
		appendBatches(t, l, 160, entries)
		must(t, l.WaitDurable(t.Context(), l.Replica(victim).Appended()))
	}) / entries
	t.Logf("%.4f allocations an entry", allocations)
	if allocations > 0.05 {
		t.Errorf("%.4f allocations an entry", allocations)
	}
	must(t, l.Close())
}
