package store

import "github.com/tidwall/btree"

// record is one key's state.
type record struct {
	key       string
	value     []byte // replaced, never modified: readers and views hold it without the lock
	version   Version
	expiresAt Time   // 0: does not expire
	hash      uint64 // hashItem of the four above
}

func (r *record) expired(now Time) bool {
	return r.expiresAt != 0 && r.expiresAt <= now
}

// live returns r, or nil where there is none or it has expired.
func (r *record) live(now Time) *record {
	if r == nil || r.expired(now) {
		return nil
	}
	return r
}

func (r *record) versionOrZero() Version {
	if r == nil {
		return 0
	}
	return r.version
}

func (r *record) meta() Meta {
	return Meta{Version: r.version, ExpiresAt: r.expiresAt, ValueBytes: len(r.value)}
}

// table holds the records of one slot.
type table struct {
	records   map[string]*record      // nil until the slot's first key
	deadlines *btree.BTreeG[deadline] // nil until the slot's first key with a TTL
	stats     Stats                   // of records
}

// tableSet holds the tables of slots, in pages: every operation finds its table by two steps through arrays, and a store
// of few slots takes little room. With a map instead, BenchmarkGet takes 80 ns and not 40, BenchmarkOverwrite 200 and not 140.
type tableSet [SlotCount / slotsPerPage]*[slotsPerPage]*table

const slotsPerPage = 128

// of returns a slot's table; nil: there is none.
func (s *tableSet) of(slot uint16) *table {
	if slot >= SlotCount {
		return nil
	}
	page := s[slot/slotsPerPage]
	if page == nil {
		return nil
	}
	return page[slot%slotsPerPage]
}

// set gives a slot a table, or takes it away with nil.
func (s *tableSet) set(slot uint16, t *table) {
	page := &s[slot/slotsPerPage]
	if *page == nil {
		*page = new([slotsPerPage]*table)
	}
	(*page)[slot%slotsPerPage] = t
}

// deadline is one key's place in a slot's order of expiry, which is also the order of reaping.
type deadline struct {
	at  Time
	key string
}

func deadlineLess(a, b deadline) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	return a.key < b.key
}

// live returns the record of a key that exists at now, or nil.
func (t *table) live(key []byte, now Time) *record {
	return t.records[string(key)].live(now)
}

// nextExpiry returns the earliest expiry time in the table, 0 if there is none.
func (t *table) nextExpiry() Time {
	if t.deadlines == nil {
		return 0
	}
	first, _ := t.deadlines.Min()
	return first.at
}

// moveDeadline moves a key from one expiry time to another; 0 stands for none.
func (t *table) moveDeadline(key string, from, to Time) {
	if from != 0 {
		t.deadlines.Delete(deadline{from, key})
	}
	if to != 0 {
		if t.deadlines == nil {
			t.deadlines = btree.NewBTreeGOptions(deadlineLess, btree.Options{NoLocks: true, Degree: 8})
		}
		t.deadlines.Set(deadline{to, key})
	}
}

// due returns at most limit keys whose expiry time is at most t, in order of (expiry time, key).
func (t *table) due(cutoff Time, limit int) []string {
	if t.deadlines == nil {
		return nil
	}
	var keys []string
	t.deadlines.Scan(func(d deadline) bool {
		if d.at > cutoff || len(keys) == limit {
			return false
		}
		keys = append(keys, d.key)
		return true
	})
	return keys
}

// countDue is len(due(t, limit)).
func (t *table) countDue(cutoff Time, limit int) int {
	count := 0
	t.deadlines.Scan(func(d deadline) bool {
		if d.at > cutoff || count == limit {
			return false
		}
		count++
		return true
	})
	return count
}

// copyRecords returns the table's records as they are now, in no order: O(keys), without the values' bytes.
func (t *table) copyRecords() []record {
	copies := make([]record, 0, len(t.records))
	for _, r := range t.records {
		copies = append(copies, *r)
	}
	return copies
}

// Stats are exact figures over a slot or a store. Expired keys count until they are reaped.
type Stats struct {
	Keys     int64
	Bytes    int64 // of keys and values, without what the store needs to hold them
	Expiring int64 // keys that have an expiry time

	// Checksum covers every key with its value, version and expiry time, in no order: equal contents
	// have equal checksums. It is kept up with every write and costs nothing to read.
	Checksum uint64
}

func (s *Stats) add(r *record) {
	s.Keys++
	s.Bytes += int64(len(r.key) + len(r.value))
	if r.expiresAt != 0 {
		s.Expiring++
	}
	s.Checksum += r.hash
}

func (s *Stats) subtract(r *record) {
	s.Keys--
	s.Bytes -= int64(len(r.key) + len(r.value))
	if r.expiresAt != 0 {
		s.Expiring--
	}
	s.Checksum -= r.hash
}
