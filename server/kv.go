package server

import (
	"context"
	"errors"
	"fmt"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// Why a node takes no call on keys at all.
var (
	errNotBootstrapped = errors.New("this node belongs to no cluster yet: name it in `ostraka cluster bootstrap --nodes ID=ADDRESS,…`")
	// errBootstrapUnfinished: the node holds a plan, but was never told that all others do.
	errBootstrapUnfinished = errors.New("the bootstrap of this node's cluster is unfinished: run `ostraka cluster bootstrap` again as it was run before")
	// errStarting: the node belongs to a cluster, but the replica asked for does not run yet.
	errStarting = errors.New("this node is starting")
)

// kvService answers for the keys of the shards that have a replica here. A call passes
//
//	check (sizes, fields) ─► admit (deadline, node) ─► route (slot → shard → replica) ─► replica
//
// and up to the last step nothing has been done, so every refusal before it is "not done". Which error
// becomes which status is status.go's.
type kvService struct {
	ostrakapb.UnimplementedKVServer
	node     nodeView
	replicas replicaSet
	explain  explainer
	// stopping is closed when the node is about to stop: streams tell their clients.
	stopping chan struct{}
	// panicked hears of a call of a stream that panicked, count of one that failed; gate does that for the others.
	panicked func(what string, stack []byte)
	count    func(*ostrakapb.ErrorDetail)
}

func newKVService(node nodeView) *kvService {
	return &kvService{node: node, replicas: hostReplicas{node}, explain: explainer{node}, stopping: make(chan struct{}),
		panicked: func(string, []byte) {}, count: func(*ostrakapb.ErrorDetail) {}}
}

// Set implements ostrakapb.KVServer.
func (s *kvService) Set(ctx context.Context, r *ostrakapb.SetRequest) (*ostrakapb.SetResponse, error) {
	op, err := setOp(r)
	return write(ctx, s, r.GetHeader(), op, err, setResponse)
}

// Delete implements ostrakapb.KVServer.
func (s *kvService) Delete(ctx context.Context, r *ostrakapb.DeleteRequest) (*ostrakapb.DeleteResponse, error) {
	op, err := deleteOp(r)
	return write(ctx, s, r.GetHeader(), op, err, deleteResponse)
}

// CompareAndSet implements ostrakapb.KVServer.
func (s *kvService) CompareAndSet(ctx context.Context, r *ostrakapb.CompareAndSetRequest) (*ostrakapb.CompareAndSetResponse, error) {
	return write(ctx, s, r.GetHeader(), compareAndSetOp(r), nil, compareAndSetResponse)
}

// Increment implements ostrakapb.KVServer.
func (s *kvService) Increment(ctx context.Context, r *ostrakapb.IncrementRequest) (*ostrakapb.IncrementResponse, error) {
	return write(ctx, s, r.GetHeader(), incrementOp(r), nil, incrementResponse)
}

// Append implements ostrakapb.KVServer.
func (s *kvService) Append(ctx context.Context, r *ostrakapb.AppendRequest) (*ostrakapb.AppendResponse, error) {
	return write(ctx, s, r.GetHeader(), appendOp(r), nil, appendResponse)
}

// Expire implements ostrakapb.KVServer.
func (s *kvService) Expire(ctx context.Context, r *ostrakapb.ExpireRequest) (*ostrakapb.ExpireResponse, error) {
	op, err := expireOp(r)
	return write(ctx, s, r.GetHeader(), op, err, expireResponse)
}

// Persist implements ostrakapb.KVServer.
func (s *kvService) Persist(ctx context.Context, r *ostrakapb.PersistRequest) (*ostrakapb.PersistResponse, error) {
	return write(ctx, s, r.GetHeader(), persistOp(r), nil, persistResponse)
}

// Touch implements ostrakapb.KVServer.
func (s *kvService) Touch(ctx context.Context, r *ostrakapb.TouchRequest) (*ostrakapb.TouchResponse, error) {
	return write(ctx, s, r.GetHeader(), touchOp(r), nil, touchResponse)
}

// write carries one mutation out and translates its result. opErr is what was wrong with the request already.
func write[R any](ctx context.Context, s *kvService, h *ostrakapb.Header, op *store.Op, opErr error,
	response func(*store.Op, store.Result) R) (answer R, err error) {
	if opErr != nil {
		return answer, opErr
	}
	session, err := sessionOf(h, h)
	if err != nil {
		return answer, err
	}
	result, err := s.apply(ctx, op, session)
	if err != nil {
		return answer, err
	}
	return response(op, result), nil
}

// apply checks, routes and carries out one mutation. A lost condition and a missing key are results.
func (s *kvService) apply(ctx context.Context, op *store.Op, session raftfsm.Session) (store.Result, error) {
	id, r, err := s.prepare(ctx, op)
	if err != nil {
		return store.Result{}, err
	}
	result, err := r.Write(ctx, op, session)
	if err := settled(id, op, result, err); err != nil {
		return store.Result{}, err
	}
	return result, nil
}

// prepare checks and routes one mutation.
func (s *kvService) prepare(ctx context.Context, op *store.Op) (shard.ID, replica, error) {
	limits := s.node.Limits()
	if err := checkOp(op, limits.store()); err != nil {
		return 0, nil, err
	}
	// The leader's limit travels with the op: an append must end the same on every replica.
	op.ValueBytesMax = limits.ValueBytesMax
	return s.route(ctx, op.Key)
}

// Get implements ostrakapb.KVServer.
func (s *kvService) Get(ctx context.Context, r *ostrakapb.GetRequest) (*ostrakapb.GetResponse, error) {
	from, err := s.readKey(ctx, r.GetHeader(), r.GetKey(), r.GetLevel())
	if err != nil {
		return nil, err
	}
	return from.get(r.GetKey())
}

// TTL implements ostrakapb.KVServer.
func (s *kvService) TTL(ctx context.Context, r *ostrakapb.TTLRequest) (*ostrakapb.TTLResponse, error) {
	from, err := s.readKey(ctx, r.GetHeader(), r.GetKey(), r.GetLevel())
	if err != nil {
		return nil, err
	}
	return from.ttl(r.GetKey())
}

// readKey checks and routes a read of one key and returns its shard's memory, ready to be read at the level.
func (s *kvService) readKey(ctx context.Context, h *ostrakapb.Header, key []byte, asked ostrakapb.ReadLevel) (shardReader, error) {
	level, err := readLevel(asked)
	if err != nil {
		return shardReader{}, err
	}
	if err := checkClient(h); err != nil {
		return shardReader{}, err
	}
	if err := s.node.Limits().store().CheckKey(key); err != nil {
		return shardReader{}, err
	}
	id, r, err := s.route(ctx, key)
	if err != nil {
		return shardReader{}, err
	}
	return openReader(ctx, id, r, level)
}

// shardReader reads one shard's memory and puts it into answers.
type shardReader struct {
	shard shard.ID
	from  reader
}

func openReader(ctx context.Context, id shard.ID, r replica, level raftfsm.ReadLevel) (shardReader, error) {
	from, err := r.read(ctx, level)
	if err != nil {
		return shardReader{}, readFailed(id, err)
	}
	return shardReader{shard: id, from: from}, nil
}

// readFailed places the error of a read. A read may have to log that a key expired; whether that came through
// is nothing to its caller, who asked for no change and may ask again.
func readFailed(id shard.ID, err error) error {
	if errors.Is(err, raftfsm.ErrOutcomeUnknown) {
		err = fmt.Errorf("%w: %v", raftfsm.ErrNotConfirmed, err)
	}
	return &shardError{shard: id, err: err}
}

func (r shardReader) get(key []byte) (*ostrakapb.GetResponse, error) {
	value, meta, ok, err := r.from.Get(key, nil)
	if err != nil {
		return nil, readFailed(r.shard, err)
	}
	if !ok {
		return &ostrakapb.GetResponse{}, nil
	}
	return &ostrakapb.GetResponse{Found: true, Value: value, Version: uint64(meta.Version),
		TtlMs: r.from.TTL(meta).Milliseconds()}, nil
}

func (r shardReader) ttl(key []byte) (*ostrakapb.TTLResponse, error) {
	meta, ok, err := r.from.Peek(key)
	if err != nil {
		return nil, readFailed(r.shard, err)
	}
	if !ok {
		return &ostrakapb.TTLResponse{}, nil
	}
	return &ostrakapb.TTLResponse{Found: true, Version: uint64(meta.Version), TtlMs: r.from.TTL(meta).Milliseconds(),
		ValueSize: int64(meta.ValueBytes)}, nil
}

// admit returns the map to route by, unless the call is too late or the node takes none. A draining node serves each
// shard until it has handed it over; from then on the shard's replica here names the new leader.
func (s *kvService) admit(ctx context.Context) (*shard.Map, error) {
	if err := overdue(ctx); err != nil {
		return nil, err
	}
	if m := s.node.Map(); m != nil {
		return m, nil
	}
	return nil, whyNoMap(s.node)
}

func (s *kvService) route(ctx context.Context, key []byte) (shard.ID, replica, error) {
	m, err := s.admit(ctx)
	if err != nil {
		return 0, nil, err
	}
	id := m.ShardOf(shard.SlotOf(key))
	r, err := s.find(m, id)
	return id, r, err
}

// find returns the replica of a shard here. Where there is none the caller's map is out of date, or it just
// asked the wrong node: it is told the epoch and the shard's preferred leader.
func (s *kvService) find(m *shard.Map, id shard.ID) (replica, error) {
	if r, ok := s.replicas.replica(id); ok {
		return r, nil
	}
	if _, planned := m.ReplicaOn(id, s.node.NodeID()); planned {
		return nil, &shardError{shard: id, err: errStarting}
	}
	described, known := m.Shard(id)
	if !known {
		return nil, &shardError{shard: id, err: fmt.Errorf("%w: there is no such shard at epoch %d", shard.ErrStaleEpoch, m.Epoch())}
	}
	return nil, &shardError{shard: id, hint: described.Preferred,
		err: fmt.Errorf("%w: node %s holds no replica at epoch %d", shard.ErrStaleEpoch, s.node.NodeID(), m.Epoch())}
}
