package raftfsm

import "time"

// Clock is the only source of time of a group. It is read by leaders, to stamp entries; nothing on the apply
// path reads it.
type Clock interface {
	// Monotonic is the time since an arbitrary moment. It never goes back, whatever the wall clock does.
	Monotonic() time.Duration
	// WallMilli is Unix time in milliseconds. It is read once in a shard's life, when its first entry is made.
	WallMilli() int64
}

// SystemClock is the machine's clock, and virtual time inside a testing/synctest bubble.
type SystemClock struct{ origin time.Time }

// NewSystemClock returns a Clock whose Monotonic counts from now.
func NewSystemClock() SystemClock { return SystemClock{origin: time.Now()} }

// Monotonic implements Clock: time.Since reads Go's monotonic clock.
func (c SystemClock) Monotonic() time.Duration { return time.Since(c.origin) }

// WallMilli implements Clock.
func (SystemClock) WallMilli() int64 { return time.Now().UnixMilli() }
