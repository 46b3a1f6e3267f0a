package client

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// fakeCluster stands in for real nodes: gRPC servers over in-memory connections that share one table of keys
// and answer as leaders or not, as the test says. It has no Raft, no disk and no opinion; a node's script can
// override any answer.
type fakeCluster struct {
	t         *testing.T
	nodes     map[string]*fakeNode // by address
	clusterID string

	mu      sync.Mutex
	m       *shard.Map // nil: blank
	leaders map[shard.ID]shard.NodeID
	keys    map[string]*ostrakapb.Item
	version uint64
	// changes are what was done, by shard.
	changes map[shard.ID][]*ostrakapb.Change
	// down are the addresses that refuse connections, silent those that accept none and say nothing.
	down, silent map[string]bool
	limits       struct{ key, value int64 }
	// known is what all shards know of writes with sessions; nil: the cluster's format level has none.
	known *fakeSessions
	// unary: the nodes are of a build without the stream. Constant once a client is made.
	unary bool
}

// fakeNode is one server. It implements both services.
type fakeNode struct {
	ostrakapb.UnimplementedKVServer
	ostrakapb.UnimplementedAdminServer
	cluster  *fakeCluster
	id       shard.NodeID
	address  string
	listener *bufconn.Listener
	server   *grpc.Server

	mu sync.Mutex
	// script is asked first for each request; a nil function or (nil, nil) lets the node answer itself.
	script func(ctx context.Context, req any) (any, error)
	// seen are the requests that arrived, in order.
	seen []any
	// stops are closed to make the streams say that the node is about to stop.
	stops []chan struct{}
	conns []net.Conn
	watch fakeWatch
}

// newFakeCluster starts n nodes, n1…, with this many shards on all of them, led by n1, n2, … in turn.
func newFakeCluster(t *testing.T, nodes, shards int) *fakeCluster {
	t.Helper()
	f := &fakeCluster{
		t: t, clusterID: "c1",
		nodes: map[string]*fakeNode{}, leaders: map[shard.ID]shard.NodeID{}, keys: map[string]*ostrakapb.Item{},
		down: map[string]bool{}, silent: map[string]bool{},
	}
	var ids []shard.NodeID
	for i := range nodes {
		n := f.start(shard.NodeID(fmt.Sprintf("n%d", i+1)))
		ids = append(ids, n.id)
	}
	f.setMap(1, ids, shards)
	for i := range shards {
		f.leaders[shard.ID(i+1)] = ids[i%nodes]
	}
	return f
}

func (f *fakeCluster) start(id shard.NodeID) *fakeNode {
	n := &fakeNode{cluster: f, id: id, address: string(id) + ":7400", listener: bufconn.Listen(1 << 16)}
	n.server = grpc.NewServer(grpc.UnaryInterceptor(n.intercept), grpc.WaitForHandlers(true))
	ostrakapb.RegisterKVServer(n.server, n)
	ostrakapb.RegisterAdminServer(n.server, n)
	f.nodes[n.address] = n
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.server.Serve(n.listener)
	}()
	f.t.Cleanup(func() {
		n.server.Stop()
		<-done
	})
	return n
}

// setMap gives the cluster a map of equal ranges, every shard on all nodes, shard i preferring node i.
func (f *fakeCluster) setMap(epoch shard.Epoch, ids []shard.NodeID, shards int) {
	f.t.Helper()
	var nodes []shard.Node
	for _, id := range ids {
		nodes = append(nodes, shard.Node{ID: id, Address: string(id) + ":7400"})
	}
	var all []shard.Shard
	for i := range shards {
		s := shard.Shard{
			ID: shard.ID(i + 1), Preferred: ids[i%len(ids)],
			Ranges: []shard.Range{{From: uint16(i * shard.SlotCount / shards), To: uint16((i + 1) * shard.SlotCount / shards)}},
		}
		for j, id := range ids {
			s.Replicas = append(s.Replicas, shard.Replica{ID: shard.ReplicaID(i*len(ids) + j + 1), Node: id, Voter: true})
		}
		all = append(all, s)
	}
	m, err := shard.NewMap(epoch, nodes, all)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.m = m
	f.mu.Unlock()
}

func (f *fakeCluster) node(id shard.NodeID) *fakeNode { return f.nodes[string(id)+":7400"] }

func (f *fakeCluster) lead(id shard.ID, node shard.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaders[id] = node
}

func (f *fakeCluster) leaderOf(key string) *fakeNode {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.node(f.leaders[f.m.ShardOf(shard.SlotOf([]byte(key)))])
}

