package server

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// TestCalls sends one call after another to one key and compares whole answers.
func TestCalls(t *testing.T) {
	f := serve(t, newFakeNode(t))
	ctx := t.Context()
	k, n := []byte("k"), []byte("n")
	ifAbsent := &ostrakapb.Condition{Condition: &ostrakapb.Condition_IfAbsent{IfAbsent: true}}
	ifExists := &ostrakapb.Condition{Condition: &ostrakapb.Condition_IfExists{IfExists: true}}
	ifVersion := func(v uint64) *ostrakapb.Condition {
		return &ostrakapb.Condition{Condition: &ostrakapb.Condition_IfVersion{IfVersion: v}}
	}
	prev := func(value string, version uint64) *ostrakapb.Previous {
		return &ostrakapb.Previous{Found: true, Value: []byte(value), Version: version}
	}
	for i, step := range []struct {
		request proto.Message
		want    proto.Message
	}{
		{&ostrakapb.GetRequest{Key: k}, &ostrakapb.GetResponse{}},
		{&ostrakapb.TTLRequest{Key: k}, &ostrakapb.TTLResponse{}},
		{&ostrakapb.TouchRequest{Key: k}, &ostrakapb.TouchResponse{}},
		{&ostrakapb.PersistRequest{Key: k}, &ostrakapb.PersistResponse{}},
		{&ostrakapb.ExpireRequest{Key: k, TtlMs: 1}, &ostrakapb.ExpireResponse{}},
		{&ostrakapb.CompareAndSetRequest{Key: k, New: []byte("x")}, &ostrakapb.CompareAndSetResponse{}},
		{&ostrakapb.DeleteRequest{Key: k}, &ostrakapb.DeleteResponse{ConditionMet: true}},
		{&ostrakapb.DeleteRequest{Key: k, Condition: ifExists}, &ostrakapb.DeleteResponse{}},
		{&ostrakapb.DeleteRequest{Key: k, ReturnPrevious: true}, &ostrakapb.DeleteResponse{ConditionMet: true, Previous: &ostrakapb.Previous{}}},
		{&ostrakapb.SetRequest{Key: k, Value: []byte("v"), Condition: ifExists}, &ostrakapb.SetResponse{}},
		{&ostrakapb.SetRequest{Key: k, Value: []byte("v"), Condition: ifVersion(0), TtlMs: 5000}, &ostrakapb.SetResponse{Done: true, Version: 1}},
		{&ostrakapb.GetRequest{Key: k}, &ostrakapb.GetResponse{Found: true, Value: []byte("v"), Version: 1, TtlMs: 5000}},
		{&ostrakapb.GetRequest{Key: k, Level: ostrakapb.ReadLevel_READ_LEVEL_STALE}, &ostrakapb.GetResponse{Found: true, Value: []byte("v"), Version: 1, TtlMs: 5000}},
		{&ostrakapb.TTLRequest{Key: k}, &ostrakapb.TTLResponse{Found: true, Version: 1, TtlMs: 5000, ValueSize: 1}},
		{&ostrakapb.SetRequest{Key: k, Value: []byte("w"), Condition: ifAbsent, ReturnPrevious: true}, &ostrakapb.SetResponse{Version: 1, Previous: prev("v", 1)}},
		{&ostrakapb.SetRequest{Key: k, Value: []byte("w"), KeepTtl: true, ReturnPrevious: true}, &ostrakapb.SetResponse{Done: true, Version: 2, Previous: prev("v", 1)}},
		{&ostrakapb.PersistRequest{Key: k}, &ostrakapb.PersistResponse{Found: true, Version: 3}},
		{&ostrakapb.PersistRequest{Key: k}, &ostrakapb.PersistResponse{Found: true, Version: 3}},
		{&ostrakapb.ExpireRequest{Key: k, TtlMs: 70}, &ostrakapb.ExpireResponse{Found: true, Version: 4}},
		{&ostrakapb.TouchRequest{Key: k}, &ostrakapb.TouchResponse{Found: true, Version: 5}},
		{&ostrakapb.AppendRequest{Key: k, Value: []byte("xyz")}, &ostrakapb.AppendResponse{Length: 4, Version: 6}},
		{&ostrakapb.CompareAndSetRequest{Key: k, Old: []byte("w"), New: []byte("z")}, &ostrakapb.CompareAndSetResponse{Found: true, Version: 6}},
		{&ostrakapb.CompareAndSetRequest{Key: k, Old: []byte("wxyz"), New: []byte("z")}, &ostrakapb.CompareAndSetResponse{Swapped: true, Found: true, Version: 7}},
		{&ostrakapb.TTLRequest{Key: k}, &ostrakapb.TTLResponse{Found: true, Version: 7, TtlMs: 70, ValueSize: 1}},
		{&ostrakapb.DeleteRequest{Key: k, Condition: ifVersion(6)}, &ostrakapb.DeleteResponse{Version: 7}},
		{&ostrakapb.DeleteRequest{Key: k, ReturnPrevious: true}, &ostrakapb.DeleteResponse{Deleted: true, ConditionMet: true, Previous: prev("z", 7)}},
		{&ostrakapb.SetRequest{Key: k}, &ostrakapb.SetResponse{Done: true, Version: 9}},
		{&ostrakapb.GetRequest{Key: k}, &ostrakapb.GetResponse{Found: true, Version: 9}},
		{&ostrakapb.IncrementRequest{Key: n, Delta: -3}, &ostrakapb.IncrementResponse{Value: -3, Version: 1}},
		{&ostrakapb.IncrementRequest{Key: n, Delta: 5}, &ostrakapb.IncrementResponse{Value: 2, Version: 2}},
	} {
		got, err := call(ctx, f.kv, step.request)
		if err != nil {
			t.Fatalf("step %d, %T: %v", i, step.request, err)
		}
		if !proto.Equal(got, step.want) {
			t.Fatalf("step %d, %T{%v}:\n got %v\nwant %v", i, step.request, step.request, got, step.want)
		}
	}
}

