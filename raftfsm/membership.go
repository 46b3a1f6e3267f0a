package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// Who belongs to a group is said by the cluster's state, and done by the group's leader: it compares its raft configuration
// with what is wanted and takes one step towards it, again and again. So nothing has to be remembered about a replacement
// that is under way, and whoever leads next goes on with it:
//
//	wanted 7 8 13'   configured   step
//	                 7 8 9        9 is not wanted any more: removed, if the group can do without it
//	                 7 8          13 is missing, and its node runs it: added, without a vote
//	                 7 8 13'      13 has caught up, and has settled: it gets a vote
//	                 7 8 13       the meta group is told
//
// (' has no vote.) The old one goes first: it is no help, and in an even group it does harm, as it counts for the majority.
//
// A replica that lost its data must not be one of those by whom a majority is made up. So before a voter is removed, a
// majority of those that stay must have shown that they live and have what the leader has. raft adds what is left: it takes a
// change only in a term in which this leader has committed an entry, only when the change before it is committed, and, by
// the index given with it, only to the configuration that was looked at.
//
// The vote of a fresh one needs care too: see backed.

// Cluster is what the reconciler knows of the rest of the cluster. Any goroutine may call it.
type Cluster interface {
	// State is the newest state of the cluster known here; nil: none is.
	State() *ClusterState
	// Standing asks a replica's node how the replica stands.
	Standing(ctx context.Context, group shard.ID, m Member) (Standing, error)
	// Promoted tells the meta group that a replica votes now. It may be repeated.
	Promoted(ctx context.Context, group shard.ID, id shard.ReplicaID) error
}

// Standing is what a node says of one replica.
type Standing struct {
	// Running: it runs here, under this id.
	Running bool
	// Joining: it was started empty, and has not settled: see Host.StartJoiner.
	Joining bool
	// Leads: it leads its group, and is ready.
	Leads         bool
	Voter         bool
	Term          uint64
	Applied, Last uint64
}

// SetCluster lets the host's leaders bring their groups' members in line with the cluster's state. Call it once.
func (h *Host) SetCluster(c Cluster) { h.scheduler.cluster.Store(&c) }

// Standing tells how a replica of this node stands.
func (h *Host) Standing(group shard.ID, id shard.ReplicaID) Standing {
	r := h.replica(group)
	if r == nil || r.id != id {
		return Standing{}
	}
	l := r.current.Load()
	if l == nil {
		return Standing{}
	}
	_, err := l.leading()
	s := Standing{Running: true, Joining: r.joining.Load(), Leads: err == nil, Term: l.raft.CurrentTerm(),
		Applied: l.fsm.applied.load(), Last: l.raft.LastIndex()}
	for _, v := range l.currentVoters() {
		s.Voter = s.Voter || v.replica == id
	}
	return s
}

// Spare says whether a group, led here, can do without one of its replicas: nil, or why not. Errors: ErrNotSpared,
// ErrLastVoter; ErrNotLeader and others where it isn't led here.
func (h *Host) Spare(group shard.ID, id shard.ReplicaID) error {
	l, err := h.leading(group)
	if err != nil {
		return err
	}
	return l.spare(id)
}

// HasMember says whether a group, led here, counts a replica among its members, voting or not, until its removal is
// committed: then it is none for ever, since ids are never used again. ErrNotLeader and others where it isn't led here.
func (h *Host) HasMember(group shard.ID, id shard.ReplicaID) (bool, error) {
	l, err := h.leading(group)
	if err != nil {
		return false, err
	}
	// The log knows a change before raft's configuration does.
	in := slices.ContainsFunc(l.raft.GetConfiguration().Configuration().Servers, func(s raft.Server) bool {
		return s.ID == transport.ServerID(id)
	})
	return in || l.raft.CommitIndex() < l.stores.Log.ConfigurationIndex(), nil
}

// leading returns the life of a replica that leads its group and is ready.
func (h *Host) leading(group shard.ID) (*life, error) {
	r := h.replica(group)
	if r == nil {
		return nil, &NotLeaderError{Group: group}
	}
	return r.leading()
}

// spare is nil if a majority of the other voters lives and is up to date. It is asked of a leader.
func (l *life) spare(id shard.ReplicaID) error {
	others, alive := l.othersUpToDate(id)
	switch {
	case others == 0:
		return fmt.Errorf("%w: replica %d of shard %d", ErrLastVoter, id, l.replica.group)
	case alive < others/2+1:
		return fmt.Errorf("%w: of the %d other voters of shard %d, %d are there and up to date; a majority is needed",
			ErrNotSpared, others, l.replica.group, alive)
	}
	return nil
}

