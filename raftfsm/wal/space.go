package wal

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// A full disk means refusals: nobody waits for room in the middle of a write, and nothing ends.
//
//	tail, its last quarter   what can't be refused: votes, terms, deletions, and entries that were let in before
//	spare                    the next segment, made before it is needed
//	reserve                  room for the copy that the next open makes of the tail
//
// Without a spare, and without room for one, Full refuses what clients want to write, and Room also what leaders send once
// the tail's last quarter is reached. No spare is made that is larger than the reserve.

// reservePart of a segment is kept for what can't be refused while there is no room for another.
const reservePart = 4

// reserveName is the file that takes the room which the next open needs. An open removes it with all that was being made.
const reserveName = "reserve" + asideSuffix

// Full returns ErrNoSpace while new entries should be refused: there is no next segment, and no room on the disk to make one.
func (l *Log) Full() error {
	if !l.short.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare != nil {
		return nil
	}
	return l.noSpaceLocked()
}

// Short tells that there is no room on the disk for another segment. The one at hand may still do: it is time to let entries go.
func (l *Log) Short() bool { return l.short.Load() }

// noSpaceLocked is why there is no room for another segment; nil: there is.
func (l *Log) noSpaceLocked() error {
	if l.noSpace == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrNoSpace, l.noSpace)
}

// Room returns ErrNoSpace where an entry of so many bytes, or several together, would have to wait for room on the disk. One
// that no segment at hand can hold waits here for one of its size to be made, or for the disk to say that there is no room.
//
// Several that ask at once may be told that there is room for one of them each. What does not fit then is what the tail's
// last quarter is for; only past that does it wait.
func (l *Log) Room(bytes int) error {
	if !l.short.Load() && int64(bytes) <= l.cfg.SegmentBytes/2 {
		return nil // one of the usual size is at hand, or being made
	}
	size := frameBytes + padded(bytes)
	l.mu.Lock()
	defer l.mu.Unlock()
	starved := false
	defer func() { l.starvedLocked(&starved, false) }()
	for {
		tail := l.segments[len(l.segments)-1]
		needed := l.neededLocked(size)
		switch {
		case l.failure != nil || l.closing:
			return nil // who appends hears why
		case tail.end+int64(size)+2*frameBytes <= tail.bytes-tail.bytes/reservePart, l.spare != nil && l.spare.bytes >= needed:
			return nil
		case l.noSpace != nil:
			return l.noSpaceLocked()
		}
		l.starvedLocked(&starved, true)
		l.wantLocked(needed)
		l.changed.Wait()
	}
}

// wantLocked asks the keeper for a segment of a size.
func (l *Log) wantLocked(bytes int64) {
	l.wanted = max(l.wanted, bytes)
	if l.noSpace == nil { // else the keeper looks again by itself
		signal(l.keep)
	}
}

// starvedLocked notes that a caller waits for a segment, or does so no more.
func (l *Log) starvedLocked(is *bool, now bool) {
	if *is == now {
		return
	}
	*is = now
	if now {
		l.starving++
	} else {
		l.starving--
	}
	switch {
	case l.starving == 0 || l.noSpace != nil:
		l.starvedSince.Store(0)
	case l.starvedSince.Load() == 0:
		l.starvedSince.Store(l.clock())
	}
}

// outOfSpace notes why no segment can be made. Those who wait for one to come are told; who must append asks again.
func (l *Log) outOfSpace(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noSpace == nil {
		l.cfg.Logger.Error("no room for another segment of the log", "error", err)
	}
	l.noSpace = err
	l.short.Store(true)
	l.wanted = 0
	l.starvedSince.Store(0) // they wait for room, not for the disk
	l.changed.Broadcast()
}

// reserve makes the reserve at least so large.
func (l *Log) reserve(bytes int64) error {
	if l.reserved >= bytes {
		return nil
	}
	path := filepath.Join(l.cfg.Dir, reserveName)
	open := l.cfg.FS.OpenWrite
	if l.reserved == 0 {
		open = l.cfg.FS.Create
	}
	file, err := open(path)
	if err != nil {
		return err
	}
	if err := errors.Join(file.Preallocate(bytes), file.Close()); err != nil {
		return fmt.Errorf("keeping %d bytes for the next start: %w", bytes, err)
	}
	l.reserved = bytes
	return nil
}

// dropReserve gives the reserve's room back.
func (l *Log) dropReserve() error {
	l.reserved = 0
	return disk.RemoveIfThere(l.cfg.FS, filepath.Join(l.cfg.Dir, reserveName))
}
