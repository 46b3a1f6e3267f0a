package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"time"

	"github.com/ostraka-db/ostraka/store"
)

// storeFigure is what one filled store costs.
type storeFigure struct {
	RSSBytesPerKey float64           `json:"rss_bytes_per_key"` // of the whole process, after a collection
	Memory         store.MemoryStats `json:"memory"`
	InsertNs       float64           `json:"insert_ns"`
	OverwriteNs    float64           `json:"overwrite_ns"`
	GetNs          float64           `json:"get_ns"`
	ScanMillion    float64           `json:"scan_million_keys_per_second"`
	GCCPUMs        float64           `json:"gc_cpu_ms"`   // of one cycle
	GCPauseMs      float64           `json:"gc_pause_ms"` // the longest
	HeapMB         float64           `json:"heap_mb"`
	FreezeUs       float64           `json:"freeze_us"`
	SnapshotMBs    float64           `json:"snapshot_mb_per_second"`
	SnapshotWrites float64           `json:"snapshot_writes_per_second"`
	SnapshotExtra  float64           `json:"snapshot_extra"` // of keys and values, at most
	WriteP999Us    float64           `json:"write_p999_us"`
	SnapshotP999Us float64           `json:"snapshot_write_p999_us"`
}

type loadFigure struct {
	Seconds        float64 `json:"seconds"`
	MBs            float64 `json:"mb_per_second"`
	RSSBytesPerKey float64 `json:"rss_bytes_per_key"`
}

type churnFigure struct {
	LiveMB   float64 `json:"live_mb"`
	RSSRatio float64 `json:"rss_ratio"` // by keys and values
	Ops      int     `json:"ops"`

	Memory store.MemoryStats `json:"memory"`
	Keys   int64             `json:"keys"`
	HeapMB float64           `json:"heap_mb"`
}

func newStore() *store.Store {
	s := store.New(store.MaxLimits())
	for slot := range uint16(store.SlotCount) {
		s.Own(slot)
	}
	return s
}

// rounds times n operations and returns nanoseconds for each.
func timed(n int, op func(i int)) float64 {
	start := time.Now()
	for i := range n {
		op(i)
	}
	return float64(time.Since(start).Nanoseconds()) / float64(n)
}

func fillAndMeasure(o options) (f storeFigure, err error) {
	s := newStore()
	op := store.Op{Kind: store.OpSet, Key: make([]byte, keyBytes), Value: make([]byte, o.valueBytes)}
	f.InsertNs = timed(o.keys, func(i int) {
		fillValue(op.Value, i)
		s.Apply(keyOf(op.Key, i), &op)
	})
	runtime.GC()
	debug.FreeOSMemory()
	rss, err := residentBytes(os.Getpid())
	if err != nil {
		return f, err
	}
	f.RSSBytesPerKey, f.Memory = rss/float64(o.keys), s.MemoryStats()

	random := rand.New(rand.NewPCG(1, 2))
	dst := make([]byte, 0, o.valueBytes)
	f.GetNs = timed(4_000_000, func(int) {
		if _, _, ok := s.Get(keyOf(op.Key, random.IntN(o.keys)), op.Key, dst); !ok {
			panic("a key is missing")
		}
	})
	f.OverwriteNs = timed(4_000_000, func(int) { s.Apply(keyOf(op.Key, random.IntN(o.keys)), &op) })
	scanned := 0
	start := time.Now()
	s.Scan(nil, nil, 0, 0, func(_, _ []byte, _ store.Meta) bool {
		scanned++
		return true
	})
	f.ScanMillion = float64(scanned) / time.Since(start).Seconds() / 1e6
	f.collect()
	return f, f.snapshot(s, o)
}

