package store

import (
	"errors"
	"fmt"
)

// ErrItemInvalid is an item that no store could have held. It means that what it was read from is damaged.
var ErrItemInvalid = errors.New("store: invalid item")

// Builder fills a new store from a snapshot, aside from the one in use. One goroutine uses it.
type Builder struct {
	store   *Store
	highest Version // of the items put so far
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
	case t.records[string(item.Key)] != nil:
		return fmt.Errorf("%w: key occurs twice", ErrItemInvalid)
	}
	b.highest = max(b.highest, item.Version)
	b.store.putLocked(slot, t, nil, item.Key, record{ // nobody else has seen this store: no lock
		value:     cloneBytes(item.Value),
		version:   item.Version,
		expiresAt: item.ExpiresAt,
		hash:      hashItem(item.Key, item.Value, item.Version, item.ExpiresAt),
	})
	return nil
}

// Finish returns the store with its write counter and time, and ends the builder's life. A counter below an
// item's version is refused with ErrItemInvalid: versions would repeat.
func (b *Builder) Finish(version Version, time Time) (*Store, error) {
	if version < b.highest {
		return nil, fmt.Errorf("%w: version %d, past the store's %d", ErrItemInvalid, b.highest, version)
	}
	s := b.store
	b.store = nil
	s.version = version
	s.SetTime(time)
	return s, nil
}
