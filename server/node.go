package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"

	"github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// FormatLevel is the highest format level that this build reads and writes.
const FormatLevel = raftfsm.FormatLevel

// Node is one node of a cluster, or a blank one that waits to become one. While Run runs its methods may be called
// from any goroutine.
type Node struct {
	cfg       Config
	transport *transport.Transport
	book      *addressBook
	health    *healthService
	metrics   *metrics
	// advertised is set once Run knows the port it got.
	advertised atomic.Pointer[string]
	draining   atomic.Bool
	// stopPipelines asks the clients of running streams to close them. Set by newGRPCServer.
	stopPipelines func()
	// membership is set once the node belongs to a cluster and its replicas run.
	membership atomic.Pointer[membership]

	// adoption serialises what moves the identity's phase on.
	adoption sync.Mutex
	// saving is held while the next identity is written. Readers don't wait for the disk: handshakes are among them.
	saving   sync.Mutex
	identity atomic.Pointer[identity]
	// blanks are nodes of the cluster that were met without data, and where.
	blanks blankNodes
	// superseded: the cluster has taken this node back since, so that what this one holds is of an earlier life.
	superseded atomic.Bool
	// bookChanged holds a token while the address book has news that are not saved.
	bookChanged chan struct{}

	// life ends the node's own goroutines; background joins them.
	life       context.Context
	background sync.WaitGroup
}

// membership is a running part of a cluster.
type membership struct {
	clusterID string
	planned   *shard.Map
	// plannedLevel is the format level of that time. The cluster's is never lower.
	plannedLevel uint32
	storage      *storage.Node
	host         *raftfsm.Host
	// told is the newest state of the cluster that other nodes told this one; nil: none did. They are asked while the node's
	// own replica of the meta group is not there, or not up to date.
	told atomic.Pointer[raftfsm.ClusterState]

	mu sync.Mutex
	// lost are the replicas that must not run again, with the reason.
	lost map[shard.ID]lostReplica
}

// New checks the configuration. It opens nothing: that is Run's.
func New(cfg Config) (*Node, error) {
	full, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: full, health: newHealthService(), bookChanged: make(chan struct{}, 1)}
	n.metrics = newMetrics(n)
	return n, nil
}

// Run is the node's whole life: it opens the data directory, serves until ctx ends, then hands its leaderships
// over, lets running calls end, and returns nil. Every goroutine it started has ended by then.
func (n *Node) Run(ctx context.Context) (failed error) {
	if err := disk.MkdirAll(n.cfg.FS, n.cfg.DataDir); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if n.cfg.Memory == nil {
		lock, err := disk.Lock(filepath.Join(n.cfg.DataDir, "lock"))
		if err != nil {
			return fmt.Errorf("data directory %s: %w", n.cfg.DataDir, err)
		}
		defer func() { failed = errors.Join(failed, lock.Unlock()) }()
	}
	if err := n.openIdentity(); err != nil {
		return err
	}
	// From here on the node's goroutines run; they outlive ctx until the node has drained.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	n.life = life
	defer n.background.Wait()
	defer end()
	n.background.Go(n.keepBook)
	return n.serve(ctx)
}

// openIdentity loads node.json and counts this start.
func (n *Node) openIdentity() error {
	if err := refuseUnfinishedRecovery(n.cfg.FS, n.cfg.DataDir); err != nil {
		return err
	}
	id, err := loadIdentity(n.cfg.FS, n.cfg.DataDir, shard.NodeID(n.cfg.ID))
	if err != nil {
		return err
	}
	id.Incarnation++
	if err := id.save(n.cfg.FS, n.cfg.DataDir); err != nil {
		return err
	}
	n.identity.Store(id)
	n.book = newAddressBook(n.NodeID(), id.Book, func() {
		select {
		case n.bookChanged <- struct{}{}:
		default: // whoever takes the token that is there sees this change too
		}
	})
	return nil
}

// changeIdentity saves a changed copy of the identity, and only then makes it the one that counts: what failed to
// reach the disk is not acted upon.
func (n *Node) changeIdentity(change func(*identity) error) error {
	n.saving.Lock()
	defer n.saving.Unlock()
	next := *n.identity.Load()
	if err := change(&next); err != nil {
		return err
	}
	if err := next.save(n.cfg.FS, n.cfg.DataDir); err != nil {
		return err
	}
	n.identity.Store(&next)
	return nil
}

// keepBook is the goroutine that saves the address book, so that a restarted node finds the others. It ends with the
// node's life, after a last save.
func (n *Node) keepBook() {
	for {
		select {
		case <-n.bookChanged:
			n.saveBook()
		case <-n.life.Done():
			n.saveBook()
			return
		}
	}
}

func (n *Node) saveBook() {
	newest := n.book.snapshot()
	if maps.Equal(newest, n.identity.Load().Book) {
		return
	}
	if err := n.changeIdentity(func(id *identity) error { id.Book = newest; return nil }); err != nil {
		n.cfg.Logger.Error("addresses not saved", "error", err)
	}
}

