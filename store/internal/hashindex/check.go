package hashindex

import (
	"encoding/binary"
	"fmt"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// Check returns an error where a table contradicts itself or its keys. It looks at everything, and is for tests.
func (x *Index) Check(t *Table) error {
	total := 0
	check := func(blockRef arena.Ref, first, end int) error {
		block := x.blocks.Bytes(blockRef)
		n := len(block) / bucketBytes
		passed := make([]int, n)
		entries := 0
		for bucket := range n {
			for i := range bucketEntries {
				tag, ref := block[bucket*bucketBytes+i], refAt(block[bucket*bucketBytes:], i)
				if (tag == 0) != (ref == 0) {
					return fmt.Errorf("hashindex: tag %d of reference %d", tag, ref)
				}
				if tag == 0 {
					continue
				}
				entries++
				key := x.keys.Key(ref)
				hash := x.Hash(key)
				if tag != tagOf(hash) {
					return fmt.Errorf("hashindex: tag %d of %q, want %d", tag, key, tagOf(hash))
				}
				if _, at := t.blockOf(hash); at < first || at >= end {
					return fmt.Errorf("hashindex: %q lies in another block's place", key)
				}
				if x.Find(t, hash, key) != ref {
					return fmt.Errorf("hashindex: %q is not found", key)
				}
				for b := homeOf(hash, n); b != bucket; b = (b + 1) % n {
					passed[b]++
				}
			}
		}
		for bucket := range n {
			if got := int(binary.LittleEndian.Uint16(block[bucket*bucketBytes+passedAt:])); got != passed[bucket] {
				return fmt.Errorf("hashindex: bucket %d passed by %d, counted %d", bucket, passed[bucket], got)
			}
		}
		if entries != entriesOf(block) {
			return fmt.Errorf("hashindex: block of %d entries, counted %d", entries, entriesOf(block))
		}
		total += entries
		return nil
	}
	if t.directory == nil {
		if t.block != 0 {
			if err := check(t.block, 0, 1); err != nil {
				return err
			}
		}
	} else if len(t.directory) != 1<<t.bits || t.block != 0 {
		return fmt.Errorf("hashindex: directory of %d for %d bits, block %d beside it", len(t.directory), t.bits, t.block)
	}
	for first := 0; first < len(t.directory); {
		_, end := t.span(first, t.directory[first])
		if size := end - first; size&(size-1) != 0 || first%size != 0 {
			return fmt.Errorf("hashindex: a block stands in the directory from %d to %d", first, end)
		}
		if err := check(t.directory[first], first, end); err != nil {
			return err
		}
		first = end
	}
	if total != t.count {
		return fmt.Errorf("hashindex: %d entries, counted %d", total, t.count)
	}
	return nil
}

// CheckBlocks returns an error where the blocks' memory contradicts itself.
func (x *Index) CheckBlocks() error { return x.blocks.Check() }
