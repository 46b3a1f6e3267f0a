package wal

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ostraka-db/ostraka/shard"
)

// ID names a replica.
type ID struct {
	Shard   shard.ID
	Replica shard.ReplicaID
}

func (id ID) String() string { return fmt.Sprintf("replica %d of shard %d", id.Replica, id.Shard) }

// Entry is one log entry of one replica.
type Entry struct {
	Index, Term uint64
	// Type is the caller's: not looked at here, but kept with the index, see Replica.Type.
	Type             uint8
	Data, Extensions []byte
	// Time is when a leader appended it, Unix nanoseconds; 0: not known.
	Time int64
}

// Sequence counts the bytes appended to the log of the node since it was opened, of all replicas and kinds, deletions
// too. What was there at open is below 1: durable.
type Sequence uint64

// position is where a frame lies.
type position struct {
	segment   *segment
	offset    uint32
	size      uint32
	entryType uint8
}

// Replica is one replica's part of the log: entries without a gap, [first, last] or none, and a few named records. Calls
// that change it must come one at a time; reads may run beside them.
type Replica struct {
	log *Log
	id  ID

	// appended is the sequence behind the newest frame of the replica.
	appended atomic.Uint64

	mu sync.RWMutex
	// first is the index of positions[0]; 0 if there is none.
	first     uint64
	positions []position
	records   map[string]recordAt

	// count numbers the replica's frames, chunk is where the last one went. Guarded by Log.mu.
	count uint64
	chunk *chunk
}

// recordAt is a record's value and its frame.
type recordAt struct {
	value []byte
	at    position
}

// recordDamaged is the record that says why the replica must not be used any more.
const recordDamaged = "damaged"

// Damage returns why the replica must not be used, an error that wraps ErrDamaged and names where the log was found wrong;
// nil: it is whole. Where it is an unclean boot and nothing else, it wraps ErrUncleanBoot too.
func (r *Replica) Damage() error {
	text := r.Record(recordDamaged)
	switch {
	case len(text) == 0:
		return nil
	case string(text) == ErrUncleanBoot.Error():
		return fmt.Errorf("%w: %w", ErrDamaged, ErrUncleanBoot)
	}
	return fmt.Errorf("%w: %s", ErrDamaged, strings.TrimPrefix(string(text), ErrDamaged.Error()+": "))
}

// Trust takes a replica for whole that went through an unclean boot, durably. Whoever calls it answers for what may be missing:
// it is for a group of which no better copy is left. Other damage stays, and is returned.
func (r *Replica) Trust() error {
	if err := r.Damage(); !errors.Is(err, ErrUncleanBoot) {
		return err
	}
	return r.SetRecord(recordDamaged, nil)
}

// Appended returns the sequence of the replica's newest change. It is known before the call that made the change returns.
func (r *Replica) Appended() Sequence { return Sequence(r.appended.Load()) }

// Bounds returns the first and the last index, 0 and 0 if there are no entries.
func (r *Replica) Bounds() (first, last uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.first, r.lastLocked()
}

func (r *Replica) lastLocked() uint64 {
	if len(r.positions) == 0 {
		return 0
	}
	return r.first + uint64(len(r.positions)) - 1
}

func (r *Replica) hasLocked(index uint64) bool {
	return len(r.positions) > 0 && index >= r.first && index-r.first < uint64(len(r.positions))
}

// BytesAfter returns what the entries above an index take in the log.
func (r *Replica) BytesAfter(index uint64) (bytes uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	from := 0
	if index >= r.first {
		from = int(min(index+1-r.first, uint64(len(r.positions))))
	}
	for _, p := range r.positions[from:] {
		bytes += uint64(p.size)
	}
	return bytes
}

// Type returns the type of an entry without reading it.
func (r *Replica) Type(index uint64) (entryType uint8, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.hasLocked(index) {
		return 0, false
	}
	return r.positions[index-r.first].entryType, true
}

// Get reads an entry, from memory if it isn't written yet. Errors: ErrNotFound, a *DamagedError if the disk doesn't hold
// what was written, ErrClosed, and what reading a file can fail with.
func (r *Replica) Get(index uint64) (Entry, error) {
	for {
		r.mu.RLock()
		if !r.hasLocked(index) {
			r.mu.RUnlock()
			return Entry{}, fmt.Errorf("%w: entry %d of %s", ErrNotFound, index, r.id)
		}
		at := r.positions[index-r.first]
		r.mu.RUnlock()

		f, err := r.log.read(at)
		switch {
		case errors.Is(err, errGone):
			if r.log.isClosed() {
				return Entry{}, ErrClosed
			}
			continue // it was moved, or deleted
		case err != nil:
			return Entry{}, err
		case f.id != r.id || f.index != index || (f.kind != kindEntry && f.kind != kindMoved):
			return Entry{}, at.segment.damaged(int64(at.offset), fmt.Sprintf("%s at index %d of %s in place of entry %d of %s", f.kind, f.index, f.id, index, r.id))
		}
		return f.entry(), nil
	}
}

