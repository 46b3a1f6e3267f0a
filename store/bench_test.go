package store_test

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

// Benchmarks use 16-byte keys and 128-byte values, spread over all slots as a hash would.
var benchSizes = []int{100_000, 1_000_000, 4_000_000}

const benchValueBytes = 128

// benchKey writes key number i into key, 16 bytes, and returns its slot. Numbers are scattered by an odd factor, so that
// neither memory order nor key order follows the order of use.
func benchKey(key []byte, i int) (slot uint16) {
	scattered := uint64(i) * 0x9e3779b97f4a7c15
	binary.BigEndian.PutUint64(key, scattered)
	binary.BigEndian.PutUint64(key[8:], uint64(i))
	return uint16(scattered >> 50)
}

// anyOf returns the number of a key in an order that has nothing to do with that of insertion, and so of memory.
func anyOf(i, keys int) int {
	return int(uint64(i) * 0x9e3779b1 % uint64(keys))
}

func allSlots() []uint16 {
	slots := make([]uint16, store.SlotCount)
	for i := range slots {
		slots[i] = uint16(i)
	}
	return slots
}

// filled returns a store of keys keys, made once per size, since benchmark functions run several times.
// Benchmarks that change more than values fill their own.
var filled = func() func(b *testing.B, keys int) *store.Store {
	made := map[int]*store.Store{}
	return func(b *testing.B, keys int) *store.Store {
		b.Helper()
		if made[keys] == nil {
			made[keys] = fill(keys, 0)
		}
		return made[keys]
	}
}()

func fill(keys int, ttl int64) *store.Store {
	s := store.New(store.DefaultLimits())
	s.Own(allSlots()...)
	key, value := make([]byte, 16), make([]byte, benchValueBytes)
	for i := range keys {
		s.Apply(benchKey(key, i), &store.Op{Kind: store.OpSet, Key: key, Value: value, TTL: ttl})
	}
	return s
}

func forSizes(b *testing.B, run func(b *testing.B, keys int)) {
	for _, keys := range benchSizes {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			b.ReportAllocs()
			run(b, keys)
		})
	}
}

func BenchmarkGet(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		key, dst := make([]byte, 16), make([]byte, 0, benchValueBytes)
		i := 0
		for b.Loop() {
			slot := benchKey(key, anyOf(i, keys))
			if _, _, ok := s.Get(slot, key, dst); !ok {
				b.Fatal("missing")
			}
			i++
		}
	})
}

func BenchmarkGetParallel(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		b.RunParallel(func(p *testing.PB) {
			key, dst := make([]byte, 16), make([]byte, 0, benchValueBytes)
			for i := 0; p.Next(); i++ {
				s.Get(benchKey(key, anyOf(i, keys)), key, dst)
			}
		})
	})
}

func BenchmarkOverwrite(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		op := store.Op{Kind: store.OpSet, Key: make([]byte, 16), Value: make([]byte, benchValueBytes)}
		i := 0
		for b.Loop() {
			s.Apply(benchKey(op.Key, anyOf(i, keys)), &op)
			i++
		}
	})
}

// BenchmarkInsert adds keys to an empty store: one operation is one key.
func BenchmarkInsert(b *testing.B) {
	b.ReportAllocs()
	s := fill(0, 0)
	op := store.Op{Kind: store.OpSet, Key: make([]byte, 16), Value: make([]byte, benchValueBytes)}
	i := 0
	for b.Loop() {
		s.Apply(benchKey(op.Key, i), &op)
		i++
	}
}

// BenchmarkScan reads a page of 100 keys from somewhere.
func BenchmarkScan(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		from := make([]byte, 16)
		i := 0
		for b.Loop() {
			benchKey(from, anyOf(i, keys))
			s.Scan(from, nil, 100, 0, func(_, _ []byte, _ store.Meta) bool { return true })
			i++
		}
	})
}

// BenchmarkScanAll reads everything: one operation is one key.
func BenchmarkScanAll(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		for left := b.N; left > 0; {
			s.Scan(nil, nil, 0, 0, func(_, _ []byte, _ store.Meta) bool {
				left--
				return left > 0
			})
		}
	})
}

