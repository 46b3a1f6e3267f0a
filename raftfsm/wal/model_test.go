package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/shard"
)

// Several replicas change at the same time, each beside a plain map of its own, while others read; the log is closed and
// opened again in between. Segments are so small that they are purged, recycled and cleaned all the time, and so little may
// be pending that everybody waits.
func TestModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	lives := 12
	if testing.Short() || raceDetector {
		lives = 4
	}
	m := newMem(t)
	replicas := make([]*modelled, 6)
	for i := range replicas {
		replicas[i] = &modelled{id: ID{Shard: shard.ID(1 + i%3), Replica: shard.ReplicaID(1 + i)}, seldom: i == 0, rng: rand.New(rand.NewPCG(seed, uint64(1+i))),
			now: modelReplica{records: map[string]string{}}, ever: map[uint64]map[string]bool{}}
	}
	var total Stats
	for life := range lives {
		cfg := testConfig(t, m)
		cfg.SegmentBytes = int64(4<<10 + rng.IntN(12<<10))
		cfg.PendingBytesMax = 600 + rng.IntN(4000)
		cfg.Sync = SyncMode(rng.IntN(2))
		cfg.SyncEvery = 2 * time.Millisecond
		l := open(t, cfg)
		for _, r := range replicas {
			r.check(t, l, fmt.Sprint("at the start of life ", life))
		}
		done := make(chan struct{})
		var readers, writers sync.WaitGroup
		for i := range 2 {
			rng := rand.New(rand.NewPCG(seed, uint64(100*life+i)))
			readers.Go(func() { readAll(t, l, replicas, rng, done) })
		}
		for _, r := range replicas {
			writers.Go(func() {
				for range 250 {
					if err := r.change(l); err != nil {
						t.Errorf("life %d, %s: %v", life, r.id, err)
						return
					}
				}
			})
		}
		writers.Wait()
		close(done)
		readers.Wait()
		for _, r := range replicas {
			r.check(t, l, fmt.Sprint("at the end of life ", life))
		}
		stats := l.Stats()
		total.Moved += stats.Moved
		total.Purged += stats.Purged
		total.Recycled += stats.Recycled
		must(t, l.Close())
		if t.Failed() {
			return
		}
	}
	t.Logf("%d frames moved, %d segments purged, %d of them recycled", total.Moved, total.Purged, total.Recycled)
	if total.Moved == 0 || total.Purged == 0 || total.Recycled == 0 {
		t.Error("not all of moving, purging and recycling has happened: the test proves little")
	}
}

// modelled is a replica and what it should hold. It is for one goroutine, but for ever.
type modelled struct {
	id     ID
	seldom bool // it changes seldom, and so holds up old segments
	rng    *rand.Rand
	now    modelReplica
	next   uint64
	term   uint64

	mu sync.Mutex
	// ever is everything that was appended, by index.
	ever map[uint64]map[string]bool
}

func (r *modelled) change(l *Log) error {
	if r.seldom && r.rng.IntN(10) > 0 {
		time.Sleep(time.Millisecond)
		return nil
	}
	replica := l.Replica(r.id)
	r.term++
	entries := r.now.entries
	switch op := r.rng.IntN(30); {
	case op == 0:
		name := fmt.Sprint("r", r.rng.IntN(3))
		r.now.records[name] = fmt.Sprint(r.term)
		return replica.SetRecord(name, []byte(r.now.records[name]))
	case op == 1 && len(entries) > 0:
		keep := r.rng.IntN(len(entries))
		r.next = entries[keep].Index
		r.now.entries = entries[:keep:keep]
		return replica.TruncateSuffix(r.next)
	case op < 7 && len(entries) > 0 && !r.seldom:
		drop := 1 + r.rng.IntN(len(entries))
		r.now.entries = entries[drop:]
		return replica.Compact(entries[drop-1].Index)
	case op == 7 && r.rng.IntN(8) == 0:
		r.now.entries = nil
		r.next = uint64(r.rng.IntN(int(r.next) + 10)) // after an install, an index may come again
		return replica.Clear()
	case op == 8 && r.rng.IntN(20) == 0:
		r.now.entries = nil
		clear(r.now.records)
		return replica.Forget()
	case op == 9:
		return l.WaitDurable(l.ctx, replica.Appended())
	}
	var batch []Entry
	for range 1 + r.rng.IntN(4) {
		r.next = max(r.next, 1)
		size := r.rng.IntN(400)
		if r.rng.IntN(200) == 0 {
			size = 20 << 10 // more than a segment
		}
		e := one(r.next, r.term, size)
		r.next++
		batch = append(batch, e)
		r.mu.Lock()
		if r.ever[e.Index] == nil {
			r.ever[e.Index] = map[string]bool{}
		}
		r.ever[e.Index][string(e.Data)] = true
		r.mu.Unlock()
	}
	r.now.entries = append(r.now.entries, batch...)
	if r.seldom && len(r.now.entries) > 40 {
		r.now.entries = append([]Entry{}, r.now.entries[30:]...)
		if err := replica.Append(len(batch), func(i int) Entry { return batch[i] }); err != nil {
			return err
		}
		return replica.Compact(r.now.entries[0].Index - 1)
	}
	return replica.Append(len(batch), func(i int) Entry { return batch[i] })
}

func (r *modelled) check(t *testing.T, l *Log, when string) {
	t.Helper()
	if why := (model{r.id: &r.now}).differs(l); why != "" {
		t.Errorf("%s: %s", when, why)
	}
}

// readAll reads until done: whatever is found at an index was appended there once.
func readAll(t *testing.T, l *Log, replicas []*modelled, rng *rand.Rand, done chan struct{}) {
	found := 0
	for {
		select {
		case <-done:
			if found == 0 {
				t.Error("a reader found nothing")
			}
			return
		default:
		}
		r := replicas[rng.IntN(len(replicas))]
		first, last := l.Replica(r.id).Bounds()
		index := first + rng.Uint64N(last-first+2)
		e, err := l.Replica(r.id).Get(index)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			t.Errorf("reading entry %d of %s: %v", index, r.id, err)
			return
		}
		r.mu.Lock()
		was := r.ever[index][string(e.Data)]
		r.mu.Unlock()
		if found++; !was || e.Index != index {
			t.Errorf("entry %d of %s was never %q", index, r.id, e.Data)
			return
		}
	}
}
