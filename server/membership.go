package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/shard"
)

// diskStallMax is how long a write to the log may take before the process ends itself. An append's deadline must be
// longer (raft.md): a leader that gave up earlier would send again what is only slow.
const (
	diskStallMax  = 10 * time.Second
	appendTimeout = diskStallMax + 2*time.Second
)

// handshakeFormat is the version of the messages between nodes.
const handshakeFormat = 1

// openMembership opens the disk and the host of a plan's replicas; none of them runs yet.
func (n *Node) openMembership(plan *ostrakapb.BootstrapPlan) (*membership, error) {
	m, err := decodeMap(plan.GetMap())
	if err != nil {
		return nil, err
	}
	disks, err := storage.Open(storage.Config{Dir: n.cfg.DataDir, FS: n.cfg.FS, Memory: n.cfg.Memory, Fatal: n.cfg.Fatal,
		Logger: n.cfg.Logger, StallMax: diskStallMax, Sync: syncModes[n.cfg.Sync], Progress: n.logProgress()})
	if err != nil {
		return nil, err
	}
	host, err := raftfsm.NewHost(raftfsm.Config{Node: n.NodeID(), Storage: disks, Transport: n.transport,
		Clock: n.cfg.Clock, Logger: n.cfg.Logger, Fatal: n.cfg.Fatal, HistoryBytes: n.cfg.WatchHistoryBytes,
		Timing: n.cfg.Timing, Proposer: n.cfg.Proposer, Snapshots: n.cfg.Snapshots, Verify: n.cfg.Verify, Reaping: n.cfg.Reaping,
		MaxMemory: n.cfg.MaxMemory})
	if err != nil {
		return nil, errors.Join(err, disks.Close())
	}
	return &membership{clusterID: plan.GetClusterId(), planned: m, plannedLevel: plan.GetFormatLevel(), storage: disks, host: host, lost: make(map[shard.ID]lostReplica)}, nil
}

// logProgress reports how far the write-ahead log has been read at the start, every few seconds: the node is not serving
// yet.
func (n *Node) logProgress() func(done, total int64) {
	const beat = 2 * time.Second
	began := time.Now()
	last := began
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= beat {
			last = now
			n.cfg.Logger.Info("reading the log", "read_bytes", done, "of_bytes", total, "percent", 100*done/max(total, 1))
		}
		if done == total && last != began {
			n.cfg.Logger.Info("the log is read", "bytes", total, "took", time.Since(began).Round(time.Millisecond))
		}
	}
}

func (m *membership) close() error { return errors.Join(m.host.Close(), m.storage.Close()) }

// prepare writes the first configurations of an adopting node's replicas, and starts nothing. adoption is held.
func (n *Node) prepare(plan *ostrakapb.BootstrapPlan) error {
	part, err := n.openMembership(plan)
	if err != nil {
		return err
	}
	return errors.Join(n.bootstrapReplicas(part, plan), part.close())
}

// join makes this node a running member, from wherever its identity left off. adoption is held.
func (n *Node) join(plan *ostrakapb.BootstrapPlan) error {
	part, err := n.openMembership(plan)
	if err != nil {
		return err
	}
	n.book.learnMap(part.planned)
	if err := n.startReplicas(part, plan); err != nil {
		return errors.Join(err, part.close())
	}
	part.host.SetPreferred(n.Map)
	n.membership.Store(part)
	view := &clusterView{node: n, part: part}
	part.host.SetCluster(view)
	part.host.SetVerifyPeers(view)
	n.background.Go(func() { n.followMeta(part) })
	n.background.Go(func() { n.keepReplicas(part) })
	return nil
}

// startReplicas starts every replica, after it has noted durably that it is about to.
func (n *Node) startReplicas(part *membership, plan *ostrakapb.BootstrapPlan) error {
	if _, err := metaReplicaOf(plan, n.NodeID()); err != nil {
		return err
	}
	if n.Adopting() {
		if err := n.becomeMember(part, plan); err != nil {
			return err
		}
	}
	held := n.identity.Load().holdings(part.planned)
	for _, group := range slices.Sorted(maps.Keys(held)) {
		if err := n.startReplica(part, group, held[group]); err != nil {
			return err
		}
	}
	return nil
}

