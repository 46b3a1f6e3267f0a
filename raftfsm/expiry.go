package raftfsm

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/store"
)

// Expired keys read as missing at once; what removes them is a job of leaders' that takes its time. A million that expire in the same second
// must not stand before everybody's writes:
//
//   - they go in slices, each an entry of the log that names a slot, a time and how many keys at most. A slice holds its shard's writers and
//     readers up for as long as it is applied, so its size follows what the slices before it took: about reapSlice;
//   - all slices together take ReapConfig.Share of a core, by what applying them takes here and reapEntryCost each. Every replica applies
//     what its leader did, so a node spends that for its own shards, and as much for those of each other leader that reaps;
//   - a shard has one slice on its way, so that what callers write goes in between.

const (
	// reapSlice is how long applying a slice should take.
	reapSlice = 200 * time.Microsecond
	// reapLimitMin keeps slices from costing more as entries than what they remove.
	reapLimitMin = 16
	// reapEntryCost is about what an entry costs besides being applied: packing, logging, sending, waking.
	reapEntryCost = 50 * time.Microsecond
	// reapBeats is for how many beats a job may go on, and how many beats' share it may save up, while slices take their time to be logged.
	reapBeats = 10
	// reapParallel is how many shards have a slice on its way at once.
	reapParallel = 8
)

// reaped is the response to a slice.
type reaped struct {
	keys int
	took time.Duration // to apply it here
}

// String is what of it is the same on all replicas.
func (r reaped) String() string { return fmt.Sprint(r.keys) }

// reap applies a slice. How long it took is for the pace of further ones alone.
func (m *shardMachine) reap(s *store.Store, ent *entry) reaped {
	began := m.clock.Monotonic()
	keys := s.Reap(ent.Slot, ent.Cutoff, ent.Limit)
	return reaped{keys: keys, took: m.clock.Monotonic() - began}
}

// reap is the scheduler's job: it removes expired keys of the shards led here.
func (s *scheduler) reap() {
	cfg := &s.host.cfg.Reaping
	began := s.host.cfg.Clock.Monotonic()
	passed := min(began-s.reapBegan, reapBeats*cfg.Every)
	s.reapBegan = began
	budget := passed * time.Duration(cfg.Share) / 100
	due := s.groupsDue()
	for len(due) > 0 && budget > 0 && s.host.cfg.Clock.Monotonic()-began < reapBeats*cfg.Every && s.ctx.Err() == nil {
		var more []*Group
		for from := 0; from < len(due) && budget > 0; from += reapParallel {
			some := due[from:min(from+reapParallel, len(due))]
			took, left := s.reapSlices(some)
			budget -= took
			more = append(more, left...)
		}
		due = more
	}
}

// groupsDue are the shards led here that hold expired keys.
func (s *scheduler) groupsDue() (due []*Group) {
	for _, g := range s.host.Groups() {
		l, m, err := g.life()
		if err != nil || l.leads.Load() == nil { // most; leading would say who does
			continue
		}
		if _, err := l.leading(); err != nil {
			continue
		}
		if _, _, any := m.store.Load().Due(m.now()); any {
			due = append(due, g)
		}
	}
	return due
}

// reapSlices removes a slice of each group, and returns what that took, and the groups that go on.
func (s *scheduler) reapSlices(groups []*Group) (took time.Duration, more []*Group) {
	results := make([]reaped, len(groups))
	var running sync.WaitGroup
	for i, g := range groups {
		running.Go(func() { results[i] = s.reapSlice(g) })
	}
	running.Wait()
	for i, r := range results {
		if r.keys == 0 {
			continue // nothing is left, or it could not be logged: the next beat, or the next leader, goes on
		}
		more = append(more, groups[i])
		took += r.took + reapEntryCost
		if perKey := r.took / time.Duration(r.keys); perKey > 0 {
			want := min(max(int(reapSlice/perKey), reapLimitMin), s.host.cfg.Reaping.KeysMax)
			s.reapLimit = (3*s.reapLimit + want + 2) / 4
		}
		s.host.reaped.Add(uint64(r.keys))
		s.host.reapTime.Add(int64(r.took))
	}
	return took, more
}

func (s *scheduler) reapSlice(g *Group) reaped {
	l, m, err := g.life()
	if err != nil {
		return reaped{}
	}
	now := m.now()
	slot, _, due := m.store.Load().Due(now)
	if !due {
		return reaped{}
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.host.cfg.Timing.Election)
	defer cancel()
	response, err := l.proposer.entry(ctx, &entry{Kind: entryReap, Slot: slot, Cutoff: now, Limit: s.reapLimit})
	if err != nil {
		return reaped{}
	}
	return response.(reaped)
}

// ReapStats count what leaders of a node have removed of expired keys.
type ReapStats struct {
	Keys uint64
	// Took is what applying it took here.
	Took time.Duration
}

// ReapStats returns the counts.
func (h *Host) ReapStats() ReapStats {
	return ReapStats{Keys: h.reaped.Load(), Took: time.Duration(h.reapTime.Load())}
}