func (f *frame) entry() Entry {
	return Entry{Index: f.index, Term: f.term, Type: f.entryType, Data: f.data, Extensions: f.extensions, Time: f.time}
}

// Append appends entries: each must follow the one before, the first the last of the log unless that is empty. at returns
// the i-th of n. It returns once they are in memory, readable, and on their way to the disk: Log.Notify tells when they
// are durable. Errors: ErrNotNext, ErrTooLarge, and why the log has ended; those before the one that failed are appended.
func (r *Replica) Append(n int, at func(i int) Entry) error {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	next := r.first + uint64(len(r.positions)) // nobody else changes them
	defer l.wakeWriter()                       // for what was appended before an error, too
	for i := range n {
		e := at(i)
		if next != 0 && e.Index != next || e.Index == 0 {
			return fmt.Errorf("%w: entry %d of %s, %d is next", ErrNotNext, e.Index, r.id, next)
		}
		next = e.Index + 1
		f := frame{kind: kindEntry, entryType: e.Type, id: r.id, index: e.Index, term: e.Term, time: e.Time,
			extensions: e.Extensions, data: e.Data}
		where, err := l.appendLocked(r, &f)
		if err != nil {
			return err
		}
		r.mu.Lock()
		if len(r.positions) == 0 {
			r.first = e.Index
		}
		r.positions = append(r.positions, where)
		r.mu.Unlock()
		where.segment.live += int64(where.size)
	}
	return nil
}

// TruncateSuffix deletes the entries from an index on.
func (r *Replica) TruncateSuffix(from uint64) error {
	return r.change(frame{kind: kindTruncate, index: from}, func() {
		if r.first != 0 && from <= r.lastLocked() {
			r.dropLocked(int(max(from, r.first)-r.first), len(r.positions))
		}
	})
}

// Compact deletes the entries up to an index.
func (r *Replica) Compact(upTo uint64) error {
	return r.change(frame{kind: kindCompact, index: upTo}, func() {
		if r.first != 0 && upTo >= r.first {
			r.dropLocked(0, int(min(upTo, r.lastLocked())-r.first)+1)
		}
	})
}

// Clear deletes all entries.
func (r *Replica) Clear() error {
	return r.change(frame{kind: kindClear}, func() { r.dropLocked(0, len(r.positions)) })
}

// Forget deletes all entries and records.
func (r *Replica) Forget() error {
	return r.change(frame{kind: kindForget}, func() {
		r.dropLocked(0, len(r.positions))
		for name, rec := range r.records {
			r.log.deadLocked(rec.at)
			delete(r.records, name)
		}
	})
}

// change appends a frame and makes the index follow it, with Log.mu and mu held.
func (r *Replica) change(f frame, follow func()) error {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	f.id = r.id
	if _, err := l.appendLocked(r, &f); err != nil {
		return err
	}
	r.mu.Lock()
	follow()
	r.mu.Unlock()
	l.wakeWriter()
	return nil
}

// dropLocked deletes positions[from:to], a prefix, a suffix or all. Log.mu and mu are held.
func (r *Replica) dropLocked(from, to int) {
	for _, at := range r.positions[from:to] {
		r.log.deadLocked(at)
	}
	if from > 0 {
		r.positions = r.positions[:from]
		return
	}
	r.positions = slices.Clone(r.positions[to:]) // compactions are rare, and the old array may be long
	r.first += uint64(to)
	if len(r.positions) == 0 {
		r.first = 0
	}
}

// Record returns a record's value; nil: there is none. It must not be changed.
func (r *Replica) Record(name string) []byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.records[name].value
}

// SetRecord sets a record, durably when it returns.
func (r *Replica) SetRecord(name string, value []byte) error {
	l := r.log
	l.mu.Lock()
	err := r.setRecordLocked(name, bytes.Clone(value))
	if err == nil {
		l.urgentLocked()
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.WaitDurable(l.ctx, r.Appended())
}

func (r *Replica) setRecordLocked(name string, value []byte) error {
	f := frame{kind: kindRecord, id: r.id, extensions: []byte(name), data: value}
	at, err := r.log.appendLocked(r, &f)
	if err != nil {
		return err
	}
	r.mu.Lock()
	old, had := r.records[name]
	r.records[name] = recordAt{value: value, at: at}
	r.mu.Unlock()
	at.segment.live += int64(at.size)
	if had {
		r.log.deadLocked(old.at)
	}
	return nil
}