// startReplica starts one replica. One that lost what it may have vouched for stays stopped, and is to be replaced: that is
// no error, for the others of its group go on without it, and this node's other replicas with them.
func (n *Node) startReplica(part *membership, group shard.ID, held heldReplica) (err error) {
	settled := func() error {
		return n.changeIdentity(func(id *identity) error {
			if now, ok := id.Replicas[group]; ok && now.ID == held.ID {
				now.Joining = false
				id.hold(group, now)
			}
			return nil
		})
	}
	if held.Fenced != "" {
		part.setLost(group, &lostReplica{id: held.ID, why: fmt.Errorf("%w: %s", errOdd, held.Fenced)})
		return nil
	}
	switch {
	case group == shard.MetaGroup && held.Joining:
		_, err = part.host.StartMetaJoiner(held.ID, settled)
	case group == shard.MetaGroup:
		var seed *raftfsm.ClusterState
		if seed, err = stateOf(n.identity.Load().plan); err == nil {
			_, err = part.host.StartMeta(held.ID, seed)
		}
	default:
		described, _ := part.newestMap().Shard(group)
		spec := raftfsm.GroupSpec{Shard: group, Replica: held.ID, Ranges: described.Ranges}
		if held.Joining {
			_, err = part.host.StartJoiner(spec, settled)
		} else {
			_, err = part.host.StartGroup(spec)
		}
	}
	if raftfsm.MustBeReplaced(err) {
		n.cfg.Logger.Error("a replica lost data that it may have vouched for; it stays stopped until it is replaced",
			"shard", group, "replica", held.ID, "error", err)
		part.setLost(group, &lostReplica{id: held.ID, why: err})
		return nil
	}
	part.setLost(group, nil)
	return err
}

// becomeMember is the step after which this node never writes a first configuration again: a replica without its
// data must not vote. What prepare wrote is completed first, should that have been cut off.
func (n *Node) becomeMember(part *membership, plan *ostrakapb.BootstrapPlan) error {
	if err := n.bootstrapReplicas(part, plan); err != nil {
		return err
	}
	return n.changeIdentity(func(id *identity) error { id.Phase = phaseMember; return nil })
}

// bootstrapReplicas writes the first configuration of every replica here that has none. No raft instance has run
// before that, so no vote can be forgotten by repeating it.
func (n *Node) bootstrapReplicas(part *membership, plan *ostrakapb.BootstrapPlan) error {
	own, err := metaReplicaOf(plan, n.NodeID())
	if err != nil {
		return err
	}
	if err := part.host.Bootstrap(shard.MetaGroup, own, membersOf(plan.GetMeta())); err != nil {
		return err
	}
	for _, s := range part.planned.Shards() {
		r, ok := part.planned.ReplicaOn(s.ID, n.NodeID())
		if !ok {
			continue
		}
		if err := part.host.Bootstrap(s.ID, r.ID, raftfsm.MembersOf(s)); err != nil {
			return err
		}
	}
	return nil
}

// followMeta serves once the cluster's state is known here, and keeps the address book with it.
func (n *Node) followMeta(part *membership) {
	const beat = time.Second // the state may also come from other nodes, and the node's own replica of the meta group may be replaced
	for {
		var changed <-chan struct{}
		if meta := part.host.Meta(); meta != nil {
			changed = meta.Changed() // before state, so that no change is missed
		}
		if state := part.state(); state != nil {
			n.book.learnMap(state.Map)
			if !n.draining.Load() && !n.superseded.Load() {
				n.health.setServing(true)
			}
		}
		wait := time.NewTimer(beat)
		select {
		case <-changed:
		case <-wait.C:
		case <-n.life.Done():
			wait.Stop()
			return
		}
		wait.Stop()
	}
}