// collect measures garbage collections.
func (f *storeFigure) collect() {
	const cycles = 5
	cpu := []metrics.Sample{{Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(cpu)
	before := cpu[0].Value.Float64()
	var stats debug.GCStats
	for range cycles {
		runtime.GC()
	}
	metrics.Read(cpu)
	debug.ReadGCStats(&stats)
	f.GCCPUMs = (cpu[0].Value.Float64() - before) * 1000 / cycles
	f.GCPauseMs = float64(slices.Max(stats.Pause[:cycles]).Nanoseconds()) / 1e6
	f.HeapMB = float64(cpu[1].Value.Uint64()) / 1e6
}

// snapshot overwrites keys all the time, takes a snapshot in the midst of it and writes that out on another goroutine.
func (f *storeFigure) snapshot(s *store.Store, o options) error {
	const window = 2 * time.Second
	random := rand.New(rand.NewPCG(3, 4))
	op := store.Op{Kind: store.OpSet, Key: make([]byte, keyBytes), Value: make([]byte, o.valueBytes)}
	pace := newPace(o.writeRate)
	write := func() time.Duration {
		i := random.IntN(o.keys)
		fillValue(op.Value, i)
		slot := keyOf(op.Key, i)
		pace.wait()
		start := time.Now()
		s.Apply(slot, &op)
		return time.Since(start)
	}
	before := make([]time.Duration, 0, 1<<20)
	for end := time.Now().Add(window); time.Now().Before(end); {
		before = append(before, write())
	}
	f.WriteP999Us = percentile999(before)

	reserved := s.MemoryStats().Reserved
	start := time.Now()
	v := s.Freeze()
	f.FreezeUs = float64(time.Since(start).Nanoseconds()) / 1e3
	type done struct {
		bytes int64
		err   error
		took  time.Duration
	}
	finished := make(chan done, 1)
	go func() { // ends with the snapshot, waited for below
		start := time.Now()
		n, err := writeSnapshot(v, o.snapshotPath())
		finished <- done{n, err, time.Since(start)}
	}()
	during := make([]time.Duration, 0, 1<<20)
	most := reserved
	for {
		select {
		case d := <-finished:
			v.Close()
			f.SnapshotMBs = float64(d.bytes) / 1e6 / d.took.Seconds()
			f.SnapshotWrites = float64(len(during)) / d.took.Seconds()
			f.SnapshotP999Us = percentile999(during)
			f.SnapshotExtra = float64(most-reserved) / float64(s.Stats().Bytes)
			return d.err
		default:
		}
		during = append(during, write())
		if len(during)%1024 == 0 {
			most = max(most, s.MemoryStats().Reserved)
		}
	}
}

func percentile999(latencies []time.Duration) float64 {
	if len(latencies) == 0 {
		return 0
	}
	slices.Sort(latencies)
	return float64(latencies[len(latencies)*999/1000].Nanoseconds()) / 1e3
}

// pace spreads writes over time.
type pace struct {
	next time.Time
	gap  time.Duration
}

func newPace(rate int) *pace {
	if rate == 0 {
		return &pace{}
	}
	return &pace{next: time.Now(), gap: time.Second / time.Duration(rate)}
}

// wait spins rather than sleeps: a timer is coarser than the gaps. It lets others run meanwhile.
func (p *pace) wait() {
	if p.gap == 0 {
		return
	}
	for time.Now().Before(p.next) {
		runtime.Gosched()
	}
	p.next = p.next.Add(p.gap)
	if late := time.Now(); p.next.Before(late.Add(-time.Millisecond)) {
		p.next = late // a stall is not made up for by a burst
	}
}

func writeSnapshot(v *store.View, path string) (int64, error) {
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	out := bufio.NewWriterSize(file, 256<<10)
	var items []byte
	for _, slot := range v.Slots() {
		if err := writeSlot(out, v, slot, &items); err != nil {
			return 0, err
		}
	}
	if err := out.Flush(); err != nil {
		return 0, err
	}
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// loadAndMeasure reads the snapshot that fill left, as a restart does.
func loadAndMeasure(o options) (f loadFigure, err error) {
	file, err := os.Open(o.snapshotPath())
	if err != nil {
		return f, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return f, err
	}
	start := time.Now()
	s, err := readSnapshot(bufio.NewReaderSize(file, 256<<10))
	if err != nil {
		return f, err
	}
	took := time.Since(start)
	if s.Stats().Keys != int64(o.keys) {
		return f, fmt.Errorf("%d keys, want %d", s.Stats().Keys, o.keys)
	}
	runtime.GC()
	debug.FreeOSMemory()
	rss, err := residentBytes(os.Getpid())
	runtime.KeepAlive(s)
	return loadFigure{Seconds: took.Seconds(), MBs: float64(info.Size()) / 1e6 / took.Seconds(), RSSBytesPerKey: rss / float64(o.keys)}, err
}

// churnAndMeasure fills a store and then writes five times as many operations: values of half to one and a half the size, a tenth deletes,
// a tenth with a TTL that ends within the run, and reaping all the while.
func churnAndMeasure(o options) (f churnFigure, err error) {
	s := newStore()
	random := rand.New(rand.NewPCG(5, 6))
	key, value := make([]byte, keyBytes), make([]byte, 2*o.valueBytes)
	fillValue(value, 1)
	f.Ops = 6 * o.keys
	for i := range f.Ops {
		n := i
		if i >= o.keys {
			n = random.IntN(o.keys)
		}
		op := store.Op{Kind: store.OpSet, Key: key, Value: value[:o.valueBytes/2+random.IntN(o.valueBytes+1)]}
		switch random.IntN(10) {
		case 0:
			if i >= o.keys {
				op = store.Op{Kind: store.OpDelete, Key: key}
			}
		case 1:
			op.TTL = 1 + int64(random.IntN(1000))
		}
		s.Apply(keyOf(key, n), &op)
		if i%(f.Ops/3000+1) == 0 {
			s.SetTime(s.Time() + 1)
			for slot, _, ok := s.Due(s.Time()); ok; slot, _, ok = s.Due(s.Time()) {
				s.Reap(slot, s.Time(), 100)
			}
		}
	}
	runtime.GC()
	debug.FreeOSMemory()
	rss, err := residentBytes(os.Getpid())
	live := float64(s.Stats().Bytes)
	f.LiveMB, f.RSSRatio = live/1e6, rss/live
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.Memory, f.Keys, f.HeapMB = s.MemoryStats(), s.Stats().Keys, float64(m.HeapSys)/1e6
	return f, err
}
