package raftfsm

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// scheduler is the one place of a node's periodic work: each job is a goroutine with its own beat, drawn
// with a tenth of jitter so that nodes started together don't march in step.
//
//	snapshots  replicas whose log has grown by Snapshots.LogBytes, Snapshots.Parallel at once
//	expiry     shards led here that hold expired keys: small logged slices, at a share of a core (expiry.go)
//	watchdog   groups stuck in one of raft's known ways are restarted inside the process
//	balance    leaderships held against the map's preference are moved back, one at a time
//	memory     on a node with a limit: what the stores take is counted, and told to others (memory.go)
//	use        windows of counts of reads and writes end (use.go)
//	verify     replicas of shards led here are compared, a few slots at a time (verify.go); auditor: what that takes is counted (audit.go)
//	members    groups led here are brought in line with who the cluster's state says belongs to them (membership.go)
type scheduler struct {
	host   *Host
	ctx    context.Context
	cancel context.CancelFunc
	jobs   sync.WaitGroup

	balancing atomic.Bool
	// preferred returns each shard's preferred leader as the map in force says.
	preferred atomic.Pointer[func() *shard.Map]
	// cluster is what the members job goes by.
	cluster atomic.Pointer[Cluster]
	// snapshotAt is each replica's count of appended bytes at its last snapshot. The snapshot job's goroutine
	// only.
	snapshotAt map[*replica]uint64
	// moveAfter is when a group whose leadership could not be moved may be tried again, by the host's clock. The
	// balance job's goroutine only.
	moveAfter map[*Group]time.Duration
	// reapLimit is how many keys a slice of expiry may remove to take about reapSlice. That job's goroutine only.
	reapLimit int
	// reapBegan is when that job began last, by the host's clock.
	reapBegan time.Duration
	// useRotated is when the latest window of counts ended, by the host's clock. That job's goroutine only.
	useRotated time.Duration
}

func newScheduler(h *Host) *scheduler {
	s := &scheduler{host: h, snapshotAt: make(map[*replica]uint64), moveAfter: make(map[*Group]time.Duration), reapLimit: h.cfg.Reaping.KeysMax}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.balancing.Store(true)
	election := h.cfg.Timing.Election
	s.every(h.cfg.Snapshots.CheckEvery, s.snapshots)
	s.every(h.cfg.Reaping.Every, s.reap)
	s.every(election, s.watch)
	s.every(2*election, s.balance)
	s.every(election/4, s.reconcile)
	s.every(useWindow, s.rotateUse)
	s.jobs.Go(func() { h.auditor.run(s.ctx) })
	if h.cfg.Verify.Every > 0 {
		s.every(h.cfg.Verify.Every, s.verify)
	}
	if h.memory.limit > 0 {
		s.every(memoryBeat, h.beatMemory)
	}
	return s
}

func (s *scheduler) every(beat time.Duration, job func()) {
	s.jobs.Go(func() {
		for {
			timer := time.NewTimer(beat + time.Duration(rand.Int64N(int64(beat)/10+1)))
			select {
			case <-timer.C:
				job()
			case <-s.ctx.Done():
				timer.Stop()
				return
			}
		}
	})
}

func (s *scheduler) close() {
	s.cancel()
	s.jobs.Wait()
}

// stopBalancing is for a node that is about to hand everything over.
func (s *scheduler) stopBalancing() { s.balancing.Store(false) }

