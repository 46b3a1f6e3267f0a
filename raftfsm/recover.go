package raftfsm

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/time/rate"

	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// When a majority of a group's voters is gone for good, nobody can be elected any more, and no rule of Raft says what was
// acknowledged. What is here goes on from what one survivor holds, as its group's only voter, and runs offline: no node of
// the cluster may run. What the others had acknowledged beyond that is lost, and what this one holds beyond what was
// committed counts from then on.

// Remains is what one replica's stores hold.
type Remains struct {
	LastTerm, LastIndex uint64
	// Written is when the last entry was made, by its leader's clock; zero: not known.
	Written time.Time
	// Unclean: an unclean boot may have taken entries at the end, although they had been acknowledged.
	Unclean bool
	// Members of the newest configuration that the replica knows.
	Members []Member
}

// Newer tells whether these remains go further than others: what a voter would be elected for.
func (r *Remains) Newer(than *Remains) bool {
	if r.LastTerm != than.LastTerm {
		return r.LastTerm > than.LastTerm
	}
	return r.LastIndex > than.LastIndex
}

// Survey looks at a replica's stores, and makes log and snapshots fit as a start would. An error for which MustBeReplaced
// holds says that they are no use.
func Survey(node *storage.Node, group shard.ID, id shard.ReplicaID) (*Remains, error) {
	var found Remains
	err := withStores(node, group, id, func(stores *storage.Replica) error {
		found.Unclean = stores.Unclean()
		snapshots, err := stores.Snapshots.List()
		if err != nil {
			return err
		}
		if len(snapshots) > 0 {
			found.LastTerm, found.LastIndex = snapshots[0].Term, snapshots[0].Index
		}
		last, err := stores.Log.LastIndex()
		if err != nil {
			return err
		}
		if last > 0 {
			var e raft.Log
			if err := stores.Log.GetLog(last, &e); err != nil {
				return err
			}
			found.LastTerm, found.LastIndex, found.Written = e.Term, e.Index, e.AppendedAt
		}
		configuration, err := stores.Log.Configuration()
		if err != nil {
			return err
		}
		for _, s := range configuration.Servers {
			at, replica, err := transport.ParseAddress(s.Address)
			if err != nil {
				return err
			}
			found.Members = append(found.Members, Member{Node: at, Replica: replica, Voter: s.Suffrage == raft.Voter})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &found, nil
}

// ReadState returns the cluster's state as a replica of the meta group holds it, with all of its log applied: what is not
// committed too. It changes nothing.
func ReadState(node *storage.Node, id shard.ReplicaID) (*ClusterState, error) {
	machine := newMetaMachine(func() {})
	err := withStores(node, shard.MetaGroup, id, func(stores *storage.Replica) error { return replay(stores, machine) })
	if err != nil {
		return nil, err
	}
	state := machine.state.Load()
	if state == nil {
		return nil, fmt.Errorf("%w: the meta group had no state yet", ErrBadMeta)
	}
	return state, nil
}

// replay applies a replica's newest snapshot and log to an empty machine.
func replay(stores *storage.Replica, m machine) error {
	snapshots, err := stores.Snapshots.List()
	if err != nil {
		return err
	}
	from := uint64(1)
	if len(snapshots) > 0 {
		_, source, err := stores.Snapshots.Open(snapshots[0].ID)
		if err != nil {
			return err
		}
		_, err = m.restore(source)
		if err := errors.Join(err, source.Close()); err != nil {
			return err
		}
		from = snapshots[0].Index + 1
	}
	last, err := stores.Log.LastIndex()
	if err != nil {
		return err
	}
	for index := from; index <= last; index++ {
		var e raft.Log
		if err := stores.Log.GetLog(index, &e); err != nil {
			return err
		}
		if e.Type == raft.LogCommand {
			if _, err := m.apply(index, e.Data); err != nil {
				return err
			}
		}
	}
	return nil
}

// RecoverShard makes a replica, which holds what is left of its shard, the shard's only voter. It may be repeated.
func RecoverShard(node *storage.Node, group shard.ID, self Member, logger *slog.Logger) error {
	return recoverGroup(node, group, self, newShardMachine(group, NewSystemClock()), logger)
}

// RecoverMeta is RecoverShard for the meta group, whose state becomes another one. That one must come of what ReadState
// returned.
func RecoverMeta(node *storage.Node, self Member, state *ClusterState, logger *slog.Logger) error {
	return recoverGroup(node, shard.MetaGroup, self, &recoveredMeta{metaMachine: newMetaMachine(func() {}), state: state}, logger)
}

// recoveredMeta is frozen with another state than its log led to.
type recoveredMeta struct {
	*metaMachine
	state *ClusterState
}

func (m *recoveredMeta) freeze(index uint64) (frozen, error) {
	return frozenMeta{record: recordOf(m.state, index)}, nil
}

// RecoverEmpty makes a fresh replica the only voter of a shard of which nothing is left. It may be repeated.
func RecoverEmpty(node *storage.Node, group shard.ID, self Member) error {
	stores, err := node.Open(group, self.Replica)
	if err != nil {
		return err
	}
	return errors.Join(bootstrapStores(stores, []Member{self}), stores.Close())
}

func recoverGroup(node *storage.Node, group shard.ID, self Member, m machine, logger *slog.Logger) error {
	logger = logger.With("shard", group, "replica", self.Replica)
	return withStores(node, group, self.Replica, func(stores *storage.Replica) error {
		var stopped error
		f := &fsm{machine: m, halt: func(err error) { stopped = err }, throttle: rate.NewLimiter(rate.Inf, snapshotSliceBytes)}
		c := raft.DefaultConfig()
		c.LocalID = transport.ServerID(self.Replica)
		c.NoLegacyTelemetry = true
		c.Logger = raftLogger(logger)
		_, network := raft.NewInmemTransport("") // raft asks it for nothing that is kept
		alone := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: transport.ServerID(self.Replica), Address: transport.Address(self.Node, self.Replica)}}}
		if err := errors.Join(raft.RecoverCluster(c, f, stores.Log, stores.Stable, stores.Snapshots, network, alone), stopped, network.Close()); err != nil {
			return err
		}
		// All of it is in the snapshot. The log would still say who the voters were.
		return errors.Join(stores.Log.Clear(), stores.Trust())
	})
}

