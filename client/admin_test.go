package client

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

func (f *fakeCluster) admin(endpoints ...string) *Admin {
	f.t.Helper()
	a, err := NewAdmin(endpoints, WithDialer(f.dial), WithTimeout(time.Second))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { a.Close() })
	return a
}

func TestBootstrap(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	spec := BootstrapSpec{Nodes: []NodeSpec{{"n1", "n1:7400", "a"}, {"n2", "n2:7400", "b"}}, Shards: 4}
	var tries atomic.Int32
	f.node("n1").play(func(_ context.Context, req any) (any, error) {
		if tries.Add(1) <= 2 { // the other node has not started yet
			return nil, detailed(notDone(ostrakapb.Reason_REASON_NO_LEADER))
		}
		r := req.(*ostrakapb.BootstrapRequest)
		if len(r.Nodes) != 2 || r.Nodes[1].Id != "n2" || r.Nodes[1].Address != "n2:7400" || r.Nodes[1].Zone != "b" {
			t.Errorf("nodes %v", r.Nodes)
		}
		return &ostrakapb.BootstrapResponse{ClusterId: "c1", Shards: r.Shards, Replicas: 2, Already: true}, nil
	})
	got, err := f.admin("nowhere:1", "n1:7400").Bootstrap(t.Context(), spec)
	if want := (BootstrapResult{ClusterID: "c1", Shards: 4, Replicas: 2, Already: true}); err != nil || got != want {
		t.Errorf("bootstrap: %v, %v", got, err)
	}

	f.node("n2").play(func(context.Context, any) (any, error) {
		return nil, detailed(notDone(ostrakapb.Reason_REASON_ALREADY_MEMBER))
	})
	if _, err = f.admin("n2:7400").Bootstrap(t.Context(), spec); !errors.Is(err, ErrAlreadyMember) {
		t.Errorf("a node of another cluster: %v", err)
	}
	if _, err = f.admin("nowhere:1").Bootstrap(t.Context(), spec); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("nobody there: %v", err)
	}
	if _, err = f.admin("n1:7400").Bootstrap(t.Context(), BootstrapSpec{Shards: -1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("negative shards: %v", err)
	}
}

// The last round is cut off by the deadline; the error is still what the nodes had said.
func TestBootstrapTellsWhyItGaveUp(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	var tries atomic.Int32
	for _, id := range []shard.NodeID{"n1", "n2"} {
		f.node(id).play(func(ctx context.Context, req any) (any, error) {
			if tries.Add(1) <= 2 {
				d := notDone(ostrakapb.Reason_REASON_UNSPECIFIED)
				d.Message = "n3 can't be reached"
				return nil, detailed(d)
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})
	}
	_, err := f.admin("n1:7400", "n2:7400").Bootstrap(t.Context(), BootstrapSpec{Nodes: []NodeSpec{{"n1", "n1:7400", ""}}})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "n3 can't be reached") {
		t.Errorf("error %v", err)
	}
	if tries.Load() <= 2 {
		t.Errorf("%d tries: the round that is cut off never began", tries.Load())
	}
}

