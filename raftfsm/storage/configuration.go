package storage

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// Configuration returns the latest configuration that raft would use, committed or not. Errors: ErrLogDamaged where it can't
// be read, ErrLogGap where there is none.
func (l *Log) Configuration() (c raft.Configuration, err error) {
	at := l.ConfigurationIndex()
	base, baseAt := l.snapshots.newestConfiguration()
	switch {
	case at == 0:
		return c, fmt.Errorf("%w: no configuration", ErrLogGap)
	case at == baseAt:
		return base, nil
	}
	var e raft.Log
	if err := l.GetLog(at, &e); err != nil {
		return c, err
	}
	defer func() {
		if p := recover(); p != nil { // raft's decoder panics at what it can't read
			err = fmt.Errorf("%w: configuration at index %d: %v", ErrLogDamaged, at, p)
		}
	}()
	return raft.DecodeConfiguration(e.Data), nil
}

// ConfigurationIndex is the index of the latest configuration that raft uses, committed or not: in the log, or else the one
// that the newest snapshot was taken under; 0: there is none. raft itself doesn't tell it, and wants to hear it with each
// change of a configuration.
func (l *Log) ConfigurationIndex() uint64 {
	_, latest := l.snapshots.newestConfiguration()
	l.mu.RLock()
	defer l.mu.RUnlock()
	if n := len(l.voters.indexes); n > 0 {
		latest = max(latest, l.voters.indexes[n-1])
	}
	return latest
}