// withStores opens a replica's stores, once they fit each other.
func withStores(node *storage.Node, group shard.ID, id shard.ReplicaID, use func(*storage.Replica) error) error {
	stores, err := node.Open(group, id)
	if err != nil {
		return err
	}
	if err = stores.Reconcile(); err == nil {
		if err = refuseEmpty(stores); err == nil {
			err = use(stores)
		}
	}
	if err = errors.Join(err, stores.Close()); err != nil {
		return fmt.Errorf("replica %d of shard %d: %w", id, group, err)
	}
	return nil
}

// Survivor is who goes on with a group after a recovery.
type Survivor struct {
	Node shard.NodeID
	// Replica holds what is left of the group; 0: nothing is left, and a fresh one begins empty.
	Replica shard.ReplicaID
}

// Recovered is the state of a cluster that is rebuilt from survivors, under another cluster id: each group has one voter,
// and fresh ids, without a vote, in the place of all its other replicas. Nodes that are not among the survivors begin
// another life. Every group must have a survivor.
func (s *ClusterState) Recovered(clusterID string, survivors map[shard.ID]Survivor, nodes []shard.NodeID) (*ClusterState, error) {
	c := s.change()
	for i, m := range c.meta {
		if c.meta[i].Voter = m.Replica == survivors[shard.MetaGroup].Replica; !c.meta[i].Voter {
			c.meta[i].Replica = c.fresh()
		}
	}
	for i := range c.shards {
		described := &c.shards[i]
		who, ok := survivors[described.ID]
		if !ok {
			return nil, fmt.Errorf("%w: nobody goes on with shard %d", ErrBadMeta, described.ID)
		}
		c.changed[described.ID] = true
		described.Preferred = who.Node
		described.Replicas = recoveredReplicas(described.Replicas, who, c.fresh)
	}
	next, err := c.done()
	if err != nil {
		return nil, err
	}
	next.ClusterID = clusterID
	for _, n := range next.Map.Nodes() {
		if slices.Contains(nodes, n.ID) {
			continue
		}
		n.Incarnation = shard.NextLife(n.Incarnation)
		if next.Map, err = next.Map.WithNode(n); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// recoveredReplicas gives fresh ids to all of a shard's replicas but the survivor, which alone votes. If nothing is left of
// the shard, and none of its nodes, the survivor's node takes one over.
func recoveredReplicas(was []shard.Replica, who Survivor, fresh func() shard.ReplicaID) []shard.Replica {
	next := slices.Clone(was)
	if !slices.ContainsFunc(next, func(r shard.Replica) bool { return r.Node == who.Node }) {
		next[0].Node = who.Node
	}
	for i := range next {
		if next[i].ID != who.Replica {
			next[i].ID = fresh()
		}
		next[i].Voter = next[i].Node == who.Node
	}
	return next
}
