package storage

import (
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
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
// that the newest snapshot was taken under; 0: there is none, or the log can't be read. raft itself doesn't tell it, and
// wants to hear it with each change of a configuration.
//
// The meta group's log doesn't know where its configurations are. It is read once, from its end, by who asks first.
func (l *Log) ConfigurationIndex() uint64 {
	if l.who.group == shard.MetaGroup {
		l.searchConfiguration()
	}
	_, latest := l.snapshots.newestConfiguration()
	l.mu.RLock()
	defer l.mu.RUnlock()
	if n := len(l.voters.indexes); n > 0 {
		latest = max(latest, l.voters.indexes[n-1])
	}
	return latest
}

// searchConfiguration finds the latest configuration in a log that knows of none, unless it has been searched.
func (l *Log) searchConfiguration() {
	l.mu.RLock()
	known := l.searched || len(l.voters.indexes) > 0
	l.mu.RUnlock()
	if known {
		return
	}
	l.writing.take() // so that the log doesn't change meanwhile
	defer l.writing.give()
	first, last := l.bounds()
	var found []uint64
	for index := last; found == nil && first > 0 && index >= first; index-- {
		var e raft.Log
		if err := l.GetLog(index, &e); err != nil {
			return
		}
		if e.Type == raft.LogConfiguration {
			found = []uint64{index}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.searched = true; len(l.voters.indexes) == 0 {
		l.voters.indexes = found
	}
}
