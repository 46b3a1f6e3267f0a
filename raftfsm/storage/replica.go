package storage

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/wal"
	"github.com/ostraka-db/ostraka/shard"
)

// ErrReplicaBehind means that a replica has lost what it durably held. It may have vouched for it, so it must not
// start: it is replaced under a fresh id.
var ErrReplicaBehind = errors.New("storage: replica is behind what it once held")

// Replica is one replica's stores, open. Its fields go into raft.NewRaft and raft.HasExistingState.
type Replica struct {
	Log       *Log
	Stable    *Stable
	Snapshots *Snapshots

	node *Node
	who  identity

	closeOnce sync.Once
	closeErr  error
}

func (n *Node) openReplica(who identity) (*Replica, error) {
	stable, err := openStable(n, who)
	if err != nil {
		return nil, err
	}
	snapshots, err := openSnapshots(n, who, stable)
	if err != nil {
		return nil, err
	}
	entries, err := n.openEntries(who)
	if err != nil {
		return nil, err
	}
	log, err := openLog(n, who, entries, snapshots)
	if err != nil {
		return nil, errors.Join(err, entries.Close())
	}
	snapshots.log = log
	return &Replica{Log: log, Stable: stable, Snapshots: snapshots, node: n, who: who}, nil
}

// Unclean tells that the log may lack entries which were acknowledged, after an unclean boot: see Config.TrustUnclean.
func (r *Replica) Unclean() bool {
	return r.who.group != shard.MetaGroup && errors.Is(r.node.wal.Replica(walID(r.who)).Damage(), wal.ErrUncleanBoot)
}

// Trust lets such a replica be opened again as any other, durably.
func (r *Replica) Trust() error { return r.node.wal.Replica(walID(r.who)).Trust() }

// Close closes the stores, after raft was shut down. The replica can be opened again.
func (r *Replica) Close() error {
	r.closeOnce.Do(func() {
		r.closeErr = r.Log.entries.Close()
		r.node.forget(r.who)
	})
	return r.closeErr
}

// Reconcile makes log, snapshots and records fit each other, or says why the replica must not start. Call it before
// raft.NewRaft, and start raft only if it returns nil. It reads the newest snapshot whole.
//
// Let s be the newest snapshot there was, damaged or not; its name tells its index and term even when nothing else
// can be read.
//
//	log                                       s is good                     s is damaged
//	reaches s with its term, or starts at     nothing to do                 an older good snapshot that the log goes on
//	s + 1                                                                   from, or a log from 1 on, will do: s is set
//	                                                                        aside. Else ErrLogGap.
//	is empty, ends before s, or has another   cleared: the snapshot holds   ErrReplicaBehind
//	term at s                                 what was committed
//	starts after s + 1                        ErrLogGap                     ErrLogGap
//
// A log that ends before s is no loss: a follower may apply and snapshot what is committed elsewhere before it is
// durable here (raft.md, gated answers, 4). Terms and votes are never touched.
//
// Then the replica must reach its minimum index, else ErrReplicaBehind; and its term must be at least that of its log and
// snapshots, which were written after it, else ErrVoteRecordDamaged.
func (r *Replica) Reconcile() error {
	if err := r.reconcile(); err != nil {
		return fmt.Errorf("%s must not start: %w", r.who, err)
	}
	return nil
}

func (r *Replica) reconcile() error {
	s := r.Snapshots
	if err := s.findNewestGood(); err != nil {
		return err
	}
	damage := s.newestDamage()
	good, haveGood := s.newest()
	if damage != nil && (!haveGood || damage.index > good.index) {
		if err := r.fallBack(damage, good); err != nil {
			return errors.Join(err, damage.err)
		}
	} else if err := r.followSnapshot(good); err != nil {
		return err
	}
	s.dropUnreachable(r.Log.bounds())
	if err := s.setDamagedAside(); err != nil {
		return err
	}
	if err := r.checkFloor(); err != nil {
		return err
	}
	return r.checkUnchecked()
}

// checkUnchecked reads what raft is going to apply, of a log whose store has not checked it at its open, as the write-ahead
// log has: raft panics at an entry that it can't read, at each start again.
func (r *Replica) checkUnchecked() error {
	if r.Log.entries.watched() {
		return nil
	}
	newest, _ := r.Snapshots.newest()
	first, last := r.Log.bounds()
	for index := max(first, newest.index+1); first > 0 && index <= last; index++ {
		var e raft.Log
		switch err := r.Log.GetLog(index, &e); {
		case errors.Is(err, raft.ErrLogNotFound):
			return fmt.Errorf("%w: entry %d is missing from [%d, %d]", ErrLogGap, index, first, last)
		case err != nil:
			return err
		}
	}
	return nil
}

