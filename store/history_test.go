package store_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

// noted is a change that owns its bytes.
func noted(c *store.Change) store.Change {
	own := *c
	own.Key, own.Value, own.Previous = bytes.Clone(c.Key), bytes.Clone(c.Value), bytes.Clone(c.Previous)
	return own
}

func same(a, b store.Change) bool {
	return a.Kind == b.Kind && a.Position == b.Position && a.Time == b.Time && a.ExpiresAt == b.ExpiresAt && a.Existed == b.Existed &&
		a.PreviousVersion == b.PreviousVersion && bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) && bytes.Equal(a.Previous, b.Previous)
}

// changesBehind reads all that is published behind a position.
func changesBehind(h *store.History, behind store.Position, sliceBytes int) ([]store.Change, error) {
	at, err := h.Seek(behind)
	if err != nil {
		return nil, err
	}
	var all []store.Change
	end, _ := h.End()
	for at < end {
		at, err = h.Read(at, sliceBytes, func(_ uint64, c *store.Change) bool {
			all = append(all, noted(c))
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// historyModel is a store beside a plain list of what was done to it.
type historyModel struct {
	t       *testing.T
	s       *store.Store
	h       *store.History
	random  *rand.Rand
	time    store.Time
	changes []store.Change
	values  map[string]store.Item
}

func newHistoryModel(t *testing.T, seed uint64, bytesMax int) *historyModel {
	m := &historyModel{t: t, s: store.New(store.MaxLimits()), h: store.NewHistory(bytesMax), random: rand.New(rand.NewPCG(seed, 1)),
		time: 1000, values: make(map[string]store.Item)}
	m.s.Own(allSlots()...)
	m.s.SetTime(m.time)
	m.s.KeepHistory(m.h)
	return m
}

func (m *historyModel) live(key string) (store.Item, bool) {
	it, ok := m.values[key]
	return it, ok && (it.ExpiresAt == 0 || it.ExpiresAt > m.time)
}

// step does one operation and notes what a watcher must hear of it.
func (m *historyModel) step() {
	key := fmt.Sprint("key", m.random.IntN(20))
	const slot = 0 // for all, so that a Reap takes several
	before, existed := m.live(key)
	op := &store.Op{Kind: store.OpSet, Key: []byte(key), Value: bytes.Repeat([]byte{byte(m.random.IntN(256))}, m.random.IntN(300))}
	switch m.random.IntN(12) {
	case 0:
		op.Value = bytes.Repeat([]byte("large"), m.random.IntN(8<<10))
	case 1, 2:
		op.TTL = int64(1 + m.random.IntN(50))
	case 3, 4:
		op = &store.Op{Kind: store.OpDelete, Key: op.Key}
	case 5:
		op.Kind = store.OpAppend
	case 6:
		op = &store.Op{Kind: store.OpTouch, Key: op.Key}
	case 7:
		op = &store.Op{Kind: store.OpExpire, Key: op.Key, TTL: int64(1 + m.random.IntN(50))}
	case 8:
		op = &store.Op{Kind: store.OpIncrement, Key: append(op.Key, '#'), Delta: 7}
		key += "#"
		before, existed = m.live(key)
	case 9:
		op.Condition = store.CondAbsent
	case 10:
		m.time += store.Time(m.random.IntN(40))
		m.s.SetTime(m.time)
		return
	case 11:
		m.reap(slot)
		return
	}
	version := m.s.Version()
	m.s.Apply(slot, op)
	if m.s.Version() == version {
		return
	}
	c := store.Change{Kind: store.ChangeDelete, Position: store.Position{Version: version + 1, Index: store.LastIndex}, Time: m.time, Key: []byte(key)}
	if existed {
		c.Existed, c.PreviousVersion, c.Previous = true, before.Version, before.Value
	}
	if value, meta, ok := m.s.Get(slot, []byte(key), nil); ok {
		c.Kind, c.Value, c.ExpiresAt = store.ChangeSet, value, meta.ExpiresAt
		m.values[key] = store.Item{Value: value, Version: meta.Version, ExpiresAt: meta.ExpiresAt}
	} else {
		delete(m.values, key)
	}
	m.changes = append(m.changes, c)
}

func (m *historyModel) reap(slot uint16) {
	limit := 1 + m.random.IntN(4)
	var due []string
	for key, it := range m.values {
		if it.ExpiresAt != 0 && it.ExpiresAt <= m.time {
			due = append(due, key)
		}
	}
	slices.SortFunc(due, func(a, b string) int {
		if d := m.values[a].ExpiresAt - m.values[b].ExpiresAt; d != 0 {
			return int(d)
		}
		return bytes.Compare([]byte(a), []byte(b))
	})
	due = due[:min(limit, len(due))]
	if got := m.s.Reap(slot, m.time, limit); got != len(due) {
		m.t.Fatalf("%d keys reaped, want %d", got, len(due))
	}
	for i, key := range due {
		at := store.Position{Version: m.s.Version(), Index: uint32(i)}
		if i == len(due)-1 {
			at.Index = store.LastIndex
		}
		it := m.values[key]
		m.changes = append(m.changes, store.Change{Kind: store.ChangeExpire, Position: at, Time: m.time, Key: []byte(key),
			Existed: true, PreviousVersion: it.Version, Previous: it.Value})
		delete(m.values, key)
	}
}

// check reads from many positions and compares with the list.
func (m *historyModel) check() {
	m.t.Helper()
	positions := []store.Position{{}, m.h.Base()}
	for range 6 {
		if len(m.changes) > 0 {
			p := m.changes[m.random.IntN(len(m.changes))].Position
			positions = append(positions, p, store.Position{Version: p.Version - 1, Index: store.LastIndex})
		}
	}
	base := m.h.Base()
	for _, p := range positions {
		got, err := changesBehind(m.h, p, 1+m.random.IntN(5000))
		if base.After(p) {
			if !errors.Is(err, store.ErrCompacted) {
				m.t.Fatalf("behind %v, before the base %v: %v", p, base, err)
			}
			continue
		}
		first := slices.IndexFunc(m.changes, func(c store.Change) bool { return c.Position.After(p) })
		want := []store.Change{}
		if first >= 0 {
			want = m.changes[first:]
		}
		if err != nil || !slices.EqualFunc(got, want, same) {
			m.t.Fatalf("behind %v: %d changes, want %d, %v", p, len(got), len(want), err)
		}
	}
}

// Whatever is done to a store, its history tells of every change once, with what was there before, as far as it reaches back; and it
// takes no more memory than it may.
func TestHistoryTellsEveryChange(t *testing.T) {
	for _, bytesMax := range []int{0, 64 << 10, 8 << 20} {
		for seed := range uint64(4) {
			m := newHistoryModel(t, seed, bytesMax)
			largest := 0
			for range 100 {
				for range m.random.IntN(8) {
					m.step()
				}
				m.h.Publish()
				m.check()
				for _, c := range m.changes[max(0, len(m.changes)-8):] {
					largest = max(largest, len(c.Value)+len(c.Previous)+100)
				}
				bound := max(bytesMax, 16<<10, largest) + max(bytesMax/32, 512)
				if got := m.h.Bytes(); got > bound {
					t.Fatalf("%d bytes held, want at most %d", got, bound)
				}
				if m.random.IntN(40) == 0 { // as after a restore
					m.s.KeepHistory(m.h)
					m.check()
				}
			}
			if bytesMax == 0 && m.h.Base() == (store.Position{}) {
				t.Error("nothing was ever dropped")
			}
		}
	}
}

// What is staged is not seen before it is published.
func TestHistoryIsPublishedWhole(t *testing.T) {
	m := newHistoryModel(t, 1, 1<<20)
	_, start := m.h.End()
	set := func(key string) { m.s.Apply(0, &store.Op{Kind: store.OpSet, Key: []byte(key)}) }
	set("a")
	set("b")
	if got, err := changesBehind(m.h, start, 1<<20); err != nil || len(got) != 0 {
		t.Fatalf("before: %d changes, %v", len(got), err)
	}
	m.h.Publish()
	if got, err := changesBehind(m.h, start, 1<<20); err != nil || len(got) != 2 {
		t.Fatalf("after: %d changes, %v", len(got), err)
	}
	select {
	case <-m.h.Changed():
	default:
		t.Error("nobody was told")
	}
}

// A reader that stands at the end when the history is reset learns of it, although nothing may have come meanwhile.
func TestHistoryResetIsNoticed(t *testing.T) {
	m := newHistoryModel(t, 1, 1<<20)
	at, behind := m.h.End()
	m.s.RaiseVersion(10) // a restore brings a store that is further on
	m.s.KeepHistory(m.h)
	if _, err := m.h.Read(at, 1<<20, nil); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("read at the old end: %v", err)
	}
	if _, err := m.h.Seek(behind); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("seek behind what was skipped: %v", err)
	}
	if _, err := m.h.Seek(store.Position{Version: 10, Index: store.LastIndex}); err != nil {
		t.Errorf("seek of who has seen all: %v", err)
	}
}

// Readers beside the writer see whole changes in order, and either all of them or that they were too late. A slow one, which holds a
// chunk while the writer laps it, reads on what it holds.
func TestHistoryReadersBesideTheWriter(t *testing.T) {
	h := store.NewHistory(64 << 10)
	s := store.New(store.DefaultLimits())
	s.Own(0)
	s.KeepHistory(h)
	const writes = 30_000
	var readers sync.WaitGroup
	done := make(chan struct{})
	read := func(slow bool) (changes, lapped int) {
		_, at := h.End()
		for ended := false; ; {
			offset, err := h.Seek(at)
			for err == nil {
				next := offset
				next, err = h.Read(offset, 3000, func(_ uint64, c *store.Change) bool {
					if !c.Position.After(at) || binary.LittleEndian.Uint64(c.Value) != uint64(c.Position.Version) || lapped == 0 && c.Position.Version != at.Version+1 {
						t.Errorf("change at %v behind %v holds %x", c.Position, at, c.Value)
						return false
					}
					if slow && changes%1000 == 0 { // until the writer has lapped it
						for !ended && !h.Base().After(c.Position) {
							select {
							case <-done:
								ended = true
							default:
							}
						}
						if binary.LittleEndian.Uint64(c.Value) != uint64(c.Position.Version) {
							t.Errorf("what is being read was written over: %x at %v", c.Value, c.Position)
						}
					}
					at = c.Position
					changes++
					return true
				})
				if next == offset && err == nil {
					if ended {
						return changes, lapped
					}
					select {
					case <-done:
						ended = true
					default:
					}
				}
				offset = next
			}
			if t.Failed() {
				return changes, lapped
			}
			lapped++
			at = h.Base()
		}
	}
	var lapped int
	for i := range 3 {
		readers.Go(func() {
			changes, n := read(i == 0)
			if i == 0 {
				lapped = n
			}
			if changes == 0 {
				t.Errorf("reader %d saw nothing", i)
			}
		})
	}
	value := make([]byte, 64)
	for i := range uint64(writes) {
		binary.LittleEndian.PutUint64(value, i+1)
		s.Apply(0, &store.Op{Kind: store.OpSet, Key: []byte("k"), Value: value})
		h.Publish()
	}
	close(done)
	readers.Wait()
	if lapped == 0 {
		t.Error("the slow reader was never too late")
	}
}

// BenchmarkApplyWithHistory is Apply of sets over existing keys, with and without a history, in the same process.
func BenchmarkApplyWithHistory(b *testing.B) {
	const keys = 100_000
	for _, bytesMax := range []int{-1, 8 << 20} {
		name := "none"
		if bytesMax > 0 {
			name = "8MiB"
		}
		b.Run(name, func(b *testing.B) {
			s := fill(keys, 0)
			h := store.NewHistory(bytesMax)
			if bytesMax > 0 {
				s.KeepHistory(h)
			}
			key, value := make([]byte, 16), make([]byte, benchValueBytes)
			op := &store.Op{Kind: store.OpSet, Key: key, Value: value}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.Apply(benchKey(key, anyOf(i, keys)), op)
				if i%16 == 0 {
					h.Publish()
				}
			}
		})
	}
}
