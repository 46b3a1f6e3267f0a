package arena_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

var classes = arena.SteppedClasses(33 << 10)

func TestSteppedClasses(t *testing.T) {
	for size := 1; size <= classes.Max(); size++ {
		fit := classes.Fit(size)
		slack := 3
		switch {
		case size > 4096: // few on a page
			slack = size / 4
		case size > 512:
			slack = size/32 + 4
		}
		if fit < size || (size >= arena.CellBytesMin && fit-size > slack) {
			t.Fatalf("%d bytes get a cell of %d", size, fit)
		}
	}
	if classes.Max() < 33<<10 {
		t.Errorf("largest class %d", classes.Max())
	}
}

// owner keeps cells as a store would: each holds its number and length, and a pattern.
type owner struct {
	t     testing.TB
	arena *arena.Arena
	refs  map[uint64]arena.Ref
	next  uint64

	numbers []uint64 // of refs, and some that were freed
}

func newOwner(t testing.TB, config arena.Config) *owner {
	return &owner{t: t, arena: arena.New(classes, config), refs: map[uint64]arena.Ref{}}
}

func (o *owner) alloc(size int) error {
	size = max(size, 12)
	ref, err := o.arena.Alloc(size)
	if err != nil {
		return err
	}
	if ref == 0 {
		o.t.Fatal("reference 0")
	}
	o.next++
	cell := o.arena.Bytes(ref)
	if len(cell) != classes.Fit(size) {
		o.t.Fatalf("cell of %d for %d bytes", len(cell), size)
	}
	binary.LittleEndian.PutUint64(cell, o.next)
	binary.LittleEndian.PutUint32(cell[8:], uint32(size))
	for i := 12; i < size; i++ {
		cell[i] = byte(uint64(i) + o.next)
	}
	o.refs[o.next] = ref
	o.numbers = append(o.numbers, o.next)
	return nil
}

func (o *owner) check(number uint64) {
	cell := o.arena.Bytes(o.refs[number])
	if binary.LittleEndian.Uint64(cell) != number {
		o.t.Fatalf("cell %d holds %d", number, binary.LittleEndian.Uint64(cell))
	}
	for i, b := range cell[12:binary.LittleEndian.Uint32(cell[8:])] {
		if b != byte(uint64(i+12)+number) {
			o.t.Fatalf("cell %d was written over at %d", number, i)
		}
	}
}

func (o *owner) checkAll() {
	o.t.Helper()
	for number := range o.refs {
		o.check(number)
	}
	if err := o.arena.Check(); err != nil {
		o.t.Fatal(err)
	}
}

func (o *owner) free(number uint64) {
	o.check(number)
	o.arena.Free(o.refs[number])
	delete(o.refs, number)
}

// move does one step of compaction; skip leaves odd cells where they are.
func (o *owner) move(skipOdd bool) bool {
	ref, ok := o.arena.NextMove()
	if !ok {
		return false
	}
	cell := o.arena.Bytes(ref)
	number := binary.LittleEndian.Uint64(cell)
	if o.refs[number] != ref {
		o.t.Fatalf("cell %#x is to move, %d lies at %#x", ref, number, o.refs[number])
	}
	if skipOdd && number%2 == 1 {
		o.arena.SkipMove(ref)
		return true
	}
	to, err := o.arena.Alloc(len(cell))
	if err != nil {
		o.t.Fatal(err)
	}
	if to>>12 == ref>>12 {
		o.t.Fatal("moved within a page that is being vacated")
	}
	copy(o.arena.Bytes(to), cell)
	o.refs[number] = to
	o.arena.Free(ref)
	return true
}

// any returns the number of some cell, chosen by n.
func (o *owner) any(n uint64) (uint64, bool) {
	for len(o.numbers) > 0 {
		i := n % uint64(len(o.numbers))
		number := o.numbers[i]
		if o.refs[number] != 0 {
			return number, true
		}
		last := len(o.numbers) - 1 // freed: forgotten only now
		o.numbers[i] = o.numbers[last]
		o.numbers = o.numbers[:last]
	}
	return 0, false
}

func TestRandomAllocs(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	o := newOwner(t, arena.Config{})
	sizes := []int{12, 16, 17, 100, 156, 157, 513, 2048, 2049, 5000, 16384, 33 << 10}
	for i := range 60_000 {
		grow := 55
		if i/10_000%2 == 1 {
			grow = 40
		}
		if random.IntN(100) < grow {
			if err := o.alloc(sizes[min(random.IntN(len(sizes)), random.IntN(len(sizes)))]); err != nil {
				t.Fatal(err)
			}
		} else if number, ok := o.any(random.Uint64()); ok {
			o.free(number)
		}
		for range random.IntN(3) {
			o.move(random.IntN(50) == 0)
		}
		if i%5000 == 0 {
			o.arena.Unstick()
			o.checkAll()
		}
	}
	for len(o.refs) > 0 {
		number, _ := o.any(random.Uint64())
		o.free(number)
	}
	o.checkAll()
	if u := o.arena.Usage(); u.Used != 0 || u.Cells != 0 {
		t.Errorf("after everything was freed: %+v", u)
	}
}

