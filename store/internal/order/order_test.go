package order_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/store/internal/arena"
	"github.com/ostraka-db/ostraka/store/internal/order"
)

// keys are keys by reference.
type keys map[arena.Ref][]byte

func (k keys) Key(ref arena.Ref) []byte { return k[ref] }

// harness drives a tree beside a map.
type harness struct {
	t    testing.TB
	keys keys
	tree *order.Tree
	want map[string]arena.Ref
	next arena.Ref
}

func newHarness(t testing.TB) *harness {
	h := &harness{t: t, keys: keys{}, want: map[string]arena.Ref{}}
	h.tree = order.New(h.keys)
	return h
}

func (h *harness) set(key string) {
	h.next++
	h.keys[h.next] = []byte(key)
	if old := h.want[key]; old != 0 {
		h.tree.Replace([]byte(key), h.next)
		delete(h.keys, old)
	} else if err := h.tree.Insert([]byte(key), h.next); err != nil {
		h.t.Fatal(err)
	}
	h.want[key] = h.next
}

func (h *harness) remove(key string) {
	if got := h.tree.Find([]byte(key)); got != h.want[key] {
		h.t.Fatalf("%q: found %d, want %d", key, got, h.want[key])
	}
	if ref := h.want[key]; ref != 0 {
		h.tree.Remove([]byte(key))
		delete(h.want, key)
		delete(h.keys, ref)
	}
}

func (h *harness) sorted() []string {
	sorted := make([]string, 0, len(h.want))
	for key := range h.want {
		sorted = append(sorted, key)
	}
	slices.Sort(sorted)
	return sorted
}

func (h *harness) check() {
	h.t.Helper()
	if err := h.tree.Check(); err != nil {
		h.t.Fatal(err)
	}
	sorted := h.sorted()
	h.checkFrom("", sorted)
	for _, from := range []string{"", "\x00", "m", "user:", "\xff\xff\xff\xff"} {
		h.checkFrom(from, sorted)
	}
	for i := 0; i < len(sorted); i += max(len(sorted)/20, 1) {
		h.checkFrom(sorted[i], sorted)
		h.checkFrom(sorted[i]+"\x00", sorted)
		h.checkFrom(sorted[i][:len(sorted[i])/2], sorted)
	}
}

func (h *harness) checkFrom(from string, sorted []string) {
	h.t.Helper()
	at, _ := slices.BinarySearch(sorted, from)
	n := 0
	h.tree.Ascend([]byte(from), func(refs []arena.Ref) bool {
		for _, ref := range refs {
			if at+n >= len(sorted) || ref != h.want[sorted[at+n]] {
				h.t.Fatalf("from %q: %q comes as number %d of %d", from, h.keys[ref], n, len(sorted)-at)
			}
			n++
		}
		return at == 0 || n < 200
	})
	if n != len(sorted)-at && (at == 0 || n < 200) {
		h.t.Fatalf("from %q: %d keys, want %d", from, n, len(sorted)-at)
	}
	var first arena.Ref
	if at < len(sorted) {
		first = h.want[sorted[at]]
	}
	if h.tree.First([]byte(from)) != first {
		h.t.Fatalf("first from %q: %d, want %d", from, h.tree.First([]byte(from)), first)
	}
}

// families make key number i of n in ways that try what nodes keep of keys: prefixes, heads and their ends.
var families = map[string]func(i int) string{
	"binary": func(i int) string {
		return string(binary.BigEndian.AppendUint64(nil, uint64(i)*0x9e3779b97f4a7c15))
	},
	"decimal":     func(i int) string { return fmt.Sprintf("user:%09d", i) },
	"text":        func(i int) string { return fmt.Sprint("user:", i) },
	"two kinds":   func(i int) string { return fmt.Sprintf("%s:profile:%d", []string{"account", "user"}[i%2], i) },
	"long prefix": func(i int) string { return strings.Repeat("p", 100) + fmt.Sprint(i) },
	"differ late": func(i int) string { return fmt.Sprintf("%03d%s%d", i%3, strings.Repeat("m", 60), i) },
	"zeros": func(i int) string {
		return "k" + strings.Repeat("\x00", i%40) + strings.Repeat("\x01", i/40%7) + fmt.Sprint(i/280)
	},
	"any length": func(i int) string {
		return fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15)[:1+i%16] + strings.Repeat("z", i%5)
	},
}

