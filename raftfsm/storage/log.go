package storage

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

var (
	// ErrLogDamaged means that a log or record file holds what was never written to it.
	ErrLogDamaged = errors.New("storage: log is damaged")
	// ErrLogGap means entries that don't follow each other, or a log that doesn't follow its snapshot.
	ErrLogGap = errors.New("storage: gap in the log")
)

// Log is one replica's raft.LogStore: entries without a gap, [first, last], or none.
//
// A shard's StoreLogs returns before the disk has the entries: the transport holds the answers that vouch for them, by
// Appended and Notify (raft.md, gated answers). The meta group's waits, as its log is a bolt file.
//
// raft asks for deletions of three kinds by one call; DeleteRange tells them apart.
//
// Entries are shared with whoever wrote or reads them; nobody may change their data.
type Log struct {
	node      *Node
	who       identity
	entries   entryStore
	snapshots *Snapshots

	// writing keeps writes apart from their check to their end. It is taken before mu, and before the lock of snapshots;
	// mu and that lock are never held together.
	writing turn

	mu sync.RWMutex
	// first and last are the bounds of the log: 0 < first <= last, or both 0 when it is empty.
	first, last uint64
	tail        tailCache
	// hidden are the entries at or above listed that never reach the FSM, ascending: one or two per term. All from
	// listed on were appended since the log was opened; listed is 0 until one is.
	listed uint64
	hidden []uint64
	voters voters
	// searched: the meta group's log has been read for its latest configuration, and not been truncated since.
	searched bool

	appended atomic.Uint64
	// damage is the first that was read; nil: none.
	damage atomic.Pointer[error]
}

var (
	_ raft.LogStore          = (*Log)(nil)
	_ raft.MonotonicLogStore = (*Log)(nil)
)

func openLog(n *Node, who identity, entries entryStore, snapshots *Snapshots) (*Log, error) {
	l := &Log{node: n, who: who, entries: entries, snapshots: snapshots, writing: newTurn(), tail: tailCache{bytesMax: n.cfg.TailCacheBytes}}
	var err error
	if l.first, err = entries.FirstIndex(); err != nil {
		return nil, err
	}
	if l.last, err = entries.LastIndex(); err != nil {
		return nil, err
	}
	newest, _ := snapshots.newest()
	l.appended.Store(entries.bytesAfter(newest.index))
	l.voters.indexes = entries.configurations()
	l.reloadVoters()
	return l, nil
}

// IsMonotonic implements raft.MonotonicLogStore: there are no gaps, so raft clears the log after it installed a
// snapshot.
func (l *Log) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore; 0 when the log is empty.
func (l *Log) FirstIndex() (uint64, error) {
	first, _ := l.bounds()
	return first, nil
}

// LastIndex implements raft.LogStore; 0 when the log is empty.
func (l *Log) LastIndex() (uint64, error) {
	_, last := l.bounds()
	return last, nil
}

func (l *Log) bounds() (first, last uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.first, l.last
}

// AppendedBytes counts the bytes appended since the log was opened, and those that it held beyond the newest snapshot then:
// a node that is restarted often gathers log too. It never goes back.
func (l *Log) AppendedBytes() uint64 { return l.appended.Load() }

// GetLog implements raft.LogStore. What isn't there is exactly raft.ErrLogNotFound.
//
// Right before its first entry, or when it is empty, the log also knows the index and term of the snapshot
// that it goes on from, and answers with an empty no-op: raft compares the entry before an append by GetLog, and
// after an install, with the log cleared, would refuse what follows the snapshot and be sent another snapshot.
// The exception is a snapshot at index 1: raft sends entries from 1 on without looking at what is before them,
// and would replicate the made-up no-op.
func (l *Log) GetLog(index uint64, entry *raft.Log) error {
	l.mu.RLock()
	first, last := l.first, l.last
	cached, ok := l.tail.get(index)
	l.mu.RUnlock()
	switch {
	case ok:
		*entry = cached
		return nil
	case first != 0 && first <= index && index <= last:
		return l.read(index, entry)
	case index > 1 && (first == 0 || index == first-1):
		if term, ok := l.snapshots.termAt(index, first == 0); ok {
			*entry = raft.Log{Index: index, Term: term, Type: raft.LogNoop}
			return nil
		}
	}
	return raft.ErrLogNotFound
}