// backed is nil if enough of the other voters live and are up to date for a fresh one to have a vote, or to be said to
// have one.
//
// raft's replicas refuse a candidate that has no vote by their own log. So until all have its promotion, a fresh voter may
// have the longest log of all that are left after a loss, and not be electable:
//
//	1 2 3    1 leads; the promotion of 3 is on 1 and 3: committed. Then 1 is lost for good.
//	  2 3    3 asks 2, which takes it for one without a vote. 2 asks 3, whose log is longer. For ever.
//
// Of n voters one may be lost, and k others not know of the promotion, if n - 1 - k are still a majority. That is the case
// once a majority, not counting the fresh one, knows of it; where there are fewer others, all of them.
func (l *life) backed(id shard.ReplicaID) error {
	others, alive := l.othersUpToDate(id)
	if need := min((others+1)/2+1, others); alive < need {
		return fmt.Errorf("%w: of the %d other voters of shard %d, %d are up to date; for a vote of replica %d it takes %d",
			ErrNotReady, others, l.replica.group, alive, id, need)
	}
	return nil
}

// othersUpToDate counts the voters besides one, and those of them that have just acknowledged what this leader has, the
// latest configuration included.
func (l *life) othersUpToDate(id shard.ReplicaID) (others, upToDate int) {
	at := l.stores.Log.ConfigurationIndex()
	for _, v := range l.currentVoters() {
		if v.replica == id {
			continue
		}
		others++
		if v.replica == l.replica.id || l.keepsUp(v) && l.progress(v).Index >= at {
			upToDate++
		}
	}
	return others, upToDate
}

// keepsUp tells whether a replica has just acknowledged an append of this leader's that leaves little to be sent.
func (l *life) keepsUp(v voter) bool {
	timing := l.replica.host.cfg.Timing
	known := l.progress(v)
	fresh := time.Since(known.At) < timing.Election+2*timing.Commit
	return fresh && known.Term == l.raft.CurrentTerm() && known.Index+lagMax >= l.raft.LastIndex()
}

func (l *life) progress(v voter) transport.Progress {
	return l.facade.Progress(transport.Address(v.node, v.replica))
}

// reconcileParallel is how many groups of a node are looked after at once: one may wait for a node that doesn't answer.
const reconcileParallel = 8

// reconcile takes a step in each group that has one to take.
func (s *scheduler) reconcile() {
	places := make(chan struct{}, reconcileParallel)
	var running sync.WaitGroup
	for _, r := range s.host.replicas() {
		l := r.current.Load()
		if l == nil || s.ctx.Err() != nil {
			continue
		}
		if c := s.cluster.Load(); !r.joining.Load() && (c == nil || !l.mayDiffer(*c)) {
			continue // nearly always
		}
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			if err := l.settle(); err != nil {
				r.log.Error("a replica that joins could not settle", "error", err)
			}
			c := s.cluster.Load()
			if c == nil {
				return
			}
			ctx, cancel := context.WithTimeout(s.ctx, s.host.cfg.Timing.Election)
			defer cancel()
			if err := l.reconcile(ctx, *c); err != nil {
				r.log.Debug("members not changed", "error", err)
			}
		})
	}
	running.Wait()
}

// errMapBehind: the group has members that the state known here has not heard of.
var errMapBehind = errors.New("the cluster's state known here is older than the group's configuration")

// mayDiffer tells whether this replica leads a group that was not in line with the cluster's state when last looked at.
func (l *life) mayDiffer(c Cluster) bool {
	if l.leads.Load() == nil {
		return false
	}
	state := c.State()
	return state != nil && !(l.agreed.state == state && sameServers(l.agreed.servers, l.raft.GetConfiguration().Configuration().Servers))
}

// reconcile takes one step towards what the cluster wants, if this replica leads.
func (l *life) reconcile(ctx context.Context, c Cluster) error {
	if _, err := l.leading(); err != nil {
		return nil
	}
	state := c.State()
	if state == nil {
		return nil
	}
	want, ok := state.Members(l.replica.group)
	configured := l.raft.GetConfiguration().Configuration().Servers
	if !ok || l.agreed.state == state && sameServers(l.agreed.servers, configured) {
		return nil
	}
	step := memberStep{life: l, cluster: c, at: l.stores.Log.ConfigurationIndex(), want: want}
	if err := step.read(configured, state.NextReplica); err != nil {
		return err
	}
	// Each looks for something to do, and the first that does something ends the beat.
	var reasons error
	for _, try := range []func(context.Context) (did bool, err error){step.report, step.remove, step.add, step.promote} {
		did, err := try(ctx)
		if did {
			return err
		}
		reasons = errors.Join(reasons, err)
	}
	if reasons == nil && !step.open {
		l.agreed.state, l.agreed.servers = state, configured
	}
	return reasons
}

// memberStep is one beat's look at a group.
type memberStep struct {
	life    *life
	cluster Cluster
	// at is the index of the configuration that was looked at.
	at         uint64
	want       []Member
	configured []Member
	// open: something is still to be done.
	open bool
}