// discover goes on as long as the node lives: it says hello to the seeds and to every node it can't hear, and
// tells the meta group where this node listens, until both need it no more. Whom it finds without data, the leader of the
// meta group takes back.
func (n *Node) discover() {
	const beat = time.Second
	for {
		if m := n.membership.Load(); m != nil {
			n.announce(m)
			if !n.hearsAll() {
				n.greetAll()
			}
			n.takeBackAll(m)
		} else if len(n.cfg.Peers) > 0 && n.identity.Load().Phase == phaseBlank {
			n.seekCluster()
		}
		if !n.pause(beat + time.Duration(rand.Int64N(int64(beat/4)))) {
			return
		}
	}
}

// pause lets time pass; false: the node's life ended meanwhile.
func (n *Node) pause(d time.Duration) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-over.C:
		return true
	case <-n.life.Done():
		return false
	}
}

func (n *Node) hearsAll() bool {
	peers := n.transport.Stats()
	for _, other := range n.Map().Nodes() {
		if other.ID != n.NodeID() && !peers[other.ID].Connected {
			return false
		}
	}
	return true
}

// greetAll says hello to every seed and every address in the book.
func (n *Node) greetAll() {
	known := n.book.snapshot()
	targets := make(map[string]bool)
	for _, p := range n.cfg.Peers {
		targets[p] = true
	}
	for id, e := range known {
		if id != n.NodeID() {
			targets[e.Address] = true
		}
	}
	delete(targets, n.advertisedAddress())
	for address := range targets {
		if n.life.Err() != nil {
			return
		}
		ctx, cancel := context.WithTimeout(n.life, 2*time.Second)
		if _, err := n.hello(ctx, address, ""); err != nil {
			n.cfg.Logger.Debug("no answer to hello", "address", address, "error", err)
		}
		cancel()
	}
}

// hello exchanges identities with whoever listens at an address, and learns from the answer.
func (n *Node) hello(ctx context.Context, address string, target shard.NodeID) (*ostrakapb.HelloResponse, error) {
	var answer *ostrakapb.HelloResponse
	err := n.withConn(address, func(conn *grpc.ClientConn) (err error) {
		answer, err = ostrakapb.NewRaftClient(conn).Hello(ctx, n.handshake(target))
		return err
	})
	if err != nil {
		return nil, err
	}
	switch self := answer.GetSelf(); {
	case self.GetClusterId() == "" && answer.GetPhase() == ostrakapb.NodePhase_NODE_PHASE_BLANK:
		n.meetBlank(shard.NodeID(self.GetNodeId()), address)
	case self.GetClusterId() == n.ClusterID():
		n.book.learn(shard.NodeID(self.GetNodeId()), self.GetAddress(), self.GetIncarnation())
		for _, other := range answer.GetNodes() {
			n.book.learn(shard.NodeID(other.GetId()), other.GetAddress(), other.GetIncarnation())
			n.learnOfSelf(other)
		}
	}
	return answer, nil
}

// withConn lends a connection of its own to an address whose node may not be known.
func (n *Node) withConn(address string, use func(*grpc.ClientConn) error) error {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithContextDialer(n.cfg.Dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return use(conn)
}

// announce makes sure that the meta group knows where this node listens.
func (n *Node) announce(part *membership) {
	state := part.state()
	if state == nil {
		return
	}
	address := n.advertisedAddress()
	if known, ok := state.Map.Node(n.NodeID()); ok && known.Address == address {
		return
	}
	ctx, cancel := context.WithTimeout(n.life, 2*time.Second)
	defer cancel()
	var err error
	switch leader := part.metaLeader(); leader {
	case "":
		return
	case n.NodeID():
		if meta := part.host.Meta(); meta != nil {
			_, err = meta.SetNode(ctx, n.NodeID(), address, n.Incarnation())
		}
	default:
		conn, connErr := n.transport.Conn(leader)
		if connErr != nil {
			err = connErr
			break
		}
		_, err = ostrakapb.NewRaftClient(conn).Announce(ctx, n.handshake(leader))
	}
	if err != nil {
		n.cfg.Logger.Info("address not announced yet", "error", err)
	}
}
