package server

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// nodeView is what the services ask of their node. Node implements it; tests have one without processes.
// Every method may be called from any goroutine and answers at once.
type nodeView interface {
	// Host runs the node's replicas; nil while the node is blank or starting.
	Host() *raftfsm.Host
	// Map is the newest map the node has applied; nil while it is blank or starting.
	Map() *shard.Map
	// ClusterID is empty while the node is blank.
	ClusterID() string
	// Adopting: the node holds a plan, but its bootstrap was not finished, so that nothing runs here.
	Adopting() bool
	Draining() bool
	// Superseded: the cluster has gone on with another life of this node.
	Superseded() bool
	// LostReplicas are the node's replicas that must not run again, by group.
	LostReplicas() map[shard.ID]shard.ReplicaID
	NodeID() shard.NodeID
	// Address is where a node listens, as far as this one knows.
	Address(shard.NodeID) (string, bool)
	// PeerConn is the connection to another node, shared with all who call it.
	PeerConn(shard.NodeID) (*grpc.ClientConn, error)
	MetaLeader() shard.NodeID
	FormatLevel() uint32
	Incarnation() uint64
	Limits() Limits
	// Sync is when a write counts as durable: SyncAlways or SyncInterval.
	Sync() string
}

// whyNoMap is the reason for which a node without a map takes no calls.
func whyNoMap(node nodeView) error {
	switch {
	case node.ClusterID() == "":
		return errNotBootstrapped
	case node.Adopting():
		return errBootstrapUnfinished
	}
	return errStarting
}

// replicaSet is where the services find the node's replicas.
type replicaSet interface {
	replica(shard.ID) (replica, bool)
	// statuses are ordered by shard, the meta group's first where the node holds one. They cost a look at the disk each.
	statuses() []raftfsm.Status
	// leaders names, for each shard with a replica here, the node that it believes to lead, where it knows one.
	leaders() map[shard.ID]shard.NodeID
}

// replica is one shard's replica on this node, as raftfsm.Group offers it.
type replica interface {
	Write(ctx context.Context, op *store.Op, session raftfsm.Session) (store.Result, error)
	Submit(writes []*raftfsm.Write) (accepted int, err error)
	SessionTime() store.Time
	read(ctx context.Context, level raftfsm.ReadLevel) (reader, error)
	Changes() (raftfsm.Changes, error)
	Position(ctx context.Context) (store.Position, error)
	// Leader is the node that the replica believes to lead; empty: it knows none.
	Leader() shard.NodeID
}

// reader reads one replica's memory, as raftfsm.Read and store.Store offer it.
type reader interface {
	Get(key, dst []byte) (value []byte, m store.Meta, ok bool, err error)
	Peek(key []byte) (m store.Meta, ok bool, err error)
	TTL(store.Meta) time.Duration
	scan(from, to []byte, limit, bytesMax int, fn func(key, value []byte, m store.Meta) bool) (next []byte, more bool)
}

// hostReplicas is the replicaSet of a real node.
type hostReplicas struct{ node nodeView }

func (h hostReplicas) replica(id shard.ID) (replica, bool) {
	host := h.node.Host()
	if host == nil {
		return nil, false
	}
	g, ok := host.Group(id)
	return groupReplica{g}, ok
}

func (h hostReplicas) statuses() []raftfsm.Status {
	host := h.node.Host()
	if host == nil {
		return nil
	}
	var all []raftfsm.Status
	if meta := host.Meta(); meta != nil {
		all = append(all, meta.Status())
	}
	for _, g := range host.Groups() {
		all = append(all, g.Status())
	}
	for group, id := range h.node.LostReplicas() {
		all = append(all, raftfsm.Status{Shard: group, Replica: id, Role: roleShutdown, Lost: true})
	}
	slices.SortFunc(all, func(a, b raftfsm.Status) int { return cmp.Compare(a.Shard, b.Shard) })
	return all
}

// roleShutdown is the role of a replica that doesn't run.
const roleShutdown = "shutdown"

func (h hostReplicas) leaders() map[shard.ID]shard.NodeID {
	known := make(map[shard.ID]shard.NodeID)
	host := h.node.Host()
	if host == nil {
		return known
	}
	for _, g := range host.Groups() {
		if leader := g.Leader(); leader != "" {
			known[g.Shard()] = leader
		}
	}
	return known
}

type groupReplica struct{ *raftfsm.Group }

func (g groupReplica) read(ctx context.Context, level raftfsm.ReadLevel) (reader, error) {
	r, err := g.Group.Read(ctx, level)
	if err != nil {
		return nil, err
	}
	return groupReader{r}, nil
}

type groupReader struct{ *raftfsm.Read }

func (r groupReader) scan(from, to []byte, limit, bytesMax int, fn func(key, value []byte, m store.Meta) bool) ([]byte, bool) {
	return r.Store.Scan(from, to, limit, bytesMax, fn)
}
