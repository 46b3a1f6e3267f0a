package raftfsm

import (
	"errors"
	"fmt"

	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// A failed write is one of two kinds, never merged. ErrOutcomeUnknown means that the entry was handed to the
// log and may yet be committed. Every other error of this package means that it was not, and will not be.
var (
	// ErrNotLeader: this replica does not lead its group. *NotLeaderError names the leader where it is known.
	ErrNotLeader = errors.New("this replica is not the shard's leader")
	// ErrNotReady: the replica leads but has not yet applied what earlier leaders committed.
	ErrNotReady = errors.New("the shard's leader is not ready yet")
	// ErrNotConfirmed: no majority of voters confirmed the leader's term in time; a read was not answered.
	ErrNotConfirmed = errors.New("no majority confirmed the leader's term")
	// ErrOverloaded: the group's queue is full.
	ErrOverloaded = errors.New("the shard's queue is full")
	// ErrNoSpace: there is no room for the log on the leader's disk.
	ErrNoSpace = errors.New("no space left for the log")
	// ErrDeadline: the caller's deadline passed before the work was handed to the log.
	ErrDeadline = errors.New("deadline passed before the work began")
	// ErrNoHistory: the replica keeps no history of changes, by its configuration.
	ErrNoHistory = errors.New("no history of changes is kept")
	// ErrStopped: the group is being closed.
	ErrStopped = errors.New("the group is stopped")
	// ErrOutcomeUnknown: the entry was handed to the log; whether it was or will be committed is not known.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrSessionUnknown: the write is of a session that the shard doesn't know, or not any more. This sending was not done;
	// whether an earlier one was is not known. It is told as a *SessionUnknownError, which says when a new one may be born.
	ErrSessionUnknown = errors.New("the session is not known, or not any more")
	// ErrResultForgotten: this sending was not done; an earlier one may have been: it is too long ago for the shard to know.
	ErrResultForgotten = errors.New("whether the write was done before is not known any more")
	// ErrUnknownEntry: the log holds an entry that this build can't read. The replica stops rather than guess.
	ErrUnknownEntry = errors.New("log entry of an unknown format")
	// ErrBadSnapshot: a snapshot's bytes don't decode.
	ErrBadSnapshot = errors.New("snapshot does not decode")
	// ErrBadMeta: a change to the cluster's state contradicts that state.
	ErrBadMeta = errors.New("change to the cluster's state refused")
	// ErrStaleReplica: a change names a replica, or a start of a node, that the cluster has gone on from.
	ErrStaleReplica = errors.New("no longer part of the cluster")
	// ErrLastVoter: there is nobody whom the replica could be replaced from. Only `ostraka recover` helps, on a node that
	// still has the data.
	ErrLastVoter = errors.New("a group's only voter can't be replaced")
	// ErrNotSpared: without the replica its group would have no majority that is up to date.
	ErrNotSpared = errors.New("the group can't do without the replica")
)

// NotLeaderError is ErrNotLeader together with what this replica believes.
type NotLeaderError struct {
	Group shard.ID
	// Leader is empty where no leader is known.
	Leader shard.NodeID
}

func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return fmt.Sprintf("shard %d has no known leader", e.Group)
	}
	return fmt.Sprintf("shard %d is led by %s", e.Group, e.Leader)
}

// Is makes errors.Is(err, ErrNotLeader) true.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// SessionUnknownError is ErrSessionUnknown together with the shard's time.
type SessionUnknownError struct {
	Now store.Time
	// Resent: the sending was not the first, by its own word.
	Resent bool
}

func (e *SessionUnknownError) Error() string {
	return fmt.Sprintf("%v; it is %d at the shard", ErrSessionUnknown, e.Now)
}

// Is makes errors.Is(err, ErrSessionUnknown) true.
func (e *SessionUnknownError) Is(target error) bool { return target == ErrSessionUnknown }

// MustBeReplaced reports whether an error of StartGroup or StartMeta says that the replica lost something it may have
// vouched for, or can't tell: it must not run again under its id. Its peers have what it had.
func MustBeReplaced(err error) bool {
	for _, lost := range []error{storage.ErrReplicaBehind, storage.ErrVoteRecordDamaged, storage.ErrVoteLost, storage.ErrLogGap,
		storage.ErrLogDamaged, storage.ErrSnapshotDamaged, storage.ErrReplicaRemoved} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return false
}
