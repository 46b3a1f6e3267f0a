package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// preloadBatch is the number of keys in a call of the preload.
	preloadBatch = 100
	// preloadTries bounds the tries of one call: writing a key twice does no harm.
	preloadTries = 5
)

// preload writes every key once, with all callers side by side.
func preload(ctx context.Context, cfg *Config, target Target) error {
	var (
		start   = time.Now()
		next    atomic.Int64 // the first key that nobody has taken
		ops     atomic.Int64
		workers sync.WaitGroup
	)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer report(cfg.Progress, func() Progress {
		return Progress{Phase: PhasePreload, Elapsed: time.Since(start), Ops: ops.Load()}
	})()
	write := *cfg
	write.Batch = preloadBatch
	l := &load{cfg: &write, target: target}
	for i := range cfg.Clients {
		workers.Go(func() {
			c := newCaller(l, i)
			for ctx.Err() == nil {
				first := next.Add(preloadBatch) - preloadBatch
				count := min(preloadBatch, int64(cfg.Keys)-first)
				if count <= 0 {
					return
				}
				if err := c.fill(ctx, first, int(count)); err != nil {
					cancel(err) // the first error wins, and ends the others
					return
				}
				ops.Add(count)
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// fill writes the keys [first, first+count).
func (c *caller) fill(ctx context.Context, first int64, count int) error {
	for i := range count {
		putKey(c.keys[i], uint64(first)+uint64(i))
		at := c.random.IntN(len(c.noise) - c.load.cfg.ValueSize)
		c.values[i] = c.noise[at : at+c.load.cfg.ValueSize]
	}
	var failed int
	var err error
	for range preloadTries {
		if failed, err = c.load.target.Write(ctx, c.keys[:count], c.values[:count]); failed == 0 {
			return nil
		}
	}
	return fmt.Errorf("%d of %d keys failed: %w", failed, count, err)
}