// serve listens, starts what the identity says, waits for ctx, and drains.
func (n *Node) serve(ctx context.Context) (failed error) {
	listener, err := n.cfg.Bind(n.cfg.Listen)
	if err != nil {
		return explainListen("listen", err)
	}
	advertised := n.cfg.Advertise
	if advertised == "" {
		advertised = listener.Addr().String()
	}
	n.advertised.Store(&advertised)
	n.book.setSelf(advertised, n.Incarnation())
	if n.transport, err = n.newTransport(); err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { failed = errors.Join(failed, n.transport.Close()) }()
	n.metrics.watchTransport(n.transport.Stats)

	grpcServer := n.newGRPCServer()
	// However this ends, by a panic too: Run waits for who serves, and would keep a panic to itself for ever.
	defer grpcServer.Stop()
	stopHTTP, err := n.startHTTP()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer stopHTTP()
	served := make(chan error, 1)
	n.background.Go(func() { served <- grpcServer.Serve(limitConnections(listener, n.cfg.Limits.ConnectionsMax, n.metrics)) })
	n.cfg.Logger.Info("listening", "address", advertised, "incarnation", n.Incarnation())

	if err := n.resume(); err != nil {
		grpcServer.Stop()
		return errors.Join(err, n.closeMembership())
	}
	n.background.Go(n.discover)
	select {
	case <-ctx.Done():
	case err := <-served:
		return errors.Join(fmt.Errorf("serving: %w", err), n.closeMembership())
	}
	n.drain(grpcServer)
	return n.closeMembership()
}

// explainListen says what to do about an address that can't be listened on.
func explainListen(flag string, err error) error {
	return fmt.Errorf("%w: give another --%s, or end what listens there", err, flag)
}

func (n *Node) newTransport() (*transport.Transport, error) {
	return transport.New(transport.Config{
		Self:        n.NodeID(),
		ClusterID:   n.ClusterID,
		Address:     n.advertisedAddress,
		Incarnation: n.Incarnation,
		Resolve:     n.book.address,
		Known:       n.book.isMember,
		Outlived:    n.outlived,
		Learned: func(hs *ostrakapb.Handshake) {
			n.book.learn(shard.NodeID(hs.GetNodeId()), hs.GetAddress(), hs.GetIncarnation())
		},
		Confirmer: func(items []transport.ConfirmItem) []bool {
			if m := n.membership.Load(); m != nil {
				return m.host.AnswerConfirm(items)
			}
			return make([]bool, len(items))
		},
		Dial:          n.cfg.Dial,
		AppendTimeout: appendTimeout,
		Logger:        n.cfg.Logger,
	})
}

// newGRPCServer registers every service.
func (n *Node) newGRPCServer() *grpc.Server {
	s := grpc.NewServer(serverOptions(n, n.metrics, n.cfg.Logger)...)
	kv := newKVService(n)
	kv.panicked, kv.count = n.metrics.pipelinePanic(n.cfg.Logger), n.metrics.pipelineError
	kv.watches.goes = n.background.Go
	n.metrics.watchWatches(&kv.watches.counts)
	n.stopPipelines = sync.OnceFunc(func() { close(kv.stopping) })
	ostrakapb.RegisterKVServer(s, kv)
	ostrakapb.RegisterAdminServer(s, newAdminService(n, n, n, n))
	ostrakapb.RegisterRaftServer(s, &raftService{Transport: n.transport, node: n})
	ostrakapb.RegisterMembersServer(s, &membersService{node: n})
	n.health.register(s)
	reflection.Register(s)
	return s
}

// startHTTP serves metrics and health where asked; the function it returns ends that.
func (n *Node) startHTTP() (func(), error) {
	if n.cfg.HTTPListen == "" {
		return func() {}, nil
	}
	listener, err := n.cfg.Bind(n.cfg.HTTPListen)
	if err != nil {
		return nil, explainListen("http-listen", err)
	}
	s := newHTTPServer(newHTTPHandler(n, n.health, n.metrics, n.cfg.PProf))
	n.background.Go(func() {
		if err := s.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			n.cfg.Logger.Error("HTTP listener ended", "error", err)
		}
	})
	return func() { s.Close() }, nil
}

// resume starts the node where its identity left off. One that is adopting stays so: whether every other node holds
// the plan too, only a bootstrap can tell.
func (n *Node) resume() error {
	n.adoption.Lock()
	defer n.adoption.Unlock()
	id := n.identity.Load()
	switch id.Phase {
	case phaseBlank:
		n.cfg.Logger.Info("this node belongs to no cluster yet: name it in `ostraka cluster bootstrap --nodes ID=ADDRESS,…`",
			"id", n.cfg.ID, "address", n.advertisedAddress())
		return nil
	case phaseAdopting:
		n.cfg.Logger.Warn(errBootstrapUnfinished.Error(), "cluster", id.ClusterID)
		return n.meetPlanned(id.plan)
	}
	return n.join(id.plan)
}

