package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// fakeNode is a nodeView without replicas, whose answers a test sets before it serves.
type fakeNode struct {
	id        shard.NodeID
	m         *shard.Map
	clusterID string
	adopting  bool
	draining  bool
	limits    Limits
	level     uint32 // 0: this build's
	conns     map[shard.NodeID]*grpc.ClientConn
}

var errNoConn = errors.New("no connection")

func (n *fakeNode) Host() *raftfsm.Host      { return nil }
func (n *fakeNode) Map() *shard.Map          { return n.m }
func (n *fakeNode) ClusterID() string        { return n.clusterID }
func (n *fakeNode) Adopting() bool           { return n.adopting }
func (n *fakeNode) Draining() bool           { return n.draining }
func (n *fakeNode) Superseded() bool         { return false }
func (n *fakeNode) NodeID() shard.NodeID     { return n.id }
func (n *fakeNode) MetaLeader() shard.NodeID { return "n1" }
func (n *fakeNode) FormatLevel() uint32      { return cmp.Or(n.level, FormatLevel) }
func (n *fakeNode) Incarnation() uint64      { return 7 }
func (n *fakeNode) Limits() Limits           { return n.limits }
func (n *fakeNode) Sync() string             { return SyncAlways }

func (n *fakeNode) LostReplicas() map[shard.ID]shard.ReplicaID { return nil }

func (n *fakeNode) Replace(context.Context, *ostrakapb.ReplaceRequest) (*ostrakapb.ReplaceResponse, error) {
	return nil, raftfsm.ErrNotSpared
}

func (n *fakeNode) Verify(context.Context, *ostrakapb.VerifyRequest) (*ostrakapb.VerifyResponse, error) {
	return nil, raftfsm.ErrNoAudit
}

func (n *fakeNode) Address(id shard.NodeID) (string, bool) {
	return fmt.Sprintf("%s.test:7400", id), true
}

func (n *fakeNode) PeerConn(id shard.NodeID) (*grpc.ClientConn, error) {
	if c := n.conns[id]; c != nil {
		return c, nil
	}
	return nil, errNoConn
}

func (n *fakeNode) Bootstrap(context.Context, *ostrakapb.BootstrapRequest) (*ostrakapb.BootstrapResponse, error) {
	return nil, fmt.Errorf("%w: as the test wants", ErrAlreadyMember)
}