// read asks the store, and reports a log that turns out to be damaged.
func (l *Log) read(index uint64, entry *raft.Log) error {
	err := l.entries.GetLog(index, entry)
	if errors.Is(err, ErrLogDamaged) && l.damage.CompareAndSwap(nil, &err) {
		l.node.cfg.Logger.Error("a replica's log is damaged", "replica", l.who.String(), "error", err)
	}
	return err
}

// Damage is the damage that was met when an entry was read, an error that wraps ErrLogDamaged; nil: none was.
func (l *Log) Damage() error {
	if err := l.damage.Load(); err != nil {
		return *err
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (l *Log) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore. They must follow the log without a gap, or the newest snapshot when the log is
// empty: after an install over a longer log raft's own idea of its last entry is wrong (raft#697), and an entry appended
// by it would leave a gap. That ends the process like a failed write, since raft can only be set right by a fresh start.
//
// It waits for the disk where the leader's own copy may be a majority; see voters.
func (l *Log) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	l.writing.take()
	defer l.writing.give()
	err := l.change("appending to", func() error {
		if err := l.checkFollows(entries); err != nil {
			return err
		}
		return l.entries.StoreLogs(entries)
	})
	if err != nil {
		return err
	}
	if !l.noteAppended(entries) {
		return nil
	}
	return l.change("syncing", l.waitAnswerable)
}

// waitAnswerable waits until all that was appended so far may be answered for: with wal.SyncInterval that is sooner than
// durable.
func (l *Log) waitAnswerable() error {
	done := make(chan error, 1)
	if l.entries.notify(l.entries.appended(), func(err error) { done <- err }) {
		return nil
	}
	return <-done
}

// waitDurable waits for all that was appended so far.
func (l *Log) waitDurable() error { return l.entries.wait(l.entries.appended()) }

// Appended returns the sequence of the newest change of the log, deletions included; it is known before the call that made
// it returns. It never goes back while the process lives.
func (l *Log) Appended() uint64 { return uint64(l.entries.appended()) }

// Notify calls done once, from any goroutine, when everything up to a sequence is durable (nil), or never will be (why);
// done must not block. If it is durable already, Notify returns true and never calls done.
func (l *Log) Notify(sequence uint64, done func(error)) (already bool) {
	return l.entries.notify(wal.Sequence(sequence), done)
}

// Stalled tells that the disk has not answered for seconds: whoever waits for it should not be taken for alive.
func (l *Log) Stalled() bool { return l.entries.stalled() }

// Full says why new entries should be refused rather than proposed: there is no room for them on the disk. nil: there is.
func (l *Log) Full() error { return l.entries.full() }

// Short tells that the disk has no room for another segment of the log. Snapshots, and Relieve after them, make some.
func (l *Log) Short() bool { return l.entries.short() }

// Room says why entries of so many bytes should be refused rather than appended: they would have to wait for room on the
// disk. nil: there is room. It may wait for a file to be made, not for the disk to be freed.
func (l *Log) Room(bytes int) error { return l.entries.room(bytes) }

func (l *Log) checkFollows(entries []*raft.Log) error {
	_, last := l.bounds()
	if last == 0 {
		base, _ := l.snapshots.newest()
		last = base.index
	}
	for _, e := range entries {
		if e.Index != last+1 {
			return fmt.Errorf("%w: entry %d after %d", ErrLogGap, e.Index, last)
		}
		last = e.Index
	}
	return nil
}

// noteAppended tells whether the entries must be durable before StoreLogs returns.
func (l *Log) noteAppended(entries []*raft.Log) (wait bool) {
	tailBytesMax := l.node.tailBytesMax()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == 0 {
		l.first = entries[0].Index
	}
	if l.listed == 0 {
		l.listed = entries[0].Index
	}
	size := 0
	l.tail.bytesMax = tailBytesMax
	for _, e := range entries {
		l.tail.append(e)
		if !visible(e.Type) {
			l.hidden = append(l.hidden, e.Index)
		}
		size += entryBytes(e)
	}
	l.last = entries[len(entries)-1].Index
	l.appended.Add(uint64(size))
	changed := l.voters.noteLocked(entries)
	return (changed || l.voters.alone()) && !knownbad.SoleVoterGate
}

// visible says whether raft gives entries of a type to a BatchingFSM (raft's fsm.go, applyBatch).
func visible(t raft.LogType) bool { return t == raft.LogCommand || t == raft.LogConfiguration }

// LastVisible returns the largest index at or below index whose entry reaches the FSM, or 0 if the log holds none:
// then all of them came with the snapshot that the log goes on from. A read that must see everything up to a
// commit index waits for this one, since no-ops and barriers never reach the FSM.
func (l *Log) LastVisible(index uint64) uint64 {
	index, known := l.lastVisibleListed(index)
	if known {
		return index
	}
	// Below what this life appended, the log itself must be asked. That is rare: a new leader commits a barrier
	// before it serves, and seldom nothing else.
	for ; index > 0; index-- {
		if first, _ := l.bounds(); first == 0 || index < first {
			return 0
		}
		var e raft.Log
		err := l.GetLog(index, &e)
		if errors.Is(err, raft.ErrLogNotFound) {
			return 0
		}
		// An entry that can't be read is waited for: too long a wait is safe.
		if err != nil || visible(e.Type) {
			return index
		}
	}
	return 0
}

// lastVisibleListed answers from the entries appended in this life. Where it is not known, the answer lies at
// or below the returned index.
func (l *Log) lastVisibleListed(index uint64) (at uint64, known bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	index = min(index, l.last)
	if l.listed == 0 || index < l.listed {
		return index, index == 0
	}
	above, _ := slices.BinarySearch(l.hidden, index+1)
	for i := above - 1; i >= 0 && l.hidden[i] == index; i-- {
		index--
	}
	return index, index >= l.listed
}

// DeleteRange implements raft.LogStore for [from, to]. raft uses it for three things:
//
//	compaction   after a snapshot, from the first entry on: raft's snapshot goroutine
//	truncation   of entries that a newer leader has overruled, up to the last one: raft's main loop
//	clearing     everything, after a snapshot was installed: raft's main loop
//
// A range that starts at or before the first entry and ends before the last is a compaction. It stops short of
// the oldest kept snapshot's own entry, so that every kept snapshot can be gone on from; before as many snapshots are
// there as are to be kept, nothing is deleted: a follower that is a little behind the first should not need it.
//
// A range that starts after the first entry and reaches the last is a truncation.
//
// A range that covers the whole log is judged by whether the log agrees with the newest snapshot, that is,
// holds an entry with its index and term. If not, the log diverges from it, or is shorter: it is cleared, and so
// it is without a snapshot. If it agrees, what follows the snapshot in the log is as good as before, and may have
// been vouched for; the deletion is then a compaction like any other. That covers a compaction without
// trailing entries, and an install that came late, whose clearing raft survives badly: it neither lowers its
// own last index nor its commit index.
//
// A range in the middle would leave a gap; raft never asks for one.
//
// Compaction runs beside the main loop by a range that was computed before, and the log may have been cleared
// since: then all of the range lies below it.
func (l *Log) DeleteRange(from, to uint64) error {
	l.writing.take()
	defer l.writing.give()
	first, last := l.bounds()
	if first == 0 || from > to || to < first || from > last {
		return nil
	}
	switch {
	case from > first && to < last:
		return l.node.fail(fmt.Errorf("%w: deleting [%d, %d] from the log of %s, which is [%d, %d]",
			ErrLogGap, from, to, l.who, first, last))
	case from > first:
		return l.truncate(from, last)
	case to >= last:
		agrees, err := l.agreesWithNewest(first, last)
		if err != nil {
			return l.node.fail(err)
		}
		if !agrees {
			return l.clear(first, last)
		}
	}
	return l.compact(first, to)
}

// Clear empties the log durably, whatever snapshots there are. For recovery tools, as after
// raft.RecoverCluster, and Reconcile; never beside a running raft.
func (l *Log) Clear() error {
	l.writing.take()
	defer l.writing.give()
	first, last := l.bounds()
	if first == 0 {
		return nil
	}
	return l.clear(first, last)
}

// agreesWithNewest says whether the log holds the newest snapshot's index with its term.
func (l *Log) agreesWithNewest(first, last uint64) (bool, error) {
	base, ok := l.snapshots.newest()
	if !ok || base.index < first || base.index > last {
		return false, nil
	}
	var e raft.Log
	if err := l.GetLog(base.index, &e); err != nil {
		return false, err
	}
	return e.Term == base.term, nil
}

// compact, truncate and clear delete in the store first. Compactions and truncations may be lost in a crash, and come back
// as what was there before; a clear is durable. writing is held.

func (l *Log) compact(first, to uint64) error {
	oldest, all := l.snapshots.oldestOfAll()
	if !all {
		return nil
	}
	return l.compactTo(first, min(to, oldest-1))
}

// Relieve deletes what is before the newest snapshot, but for so many entries, though older snapshots are kept that can't be
// gone on from then: it is for a disk that has no room. Should that snapshot turn out damaged, the replica is replaced.
func (l *Log) Relieve(trailing uint64) error {
	l.writing.take()
	defer l.writing.give()
	first, last := l.bounds()
	newest, ok := l.snapshots.newest()
	if first == 0 || !ok || newest.index <= trailing || newest.index > last {
		return nil // in the last case as after an install: raft sees to it
	}
	return l.compactTo(first, newest.index-trailing)
}

// compactTo deletes [first, to].
func (l *Log) compactTo(first, to uint64) error {
	if to < first {
		return nil
	}
	err := l.change("compacting", func() error { return l.entries.compact(first, to) })
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.voters.dropBeforeLocked(to + 1)
	l.first = to + 1
	l.tail.dropBefore(l.first)
	keep, _ := slices.BinarySearch(l.hidden, l.first)
	l.hidden = slices.Delete(l.hidden, 0, keep)
	return nil
}

func (l *Log) truncate(from, last uint64) error {
	err := l.change("truncating", func() error { return l.entries.truncate(from, last) })
	if err != nil {
		return err
	}
	if l.noteTruncated(from) {
		l.reloadVoters()
	}
	return nil
}

// noteTruncated tells whether the latest configuration was among what was deleted.
func (l *Log) noteTruncated(from uint64) (latestGone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last, l.searched = from-1, false
	l.tail.truncate(from)
	keep, _ := slices.BinarySearch(l.hidden, from)
	l.hidden = l.hidden[:keep]
	return l.voters.dropFromLocked(from)
}

func (l *Log) clear(first, last uint64) error {
	err := l.change("clearing", func() error {
		if err := l.entries.clear(first, last); err != nil {
			return err
		}
		return l.waitDurable()
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.first, l.last, l.listed, l.hidden, l.voters = 0, 0, 0, nil, voters{}
	l.tail = tailCache{bytesMax: l.tail.bytesMax}
	l.mu.Unlock()
	l.snapshots.dropUnreachable(0, 0)
	l.reloadVoters()
	return nil
}

// change runs what writes to the store; its error is the end of the node.
func (l *Log) change(what string, do func() error) error {
	named := func() error {
		if err := do(); err != nil {
			return fmt.Errorf("the log of %s: %w", l.who, err)
		}
		return nil
	}
	if l.entries.watched() {
		return l.node.checked(what, named)
	}
	return l.node.write(what, named)
}
