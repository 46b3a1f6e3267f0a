package hashindex_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/ostraka-db/ostraka/store/internal/arena"
	"github.com/ostraka-db/ostraka/store/internal/hashindex"
)

// keys are keys by reference.
type keys map[arena.Ref][]byte

func (k keys) Key(ref arena.Ref) []byte { return k[ref] }

type owners struct{ tables []*hashindex.Table }

// Table implements hashindex.Owners: a reference's table is its remainder.
func (o owners) Table(ref arena.Ref) *hashindex.Table { return o.tables[int(ref)%len(o.tables)] }

// harness drives an index of several tables beside maps.
type harness struct {
	t      testing.TB
	keys   keys
	index  *hashindex.Index
	tables []*hashindex.Table
	want   []map[string]arena.Ref
	next   arena.Ref
}

func newHarness(t testing.TB, tables int) *harness {
	h := &harness{t: t, keys: keys{}, next: arena.Ref(tables)}
	h.index = hashindex.New(h.keys)
	for range tables {
		h.tables = append(h.tables, new(hashindex.Table))
		h.want = append(h.want, map[string]arena.Ref{})
	}
	return h
}

func (h *harness) ref(table int) arena.Ref {
	h.next += arena.Ref(len(h.tables))
	return h.next/arena.Ref(len(h.tables))*arena.Ref(len(h.tables)) + arena.Ref(table)
}

// set inserts a key, or gives it another reference.
func (h *harness) set(table int, key string) {
	t, want, hash := h.tables[table], h.want[table], h.index.Hash([]byte(key))
	ref := h.ref(table)
	h.keys[ref] = []byte(key)
	if old := want[key]; old != 0 {
		h.index.Replace(t, hash, []byte(key), ref)
		delete(h.keys, old)
	} else if err := h.index.Insert(t, hash, ref); err != nil {
		h.t.Fatal(err)
	}
	want[key] = ref
}

func (h *harness) remove(table int, key string) {
	t, want, hash := h.tables[table], h.want[table], h.index.Hash([]byte(key))
	if got := h.index.Find(t, hash, []byte(key)); got != want[key] {
		h.t.Fatalf("%q: found %d, want %d", key, got, want[key])
	}
	if ref := want[key]; ref != 0 {
		h.index.Remove(t, hash, []byte(key))
		delete(want, key)
		delete(h.keys, ref)
	}
}

func (h *harness) check() {
	h.t.Helper()
	if err := h.index.CheckBlocks(); err != nil {
		h.t.Fatal(err)
	}
	for i, t := range h.tables {
		if err := h.index.Check(t); err != nil {
			h.t.Fatal(err)
		}
		got := map[string]arena.Ref{}
		for from, more := uint64(0), true; more; more = from != 0 {
			from = h.index.Refs(t, from, 100, func(ref arena.Ref) { got[string(h.keys[ref])] = ref })
		}
		if !maps.Equal(got, h.want[i]) || t.Count() != len(got) {
			h.t.Fatalf("table %d: %d references, %d counted, want %d", i, len(got), t.Count(), len(h.want[i]))
		}
	}
}

func TestRandomChanges(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	h := newHarness(t, 3)
	for round, step := range []struct {
		changes, keys, removes int
	}{
		{20, 10, 5}, {2_000, 50, 5}, {60_000, 20_000, 3}, {60_000, 20_000, 9}, {60_000, 20_000, 10}, {5_000, 300, 2},
	} {
		for range step.changes {
			table := min(random.IntN(3), random.IntN(3)) // the first is the largest
			key := fmt.Sprint("key", random.IntN(step.keys))
			if random.IntN(10) < step.removes {
				h.remove(table, key)
			} else {
				h.set(table, key)
			}
			if random.IntN(3) == 0 {
				h.index.Compact(owners{h.tables})
			}
		}
		t.Logf("round %d: %d keys", round, len(h.keys))
		h.check()
	}
	h.index.Clear(h.tables[0])
	clear(h.want[0])
	h.check()
}

func TestBuild(t *testing.T) {
	for _, n := range []int{0, 1, 12, 13, 100, 671, 672, 673, 5000} {
		h := newHarness(t, 1)
		var refs []arena.Ref
		var hashes []uint64
		for i := range n {
			key := fmt.Sprint(i)
			ref := h.ref(0)
			h.keys[ref], h.want[0][key] = []byte(key), ref
			refs, hashes = append(refs, ref), append(hashes, h.index.Hash([]byte(key)))
		}
		if err := h.index.Build(h.tables[0], hashes, refs); err != nil {
			t.Fatal(err)
		}
		h.check()
		h.set(0, "more")
		h.check()
	}
}

// An entry that is there all the time is passed, while the table grows and shrinks between slices.
func TestRefsWhileTheTableChanges(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for _, start := range []int{100, 3_000, 30_000} {
		h := newHarness(t, 1)
		for i := range start {
			h.set(0, fmt.Sprint("kept", i))
		}
		for i := range start {
			h.set(0, fmt.Sprint("leaving", i))
		}
		seen := map[string]bool{}
		for from, more := uint64(0), true; more; more = from != 0 {
			from = h.index.Refs(h.tables[0], from, 50, func(ref arena.Ref) { seen[string(h.keys[ref])] = true })
			for range start / 20 {
				h.remove(0, fmt.Sprint("leaving", random.IntN(start)))
				if start < 30_000 {
					h.set(0, fmt.Sprint("new", random.IntN(4*start)))
				}
			}
		}
		for i := range start {
			if !seen[fmt.Sprint("kept", i)] {
				t.Fatalf("of %d, %d was not passed", start, i)
			}
		}
		h.check()
	}
}

// Blocks stay well filled, whatever the number of keys: at 5 bytes an entry a full one has 5.33.
func TestBytesPerKey(t *testing.T) {
	for _, perTable := range []int{50, 244, 1000, 1500} {
		h := newHarness(t, 40)
		for i := range 40 * perTable {
			h.set(i%40, fmt.Sprint(i))
		}
		perKey := float64(h.index.Usage().Used) / float64(40*perTable)
		t.Logf("%d keys a table: %.1f bytes a key", perTable, perKey)
		if perKey > 8.5 {
			t.Errorf("%d keys a table: %.1f bytes a key", perTable, perKey)
		}
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 250, 251, 252})
	f.Fuzz(func(t *testing.T, steps []byte) {
		h := newHarness(t, 2)
		for i, step := range steps {
			table, key := i%2, fmt.Sprint(step&0x3f)
			switch step >> 6 {
			case 0:
				h.set(table, key)
			case 1:
				h.remove(table, key)
			case 2:
				for j := range 40 {
					h.set(table, fmt.Sprint(key, j))
				}
			case 3:
				for j := range 40 {
					h.remove(table, fmt.Sprint(key, j))
				}
				h.index.Compact(owners{h.tables})
			}
		}
		h.check()
	})
}
