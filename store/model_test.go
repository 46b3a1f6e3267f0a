package store_test

import (
	"cmp"
	"maps"
	"math/big"
	"slices"

	"github.com/ostraka-db/ostraka/store"
)

// model is the reference: what a store must do, written as plainly as possible and in a different way. Nothing in it
// is fast, shared or incremental.
type model struct {
	limits  store.Limits
	time    store.Time
	version store.Version
	slots   map[uint16]map[string]modelItem // of the owned slots
}

type modelItem struct {
	value     string
	version   store.Version
	expiresAt store.Time
}

func newModel(limits store.Limits) *model {
	return &model{limits: limits, slots: map[uint16]map[string]modelItem{}}
}

func (m *model) clone() *model {
	c := *m
	c.slots = map[uint16]map[string]modelItem{}
	for slot, items := range m.slots {
		c.slots[slot] = maps.Clone(items)
	}
	return &c
}

// live returns a key's item if the key exists for a reader.
func (m *model) live(slot uint16, key string) (modelItem, bool) {
	item, ok := m.slots[slot][key]
	if !ok || (item.expiresAt > 0 && item.expiresAt <= m.time) {
		return modelItem{}, false
	}
	return item, true
}

func (m *model) apply(slot uint16, op *store.Op) store.Result {
	valueMax := m.limits.ValueBytesMax
	if op.ValueBytesMax > 0 && op.ValueBytesMax < valueMax {
		valueMax = op.ValueBytesMax
	}
	if len(op.Key) == 0 || op.Validate() != nil {
		return store.Result{Status: store.StatusInvalid}
	}
	if len(op.Key) > m.limits.KeyBytesMax || len(op.Value) > valueMax {
		return store.Result{Status: store.StatusTooLarge}
	}
	if m.slots[slot] == nil {
		return store.Result{Status: store.StatusNotOwned}
	}
	key := string(op.Key)
	old, exists := m.live(slot, key)
	r := store.Result{Version: old.version, Existed: exists, PreviousVersion: old.version}
	if exists && op.ReturnPrevious {
		r.HasPrevious, r.Previous = true, []byte(old.value)
	}
	next := old
	remove, write := false, true
	r.Status = store.StatusOK

	lost := (op.Condition == store.CondAbsent && exists) ||
		(op.Condition == store.CondExists && !exists) ||
		(op.Condition == store.CondVersion && op.IfVersion != old.version) ||
		(op.Kind == store.OpCompareAndSet && (!exists || old.value != string(op.Old)))
	needsKey := op.Kind != store.OpSet && op.Kind != store.OpIncrement && op.Kind != store.OpAppend
	switch {
	case lost:
		r.Status = store.StatusConditionNotMet
	case needsKey && !exists:
		r.Status = store.StatusNotFound
	case op.Kind == store.OpSet:
		next.value = string(op.Value)
		if !op.KeepTTL {
			next.expiresAt = 0
		}
		if op.TTL > 0 {
			next.expiresAt = m.expiry(op.TTL)
		}
	case op.Kind == store.OpDelete:
		remove = true
	case op.Kind == store.OpCompareAndSet:
		next.value = string(op.Value)
	case op.Kind == store.OpIncrement:
		var text string
		text, r.Status = addDecimal(old.value, exists, op.Delta)
		if r.Status == store.StatusOK {
			next.value = text
			n, _ := new(big.Int).SetString(text, 10)
			r.Number = n.Int64()
		}
	case op.Kind == store.OpAppend:
		next.value += string(op.Value)
		if len(next.value) > valueMax {
			r.Status = store.StatusTooLarge
		} else {
			r.Number = int64(len(next.value))
		}
	case op.Kind == store.OpExpire:
		next.expiresAt = m.expiry(op.TTL)
	case op.Kind == store.OpPersist:
		if old.expiresAt == 0 {
			write = false
		} else {
			next.expiresAt, r.Number = 0, 1
		}
	}
	if r.Status != store.StatusOK || !write {
		return r
	}
	if !remove && !m.admits(slot, key, len(next.value)) {
		r.Status, r.Number = store.StatusFull, 0
		return r
	}
	m.version++
	next.version, r.Version = m.version, m.version
	m.slots[slot][key] = next
	if remove {
		delete(m.slots[slot], key)
	}
	return r
}

