package raftfsm

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// A shard's snapshot is a stream of msgpack values. The file around it is checksummed by storage; the counts
// here catch a writer's fault.
//
//	[format, shard, index, time, version]        header
//	[tagSlot, slot]                              for each owned slot, in ascending order:
//	  [tagItem, key, value, version, expiresAt]    its items
//	[tagEnd, slots, items]
//
// Slots are whole and follow each other, so that a slot can be moved or checked by itself.
const (
	snapshotFormat = 1

	tagSlot = 1
	tagItem = 2
	tagEnd  = 3

	snapshotBufferBytes = 256 << 10
)

// frozenShard implements frozen for a shard's store.
type frozenShard struct {
	shard shard.ID
	index uint64
	view  *store.View
}

func (m *shardMachine) freeze(index uint64) (frozen, error) {
	return &frozenShard{shard: m.shard, index: index, view: m.store.Load().Freeze()}, nil
}

func (f *frozenShard) release() { f.view.Close() }

func (f *frozenShard) persist(out io.Writer) error {
	buffered := bufio.NewWriterSize(out, snapshotBufferBytes)
	w := fieldWriter{enc: msgpack.NewEncoder(buffered)}
	w.enc.UseCompactInts(true)
	w.array(5)
	w.uint(snapshotFormat)
	w.uint(uint64(f.shard))
	w.uint(f.index)
	w.int(int64(f.view.Time()))
	w.uint(uint64(f.view.Version()))
	slots, items := 0, 0
	for _, slot := range f.view.Slots() {
		slots++
		w.array(2)
		w.uint(tagSlot)
		w.uint(uint64(slot))
		omit := knownbad.SnapshotKey
		err := f.view.Slot(slot, func(it store.Item) error {
			if omit {
				omit = false
				return nil
			}
			items++
			w.array(5)
			w.uint(tagItem)
			w.bytes(it.Key)
			w.bytes(it.Value)
			w.uint(uint64(it.Version))
			w.int(int64(it.ExpiresAt))
			return w.err
		})
		if err != nil {
			return fmt.Errorf("writing slot %d: %w", slot, err)
		}
	}
	w.array(3)
	w.uint(tagEnd)
	w.uint(uint64(slots))
	w.uint(uint64(items))
	return errors.Join(w.err, buffered.Flush())
}

// restore implements machine: the store is built aside and swapped in only after the end tag and the end of
// the stream, where storage has verified the checksum.
func (m *shardMachine) restore(source io.Reader) (uint64, error) {
	buffered := bufio.NewReaderSize(source, snapshotBufferBytes)
	index, built, err := readSnapshot(buffered, m.shard)
	if err != nil {
		return 0, err
	}
	if _, err := buffered.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("bytes after the end")
		}
		return 0, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	m.swap(built)
	return index, nil
}

// readSnapshot decodes a shard's snapshot into a new store.
func readSnapshot(source *bufio.Reader, id shard.ID) (uint64, *store.Store, error) {
	r := snapshotReader{dec: msgpack.NewDecoder(source), bytesMax: formatLimits.ValueBytesMax}
	if n := r.arrayLen(); r.err == nil && n != 5 {
		return 0, nil, fmt.Errorf("%w: header of %d fields", ErrBadSnapshot, n)
	}
	if format := r.uint(); r.err == nil && format != snapshotFormat {
		return 0, nil, fmt.Errorf("%w: format %d, this build reads up to %d", ErrBadSnapshot, format, snapshotFormat)
	}
	if got := r.uint(); r.err == nil && got != uint64(id) {
		return 0, nil, fmt.Errorf("%w: it is of shard %d, not of %d", ErrBadSnapshot, got, id)
	}
	index := r.uint()
	at := store.Time(r.int())
	version := store.Version(r.uint())
	b := store.NewBuilder(formatLimits)
	if err := r.slots(b); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	built, err := b.Finish(version, at)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	return index, built, nil
}

// snapshotReader reads a snapshot's fields and keeps the first error.
type snapshotReader struct {
	dec *msgpack.Decoder
	// bytesMax bounds what a length field may claim before anything is allocated.
	bytesMax int
	err      error
}

func (r *snapshotReader) arrayLen() int {
	if r.err != nil {
		return 0
	}
	var n int
	n, r.err = r.dec.DecodeArrayLen()
	return n
}

func (r *snapshotReader) uint() uint64 {
	if r.err != nil {
		return 0
	}
	var v uint64
	v, r.err = r.dec.DecodeUint64()
	return v
}

func (r *snapshotReader) int() int64 {
	if r.err != nil {
		return 0
	}
	var v int64
	v, r.err = r.dec.DecodeInt64()
	return v
}

func (r *snapshotReader) bytes() []byte {
	if r.err != nil {
		return nil
	}
	n, err := r.dec.DecodeBytesLen()
	if err == nil && n > r.bytesMax {
		err = fmt.Errorf("%d bytes where at most %d are allowed", n, r.bytesMax)
	}
	if err != nil || n <= 0 {
		r.err = err
		return nil
	}
	b := make([]byte, n)
	r.err = r.dec.ReadFull(b)
	return b
}

// slots reads up to and with the end tag.
func (r *snapshotReader) slots(b *store.Builder) error {
	slot, slots, items := -1, 0, 0
	for {
		n := r.arrayLen()
		tag := r.uint()
		switch {
		case r.err != nil:
			return r.err
		case tag == tagSlot && n == 2:
			next := r.uint()
			if r.err == nil && (next >= store.SlotCount || int(next) <= slot) {
				return fmt.Errorf("slot %d after slot %d", next, slot)
			}
			slot = int(next)
			slots++
			b.Own(uint16(slot))
		case tag == tagItem && n == 5:
			it := store.Item{Key: r.bytes(), Value: r.bytes(), Version: store.Version(r.uint()), ExpiresAt: store.Time(r.int())}
			if r.err != nil {
				return r.err
			}
			if slot < 0 || int(shard.SlotOf(it.Key)) != slot {
				return fmt.Errorf("a key of slot %d stands in slot %d", shard.SlotOf(it.Key), slot)
			}
			if err := b.Put(uint16(slot), it); err != nil {
				return fmt.Errorf("slot %d: %w", slot, err)
			}
			items++
		case tag == tagEnd && n == 3:
			wantSlots, wantItems := r.uint(), r.uint()
			if r.err == nil && (wantSlots != uint64(slots) || wantItems != uint64(items)) {
				return fmt.Errorf("%d slots and %d items read, %d and %d written", slots, items, wantSlots, wantItems)
			}
			return r.err
		default:
			return fmt.Errorf("tag %d with %d fields", tag, n)
		}
	}
}