// drain hands leaderships over and lets running calls end, both within DrainTimeout. Once this node leads
// nothing, no call that still runs needs the raft streams, which never end by themselves and would keep a
// graceful stop waiting.
func (n *Node) drain(s *grpc.Server) {
	n.cfg.Logger.Info("draining")
	n.draining.Store(true)
	n.health.setServing(false)
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.DrainTimeout)
	defer cancel()
	if m := n.membership.Load(); m != nil {
		if err := m.host.HandOver(ctx); err != nil {
			n.cfg.Logger.Warn("not every leadership was handed over", "error", err)
		}
	}
	n.health.shutdown()
	n.stopPipelines()
	stopped := make(chan struct{})
	n.background.Go(func() { s.GracefulStop(); close(stopped) })
	if err := n.transport.Close(); err != nil {
		n.cfg.Logger.Warn("closing the raft streams", "error", err)
	}
	select {
	case <-stopped:
	case <-ctx.Done():
		n.cfg.Logger.Warn("calls that still run after the drain timeout are cut off")
	}
	s.Stop()
}

// closeMembership stops every replica and closes the disk, if there is a membership.
func (n *Node) closeMembership() error {
	n.adoption.Lock()
	defer n.adoption.Unlock()
	m := n.membership.Load()
	if m == nil {
		return nil
	}
	return m.close()
}

// NodeID returns this node's id.
func (n *Node) NodeID() shard.NodeID { return shard.NodeID(n.cfg.ID) }

// Incarnation counts this node's starts, from 1 in its first life. While Run runs it changes only when a blank node is
// taken back into its cluster.
func (n *Node) Incarnation() uint64 { return n.identity.Load().Incarnation }

// ClusterID returns the cluster's id; empty while the node is blank.
func (n *Node) ClusterID() string { return n.identity.Load().ClusterID }

// Adopting reports whether the node holds the plan of a bootstrap that was not finished.
func (n *Node) Adopting() bool { return n.identity.Load().Phase == phaseAdopting }

// Host returns what runs this node's replicas; nil while the node is blank or starting.
func (n *Node) Host() *raftfsm.Host {
	if m := n.membership.Load(); m != nil {
		return m.host
	}
	return nil
}

// Map returns the newest map this node has applied; nil while the node is blank or starting.
func (n *Node) Map() *shard.Map {
	m := n.membership.Load()
	if m == nil {
		return nil
	}
	if state := m.state(); state != nil {
		return state.Map
	}
	return m.planned
}

// FormatLevel returns the cluster's format level, as far as this node knows it; 0 while it knows of none. A node that has just
// started may lead a shard before the meta group has a leader and tells it more than the plan does.
func (n *Node) FormatLevel() uint32 {
	m := n.membership.Load()
	if m == nil {
		return 0
	}
	if state := m.state(); state != nil {
		return state.FormatLevel
	}
	return m.plannedLevel
}

// MetaLeader returns the node believed to lead the meta group; empty where none is known.
func (n *Node) MetaLeader() shard.NodeID {
	if m := n.membership.Load(); m != nil {
		return m.metaLeader()
	}
	return ""
}

// Draining reports whether the node is on its way out.
func (n *Node) Draining() bool { return n.draining.Load() }

// Superseded reports whether the cluster has gone on with another life of this node.
func (n *Node) Superseded() bool { return n.superseded.Load() }

// LostReplicas are the node's replicas that must not run again, by group.
func (n *Node) LostReplicas() map[shard.ID]shard.ReplicaID {
	m := n.membership.Load()
	if m == nil {
		return nil
	}
	lost := make(map[shard.ID]shard.ReplicaID)
	for group, l := range m.lostReplicas() {
		lost[group] = l.id
	}
	return lost
}

// Address returns where a node listens, as far as this one knows.
func (n *Node) Address(id shard.NodeID) (string, bool) { return n.book.address(id) }

// PeerConn returns the connection shared with the raft streams to a node.
func (n *Node) PeerConn(id shard.NodeID) (*grpc.ClientConn, error) { return n.transport.Conn(id) }

// Limits returns the limits in force.
func (n *Node) Limits() Limits { return n.cfg.Limits }

// Sync is when a write counts as durable here.
func (n *Node) Sync() string { return n.cfg.Sync }

func (n *Node) advertisedAddress() string {
	if a := n.advertised.Load(); a != nil {
		return *a
	}
	return n.cfg.Advertise
}

// handshake tells others who this node is.
func (n *Node) handshake(target shard.NodeID) *ostrakapb.Handshake {
	return &ostrakapb.Handshake{Format: handshakeFormat, ClusterId: n.ClusterID(), NodeId: n.cfg.ID,
		Address: n.advertisedAddress(), Incarnation: n.Incarnation(), TargetNodeId: string(target)}
}