// testMap has nodes n1, n2, n3 and shards 1..4 on all three.
func testMap(t testing.TB) *shard.Map {
	t.Helper()
	nodes := []shard.Node{{ID: "n1", Address: "n1.test:7400", Zone: "a", Incarnation: 7},
		{ID: "n2", Address: "n2.test:7400", Zone: "b", Incarnation: 3}, {ID: "n3", Address: "n3.test:7400", State: shard.NodeLeaving}}
	shards := make([]shard.Shard, 4)
	for i, r := range shard.FreshRanges(len(shards)) {
		shards[i] = shard.Shard{ID: shard.ID(i + 1), Ranges: []shard.Range{r}, Preferred: "n2"}
		for j, n := range nodes {
			shards[i].Replicas = append(shards[i].Replicas, shard.Replica{ID: shard.ReplicaID(3*i + j + 1), Node: n.ID, Voter: j < 2})
		}
	}
	m, err := shard.NewMap(5, nodes, shards)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newFakeNode(t testing.TB) *fakeNode {
	t.Helper()
	limits, err := Limits{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return &fakeNode{id: "n1", m: testMap(t), clusterID: "c1", limits: limits}
}

// fakeReplica keeps one shard in a real store and applies writes at once.
type fakeReplica struct {
	mu       sync.Mutex
	store    *store.Store
	history  *store.History
	ended    chan struct{} // closed where a test ends the replica's life
	status   raftfsm.Status
	leader   shard.NodeID
	writeErr error
	readErr  error // of linearizable reads, before anything is read
	getErr   error
	// changesErr is what Changes fails with.
	changesErr error
	// getPanics makes every Get panic.
	getPanics bool
	// beforeWrite runs, without mu, at the start of each write.
	beforeWrite func(context.Context)
	// submitErr refuses what is submitted; held keeps it from being taken until it is closed.
	submitErr error
	held      chan struct{}

	submits  int
	reads    int
	sessions []raftfsm.Session
	ops      []store.Op
}

func newFakeReplica(id shard.ID, ranges []shard.Range) *fakeReplica {
	s := store.New(store.MaxLimits())
	for _, r := range ranges {
		for slot := r.From; slot < r.To; slot++ {
			s.Own(slot)
		}
	}
	s.SetTime(1_000_000)
	history := store.NewHistory(1 << 20)
	s.KeepHistory(history)
	return &fakeReplica{store: s, history: history, ended: make(chan struct{}), leader: "n1", status: raftfsm.Status{Shard: id, Replica: shard.ReplicaID(3*id - 2), Role: roleLeader,
		Leader: "n1", Term: 2, Commit: 10, Applied: 9, Last: 11, Voter: true, Restarts: 1, Keys: 3, Bytes: 100}}
}

// Submit carries each write out on a goroutine of its own, as far as held lets it.
func (r *fakeReplica) Submit(writes []*raftfsm.Write) (int, error) {
	r.mu.Lock()
	submitErr, held := r.submitErr, r.held
	r.submits++
	r.mu.Unlock()
	if submitErr != nil {
		return 0, submitErr
	}
	for _, w := range slices.Clone(writes) {
		go func() {
			if held != nil {
				<-held
			}
			if !w.Withdraw() { // takes it, as packing does
				return
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			w.Result, w.Err = r.Write(ctx, &w.Op, w.Session)
			w.To.Written([]*raftfsm.Write{w})
		}()
	}
	return len(writes), nil
}

func (r *fakeReplica) Write(ctx context.Context, op *store.Op, session raftfsm.Session) (store.Result, error) {
	if r.beforeWrite != nil {
		r.beforeWrite(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writeErr != nil {
		return store.Result{}, r.writeErr
	}
	r.sessions, r.ops = append(r.sessions, session), append(r.ops, *op)
	defer r.history.Publish()
	return r.store.Apply(uint16(shard.SlotOf(op.Key)), op), nil
}

func (r *fakeReplica) SessionTime() store.Time { return 1_000_000 }
func (r *fakeReplica) Changes() (raftfsm.Changes, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return raftfsm.Changes{History: r.history, Ended: r.ended}, r.changesErr
}

func (r *fakeReplica) Position(context.Context) (store.Position, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, at := r.history.End()
	return at, r.readErr
}

func (r *fakeReplica) Leader() shard.NodeID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leader
}

func (r *fakeReplica) read(_ context.Context, level raftfsm.ReadLevel) (reader, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	if r.readErr != nil && level == raftfsm.Linearizable {
		return nil, r.readErr
	}
	return fakeReader{r.store, r.getErr, r.getPanics}, nil
}

type fakeReader struct {
	store *store.Store
	// getErr is the answer to every Get and Peek.
	getErr    error
	getPanics bool
}

func (r fakeReader) Peek(key []byte) (store.Meta, bool, error) {
	_, m, ok, err := r.Get(key, nil)
	return m, ok, err
}

func (r fakeReader) Get(key, dst []byte) ([]byte, store.Meta, bool, error) {
	if r.getPanics {
		panic("as the test wants")
	}
	if r.getErr != nil {
		return dst, store.Meta{}, false, r.getErr
	}
	slot := uint16(shard.SlotOf(key))
	if !r.store.Owns(slot) {
		return dst, store.Meta{}, false, shard.ErrStaleEpoch
	}
	value, m, ok := r.store.Get(slot, key, dst)
	return value, m, ok, nil
}

func (r fakeReader) TTL(m store.Meta) time.Duration {
	if m.ExpiresAt == 0 {
		return 0
	}
	return time.Duration(m.ExpiresAt-r.store.Time()) * time.Millisecond
}

func (r fakeReader) scan(from, to []byte, limit, bytesMax int, fn func(key, value []byte, m store.Meta) bool) ([]byte, bool) {
	return r.store.Scan(from, to, limit, bytesMax, fn)
}

// fakeReplicas is the replicaSet of a fakeNode.
type fakeReplicas map[shard.ID]*fakeReplica

func newFakeReplicas(m *shard.Map) fakeReplicas {
	all := make(fakeReplicas)
	for _, s := range m.Shards() {
		all[s.ID] = newFakeReplica(s.ID, s.Ranges)
	}
	return all
}

func (all fakeReplicas) replica(id shard.ID) (replica, bool) {
	r, ok := all[id]
	return r, ok
}

func (all fakeReplicas) statuses() []raftfsm.Status {
	var list []raftfsm.Status
	for _, r := range all {
		list = append(list, r.status)
	}
	slices.SortFunc(list, func(a, b raftfsm.Status) int { return cmp.Compare(a.Shard, b.Shard) })
	return list
}

func (all fakeReplicas) leaders() map[shard.ID]shard.NodeID {
	known := make(map[shard.ID]shard.NodeID)
	for id, r := range all {
		if r.leader != "" {
			known[id] = r.leader
		}
	}
	return known
}

// of returns the replica that holds a key.
func (all fakeReplicas) of(m *shard.Map, key string) *fakeReplica {
	return all[m.ShardOf(shard.SlotOfString(key))]
}

// fakeServer is a node's services, served over memory with everything that stands around them.
type fakeServer struct {
	node     *fakeNode
	replicas fakeReplicas
	metrics  *metrics
	health   *healthService
	grpc     *grpc.Server
	stopping chan struct{}
	watches  *watchHubs
	conn     *grpc.ClientConn
	kv       ostrakapb.KVClient
	admin    ostrakapb.AdminClient
}

func serve(t testing.TB, node *fakeNode) *fakeServer {
	t.Helper()
	f := &fakeServer{node: node, metrics: newMetrics(node), health: newHealthService()}
	if node.m != nil {
		f.replicas = newFakeReplicas(node.m)
	}
	f.grpc = grpc.NewServer(serverOptions(node, f.metrics, slog.New(slog.NewTextHandler(io.Discard, nil)))...)
	kv, admin := newKVService(node), newAdminService(node, node, node, node)
	kv.replicas, admin.replicas = f.replicas, f.replicas
	f.stopping, f.watches = kv.stopping, kv.watches
	var background sync.WaitGroup
	kv.watches.goes = background.Go
	ostrakapb.RegisterKVServer(f.grpc, kv)
	ostrakapb.RegisterAdminServer(f.grpc, admin)
	f.health.register(f.grpc)
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- f.grpc.Serve(limitConnections(listener, node.limits.ConnectionsMax, f.metrics)) }()
	f.conn = dial(t, listener)
	f.kv, f.admin = ostrakapb.NewKVClient(f.conn), ostrakapb.NewAdminClient(f.conn)
	t.Cleanup(func() {
		f.grpc.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		background.Wait()
	})
	return f
}

// insecureCredentials are those of every test: nothing leaves the process or loopback.
var insecureCredentials = grpc.WithTransportCredentials(insecure.NewCredentials())

func dial(t testing.TB, listener *bufconn.Listener) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///memory", insecureCredentials,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// detailOf returns the ErrorDetail of a status; it is an error not to have one.
func detailOf(t testing.TB, err error) *ostrakapb.ErrorDetail {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if detail, ok := d.(*ostrakapb.ErrorDetail); ok {
			return detail
		}
	}
	t.Fatalf("no detail in %v", err)
	return nil
}

func wantReason(t testing.TB, err error, want ostrakapb.Reason) *ostrakapb.ErrorDetail {
	t.Helper()
	d := detailOf(t, err)
	if d.GetReason() != want {
		t.Fatalf("reason %v, want %v: %s", d.GetReason(), want, d.GetMessage())
	}
	return d
}

// keysOfAllShards returns n keys, at least one of every shard, in order.
func keysOfAllShards(t testing.TB, m *shard.Map, n int) []string {
	t.Helper()
	shards := make(map[shard.ID]bool)
	var keys []string
	for i := range n {
		keys = append(keys, fmt.Sprintf("key-%04d", i))
		shards[m.ShardOf(shard.SlotOfString(keys[i]))] = true
	}
	if len(shards) != len(m.Shards()) {
		t.Fatalf("%d keys meet shards %v only", n, slices.Sorted(maps.Keys(shards)))
	}
	return keys
}