func TestRandomChanges(t *testing.T) {
	for name, key := range families {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			h := newHarness(t)
			for _, step := range []struct{ changes, keys, removes int }{
				{30, 20, 4}, {500, 100, 4}, {12_000, 6_000, 3}, {12_000, 6_000, 9}, {3_000, 6_000, 1}, {15_000, 6_000, 10},
			} {
				for range step.changes {
					if key := key(random.IntN(step.keys)); random.IntN(10) < step.removes {
						h.remove(key)
					} else {
						h.set(key)
					}
					if random.IntN(10) == 0 {
						h.tree.Compact()
					}
				}
				h.check()
			}
			for _, key := range h.sorted() {
				h.remove(key)
			}
			h.check()
			if h.tree.Usage().Used != 0 {
				t.Errorf("%+v left", h.tree.Usage())
			}
		})
	}
}

// Keys that come in order, either way, and leave in order.
func TestOrderedChanges(t *testing.T) {
	for name, key := range families {
		t.Run(name, func(t *testing.T) {
			all := newHarness(t)
			for i := range 3_000 {
				all.set(key(i))
			}
			sorted := all.sorted()
			reversed := slices.Clone(sorted)
			slices.Reverse(reversed)
			for _, in := range [][]string{sorted, reversed} {
				for _, out := range [][]string{sorted, reversed} {
					h := newHarness(t)
					for _, key := range in {
						h.set(key)
					}
					h.check()
					for _, key := range out[:len(out)*9/10] {
						h.remove(key)
					}
					h.check()
				}
			}
		})
	}
}

func TestBuild(t *testing.T) {
	for name, key := range families {
		for _, n := range []int{0, 1, 71, 72, 73, 80, 3_000, 20_000} {
			h := newHarness(t)
			for i := range n {
				k := key(i)
				h.next++
				h.keys[h.next], h.want[k] = []byte(k), h.next
			}
			var refs []arena.Ref
			for _, k := range h.sorted() {
				refs = append(refs, h.want[k])
			}
			if err := h.tree.Build(refs); err != nil {
				t.Fatal(err)
			}
			h.check()
			for i := range 500 {
				h.set(key(n + i))
				h.remove(key(i * 7))
			}
			if err := h.tree.Check(); err != nil {
				t.Fatalf("%s, %d: %v", name, n, err)
			}
		}
	}
}

func TestBytesPerKey(t *testing.T) {
	for _, c := range []struct {
		name string
		key  func(int) string
		most float64
	}{
		{"random", families["binary"], 8.6},
		{"ascending", families["decimal"], 7},
	} {
		h := newHarness(t)
		const n = 200_000
		for i := range n {
			h.set(c.key(i))
		}
		perKey := float64(h.tree.Usage().Used) / n
		t.Logf("%s: %.2f bytes a key", c.name, perKey)
		if perKey > c.most {
			t.Errorf("%s: %.2f bytes a key, want at most %v", c.name, perKey, c.most)
		}
	}
}

// Deleting most keys, with compaction, gives most nodes back.
func TestCompaction(t *testing.T) {
	h := newHarness(t)
	const n = 100_000
	for i := range n {
		h.set(families["binary"](i))
	}
	for i := range n * 19 / 20 {
		h.remove(families["binary"](i))
	}
	for h.tree.Compact() {
	}
	h.check()
	u := h.tree.Usage()
	if u.Cells > u.Used+u.Used/20+2*(64<<10) {
		t.Errorf("%+v", u)
	}
	if perKey := float64(u.Used) / (n / 20); perKey > 26 {
		t.Errorf("%.1f bytes a key", perKey)
	}
}

func FuzzTree(f *testing.F) {
	f.Add([]byte("\x00abc\x01abd\x02\x00\x40abc"))
	f.Fuzz(func(t *testing.T, steps []byte) {
		h := newHarness(t)
		for len(steps) > 1 {
			n := min(int(steps[0]&0x0f)+1, len(steps)-1)
			kind, key := steps[0]>>6, string(bytes.Clone(steps[1:1+n]))
			steps = steps[1+n:]
			switch kind {
			case 0:
				h.set(key)
			case 1:
				h.remove(key)
			case 2:
				for i := range 50 {
					h.set(fmt.Sprint(key, i))
				}
			case 3:
				for i := range 50 {
					h.remove(fmt.Sprint(key, i))
				}
				h.tree.Compact()
			}
		}
		h.check()
	})
}