func (f *fakeCluster) refuse(id shard.NodeID, down bool) {
	f.mu.Lock()
	f.down[string(id)+":7400"] = down
	f.mu.Unlock()
	if down {
		f.node(id).reset()
	}
}

// dial is the client's dialer.
func (f *fakeCluster) dial(ctx context.Context, address string) (net.Conn, error) {
	f.mu.Lock()
	n, down, silent := f.nodes[address], f.down[address], f.silent[address]
	f.mu.Unlock()
	switch {
	case silent:
		<-ctx.Done()
		return nil, ctx.Err()
	case n == nil || down:
		return nil, fmt.Errorf("dial %s: connection refused", address)
	}
	conn, err := n.listener.DialContext(ctx)
	if err == nil {
		n.mu.Lock()
		n.conns = append(n.conns, conn)
		n.mu.Unlock()
	}
	return conn, err
}

// client makes a client of the cluster, closed with the test.
func (f *fakeCluster) client(opts ...Option) *Client {
	f.t.Helper()
	opts = append([]Option{WithDialer(f.dial), WithAttemptTimeout(300 * time.Millisecond)}, opts...)
	c, err := New(f.t.Context(), []string{"n1:7400"}, opts...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// reset breaks all connections to the node, as a killed process does.
func (n *fakeNode) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, conn := range n.conns {
		conn.Close()
	}
	n.conns = nil
}

func (n *fakeNode) play(script func(ctx context.Context, req any) (any, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.script = script
}

// requests are those seen of a type.
func requests[T any](n *fakeNode) []T {
	n.mu.Lock()
	defer n.mu.Unlock()
	var found []T
	for _, req := range n.seen {
		if r, ok := req.(T); ok {
			found = append(found, r)
		}
	}
	return found
}

func (n *fakeNode) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	n.mu.Lock()
	n.seen = append(n.seen, req)
	script := n.script
	n.mu.Unlock()
	if script != nil {
		if resp, err := script(ctx, req); resp != nil || err != nil {
			return resp, err
		}
	}
	return next(ctx, req)
}

// detailed is a status as the server makes it.
func detailed(d *ostrakapb.ErrorDetail) error {
	st, err := status.New(codes.Unavailable, "text that programs must not read").WithDetails(d)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func notDone(reason ostrakapb.Reason) *ostrakapb.ErrorDetail {
	return &ostrakapb.ErrorDetail{Reason: reason, Outcome: ostrakapb.Outcome_OUTCOME_NOT_DONE}
}

// check answers for a request that this node may not serve; nil: it may.
func (n *fakeNode) check(key []byte) *ostrakapb.ErrorDetail {
	f := n.cluster
	return n.checkShard(f.m.ShardOf(shard.SlotOf(key)))
}

func (n *fakeNode) checkShard(id shard.ID) *ostrakapb.ErrorDetail {
	f := n.cluster
	leader := f.leaders[id]
	if leader == n.id {
		return nil
	}
	d := notDone(ostrakapb.Reason_REASON_NOT_LEADER)
	d.Epoch = uint64(f.m.Epoch())
	if leader != "" {
		d.LeaderNode, d.LeaderAddress = string(leader), string(leader)+":7400"
	}
	return d
}

func (n *fakeNode) Get(_ context.Context, req *ostrakapb.GetRequest) (*ostrakapb.GetResponse, error) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	resp, d := n.get(req)
	if d != nil {
		return nil, detailed(d)
	}
	return resp, nil
}

func (n *fakeNode) get(req *ostrakapb.GetRequest) (*ostrakapb.GetResponse, *ostrakapb.ErrorDetail) {
	if req.GetLevel() != ostrakapb.ReadLevel_READ_LEVEL_STALE {
		if d := n.check(req.GetKey()); d != nil {
			return nil, d
		}
	}
	item := n.cluster.keys[string(req.GetKey())]
	if item == nil {
		return &ostrakapb.GetResponse{}, nil
	}
	return &ostrakapb.GetResponse{Found: true, Value: item.Value, Version: item.Version, TtlMs: item.TtlMs}, nil
}

func (n *fakeNode) Set(_ context.Context, req *ostrakapb.SetRequest) (*ostrakapb.SetResponse, error) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	resp, d := n.set(req)
	if d != nil {
		return nil, detailed(d)
	}
	return resp, nil
}

func (n *fakeNode) set(req *ostrakapb.SetRequest) (*ostrakapb.SetResponse, *ostrakapb.ErrorDetail) {
	if d := n.check(req.GetKey()); d != nil {
		return nil, d
	}
	return once(n.cluster, req.GetHeader(), req.GetKey(), func() *ostrakapb.SetResponse { return n.cluster.set(req) })
}

