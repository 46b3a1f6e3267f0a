package disk

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkDatasync tells what a log can expect of the disk under the package's directory: 4 KiB written and synced, to a file
// that grows, over blocks that were only allocated and over ones that were written before; by one, and by several at once,
// each to a part of the same file. p50 is of single syncs, syncs/s of all together.
func BenchmarkDatasync(b *testing.B) {
	const block = 4 << 10
	for _, kind := range []string{"growing", "allocated", "written"} {
		for _, writers := range []int{1, 2, 8} {
			if kind == "growing" && writers > 1 {
				continue // there is one end
			}
			b.Run(fmt.Sprintf("%s/writers=%d", kind, writers), func(b *testing.B) {
				each := (b.N + writers - 1) / writers
				f, err := OS{}.Create(filepath.Join(b.TempDir(), "file"))
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				if kind != "growing" {
					err = f.Preallocate(int64(writers * each * block))
				}
				buf := make([]byte, block)
				for at := 0; kind == "written" && err == nil && at < writers*each; at++ {
					_, err = f.WriteAt(buf, int64(at*block))
				}
				if err == nil {
					err = f.Sync()
				}
				if err != nil {
					b.Fatal(err)
				}
				took := make([]time.Duration, writers*each)
				b.ResetTimer()
				var all sync.WaitGroup
				for w := range writers {
					all.Go(func() {
						buf := slices.Repeat([]byte{byte(w + 1)}, block)
						for i := range each {
							at := w*each + i
							began := time.Now()
							if _, err := f.WriteAt(buf, int64(at*block)); err != nil {
								b.Error(err)
								return
							}
							if err := f.Datasync(); err != nil {
								b.Error(err)
								return
							}
							took[at] = time.Since(began)
						}
					})
				}
				all.Wait()
				b.StopTimer()
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "syncs/s")
			})
		}
	}
}