// Freeing four fifths at random and compacting leaves the memory of a fifth, and little more.
func TestCompaction(t *testing.T) {
	t.Run("huge pages", func(t *testing.T) { testCompaction(t, arena.Config{HugeFrom: 1}) })
	t.Run("plain", func(t *testing.T) { testCompaction(t, arena.Config{}) })
}

func testCompaction(t *testing.T, config arena.Config) {
	random := rand.New(rand.NewPCG(3, 4))
	o := newOwner(t, config)
	for range 200_000 {
		if err := o.alloc(100 + random.IntN(8)); err != nil {
			t.Fatal(err)
		}
	}
	before := o.arena.Usage()
	for number := range o.next {
		if random.IntN(5) > 0 {
			o.free(number + 1)
		}
	}
	for o.move(false) {
	}
	o.checkAll()
	u := o.arena.Usage()
	if bound := u.Used + u.Used/20 + 3*2*(64<<10) + before.Resident/64; u.Resident > bound {
		t.Errorf("%d bytes in use take %d, want at most %d; there were %d", u.Used, u.Resident, bound, before.Resident)
	}
	for range 200_000 { // on pages that were given back, too
		if err := o.alloc(100 + random.IntN(60)); err != nil {
			t.Fatal(err)
		}
	}
	o.checkAll()
}

// A skipped cell ends vacating for its class, until Unstick; other classes go on.
func TestSkippedMoves(t *testing.T) {
	o := newOwner(t, arena.Config{})
	for range 50_000 {
		if err := o.alloc(64); err != nil {
			t.Fatal(err)
		}
	}
	for number := uint64(1); number <= o.next; number++ {
		if number%7 != 0 {
			o.free(number)
		}
	}
	ref, ok := o.arena.NextMove()
	if !ok {
		t.Fatal("nothing to compact")
	}
	o.arena.SkipMove(ref)
	if _, ok := o.arena.NextMove(); ok {
		t.Error("goes on after a skip")
	}
	o.checkAll()
	o.arena.Unstick()
	for o.move(false) {
	}
	o.checkAll()
	if u := o.arena.Usage(); u.Cells > u.Used+u.Used/20+2*(64<<10) {
		t.Errorf("%+v", u)
	}
}

func TestFullAtTheLastReference(t *testing.T) {
	const last = 1<<20 - 1 // the number of the last page there can be
	o := newOwner(t, arena.Config{FirstPage: last - 2})
	for {
		if err := o.alloc(16); err != nil {
			if !errors.Is(err, arena.ErrFull) {
				t.Fatal(err)
			}
			break
		}
	}
	o.checkAll()
	if want := 3 * 4096; len(o.refs) != want {
		t.Errorf("%d cells, want %d", len(o.refs), want)
	}
	highest := arena.Ref(0)
	for _, ref := range o.refs {
		highest = max(highest, ref)
	}
	if highest != 1<<32-1 {
		t.Errorf("the highest reference is %#x", highest)
	}
	if !bytes.Equal(o.arena.Bytes(highest), o.arena.Reader().Bytes(highest)) {
		t.Error("a reader sees something else")
	}
	for number := range o.refs { // room again, also for another size
		if o.refs[number]>>12 == last {
			o.free(number)
		}
	}
	if err := o.alloc(500); err != nil {
		t.Error(err)
	}
	o.checkAll()
}

func TestPagesMax(t *testing.T) {
	o := newOwner(t, arena.Config{PagesMax: 2})
	for _, size := range []int{100, 3000} { // a small and a large page
		if err := o.alloc(size); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.alloc(200); !errors.Is(err, arena.ErrFull) {
		t.Errorf("%v", err)
	}
	if err := o.alloc(100); err != nil {
		t.Errorf("a page with room: %v", err)
	}
	o.checkAll()
}

func TestFreeingTwicePanics(t *testing.T) {
	a := arena.New(classes, arena.Config{})
	ref, _ := a.Alloc(50)
	kept, _ := a.Alloc(50)
	a.Free(ref)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
		if !a.InUse(kept) || a.InUse(ref) || a.InUse(0) {
			t.Error("in use is wrong")
		}
	}()
	a.Free(ref)
}

// FuzzArena takes each pair of bytes for a step: allocate a size, free a cell, move one.
func FuzzArena(f *testing.F) {
	f.Add([]byte{0, 10, 0, 200, 1, 0, 2, 0})
	f.Add(bytes.Repeat([]byte{0, 255, 0, 1, 1, 1}, 200))
	f.Fuzz(func(t *testing.T, steps []byte) {
		o := newOwner(t, arena.Config{FirstPage: 1<<20 - 20})
		for ; len(steps) >= 2; steps = steps[2:] {
			n := uint64(steps[1])
			switch steps[0] % 4 {
			case 0:
				if err := o.alloc(int(n*n*n) % (33 << 10)); err != nil && !errors.Is(err, arena.ErrFull) {
					t.Fatal(err)
				}
			case 1:
				for range steps[0] / 4 {
					if o.alloc(int(n)) != nil {
						break
					}
				}
			case 2:
				for range steps[0]/4 + 1 {
					if number, ok := o.any(n); ok {
						o.free(number)
					}
				}
			case 3:
				for range n {
					if !o.move(steps[0] > 250) {
						break
					}
				}
			}
		}
		o.arena.Unstick()
		o.checkAll()
	})
}