// fakeSessions keeps the results of writes for ever, but for those of sessions born up to a horizon, and forgotten numbers.
type fakeSessions struct {
	now, horizon int64
	// untold: maps come without the shards' times.
	untold    bool
	results   map[string]any
	forgotten map[uint64]bool
}

// once does a write, or knows that it is done.
func once[R any](f *fakeCluster, h *ostrakapb.Header, key []byte, do func() R) (result R, d *ostrakapb.ErrorDetail) {
	k := f.known
	if k == nil || h.GetSessionBorn() == 0 && !h.GetOpenSession() {
		return do(), nil
	}
	name := fmt.Sprint(f.m.ShardOf(shard.SlotOf(key)), h.GetClientId(), h.GetSessionBorn(), h.GetRequest())
	known, isKnown := k.results[name]
	switch {
	case h.GetSessionBorn() <= k.horizon:
		d = notDone(ostrakapb.Reason_REASON_SESSION_UNKNOWN)
		d.ShardTimeMs = k.now
		return result, d
	case k.forgotten[h.GetRequest()]:
		return result, notDone(ostrakapb.Reason_REASON_RESULT_FORGOTTEN)
	case !isKnown:
		known = do()
		k.results[name] = known
	}
	return known.(R), nil
}

// set is for holders of the cluster's mutex.
func (f *fakeCluster) set(req *ostrakapb.SetRequest) *ostrakapb.SetResponse {
	before := f.keys[string(req.GetKey())]
	resp := &ostrakapb.SetResponse{Version: before.GetVersion()}
	if req.GetReturnPrevious() && before != nil {
		resp.Previous = &ostrakapb.Previous{Found: true, Value: before.Value, Version: before.Version}
	}
	switch c := req.GetCondition().GetCondition().(type) {
	case *ostrakapb.Condition_IfAbsent:
		if before != nil {
			return resp
		}
	case *ostrakapb.Condition_IfVersion:
		if before.GetVersion() != c.IfVersion {
			return resp
		}
	}
	f.put(string(req.GetKey()), req.GetValue(), req.GetTtlMs())
	resp.Done, resp.Version = true, f.version
	return resp
}

// put is for holders of the cluster's mutex.
func (f *fakeCluster) put(key string, value []byte, ttl int64) {
	f.version++
	f.note(&ostrakapb.Change{Kind: ostrakapb.ChangeKind_CHANGE_KIND_SET, Key: []byte(key), Value: bytes.Clone(value), TtlMs: ttl})
	f.keys[key] = &ostrakapb.Item{Key: []byte(key), Value: bytes.Clone(value), Version: f.version, TtlMs: ttl}
}

func (n *fakeNode) Delete(_ context.Context, req *ostrakapb.DeleteRequest) (*ostrakapb.DeleteResponse, error) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	resp, d := n.del(req)
	if d != nil {
		return nil, detailed(d)
	}
	return resp, nil
}

func (n *fakeNode) del(req *ostrakapb.DeleteRequest) (*ostrakapb.DeleteResponse, *ostrakapb.ErrorDetail) {
	if d := n.check(req.GetKey()); d != nil {
		return nil, d
	}
	return once(n.cluster, req.GetHeader(), req.GetKey(), func() *ostrakapb.DeleteResponse { return n.cluster.del(req) })
}

// del is for holders of the cluster's mutex.
func (f *fakeCluster) del(req *ostrakapb.DeleteRequest) *ostrakapb.DeleteResponse {
	before := f.keys[string(req.GetKey())]
	if c, ok := req.GetCondition().GetCondition().(*ostrakapb.Condition_IfVersion); ok && c.IfVersion != before.GetVersion() {
		return &ostrakapb.DeleteResponse{Version: before.GetVersion()}
	}
	f.version++
	f.note(&ostrakapb.Change{Kind: ostrakapb.ChangeKind_CHANGE_KIND_DELETE, Key: req.GetKey()})
	delete(f.keys, string(req.GetKey()))
	return &ostrakapb.DeleteResponse{Deleted: before != nil, ConditionMet: true}
}

