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
//	sessions                                     in format 2: sessionsnapshot.go
//	[tagEnd, slots, items]                       format 1
//	[tagEnd, slots, items, sessions, results]    format 2
//
// Slots are whole and follow each other, so that a slot can be moved or checked by itself. A shard without sessions is
// written in format 1: there are none below format level 2, where that is all that every node can read.
const (
	snapshotFormat = 2
	// snapshotPlain is the format without sessions.
	snapshotPlain = 1

	tagSlot     = 1
	tagItem     = 2
	tagEnd      = 3
	tagSessions = 4
	tagSession  = 5
	tagRecord   = 6

	snapshotBufferBytes = 256 << 10
)

// frozenShard implements frozen for a shard's store.
type frozenShard struct {
	shard    shard.ID
	index    uint64
	view     *store.View
	sessions frozenSessions
}

func (m *shardMachine) freeze(index uint64) (frozen, error) {
	return &frozenShard{shard: m.shard, index: index, view: m.store.Load().Freeze(), sessions: m.sessions.freeze()}, nil
}

func (f *frozenShard) release() { f.view.Close() }

func (f *frozenShard) persist(out io.Writer) error {
	buffered := bufio.NewWriterSize(out, snapshotBufferBytes)
	w := fieldWriter{enc: msgpack.NewEncoder(buffered)}
	w.enc.UseCompactInts(true)
	w.array(5)
	format := uint64(snapshotFormat)
	if f.sessions.none() {
		format = snapshotPlain
	}
	w.uint(format)
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
	if format == snapshotPlain {
		w.array(3)
	} else {
		f.sessions.write(&w)
		w.array(5)
	}
	w.uint(tagEnd)
	w.uint(uint64(slots))
	w.uint(uint64(items))
	if format != snapshotPlain {
		w.uint(uint64(f.sessions.sessions))
		w.uint(uint64(f.sessions.records))
	}
	return errors.Join(w.err, buffered.Flush())
}

// restore implements machine: the store is built aside and swapped in only after the end tag and the end of
// the stream, where storage has verified the checksum.
func (m *shardMachine) restore(source io.Reader) (uint64, error) {
	buffered := bufio.NewReaderSize(source, snapshotBufferBytes)
	index, built, sessions, err := readSnapshot(buffered, m.shard, m.sessions.bounds)
	if err != nil {
		return 0, err
	}
	if _, err := buffered.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("bytes after the end")
		}
		return 0, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	m.swap(built, sessions)
	return index, nil
}

// readSnapshot decodes a shard's snapshot into a new store and its sessions.
func readSnapshot(source *bufio.Reader, id shard.ID, bounds sessionBounds) (uint64, *store.Store, *sessionTable, error) {
	r := snapshotReader{dec: msgpack.NewDecoder(source), bytesMax: formatLimits.ValueBytesMax}
	refuse := func(err error) (uint64, *store.Store, *sessionTable, error) {
		return 0, nil, nil, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	n, format, got := r.arrayLen(), r.uint(), r.uint()
	switch {
	case r.err != nil: // told below
	case n != 5:
		return refuse(fmt.Errorf("header of %d fields", n))
	case format != snapshotPlain && format != snapshotFormat:
		return refuse(fmt.Errorf("format %d, this build reads up to %d", format, snapshotFormat))
	case got != uint64(id):
		return refuse(fmt.Errorf("it is of shard %d, not of %d", got, id))
	}
	r.format = format
	index := r.uint()
	r.at = store.Time(r.int())
	version := store.Version(r.uint())
	b, sessions := store.NewBuilder(formatLimits), newSessionBuilder(bounds)
	if err := r.body(b, sessions); err != nil {
		return refuse(err)
	}
	built, err := b.Finish(version, r.at)
	if err != nil {
		return refuse(err)
	}
	return index, built, sessions.table, nil
}

// snapshotReader reads a snapshot's fields and keeps the first error.
type snapshotReader struct {
	dec *msgpack.Decoder
	// bytesMax bounds what a length field may claim before anything is allocated.
	bytesMax int
	err      error
	// Of the header.
	format uint64
	at     store.Time
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

func (r *snapshotReader) uintMax(most uint64) uint64 {
	v := r.uint()
	if r.err == nil && v > most {
		r.err = fmt.Errorf("%d where at most %d is allowed", v, most)
	}
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

// body reads up to and with the end tag.
func (r *snapshotReader) body(b *store.Builder, sessions *sessionBuilder) error {
	slot, slots, items := -1, 0, 0
	withSessions := r.format != snapshotPlain
	for {
		n := r.arrayLen()
		tag := r.uint()
		var err error
		switch {
		case r.err != nil:
			return r.err
		case tag == tagSlot && n == 2 && !sessions.begun:
			next := r.uint()
			if r.err == nil && (next >= store.SlotCount || int(next) <= slot) {
				return fmt.Errorf("slot %d after slot %d", next, slot)
			}
			slot = int(next)
			slots++
			b.Own(uint16(slot))
		case tag == tagItem && n == 5 && !sessions.begun:
			items++
			err = r.item(b, slot)
		case tag == tagSessions && n == sessionsFields && withSessions:
			err = sessions.sessions(r)
		case tag == tagSession && n == sessionFields && withSessions:
			err = sessions.session(r)
		case tag == tagRecord && n == recordFields && withSessions:
			err = sessions.record(r)
		case tag == tagEnd && n == 3 && !withSessions:
			r.counted("slots", slots)
			r.counted("items", items)
			return r.err
		case tag == tagEnd && n == 5 && withSessions:
			r.counted("slots", slots)
			r.counted("items", items)
			r.counted("sessions", len(sessions.table.places))
			r.counted("results", sessions.table.records)
			return r.err
		default:
			return fmt.Errorf("tag %d with %d fields", tag, n)
		}
		if err != nil {
			return err
		}
	}
}

func (r *snapshotReader) item(b *store.Builder, slot int) error {
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
	return nil
}

// counted reads how many of something were written, and compares.
func (r *snapshotReader) counted(what string, read int) {
	if written := r.uint(); r.err == nil && written != uint64(read) {
		r.err = fmt.Errorf("%d %s read, %d written", read, what, written)
	}
}
