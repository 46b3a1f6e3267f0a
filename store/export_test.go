package store

import (
	"bytes"
	"fmt"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// NewTiny is New whose items lie on pages first to last by number, at most.
func NewTiny(limits Limits, first, last uint32) *Store {
	return newStore(limits, arena.Config{FirstPage: first, PagesMax: last})
}

// CheckInvariants verifies all structures of a store against each other. Nobody else uses the store meanwhile.
func (s *Store) CheckInvariants() error {
	for _, err := range []error{s.items.cells.Check(), s.index.CheckBlocks(), s.byKey.Check(), s.deadlines.Check()} {
		if err != nil {
			return err
		}
	}
	var sum Stats
	seen := map[arena.Ref]bool{}
	large := map[uint32]bool{}
	bytesInUse := int64(0)
	use := func(ref arena.Ref) (record, error) {
		if seen[ref] || !s.items.cells.InUse(ref) {
			return record{}, fmt.Errorf("item %#x: seen before %v, in use %v", ref, seen[ref], s.items.cells.InUse(ref))
		}
		seen[ref] = true
		bytesInUse += int64(len(s.items.cells.Bytes(ref)))
		r := s.items.record(ref)
		if r.large != 0 {
			if large[r.large] || r.value == nil {
				return r, fmt.Errorf("large value %d: seen before %v", r.large, large[r.large])
			}
			large[r.large] = true
		}
		return r, nil
	}
	tables := 0
	for _, page := range s.tables {
		if page == nil {
			continue
		}
		for _, t := range page {
			if t != nil {
				tables++
			}
		}
	}
	owned := s.owned.list()
	if tables != len(owned) {
		return fmt.Errorf("%d tables of %d owned slots", tables, len(owned))
	}
	for _, slot := range owned {
		t := s.tables.of(slot)
		if err := s.checkTable(slot, t, use); err != nil {
			return fmt.Errorf("slot %d: %w", slot, err)
		}
		sum = Stats{sum.Keys + t.stats.Keys, sum.Bytes + t.stats.Bytes, sum.Expiring + t.stats.Expiring, sum.Checksum + t.stats.Checksum}
	}
	if s.stats != sum || int64(s.byKey.Count()) != sum.Keys || int64(s.deadlines.Count()) != sum.Expiring {
		return fmt.Errorf("store: %+v, %d in order, %d deadlines, its slots %+v", s.stats, s.byKey.Count(), s.deadlines.Count(), sum)
	}
	for _, v := range s.views {
		for slot, refs := range v.kept {
			for _, ref := range refs {
				if r, err := use(ref); err != nil || r.slot != slot || !v.needsLocked(slot, r.version) {
					return fmt.Errorf("kept in slot %d: %+v, %v", slot, r, err)
				}
			}
		}
	}
	if used := s.items.cells.Usage().Used; used != bytesInUse {
		return fmt.Errorf("items of %d bytes, cells of %d", bytesInUse, used)
	}
	if len(large)+len(s.items.largeFree) != max(len(s.items.large)-1, 0) {
		return fmt.Errorf("%d large values in use, %d free, %d in all", len(large), len(s.items.largeFree), len(s.items.large)-1)
	}
	return nil
}

func (s *Store) checkTable(slot uint16, t *table, use func(arena.Ref) (record, error)) (err error) {
	if err := s.index.Check(&t.keys); err != nil {
		return err
	}
	var stats Stats
	var earliest Time
	fail := func(r *record, what string) { err = fmt.Errorf("%q, %+v: %s", r.key, r, what) }
	for from, more := uint64(0), true; more; {
		from = s.index.Refs(&t.keys, from, 1, func(ref arena.Ref) {
			r, useErr := use(ref)
			if useErr != nil {
				err = useErr
				return
			}
			if r.slot != slot || r.version == 0 || r.version > s.version {
				fail(&r, "slot or version")
			}
			if s.byKey.Find(bytes.Clone(r.key)) != ref {
				fail(&r, "not in order")
			}
			if r.expiresAt != 0 {
				if s.deadlines.Find(bytes.Clone(s.items.dueKey(ref))) != ref {
					fail(&r, "not among the deadlines")
				}
				if earliest == 0 || r.expiresAt < earliest {
					earliest = r.expiresAt
				}
			}
			stats.add(&r, r.checksum())
		})
		more = from != 0
	}
	if err != nil {
		return err
	}
	if stats != t.stats || earliest != t.nextExpiry {
		return fmt.Errorf("%+v, next expiry %d, want %+v, %d", t.stats, t.nextExpiry, stats, earliest)
	}
	if _, scheduled := s.schedule.Get(slotDeadline{t.nextExpiry, slot}); scheduled != (earliest != 0) {
		return fmt.Errorf("next expiry %d, scheduled %v", earliest, scheduled)
	}
	return nil
}