// One endpoint that neither refuses nor answers doesn't use up the time of the others.
func TestStatusPassesAHangingNode(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	f.silent["hole:1"] = true
	f.node("n1").play(func(ctx context.Context, _ any) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	f.node("n2").play(func(context.Context, any) (any, error) {
		return &ostrakapb.StatusResponse{ClusterId: "c1", Epoch: 3}, nil
	})
	s, err := f.admin("hole:1", "n1:7400", "n2:7400").Status(t.Context())
	if err != nil || s.Epoch != 3 {
		t.Errorf("status: %v, %v", s, err)
	}
}

// Scripts rely on these names.
func TestStatusAsJSON(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	f.node("n1").play(func(context.Context, any) (any, error) {
		return &ostrakapb.StatusResponse{
			ClusterId: "c1", Epoch: 3, FormatLevel: 1, MetaLeader: "n1",
			Nodes: []*ostrakapb.NodeStatus{{Id: "n1", Address: "n1:7400", State: "up", Incarnation: 2, FormatLevel: 1}},
			Shards: []*ostrakapb.ShardStatus{{Id: 1, Slots: 16384, Ranges: []string{"0-16383"}, Leader: "n1", Preferred: "n1", Term: 5, Keys: 6, Bytes: 7,
				Replicas: []*ostrakapb.ReplicaStatus{{Shard: 1, Replica: 9, Node: "n1", Role: "leader", Term: 5, CommitIndex: 10, AppliedIndex: 11,
					Keys: 6, Bytes: 7, Checksum: 1 << 63, Voter: true, SnapshotIndex: 8}}}},
		}, nil
	})
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(s)
	want := `{"cluster_id":"c1","epoch":3,"format_level":1,"meta_leader":"n1",` +
		`"nodes":[{"id":"n1","address":"n1:7400","state":"up","incarnation":2,"format_level":1}],` +
		`"shards":[{"id":1,"slots":16384,"ranges":["0-16383"],"leader":"n1","preferred":"n1","replicas":[` +
		`{"id":9,"node":"n1","role":"leader","voter":true,"term":5,"commit_index":10,"applied_index":11,"snapshot_index":8,"keys":6,"bytes":7,"checksum":"9223372036854775808"}` +
		`],"term":5,"keys":6,"bytes":7}]}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
	empty, _ := json.Marshal(statusFromProto(&ostrakapb.StatusResponse{}))
	if want := `{"cluster_id":"","epoch":0,"format_level":0,"meta_leader":"","nodes":[],"shards":[]}`; string(empty) != want {
		t.Errorf("of a blank node: %s", empty)
	}
}

func TestMapCodec(t *testing.T) {
	f := newFakeCluster(t, 3, 7)
	again, err := mapFromProto(mapToProto(f.m))
	if err != nil || again.Epoch() != f.m.Epoch() ||
		!reflect.DeepEqual(again.Nodes(), f.m.Nodes()) || !reflect.DeepEqual(again.Shards(), f.m.Shards()) {
		t.Errorf("the map came back as %v, %v", again, err)
	}
	for name, spoil := range map[string]func(*ostrakapb.Map){
		"a newer format":       func(p *ostrakapb.Map) { p.Format = mapFormat + 1 },
		"a state out of range": func(p *ostrakapb.Map) { p.Nodes[0].State = 256 },
		"a range that wraps":   func(p *ostrakapb.Map) { p.Shards[0].Ranges[0].To += 1 << 16 },
		"an empty range":       func(p *ostrakapb.Map) { p.Shards[0].Ranges[0].To = p.Shards[0].Ranges[0].From },
		"a slot without shard": func(p *ostrakapb.Map) { p.Shards[0].Ranges[0].To-- },
		"an unknown node":      func(p *ostrakapb.Map) { p.Shards[0].Replicas[0].Node = "nobody" },
		"nothing in it":        func(p *ostrakapb.Map) { p.Nodes, p.Shards = nil, nil },
	} {
		p := mapToProto(f.m)
		spoil(p)
		if _, err := mapFromProto(p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRoutesPreferTheLeaderAndKeepWhatTheyLearnt(t *testing.T) {
	f := newFakeCluster(t, 3, 3)
	p := newPool(&config{dialer: f.dial})
	defer p.close()
	first, err := newRoutes(p, f.m, nil, map[shard.ID]shard.NodeID{1: "n3"})
	if err != nil {
		t.Fatal(err)
	}
	if got := first.shards[2].replicas[0].address; got != "n2:7400" {
		t.Errorf("shard 2 asks %s first", got)
	}
	if got := first.shards[1].leader.Load().address; got != "n3:7400" {
		t.Errorf("the hint gave leader %s", got)
	}
	first.shards[2].learn(first.shards[2].replicas[1])
	f.setMap(2, []shard.NodeID{"n1", "n2"}, 3)
	second, err := newRoutes(p, f.m, first, nil)
	if err != nil {
		t.Fatal(err)
	}
	if second.shards[1].leader.Load() != nil {
		t.Error("a leader without a replica was carried over")
	}
	if got, want := second.shards[2].leader.Load(), first.shards[2].leader.Load(); got != want || !slices.Contains(second.shards[2].replicas, want) {
		t.Errorf("shard 2 had leader %v, now %v", want, got)
	}
}