// BenchmarkFreeze takes a view and drops it: what a snapshot costs before anything is written.
func BenchmarkFreeze(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		for b.Loop() {
			s.Freeze().Close()
		}
	})
}

// BenchmarkOverwriteFrozen is BenchmarkOverwrite with a view open that nobody reads: the first write to each slot pays
// for handing it over.
func BenchmarkOverwriteFrozen(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		op := store.Op{Kind: store.OpSet, Key: make([]byte, 16), Value: make([]byte, benchValueBytes)}
		v := s.Freeze()
		i := 0
		for b.Loop() {
			if i%(10*store.SlotCount) == 0 {
				v.Close()
				v = s.Freeze()
			}
			s.Apply(benchKey(op.Key, anyOf(i, keys)), &op)
			i++
		}
		v.Close()
	})
}

// BenchmarkSnapshot reads a whole view, slot by slot: one operation is one store.
func BenchmarkSnapshot(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		for b.Loop() {
			v := s.Freeze()
			for _, slot := range v.Slots() {
				v.Slot(slot, func(store.Item) error { return nil })
			}
			v.Close()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(keys), "ns/key")
	})
}

// BenchmarkRestore builds a store from a view: one operation is one store.
// BenchmarkAudit counts all slots again. An op is a key.
func BenchmarkAudit(b *testing.B) {
	for _, keys := range benchSizes {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			s := filled(b, keys)
			b.ResetTimer()
			for done := 0; done < b.N; {
				a := s.Audit(0, store.SlotCount)
				for i := range a.Slots() {
					kept, counted, err := a.Count(i, func() error { return nil })
					if err != nil || kept != counted {
						b.Fatal(kept, counted, err)
					}
					if done += int(counted.Keys); done >= b.N {
						break
					}
				}
				a.Close()
			}
		})
	}
}

func BenchmarkRestore(b *testing.B) {
	forSizes(b, func(b *testing.B, keys int) {
		s := filled(b, keys)
		for b.Loop() {
			v := s.Freeze()
			rebuild(b, v, store.DefaultLimits())
			v.Close()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(keys), "ns/key")
	})
}

// BenchmarkReap removes expired keys in slices of 100, wherever they are due: one operation is one key.
func BenchmarkReap(b *testing.B) {
	const keys = 100_000
	b.ReportAllocs()
	reaped := 0
	for reaped < b.N {
		b.StopTimer()
		s := fill(keys, 1)
		s.SetTime(1)
		b.StartTimer()
		for reaped < b.N {
			slot, _, ok := s.Due(1)
			if !ok {
				break
			}
			reaped += s.Reap(slot, 1, 100)
		}
	}
}

// BenchmarkMemory reports what a key takes over its own 16 + 128 bytes: on the heap and beside it, as reserved. What of it is
// resident, bench/memory tells.
func BenchmarkMemory(b *testing.B) {
	const keys = 1_000_000
	var overhead float64
	for b.Loop() {
		before := heapBytes()
		s := fill(keys, 0)
		m := s.MemoryStats()
		overhead = float64(heapBytes()-before+m.Reserved+m.Large)/keys - 16 - benchValueBytes
		runtime.KeepAlive(s)
	}
	b.ReportMetric(overhead, "overhead-B/key")
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkGetBesideWrites reads while the writer writes without a pause: what the lock costs readers.
func BenchmarkGetBesideWrites(b *testing.B) {
	const keys = 100_000
	b.ReportAllocs()
	s := filled(b, keys)
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		op := store.Op{Kind: store.OpSet, Key: make([]byte, 16), Value: make([]byte, benchValueBytes)}
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				s.Apply(benchKey(op.Key, anyOf(i, keys)), &op)
			}
		}
	})
	key, dst := make([]byte, 16), make([]byte, 0, benchValueBytes)
	i := 0
	for b.Loop() {
		s.Get(benchKey(key, anyOf(i, keys)), key, dst)
		i++
	}
	close(done)
	writer.Wait()
}
