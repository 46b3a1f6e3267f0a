package storage

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