// call sends a request to the method that takes it.
func call(ctx context.Context, kv ostrakapb.KVClient, request proto.Message) (proto.Message, error) {
	switch r := request.(type) {
	case *ostrakapb.GetRequest:
		return kv.Get(ctx, r)
	case *ostrakapb.TTLRequest:
		return kv.TTL(ctx, r)
	case *ostrakapb.SetRequest:
		return kv.Set(ctx, r)
	case *ostrakapb.DeleteRequest:
		return kv.Delete(ctx, r)
	case *ostrakapb.CompareAndSetRequest:
		return kv.CompareAndSet(ctx, r)
	case *ostrakapb.IncrementRequest:
		return kv.Increment(ctx, r)
	case *ostrakapb.AppendRequest:
		return kv.Append(ctx, r)
	case *ostrakapb.ExpireRequest:
		return kv.Expire(ctx, r)
	case *ostrakapb.PersistRequest:
		return kv.Persist(ctx, r)
	case *ostrakapb.TouchRequest:
		return kv.Touch(ctx, r)
	case *ostrakapb.BatchRequest:
		return kv.Batch(ctx, r)
	case *ostrakapb.ScanRequest:
		return kv.Scan(ctx, r)
	}
	panic("no method takes it")
}

func TestRefusedForWhatTheKeyHolds(t *testing.T) {
	node := newFakeNode(t)
	node.limits.ValueBytesMax = 8
	f := serve(t, node)
	ctx := t.Context()
	set := func(value string) {
		t.Helper()
		if _, err := f.kv.Set(ctx, &ostrakapb.SetRequest{Key: []byte("k"), Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	set("abc")
	_, err := f.kv.Increment(ctx, &ostrakapb.IncrementRequest{Key: []byte("k"), Delta: 1})
	if d := wantReason(t, err, ostrakapb.Reason_REASON_NOT_INTEGER); d.GetOutcome() != notDone || d.GetShard() == 0 || d.GetEpoch() != 5 {
		t.Errorf("detail %v", d)
	}
	_, err = f.kv.Append(ctx, &ostrakapb.AppendRequest{Key: []byte("k"), Value: []byte("123456")})
	if d := wantReason(t, err, ostrakapb.Reason_REASON_LIMIT); d.GetLimit() != store.LimitValueBytes || d.GetLimitMax() != 8 {
		t.Errorf("detail %v", d)
	}
	set("1")
	_, err = f.kv.Increment(ctx, &ostrakapb.IncrementRequest{Key: []byte("k"), Delta: 1<<63 - 1})
	wantReason(t, err, ostrakapb.Reason_REASON_OVERFLOW)
	got, err := f.kv.Get(ctx, &ostrakapb.GetRequest{Key: []byte("k")})
	if err != nil || string(got.GetValue()) != "1" || got.GetVersion() != 2 {
		t.Errorf("after refusals: %v, %v", got, err)
	}
}

// TestRefusedBeforeAnything sends what must be refused, and makes sure that no replica ever heard of it.
func TestRefusedBeforeAnything(t *testing.T) {
	node := newFakeNode(t)
	node.limits.KeyBytesMax, node.limits.ValueBytesMax = 10, 100
	f := serve(t, node)
	k := []byte("k")
	tooLong, tooLarge := bytes.Repeat([]byte("k"), 11), make([]byte, 101)
	client := &ostrakapb.Header{ClientId: make([]byte, 15), Request: 1}
	unnumbered := &ostrakapb.Header{ClientId: make([]byte, 16)}
	unborn := &ostrakapb.Header{ClientId: make([]byte, 16), Request: 1, SessionBorn: -1}
	above := &ostrakapb.Header{ClientId: make([]byte, 16), Request: 1, SessionBorn: 1, LowestUnanswered: 2}
	ifAbsent := &ostrakapb.Condition{Condition: &ostrakapb.Condition_IfAbsent{}}
	for name, c := range map[string]struct {
		request proto.Message
		reason  ostrakapb.Reason
		names   string // the limit or the field
	}{
		"no key":             {&ostrakapb.GetRequest{}, ostrakapb.Reason_REASON_INVALID, "key"},
		"no key, write":      {&ostrakapb.SetRequest{}, ostrakapb.Reason_REASON_INVALID, "key"},
		"long key":           {&ostrakapb.GetRequest{Key: tooLong}, ostrakapb.Reason_REASON_LIMIT, "key_bytes_max"},
		"long key, ttl":      {&ostrakapb.TTLRequest{Key: tooLong}, ostrakapb.Reason_REASON_LIMIT, "key_bytes_max"},
		"long key, write":    {&ostrakapb.TouchRequest{Key: tooLong}, ostrakapb.Reason_REASON_LIMIT, "key_bytes_max"},
		"large value":        {&ostrakapb.SetRequest{Key: k, Value: tooLarge}, ostrakapb.Reason_REASON_LIMIT, "value_bytes_max"},
		"large append":       {&ostrakapb.AppendRequest{Key: k, Value: tooLarge}, ostrakapb.Reason_REASON_LIMIT, "value_bytes_max"},
		"large old":          {&ostrakapb.CompareAndSetRequest{Key: k, Old: tooLarge}, ostrakapb.Reason_REASON_LIMIT, "value_bytes_max"},
		"negative ttl":       {&ostrakapb.SetRequest{Key: k, TtlMs: -1}, ostrakapb.Reason_REASON_INVALID, "ttl_ms"},
		"two ttls":           {&ostrakapb.SetRequest{Key: k, TtlMs: 1, KeepTtl: true}, ostrakapb.Reason_REASON_INVALID, "keep_ttl"},
		"endless ttl":        {&ostrakapb.SetRequest{Key: k, TtlMs: 1<<63 - 1}, ostrakapb.Reason_REASON_INVALID, "ttl_ms"},
		"endless ttl, later": {&ostrakapb.ExpireRequest{Key: k, TtlMs: ttlMillisMax + 1}, ostrakapb.Reason_REASON_INVALID, "ttl_ms"},
		"no ttl":             {&ostrakapb.ExpireRequest{Key: k}, ostrakapb.Reason_REASON_INVALID, "ttl_ms"},
		"false condition":    {&ostrakapb.DeleteRequest{Key: k, Condition: ifAbsent}, ostrakapb.Reason_REASON_INVALID, "condition.if_absent"},
		"client id":          {&ostrakapb.SetRequest{Header: client, Key: k}, ostrakapb.Reason_REASON_INVALID, "header.client_id"},
		"client id, read":    {&ostrakapb.GetRequest{Header: client, Key: k}, ostrakapb.Reason_REASON_INVALID, "header.client_id"},
		"request number":     {&ostrakapb.SetRequest{Header: unnumbered, Key: k}, ostrakapb.Reason_REASON_INVALID, "header.request"},
		"session's birth":    {&ostrakapb.SetRequest{Header: unborn, Key: k}, ostrakapb.Reason_REASON_INVALID, "header.session_born"},
		"lowest number":      {&ostrakapb.SetRequest{Header: above, Key: k}, ostrakapb.Reason_REASON_INVALID, "header.lowest_unanswered"},
		"read level":         {&ostrakapb.GetRequest{Key: k, Level: 1}, ostrakapb.Reason_REASON_UNSUPPORTED, ""},
		"scan's level":       {&ostrakapb.ScanRequest{Shard: 1, Level: 1}, ostrakapb.Reason_REASON_UNSUPPORTED, ""},
		"scan's client id":   {&ostrakapb.ScanRequest{Shard: 1, Header: client}, ostrakapb.Reason_REASON_INVALID, "header.client_id"},
		"cursor's format":    {&ostrakapb.ScanRequest{Shard: 1, Cursor: []byte{2, 'a'}}, ostrakapb.Reason_REASON_INVALID, "cursor"},
		"truncated cursor":   {&ostrakapb.ScanRequest{Shard: 1, Cursor: []byte{1}}, ostrakapb.Reason_REASON_INVALID, "cursor"},
		"batch's client id":  {&ostrakapb.BatchRequest{Header: client}, ostrakapb.Reason_REASON_INVALID, "header.client_id"},
		"unknown shard":      {&ostrakapb.ScanRequest{Shard: 99}, ostrakapb.Reason_REASON_STALE_EPOCH, ""},
		"large batch":        {&ostrakapb.BatchRequest{Header: &ostrakapb.Header{ClientId: make([]byte, node.limits.BatchBytesMax+1)}}, ostrakapb.Reason_REASON_LIMIT, "batch_bytes_max"},
		"batch of many ops":  {&ostrakapb.BatchRequest{Ops: make([]*ostrakapb.Op, node.limits.BatchOpsMax+1)}, ostrakapb.Reason_REASON_LIMIT, "batch_ops_max"},
	} {
		_, err := call(t.Context(), f.kv, c.request)
		d := wantReason(t, err, c.reason)
		if d.GetOutcome() != notDone {
			t.Errorf("%s: outcome %v", name, d.GetOutcome())
		}
		if named := d.GetLimit() + d.GetField(); named != c.names {
			t.Errorf("%s: names %q, want %q", name, named, c.names)
		}
		if d.GetLimit() != "" && d.GetLimitGot() <= d.GetLimitMax() {
			t.Errorf("%s: %d of %d", name, d.GetLimitGot(), d.GetLimitMax())
		}
	}
	for id, r := range f.replicas {
		if len(r.ops) != 0 || r.reads != 0 {
			t.Errorf("shard %d heard of %d writes and %d reads", id, len(r.ops), r.reads)
		}
	}
}

func TestSessionAndLimitTravelWithTheWrite(t *testing.T) {
	f := serve(t, newFakeNode(t))
	id := bytes.Repeat([]byte{7}, 16)
	_, err := f.kv.Set(t.Context(), &ostrakapb.SetRequest{Key: []byte("k"),
		Header: &ostrakapb.Header{ClientId: id, Request: 12, LowestUnanswered: 9}})
	if err != nil {
		t.Fatal(err)
	}
	r := f.replicas.of(f.node.m, "k")
	want := raftfsm.Session{ClientID: [16]byte(id), Request: 12, Lowest: 9, Attempt: 1}
	if r.sessions[0] != want {
		t.Errorf("session %v, want %v", r.sessions[0], want)
	}
	if r.ops[0].ValueBytesMax != f.node.limits.ValueBytesMax {
		t.Errorf("value limit %d, want %d", r.ops[0].ValueBytesMax, f.node.limits.ValueBytesMax)
	}
}

// Whoever asks for a session is told the shard's time, and nothing else is done. Before a node knows that the cluster's level
// allows sessions it takes no writes of any.
func TestSessions(t *testing.T) {
	f := serve(t, newFakeNode(t))
	id := bytes.Repeat([]byte{7}, 16)
	set := func(h *ostrakapb.Header) *ostrakapb.SetRequest {
		return &ostrakapb.SetRequest{Key: []byte("k"), Header: h}
	}
	batched := func(h *ostrakapb.Header) *ostrakapb.ErrorDetail {
		return batchOf(t, f, &ostrakapb.Op{Op: &ostrakapb.Op_Set{Set: set(h)}})[0].GetError()
	}
	asking := func() *ostrakapb.Header { return &ostrakapb.Header{ClientId: id, Request: 1, OpenSession: true} }
	_, err := f.kv.Set(t.Context(), set(asking()))
	d := wantReason(t, err, ostrakapb.Reason_REASON_SESSION_UNKNOWN)
	if d.GetShardTimeMs() != 1_000_000 || d.GetOutcome() != notDone || d.GetShard() == 0 {
		t.Errorf("asked for a session: %v", d)
	}
	r := f.replicas.of(f.node.m, "k")
	if len(r.ops) != 0 {
		t.Fatal("it was written")
	}
	born := func() *ostrakapb.Header {
		return &ostrakapb.Header{ClientId: id, Request: 3, LowestUnanswered: 2, Attempt: 4, SessionBorn: 55}
	}
	if _, err := f.kv.Set(t.Context(), set(born())); err != nil {
		t.Fatal(err)
	}
	if want := (raftfsm.Session{ClientID: [16]byte(id), Born: 55, Request: 3, Lowest: 2, Attempt: 4}); r.sessions[0] != want {
		t.Errorf("session %v, want %v", r.sessions[0], want)
	}

	f.node.level = 1
	for _, h := range []*ostrakapb.Header{asking(), born()} {
		_, err := f.kv.Set(t.Context(), set(h))
		if d := wantReason(t, err, ostrakapb.Reason_REASON_NO_LEADER); d.GetOutcome() != notDone || d.GetRetryAfterMs() == 0 {
			t.Errorf("below the level: %v", d)
		}
	}
	if len(r.ops) != 1 {
		t.Errorf("%d writes", len(r.ops))
	}
	if _, err := f.kv.Set(t.Context(), set(&ostrakapb.Header{ClientId: id, Request: 3})); err != nil {
		t.Errorf("without a session: %v", err)
	}
	f.node.level = 0

	for _, resent := range []bool{false, true} {
		r.writeErr = &raftfsm.SessionUnknownError{Now: 77, Resent: resent}
		d := batched(nil)
		if unknown := d.GetOutcome() == outcomeUnknown; d.GetReason() != ostrakapb.Reason_REASON_SESSION_UNKNOWN || d.GetShardTimeMs() != 77 || unknown != resent {
			t.Errorf("resent %v: %v", resent, d)
		}
	}
}

// TestNodeTakesNoCalls goes through the states in which a node refuses every call on keys.
func TestNodeTakesNoCalls(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fakeNode)
		reason ostrakapb.Reason
	}{
		"blank":    {func(n *fakeNode) { n.m, n.clusterID = nil, "" }, ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED},
		"adopting": {func(n *fakeNode) { n.m, n.adopting = nil, true }, ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED},
		"starting": {func(n *fakeNode) { n.m = nil }, ostrakapb.Reason_REASON_NO_LEADER},
	} {
		t.Run(name, func(t *testing.T) {
			node := newFakeNode(t)
			c.change(node)
			f := serve(t, node)
			for _, request := range []proto.Message{&ostrakapb.GetRequest{Key: []byte("k")}, &ostrakapb.SetRequest{Key: []byte("k")},
				&ostrakapb.BatchRequest{}, &ostrakapb.ScanRequest{Shard: 1}} {
				_, err := call(t.Context(), f.kv, request)
				if d := wantReason(t, err, c.reason); d.GetOutcome() != notDone || d.GetMessage() == "" {
					t.Errorf("%T: detail %v", request, d)
				}
			}
		})
	}
}

func TestRouting(t *testing.T) {
	f := serve(t, newFakeNode(t))
	get := func(level ostrakapb.ReadLevel) error {
		_, err := f.kv.Get(t.Context(), &ostrakapb.GetRequest{Key: []byte("k"), Level: level})
		return err
	}
	id := f.node.m.ShardOf(shard.SlotOfString("k"))
	r := f.replicas[id]

	r.readErr = &raftfsm.NotLeaderError{Group: id, Leader: "n3"}
	d := wantReason(t, get(0), ostrakapb.Reason_REASON_NOT_LEADER)
	if d.GetLeaderNode() != "n3" || d.GetLeaderAddress() != "n3.test:7400" || d.GetShard() != uint32(id) || d.GetEpoch() != 5 {
		t.Errorf("not leader: %v", d)
	}
	if err := get(ostrakapb.ReadLevel_READ_LEVEL_STALE); err != nil {
		t.Errorf("a stale read of a follower: %v", err)
	}
	for _, leader := range []shard.NodeID{"", "n1"} { // nobody, or this very node
		r.readErr = &raftfsm.NotLeaderError{Group: id, Leader: leader}
		if d := wantReason(t, get(0), ostrakapb.Reason_REASON_NO_LEADER); d.GetLeaderNode() != "" || d.GetRetryAfterMs() == 0 {
			t.Errorf("leader %q: %v", leader, d)
		}
	}
	// A slot that moved away while the map here still says otherwise.
	r.readErr = nil
	r.store.Disown(uint16(shard.SlotOfString("k")))
	wantReason(t, get(0), ostrakapb.Reason_REASON_STALE_EPOCH)
	_, err := f.kv.Set(t.Context(), &ostrakapb.SetRequest{Key: []byte("k")})
	wantReason(t, err, ostrakapb.Reason_REASON_STALE_EPOCH)
	// The map says that a replica belongs here, but it does not run yet.
	delete(f.replicas, id)
	wantReason(t, get(0), ostrakapb.Reason_REASON_NO_LEADER)
	// The map says that it belongs elsewhere.
	f.node.id = "n4"
	d = wantReason(t, get(0), ostrakapb.Reason_REASON_STALE_EPOCH)
	if d.GetLeaderNode() != "n2" || d.GetLeaderAddress() != "n2.test:7400" || d.GetShard() != uint32(id) || d.GetEpoch() != 5 {
		t.Errorf("wrong node: %v", d)
	}
}

// TestReadsAreNeverOfUnknownOutcome: a read that could not log a key's expiry may simply be sent again.
func TestReadsAreNeverOfUnknownOutcome(t *testing.T) {
	f := serve(t, newFakeNode(t))
	f.replicas.of(f.node.m, "k").getErr = fmt.Errorf("%w: %w: leadership lost", raftfsm.ErrNotConfirmed, raftfsm.ErrOutcomeUnknown)
	for _, request := range []proto.Message{&ostrakapb.GetRequest{Key: []byte("k")}, &ostrakapb.TTLRequest{Key: []byte("k")}} {
		_, err := call(t.Context(), f.kv, request)
		if d := wantReason(t, err, ostrakapb.Reason_REASON_NO_LEADER); d.GetOutcome() != notDone {
			t.Errorf("%T: %v", request, d)
		}
	}
	if d := batchOf(t, f, getOps(0, "k")...)[0].GetError(); d.GetReason() != ostrakapb.Reason_REASON_NO_LEADER {
		t.Errorf("batch: %v", d)
	}
}
