package storage

import (
	"slices"

	"github.com/hashicorp/raft"
)

// voters follows the configurations in a log, as raft will use the latest of them whether it is committed or not.
//
// An answer that is held vouches for two copies, the follower's and the leader's. A group with one voter asks nobody, so
// there StoreLogs itself must wait for the disk; and so must it where the number of voters isn't known, and for each
// configuration, which may change that number. A log that is durable when it returns has nothing to wait for.
type voters struct {
	// indexes of the configurations in the log, ascending.
	indexes []uint64
	// count of voters in the latest configuration; 0: not known.
	count int
}

// alone holds where the leader's own copy may be a majority.
func (v *voters) alone() bool { return v.count <= 1 }

func countVoters(c raft.Configuration) int {
	count := 0
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

// decodeVoters counts the voters in an entry; 0: they can't be told.
func decodeVoters(data []byte) (count int) {
	defer func() {
		if recover() != nil { // raft's decoder panics at what it can't read
			count = 0
		}
	}()
	return countVoters(raft.DecodeConfiguration(data))
}

// noteLocked follows appended entries, and tells whether a configuration was among them. Log.mu is held.
func (v *voters) noteLocked(entries []*raft.Log) (changed bool) {
	for _, e := range entries {
		if e.Type == raft.LogConfiguration {
			v.indexes = append(v.indexes, e.Index)
			v.count = decodeVoters(e.Data)
			changed = true
		}
	}
	return changed
}

// reloadVoters finds the latest configuration in the log, or failing that in the newest snapshot. writing is held, or the
// log is not in use yet.
func (l *Log) reloadVoters() {
	l.mu.RLock()
	var latest uint64
	if n := len(l.voters.indexes); n > 0 {
		latest = l.voters.indexes[n-1]
	}
	l.mu.RUnlock()
	count := 0
	if base, at := l.snapshots.newestConfiguration(); at > 0 && at >= latest {
		count = countVoters(base)
	} else if latest > 0 {
		var e raft.Log
		if err := l.GetLog(latest, &e); err == nil {
			count = decodeVoters(e.Data)
		}
	}
	l.mu.Lock()
	l.voters.count = count
	l.mu.Unlock()
}

// dropFromLocked follows a truncation: it tells whether the latest configuration was among what was deleted.
func (v *voters) dropFromLocked(from uint64) (latestGone bool) {
	keep, _ := slices.BinarySearch(v.indexes, from)
	latestGone = keep < len(v.indexes)
	v.indexes = v.indexes[:keep]
	return latestGone
}

// dropBeforeLocked follows a compaction. The latest configuration stays in force, wherever it is kept.
func (v *voters) dropBeforeLocked(first uint64) {
	keep, _ := slices.BinarySearch(v.indexes, first)
	v.indexes = slices.Delete(v.indexes, 0, keep)
}
