package hashindex

import (
	"encoding/binary"
	"slices"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// entriesMax is how many entries a block of n buckets takes before it grows. One bucket can't overflow to another and is filled.
func entriesMax(n int) int {
	if n == 1 {
		return bucketEntries
	}
	return n * bucketEntries * 7 / 8
}

// bucketsFor returns how many buckets a new block for entries gets: with an eighth to spare.
func bucketsFor(entries int) int {
	n := 1
	if entries > bucketEntries {
		n = (entries*9/7 + bucketEntries - 1) / bucketEntries
	}
	return min(n, bucketsMax)
}

func entriesOf(block []byte) int {
	return int(binary.LittleEndian.Uint16(block[entriesAt:]))
}

func setEntries(block []byte, n int) {
	binary.LittleEndian.PutUint16(block[entriesAt:], uint16(n))
}

// Insert adds a reference whose key is not in the table. The only error is arena.ErrFull, of 64 GiB of blocks: then nothing changed.
func (x *Index) Insert(t *Table, hash uint64, ref arena.Ref) error {
	for {
		blockRef, at := t.blockOf(hash)
		if blockRef == 0 {
			fresh, err := x.newBlock(1)
			if err != nil {
				return err
			}
			t.block, blockRef = fresh, fresh
		}
		block := x.blocks.Bytes(blockRef)
		n, entries := len(block)/bucketBytes, entriesOf(block)
		if entries < entriesMax(n) {
			place(block, hash, ref)
			setEntries(block, entries+1)
			t.count++
			return nil
		}
		var err error
		if n < bucketsMax {
			err = x.resize(t, at, blockRef, min(n+max(n/4, 1), bucketsMax))
		} else {
			err = x.split(t, at, blockRef)
		}
		if err != nil {
			return err
		}
	}
}

// Remove takes a key out, which must be there.
func (x *Index) Remove(t *Table, hash uint64, key []byte) {
	_, block, at := x.find(t, hash, key)
	found := at / bucketBytes * bucketBytes
	for bucket := homeOf(hash, len(block)/bucketBytes) * bucketBytes; bucket != found; {
		passed := block[bucket+passedAt:]
		binary.LittleEndian.PutUint16(passed, binary.LittleEndian.Uint16(passed)-1)
		if bucket += bucketBytes; bucket == len(block) {
			bucket = 0
		}
	}
	binary.LittleEndian.PutUint32(block[at:], 0)
	block[found+(at-found-refsAt)/4] = 0
	entries := entriesOf(block) - 1
	setEntries(block, entries)
	t.count--
	if t.count == 0 {
		x.Clear(t)
		return
	}
	if n := len(block) / bucketBytes; n > 1 && entries < n*bucketEntries*2/5 {
		blockRef, place := t.blockOf(hash)
		_ = x.resize(t, place, blockRef, bucketsFor(entries)) // without room for the smaller one the larger stays
	}
}

// Clear takes everything out and frees the blocks.
func (x *Index) Clear(t *Table) {
	if t.block != 0 {
		x.blocks.Free(t.block)
	}
	for i, block := range t.directory {
		if i == 0 || block != t.directory[i-1] {
			x.blocks.Free(block)
		}
	}
	*t = Table{}
}

// Build adds references, whose keys are different and not in the table, hashes beside them. An empty table gets the right size at once.
func (x *Index) Build(t *Table, hashes []uint64, refs []arena.Ref) error {
	if entries := len(refs); t.count == 0 && entries > 0 && entries <= entriesMax(bucketsMax) {
		fresh, err := x.newBlock(bucketsFor(entries))
		if err != nil {
			return err
		}
		t.block = fresh
	}
	for i, ref := range refs {
		if err := x.Insert(t, hashes[i], ref); err != nil {
			return err
		}
	}
	return nil
}

func (x *Index) newBlock(n int) (arena.Ref, error) {
	ref, err := x.blocks.Alloc(n * bucketBytes)
	if err == nil {
		clear(x.blocks.Bytes(ref))
	}
	return ref, err
}

// place writes an entry into a block that has room.
func place(block []byte, hash uint64, ref arena.Ref) {
	for bucket := homeOf(hash, len(block)/bucketBytes) * bucketBytes; ; {
		b := block[bucket : bucket+bucketBytes]
		if i := slices.Index(b[:bucketEntries], 0); i >= 0 {
			b[i] = tagOf(hash)
			binary.LittleEndian.PutUint32(b[refsAt+4*i:], uint32(ref))
			return
		}
		binary.LittleEndian.PutUint16(b[passedAt:], binary.LittleEndian.Uint16(b[passedAt:])+1)
		if bucket += bucketBytes; bucket == len(block) {
			bucket = 0
		}
	}
}

// resize puts a block's entries into one of n buckets.
func (x *Index) resize(t *Table, at int, old arena.Ref, n int) error {
	fresh, err := x.newBlock(n)
	if err != nil {
		return err
	}
	from, to := x.blocks.Bytes(old), x.blocks.Bytes(fresh)
	eachRef(from, func(ref arena.Ref) { place(to, x.Hash(x.keys.Key(ref)), ref) })
	setEntries(to, entriesOf(from))
	t.point(at, old, fresh)
	x.blocks.Free(old)
	return nil
}

// point makes the directory entries that name old, around place at, name fresh.
func (t *Table) point(at int, old, fresh arena.Ref) {
	if t.directory == nil {
		t.block = fresh
		return
	}
	first, end := t.span(at, old)
	for i := first; i < end; i++ {
		t.directory[i] = fresh
	}
}

// span returns the directory entries [first, end) that name block, at among them.
func (t *Table) span(at int, block arena.Ref) (first, end int) {
	first, end = at, at+1
	for first > 0 && t.directory[first-1] == block {
		first--
	}
	for end < len(t.directory) && t.directory[end] == block {
		end++
	}
	return first, end
}

// split distributes a block over two by the next bit of the hash.
func (x *Index) split(t *Table, at int, old arena.Ref) error {
	first, end := 0, 1
	depth := uint8(0) // bits of the hash that the block's entries have in common
	if t.directory != nil {
		first, end = t.span(at, old)
		for 1<<(t.bits-depth) > end-first {
			depth++
		}
	}
	var hashes [bucketsMax * bucketEntries]uint64
	var refs [bucketsMax * bucketEntries]arena.Ref
	var counts [2]int
	n := 0
	eachRef(x.blocks.Bytes(old), func(ref arena.Ref) {
		hashes[n], refs[n] = x.Hash(x.keys.Key(ref)), ref
		counts[hashes[n]<<depth>>63]++
		n++
	})
	var halves [2]arena.Ref
	for i := range halves {
		half, err := x.newBlock(bucketsFor(counts[i]))
		if err != nil {
			if i == 1 {
				x.blocks.Free(halves[0])
			}
			return err
		}
		halves[i] = half
		setEntries(x.blocks.Bytes(half), counts[i])
	}
	for i, ref := range refs[:n] {
		place(x.blocks.Bytes(halves[hashes[i]<<depth>>63]), hashes[i], ref)
	}
	switch {
	case t.directory == nil:
		t.directory, t.bits, t.block = []arena.Ref{old, old}, 1, 0
		first, end = 0, 2
	case end-first == 1:
		t.directory, t.bits = doubled(t.directory), t.bits+1
		first, end = 2*first, 2*end
	}
	for i := first; i < end; i++ {
		t.directory[i] = halves[(i-first)*2/(end-first)]
	}
	x.blocks.Free(old)
	return nil
}

func doubled(directory []arena.Ref) []arena.Ref {
	twice := make([]arena.Ref, 0, 2*len(directory))
	for _, block := range directory {
		twice = append(twice, block, block)
	}
	return twice
}

// Owners tells which table a reference is in.
type Owners interface {
	Table(arena.Ref) *Table
}

// Compact moves one block where holes are many, and reports whether it did.
func (x *Index) Compact(owners Owners) bool {
	old, ok := x.blocks.NextMove()
	if !ok {
		return false
	}
	from := x.blocks.Bytes(old)
	var entry arena.Ref
	for i := 0; i < len(from) && entry == 0; i += bucketBytes {
		if tag := slices.IndexFunc(from[i:i+bucketEntries], func(tag byte) bool { return tag != 0 }); tag >= 0 {
			entry = refAt(from[i:], tag)
		}
	}
	if entry == 0 { // an empty block of a large table: nothing tells whose
		x.blocks.SkipMove(old)
		return false
	}
	fresh, err := x.blocks.Alloc(len(from))
	if err != nil {
		x.blocks.SkipMove(old)
		return false
	}
	copy(x.blocks.Bytes(fresh), from)
	t := owners.Table(entry)
	_, at := t.blockOf(x.Hash(x.keys.Key(entry)))
	t.point(at, old, fresh)
	x.blocks.Free(old)
	return true
}
