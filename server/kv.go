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
	watches  *watchHubs
}

func newKVService(node nodeView) *kvService {
	return &kvService{node: node, replicas: hostReplicas{node}, explain: explainer{node}, stopping: make(chan struct{}),
		panicked: func(string, []byte) {}, count: func(*ostrakapb.ErrorDetail) {},
		watches: &watchHubs{goes: func(f func()) { go f() }}}
}

// Set implements ostrakapb.KVServer.
func (s *kvService) Set(ctx context.Context, r *ostrakapb.SetRequest) (*ostrakapb.SetResponse, error) {
	return write(ctx, s, r, setOp, setResponse)
}

// Delete implements ostrakapb.KVServer.
func (s *kvService) Delete(ctx context.Context, r *ostrakapb.DeleteRequest) (*ostrakapb.DeleteResponse, error) {
	return write(ctx, s, r, deleteOp, deleteResponse)
}

// CompareAndSet implements ostrakapb.KVServer.
func (s *kvService) CompareAndSet(ctx context.Context, r *ostrakapb.CompareAndSetRequest) (*ostrakapb.CompareAndSetResponse, error) {
	return write(ctx, s, r, compareAndSetOp, compareAndSetResponse)
}

// Increment implements ostrakapb.KVServer.
func (s *kvService) Increment(ctx context.Context, r *ostrakapb.IncrementRequest) (*ostrakapb.IncrementResponse, error) {
	return write(ctx, s, r, incrementOp, incrementResponse)
}

// Append implements ostrakapb.KVServer.
func (s *kvService) Append(ctx context.Context, r *ostrakapb.AppendRequest) (*ostrakapb.AppendResponse, error) {
	return write(ctx, s, r, appendOp, appendResponse)
}

// Expire implements ostrakapb.KVServer.
func (s *kvService) Expire(ctx context.Context, r *ostrakapb.ExpireRequest) (*ostrakapb.ExpireResponse, error) {
	return write(ctx, s, r, expireOp, expireResponse)
}

// Persist implements ostrakapb.KVServer.
func (s *kvService) Persist(ctx context.Context, r *ostrakapb.PersistRequest) (*ostrakapb.PersistResponse, error) {
	return write(ctx, s, r, persistOp, persistResponse)
}

// Touch implements ostrakapb.KVServer.
func (s *kvService) Touch(ctx context.Context, r *ostrakapb.TouchRequest) (*ostrakapb.TouchResponse, error) {
	return write(ctx, s, r, touchOp, touchResponse)
}

// write carries one mutation out and translates its result.
func write[Q interface{ GetHeader() *ostrakapb.Header }, R any](ctx context.Context, s *kvService, request Q,
	fill func(*store.Op, Q) error, response func(*store.Op, store.Result) R) (answer R, err error) {
	op := new(store.Op)
	if err := fill(op, request); err != nil {
		return answer, err
	}
	session, open, err := sessionOf(request.GetHeader(), request.GetHeader())
	if err != nil {
		return answer, err
	}
	if err := s.check(op); err != nil {
		return answer, err
	}
	id, r, err := s.route(ctx, op.Key)
	if err != nil {
		return answer, err
	}
	if err := s.admitSession(r, &session, open); err != nil {
		return answer, &shardError{shard: id, err: err}
	}
	result, err := r.Write(ctx, op, session)
	if err := settled(id, op, result, err); err != nil {
		return answer, err
	}
	return response(op, result), nil
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

// found is what a key holds. value has its bytes even where nothing was found.
type found struct {
	found     bool
	value     []byte
	version   uint64
	ttlMillis int64
}

// lookUp reads a key; its value goes to dst's room.
func (r shardReader) lookUp(key, dst []byte) (found, error) {
	value, meta, ok, err := r.from.Get(key, dst)
	if err != nil {
		return found{}, readFailed(r.shard, err)
	}
	if !ok {
		return found{value: value}, nil
	}
	return found{found: true, value: value, version: uint64(meta.Version), ttlMillis: r.from.TTL(meta).Milliseconds()}, nil
}

func (r shardReader) get(key []byte) (*ostrakapb.GetResponse, error) {
	got, err := r.lookUp(key, nil)
	if err != nil {
		return nil, err
	}
	return &ostrakapb.GetResponse{Found: got.found, Value: got.value, Version: got.version, TtlMs: got.ttlMillis}, nil
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
