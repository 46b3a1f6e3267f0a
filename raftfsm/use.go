package raftfsm

import (
	"time"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// useWindow is how long reads and writes are counted for a figure of so many a second.
const useWindow = 5 * time.Second

// ShardUse is how this node's replica of a shard was used in the latest window.
type ShardUse struct {
	Shard shard.ID
	// Leads: writes count here alone; every replica applies them, and only reads are its own.
	Leads bool
	// Window is how long counting took; 0: no window has ended yet.
	Window  time.Duration
	Slots   []store.SlotUse
	Hottest []store.HotKey
	Largest []store.LargeKey
}

// Use returns how this node's replicas were used: of each all slots if asked for, and at most keys of the hottest and of the largest keys.
func (h *Host) Use(slots bool, keys int) []ShardUse {
	var all []ShardUse
	window := time.Duration(h.useWindow.Load())
	for _, g := range h.Groups() {
		_, m, err := g.life()
		if err != nil {
			continue
		}
		s := m.store.Load()
		u := ShardUse{Shard: g.spec.Shard, Leads: g.IsLeader(), Window: window}
		if slots {
			u.Slots = s.SlotUses()
		}
		if keys > 0 {
			u.Hottest, u.Largest = s.Hottest(keys), s.Largest(keys)
		}
		all = append(all, u)
	}
	return all
}

// rotateUse is the scheduler's job: it ends a window of all replicas.
func (s *scheduler) rotateUse() {
	for _, g := range s.host.Groups() {
		if _, m, err := g.life(); err == nil {
			m.store.Load().Rotate()
		}
	}
	now := s.host.cfg.Clock.Monotonic()
	if s.useRotated > 0 {
		s.host.useWindow.Store(int64(now - s.useRotated))
	}
	s.useRotated = now
}