// read understands raft's configuration.
func (s *memberStep) read(servers []raft.Server, next shard.ReplicaID) error {
	for _, server := range servers {
		node, id, err := transport.ParseAddress(server.Address)
		if err != nil {
			return err
		}
		if id >= next {
			return fmt.Errorf("%w: replica %d is in it", errMapBehind, id)
		}
		s.configured = append(s.configured, Member{Node: node, Replica: id, Voter: server.Suffrage == raft.Voter})
	}
	return nil
}

func find(members []Member, id shard.ReplicaID) (m Member, ok bool) {
	at := slices.IndexFunc(members, func(m Member) bool { return m.Replica == id })
	if at < 0 {
		return Member{}, false
	}
	return members[at], true
}

// report tells the meta group of voters that it takes for others.
func (s *memberStep) report(ctx context.Context) (did bool, err error) {
	for _, w := range s.want {
		if has, ok := find(s.configured, w.Replica); ok && has.Voter && !w.Voter {
			s.open = true
			if few := s.life.backed(w.Replica); few != nil {
				err = errors.Join(err, few)
				continue
			}
			return true, s.cluster.Promoted(ctx, s.life.replica.group, w.Replica)
		}
	}
	return false, err
}

// remove takes out who is not wanted any more.
func (s *memberStep) remove(context.Context) (did bool, err error) {
	l := s.life
	for _, has := range s.configured {
		if _, wanted := find(s.want, has.Replica); wanted {
			continue
		}
		s.open = true
		if has.Replica == l.replica.id {
			// Whoever leads next removes this one: so the group is never without a leader that stays.
			err = errors.Join(err, l.replica.handOver())
			continue
		}
		if has.Voter {
			if unsafe := l.spare(has.Replica); unsafe != nil {
				err = errors.Join(err, unsafe)
				continue
			}
		}
		return true, s.changed("removed", has, l.raft.RemoveServer(transport.ServerID(has.Replica), s.at, 0))
	}
	return false, err
}

// add takes in who is missing, once its node runs it: raft would otherwise try in ever longer pauses.
func (s *memberStep) add(ctx context.Context) (did bool, err error) {
	for _, w := range s.want {
		if _, in := find(s.configured, w.Replica); in || s.atNode(w.Node) {
			continue
		}
		s.open = true
		standing, asked := s.cluster.Standing(ctx, s.life.replica.group, w)
		if asked != nil || !standing.Running {
			err = errors.Join(err, asked)
			continue
		}
		id, address := transport.ServerID(w.Replica), transport.Address(w.Node, w.Replica)
		return true, s.changed("added, without a vote", w, s.life.raft.AddNonvoter(id, address, s.at, 0))
	}
	return false, err
}

// atNode: the node's former replica is still a member.
func (s *memberStep) atNode(node shard.NodeID) bool {
	return slices.ContainsFunc(s.configured, func(m Member) bool { return m.Node == node })
}

// promote gives a vote to who has caught up. A replica that hasn't settled gets none: it would start empty again, had it
// lost its data.
func (s *memberStep) promote(ctx context.Context) (did bool, err error) {
	l := s.life
	for _, has := range s.configured {
		if _, wanted := find(s.want, has.Replica); !wanted || has.Voter || !s.roomForVoters() {
			continue
		}
		s.open = true
		if few := l.backed(has.Replica); few != nil {
			err = errors.Join(err, few)
			continue
		}
		if !l.keepsUp(voter{node: has.Node, replica: has.Replica}) {
			continue
		}
		standing, asked := s.cluster.Standing(ctx, l.replica.group, has)
		if asked != nil || !standing.Running || standing.Joining || standing.Applied+lagMax < l.raft.CommitIndex() {
			err = errors.Join(err, asked)
			continue
		}
		id, address := transport.ServerID(has.Replica), transport.Address(has.Node, has.Replica)
		return true, s.changed("given a vote", has, l.raft.AddVoter(id, address, s.at, 0))
	}
	return false, err
}

// roomForVoters: all replicas of a shard are to vote, of the meta group MetaVotersMax.
func (s *memberStep) roomForVoters() bool {
	voters := 0
	for _, m := range s.configured {
		if m.Voter {
			voters++
		}
	}
	return s.life.replica.group != shard.MetaGroup || voters < MetaVotersMax
}

// changed waits until a change is committed, or this replica leads no more.
func (s *memberStep) changed(what string, m Member, change raft.IndexFuture) error {
	if s.at == 0 {
		return errors.New("the index of the group's configuration is not known")
	}
	if err := change.Error(); err != nil {
		return fmt.Errorf("replica %d on %s was not %s: %w", m.Replica, m.Node, what, err)
	}
	s.life.replica.log.Info("the group's members changed: a replica was "+what, "member", m.Replica, "on", m.Node)
	return nil
}

// agreement is a state of the cluster and a configuration that are known to agree. The reconciler's goroutine only.
type agreement struct {
	state   *ClusterState
	servers []raft.Server
}
