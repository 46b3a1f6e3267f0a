package wal

import "time"

// company counts the replicas that share a chunk, and remembers how many lately did.
//
// A replica that is alone gains nothing by waiting for others. Where several are busy, each sync wakes several of them, and
// their next appends come within a moment of each other: a pause as long as that moment lets one write and one sync serve
// all, where the first to come would otherwise go alone and the others wait for its sync to end.
type company struct {
	// lately is how many replicas a chunk had; it falls by one with each chunk that had fewer.
	lately int
}

func (c *company) note(replicas int) { c.lately = max(replicas, c.lately-1) }

// worthWaiting tells whether a chunk is likely to have company soon.
func (c *company) worthWaiting(present int) bool { return present > 0 && present < c.lately }

// gather pauses before a write for the replicas that have lately shared one and aren't there yet.
func (l *Log) gather() {
	if l.cfg.GatherMax <= 0 {
		return
	}
	l.mu.Lock()
	wait := l.open != nil && len(l.queue) == 0 && !l.open.urgent && !l.closing && l.company.worthWaiting(l.open.replicas)
	l.mu.Unlock()
	if wait {
		time.Sleep(l.cfg.GatherMax)
	}
}
