package wal

import "time"

// gather pauses before a write for other replicas to join it.
func (l *Log) gather() {
	if l.cfg.GatherMax == 0 {
		return
	}
	time.Sleep(l.cfg.GatherMax)
}