func (n *fakeNode) Batch(_ context.Context, req *ostrakapb.BatchRequest) (*ostrakapb.BatchResponse, error) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	resp := &ostrakapb.BatchResponse{}
	for _, op := range req.GetOps() {
		complete(op, req.GetHeader())
		result := &ostrakapb.OpResult{}
		var d *ostrakapb.ErrorDetail
		switch o := op.GetOp().(type) {
		case *ostrakapb.Op_Get:
			var r *ostrakapb.GetResponse
			r, d = n.get(o.Get)
			result.Result = &ostrakapb.OpResult_Get{Get: r}
		case *ostrakapb.Op_Set:
			var r *ostrakapb.SetResponse
			r, d = n.set(o.Set)
			result.Result = &ostrakapb.OpResult_Set{Set: r}
		case *ostrakapb.Op_Delete:
			var r *ostrakapb.DeleteResponse
			r, d = n.del(o.Delete)
			result.Result = &ostrakapb.OpResult_Delete{Delete: r}
		}
		if d != nil {
			result.Result = &ostrakapb.OpResult_Error{Error: d}
		}
		resp.Results = append(resp.Results, result)
	}
	return resp, nil
}

// Scan gives pages whose cursor is the last key. Every page but the first comes with an empty one before it
// where the cursor is odd, as a server's time limit would make it.
func (n *fakeNode) Scan(_ context.Context, req *ostrakapb.ScanRequest) (*ostrakapb.ScanResponse, error) {
	f := n.cluster
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := req.GetHeader(); h.GetEpoch() != uint64(f.m.Epoch()) {
		d := notDone(ostrakapb.Reason_REASON_STALE_EPOCH)
		d.Epoch = uint64(f.m.Epoch())
		return nil, detailed(d)
	}
	if d := n.checkShard(shard.ID(req.GetShard())); d != nil {
		return nil, detailed(d)
	}
	var names []string
	for k := range f.keys {
		in := f.m.ShardOf(shard.SlotOf([]byte(k))) == shard.ID(req.GetShard()) &&
			(len(req.GetEnd()) == 0 || k < string(req.GetEnd()))
		if len(req.GetCursor()) > 0 {
			in = in && k > string(req.GetCursor()[1:])
		} else {
			in = in && k >= string(req.GetStart())
		}
		if in {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	resp := &ostrakapb.ScanResponse{}
	if c := req.GetCursor(); len(c) > 0 && c[0] == 'e' { // an empty page first
		resp.Cursor = append([]byte{'p'}, c[1:]...)
		return resp, nil
	}
	for _, k := range names {
		if len(resp.Items) == int(req.GetLimit()) {
			resp.Cursor = append([]byte{'e'}, resp.Items[len(resp.Items)-1].Key...)
			break
		}
		item := f.keys[k]
		out := &ostrakapb.Item{Key: item.Key, Version: item.Version}
		if !req.GetKeysOnly() {
			out.Value = item.Value
		}
		resp.Items = append(resp.Items, out)
	}
	return resp, nil
}

func (n *fakeNode) Map(_ context.Context, req *ostrakapb.MapRequest) (*ostrakapb.MapResponse, error) {
	f := n.cluster
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		return nil, detailed(notDone(ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED))
	}
	resp := &ostrakapb.MapResponse{ClusterId: f.clusterID, KeyBytesMax: f.limits.key, ValueBytesMax: f.limits.value}
	if req.GetKnownEpoch() < uint64(f.m.Epoch()) {
		resp.Map = mapToProto(f.m)
	}
	for id, leader := range f.leaders {
		hint := &ostrakapb.LeaderHint{Shard: uint32(id), Node: string(leader)}
		if f.known != nil && !f.known.untold {
			hint.ShardTimeMs = f.known.now
		}
		resp.Leaders = append(resp.Leaders, hint)
	}
	if f.known != nil {
		resp.FormatLevel = sessionsLevel
	}
	return resp, nil
}

// mapToProto is what the server does.
func mapToProto(m *shard.Map) *ostrakapb.Map {
	p := &ostrakapb.Map{Format: mapFormat, Epoch: uint64(m.Epoch())}
	for _, n := range m.Nodes() {
		p.Nodes = append(p.Nodes, &ostrakapb.MapNode{
			Id: string(n.ID), Address: n.Address, Zone: n.Zone, Incarnation: n.Incarnation, State: uint32(n.State)})
	}
	for _, s := range m.Shards() {
		ps := &ostrakapb.MapShard{Id: uint32(s.ID), Preferred: string(s.Preferred)}
		for _, r := range s.Ranges {
			ps.Ranges = append(ps.Ranges, &ostrakapb.SlotRange{From: uint32(r.From), To: uint32(r.To)})
		}
		for _, r := range s.Replicas {
			ps.Replicas = append(ps.Replicas, &ostrakapb.MapReplica{Id: uint64(r.ID), Node: string(r.Node), Voter: r.Voter})
		}
		p.Shards = append(p.Shards, ps)
	}
	return p
}