// followSnapshot makes the log one that goes on from the newest snapshot, which is good, or from nothing.
func (r *Replica) followSnapshot(good snapshotName) error {
	first, last := r.Log.bounds()
	switch fit, err := r.fits(good, first, last); {
	case err != nil:
		return err
	case fit == fitGap:
		return fmt.Errorf("%w: the newest snapshot is at index %d, the log starts at %d", ErrLogGap, good.index, first)
	case fit == fitNot && r.Stable.MinIndex() > good.index:
		return fmt.Errorf("%w: the log [%d, %d] does not hold what follows the snapshot at index %d, and %d was held",
			ErrReplicaBehind, first, last, good.index, r.Stable.MinIndex())
	case fit == fitNot && first != 0:
		r.node.cfg.Logger.Warn("the log does not reach the newest snapshot or diverges from it; cleared",
			"replica", r.who.String(), "first", first, "last", last, "snapshot", good.id())
		return r.Log.Clear()
	}
	return nil
}

// fallBack decides whether the log can do without the damaged newest snapshot, going on from the good one before it
// (the zero name: from nothing).
func (r *Replica) fallBack(damage *damagedSnapshot, good snapshotName) error {
	first, last := r.Log.bounds()
	switch fit, err := r.fits(damage.snapshotName, first, last); {
	case err != nil:
		return err
	case fit == fitNot:
		return fmt.Errorf("%w: the log [%d, %d] does not hold what the damaged snapshot at index %d did", ErrReplicaBehind, first, last, damage.index)
	case first > good.index+1:
		return fmt.Errorf("%w: the newest good snapshot is at index %d, the log starts at %d", ErrLogGap, good.index, first)
	}
	return nil
}

// fit is how a log lies to a snapshot.
type fit int

const (
	fitWell fit = iota // it reaches the snapshot's index, with its term there if it holds it
	fitNot             // it is empty, ends before it or has another term there
	fitGap             // it starts after the next index
)

// fits compares the log with a snapshot; the zero name stands for the beginning of the log.
func (r *Replica) fits(s snapshotName, first, last uint64) (fit, error) {
	switch {
	case first > s.index+1:
		return fitGap, nil
	case last == 0 && s.index == 0, first == s.index+1:
		return fitWell, nil
	case last < s.index:
		return fitNot, nil
	}
	var e raft.Log
	if err := r.Log.GetLog(s.index, &e); err != nil {
		return fitNot, err
	}
	if e.Term != s.term {
		return fitNot, nil
	}
	return fitWell, nil
}

// checkFloor compares what the replica has with what it must have.
func (r *Replica) checkFloor() error {
	newest, _ := r.Snapshots.newest()
	_, last := r.Log.bounds()
	if has, floor := max(newest.index, last), r.Stable.MinIndex(); has < floor {
		return fmt.Errorf("%w: it reaches index %d and held %d", ErrReplicaBehind, has, floor)
	}
	term := newest.term
	if last > 0 {
		var e raft.Log
		if err := r.Log.GetLog(last, &e); err != nil {
			return err
		}
		term = max(term, e.Term)
	}
	if recorded := r.Stable.currentTerm(); recorded < term {
		return fmt.Errorf("%w: the recorded term is %d, but the log or a snapshot is of term %d", ErrVoteRecordDamaged, recorded, term)
	}
	return nil
}

// findNewestGood verifies kept snapshots, from the newest on, until one is good, and counts the others as damaged.
func (s *Snapshots) findNewestGood() error {
	for {
		name, ok := s.newest()
		if !ok {
			return nil
		}
		err := verifySnapshot(s.node.cfg.FS, s.path(name))
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrSnapshotDamaged) {
			return err
		}
		s.mu.Lock()
		s.kept = slices.Delete(s.kept, 0, 1)
		s.damaged = append(s.damaged, damagedSnapshot{name, err})
		s.mu.Unlock()
	}
}

// newestDamage returns nil if nothing is damaged.
func (s *Snapshots) newestDamage() *damagedSnapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.damaged) == 0 {
		return nil
	}
	newest := slices.MaxFunc(s.damaged, func(a, b damagedSnapshot) int { return cmp.Compare(a.index, b.index) })
	return &newest
}

// setDamagedAside takes the damaged snapshots, which turned out to be dispensable, out of the way.
func (s *Snapshots) setDamagedAside() error {
	s.mu.Lock()
	damaged := s.damaged
	s.damaged = nil
	s.mu.Unlock()
	for _, d := range damaged {
		s.node.cfg.Logger.Error("a snapshot is damaged and set aside; the log makes up for it", "error", d.err)
		if err := s.setAside(d.snapshotName); err != nil {
			return err
		}
	}
	return nil
}
