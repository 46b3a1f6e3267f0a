package store

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// ErrItemInvalid is an item that no store could have held. It means that what it was read from is damaged.
var ErrItemInvalid = errors.New("store: invalid item")

// Builder fills a new store from a snapshot, aside from the one in use. One goroutine uses it.
type Builder struct {
	store   *Store
	highest Version // of the items put so far

	// Items of the slot in hand that its table does not have yet: as long as they come in order of their keys, none occurs twice,
	// and the table is built at once.
	slot   uint16
	refs   []arena.Ref
	hashes []uint64
	last   []byte // the key put last, of refs
}

// NewBuilder begins a store with the given limits. Items are held against MaxLimits only: they were accepted
// under the limits of their time, which may have been wider.
func NewBuilder(limits Limits) *Builder {
	return &Builder{store: New(limits)}
}

// Own is Store.Own.
func (b *Builder) Own(slots ...uint16) {
	b.store.Own(slots...)
}

// Put adds one item; its slices are the caller's again afterwards. It returns ErrItemInvalid, wrapped, for an
// item of a slot that is not owned, a key put before, a version of 0 or a negative expiry time, and the
// errors of Limits.CheckKey and CheckValue.
func (b *Builder) Put(slot uint16, item Item) error {
	if err := MaxLimits().CheckKey(item.Key); err != nil {
		return err
	}
	if err := MaxLimits().CheckValue(item.Value); err != nil {
		return err
	}
	t := b.store.tables.of(slot)
	switch {
	case t == nil:
		return fmt.Errorf("%w: its slot %d is not owned", ErrItemInvalid, slot)
	case item.Version == 0:
		return fmt.Errorf("%w: no version", ErrItemInvalid)
	case item.ExpiresAt < 0:
		return fmt.Errorf("%w: expires at %d", ErrItemInvalid, item.ExpiresAt)
	}
	if !(Limits{}).admit(b.store.stats, 1, int64(len(item.Key)+len(item.Value))) {
		return fmt.Errorf("%w: more than a store can hold", ErrItemInvalid)
	}
	hash := b.store.index.Hash(item.Key)
	if slot != b.slot || t.keys.Count() > 0 || (len(b.refs) > 0 && bytes.Compare(item.Key, b.last) <= 0) {
		b.flush()
	}
	if t.keys.Count() > 0 && b.store.index.Find(&t.keys, hash, item.Key) != 0 {
		return fmt.Errorf("%w: key occurs twice", ErrItemInvalid)
	}
	b.highest = max(b.highest, item.Version)
	ref := b.store.load(t, record{key: item.Key, value: item.Value, version: item.Version, expiresAt: item.ExpiresAt, slot: slot})
	b.slot, b.last = slot, append(b.last[:0], item.Key...)
	b.refs, b.hashes = append(b.refs, ref), append(b.hashes, hash)
	return nil
}

// flush puts the items in hand into their table.
func (b *Builder) flush() {
	if len(b.refs) == 0 {
		return
	}
	must(b.store.index.Build(&b.store.tables.of(b.slot).keys, b.hashes, b.refs))
	b.refs, b.hashes = b.refs[:0], b.hashes[:0]
}

// load adds an item without making it known to the indexes of keys. Nobody else has seen the store yet: no lock.
func (s *Store) load(t *table, r record) arena.Ref {
	item := s.compose(new(record), &r, nil)
	if item[0]&flagLarge != 0 {
		r.large = s.items.keepLarge(r.value)
		setLarge(item, r.large)
	}
	r.ref = s.allocLocked(len(item))
	copy(s.items.cells.Bytes(r.ref), item)
	s.addDeadlineLocked(t, &r)
	checksum := r.checksum()
	t.stats.add(&r, checksum)
	s.stats.add(&r, checksum)
	return r.ref
}

// Finish returns the store with its write counter and time, and ends the builder's life. A counter below an
// item's version is refused with ErrItemInvalid: versions would repeat.
func (b *Builder) Finish(version Version, time Time) (*Store, error) {
	if version < b.highest {
		return nil, fmt.Errorf("%w: version %d, past the store's %d", ErrItemInvalid, b.highest, version)
	}
	b.flush()
	s := b.store
	b.store = nil
	must(s.byKey.Build(s.sorted()))
	s.version = version
	s.SetTime(time)
	return s, nil
}

// sorted returns the references of all items in order of their keys.
func (s *Store) sorted() []arena.Ref {
	refs := make([]arena.Ref, 0, s.stats.Keys)
	for _, slot := range s.owned.list() {
		t := s.tables.of(slot)
		for from := uint64(0); ; {
			from = s.index.Refs(&t.keys, from, disownSlice, func(ref arena.Ref) { refs = append(refs, ref) })
			if from == 0 {
				break
			}
		}
	}
	sortByKey(refs, s.items.cells.Reader())
	return refs
}