// snapshots cuts the logs that have grown enough.
func (s *scheduler) snapshots() {
	places := make(chan struct{}, s.host.cfg.Snapshots.Parallel)
	var running sync.WaitGroup
	all := s.host.replicas()
	for r := range s.snapshotAt {
		if !slices.Contains(all, r) {
			delete(s.snapshotAt, r)
		}
	}
	for _, r := range all {
		l := r.current.Load()
		if l == nil || s.ctx.Err() != nil {
			continue
		}
		appended := l.stores.Log.AppendedBytes()
		if appended < s.snapshotAt[r] { // another life counts anew
			s.snapshotAt[r] = 0
		}
		want := s.host.cfg.Snapshots
		short := l.stores.Log.Short()
		if !short && appended-s.snapshotAt[r] < want.LogBytes && l.raft.LastIndex() < l.snapshotIndex()+want.LogEntries {
			continue
		}
		s.snapshotAt[r] = appended
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			var err error
			if !short || l.raft.AppliedIndex() > l.snapshotIndex() { // a short disk asks at every beat
				err = l.raft.Snapshot().Error()
			}
			if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && !errors.Is(err, raft.ErrRaftShutdown) {
				r.log.Error("snapshot failed; the log is kept", "error", err)
			}
			if !short {
				return
			}
			if err := l.stores.Log.Relieve(want.TrailingEntries); err != nil {
				r.log.Error("the log can't be shortened", "error", err)
			}
		})
	}
	running.Wait()
}

// identicalInstallsMax is how often one snapshot may be installed in a row with nothing applied in between.
const identicalInstallsMax = 3

// watch restarts groups that raft has left in a state it won't leave by itself: a leader that has refused
// entries for a transfer over three election timeouts (raft#696), and a follower that is sent one and the
// same snapshot again and again (raft#697).
func (s *scheduler) watch() {
	for _, r := range s.host.replicas() {
		l := r.current.Load()
		if l == nil {
			continue
		}
		reason := l.stuck()
		if reason == "" {
			continue
		}
		if err := r.restart(reason); err != nil {
			s.host.cfg.Fatal(err)
		}
	}
}

// stuck names what a group hangs in; empty: nothing.
func (l *life) stuck() string {
	cfg := &l.replica.host.cfg
	since := time.Duration(l.refusing.Load())
	if since != 0 && l.raft.State() == raft.Leader && cfg.Clock.Monotonic()-since > 3*cfg.Timing.Election {
		return "the leader has refused entries for a leadership transfer for over three election timeouts"
	}
	if l.fsm.installs.count.Load() > identicalInstallsMax {
		return "the same snapshot was installed again and again"
	}
	return ""
}

// SetPreferred gives the host the map by whose preferences leaderships are balanced.
func (h *Host) SetPreferred(current func() *shard.Map) { h.scheduler.preferred.Store(&current) }

// balance moves one leadership that the map prefers elsewhere. It asks the transport whether the preferred
// node has answered lately; raft brings it up to date before it gives the lead away, and keeps it if that
// takes longer than an election timeout.
func (s *scheduler) balance() {
	current := s.preferred.Load()
	if current == nil || !s.balancing.Load() {
		return
	}
	m := (*current)()
	if m == nil {
		return
	}
	peers := s.host.cfg.Transport.Stats()
	groups := slices.Clone(s.host.Groups())
	rand.Shuffle(len(groups), func(i, j int) { groups[i], groups[j] = groups[j], groups[i] })
	moved := 0
	now := s.host.cfg.Clock.Monotonic()
	for _, g := range groups {
		sh, ok := m.Shard(g.spec.Shard)
		if !ok || now < s.moveAfter[g] || sh.Preferred == s.host.cfg.Node || !g.IsLeader() || !peers[sh.Preferred].Connected {
			continue
		}
		if err := g.TransferLeadership(sh.Preferred); err != nil {
			g.replica.log.Debug("leadership not moved", "to", sh.Preferred, "error", err)
			if !errors.Is(err, errNotCaughtUp) { // it cost a pause of writes
				s.moveAfter[g] = now + balancePause
			}
		}
		if moved++; moved == balanceMovesMax {
			return
		}
	}
}

// balancePause is how long a group is left alone after a move that failed.
const balancePause = 30 * time.Second

// balanceMovesMax is how many leaderships a node moves back per beat, one after another.
const balanceMovesMax = 4
