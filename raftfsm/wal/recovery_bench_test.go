package wal

import (
	"os"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// BenchmarkOpen reads a log of about 1 GB back, in entries of a size: seconds per GB.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{200, 16 << 10} {
		b.Run(map[int]string{200: "200B", 16 << 10: "16KiB"}[size], func(b *testing.B) {
			dir, err := os.MkdirTemp(".", "bench-open-")
			must(b, err)
			defer os.RemoveAll(dir)
			cfg := testConfig(b, disk.OS{})
			cfg.Dir, cfg.SegmentBytes = dir, 32<<20
			l := open(b, cfg)
			total := 1 << 30
			next := map[int]uint64{}
			data := make([]byte, size)
			for written, i := 0, 0; written < total; i++ {
				id := i % 3
				r := l.Replica(ID{1, 1})
				if id > 0 {
					r = l.Replica(ID{2, 2})
				}
				if id == 2 {
					r = l.Replica(ID{3, 3})
				}
				from := next[id]
				must(b, r.Append(64, func(j int) Entry { return Entry{Index: from + uint64(j) + 1, Term: 1, Data: data} }))
				next[id] += 64
				written += 64 * (size + frameBytes)
			}
			must(b, l.Close())
			b.ResetTimer()
			for range b.N {
				began := time.Now()
				l := open(b, cfg)
				b.ReportMetric(time.Since(began).Seconds()*float64(1<<30)/float64(total), "s/GB")
				b.StopTimer()
				must(b, l.Close())
				b.StartTimer()
			}
		})
	}
}