// admits reports whether limits on keys and bytes allow a key to hold a value of so many bytes.
func (m *model) admits(slot uint16, key string, valueBytes int) bool {
	if m.limits.KeysMax == 0 && m.limits.BytesMax == 0 {
		return true
	}
	var sum store.Stats
	for slot := range m.slots {
		s := m.slotStats(slot)
		sum.Keys, sum.Bytes = sum.Keys+s.Keys, sum.Bytes+s.Bytes
	}
	held, ok := m.slots[slot][key]
	grows := int64(valueBytes - len(held.value))
	if !ok {
		if sum.Keys == m.limits.KeysMax {
			return false
		}
		grows += int64(len(key))
	}
	return grows <= 0 || sum.Bytes+grows <= m.limits.BytesMax
}

func (m *model) expiry(ttl int64) store.Time {
	at := new(big.Int).Add(big.NewInt(int64(m.time)), big.NewInt(ttl))
	if !at.IsInt64() {
		return 1<<63 - 1
	}
	return store.Time(at.Int64())
}

func addDecimal(value string, exists bool, delta int64) (string, store.Status) {
	if !exists {
		value = "0"
	}
	n, ok := new(big.Int).SetString(value, 10)
	if !ok || n.String() != value || !n.IsInt64() {
		return "", store.StatusNotInteger
	}
	if n.Add(n, big.NewInt(delta)); !n.IsInt64() {
		return "", store.StatusOverflow
	}
	return n.String(), store.StatusOK
}

func (m *model) reap(slot uint16, cutoff store.Time, limit int) int {
	type due struct {
		at  store.Time
		key string
	}
	var all []due
	for key, item := range m.slots[slot] {
		if item.expiresAt > 0 && item.expiresAt <= min(cutoff, m.time) {
			all = append(all, due{item.expiresAt, key})
		}
	}
	slices.SortFunc(all, func(a, b due) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.key, b.key)) })
	all = all[:min(len(all), max(limit, 0))]
	for _, d := range all {
		delete(m.slots[slot], d.key)
	}
	if len(all) > 0 {
		m.version++
	}
	return len(all)
}

// slotStats leaves the checksum out.
func (m *model) slotStats(slot uint16) (s store.Stats) {
	for key, item := range m.slots[slot] {
		s.Keys++
		s.Bytes += int64(len(key) + len(item.value))
		if item.expiresAt > 0 {
			s.Expiring++
		}
	}
	return s
}

// due returns what Store.Due must, and the earliest expiry time, 0 if there is none.
func (m *model) due(t store.Time) (slot uint16, keys int, ok bool, earliest store.Time) {
	for candidate, items := range m.slots {
		for _, item := range items {
			at := item.expiresAt
			if at > 0 && (earliest == 0 || at < earliest || (at == earliest && candidate < slot)) {
				earliest, slot = at, candidate
			}
		}
	}
	if earliest == 0 || earliest > t {
		return 0, 0, false, earliest
	}
	for _, item := range m.slots[slot] {
		if item.expiresAt > 0 && item.expiresAt <= t {
			keys++
		}
	}
	return slot, keys, true, earliest
}

// scan returns the live keys in [from, to), in order.
func (m *model) scan(from, to string, endless bool) (keys []string) {
	for slot, items := range m.slots {
		for key := range items {
			if _, ok := m.live(slot, key); ok && key >= from && (endless || key < to) {
				keys = append(keys, key)
			}
		}
	}
	slices.Sort(keys)
	return keys
}
