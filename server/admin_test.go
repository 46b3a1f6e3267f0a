package server

import (
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

func TestMapAnswer(t *testing.T) {
	f := serve(t, newFakeNode(t))
	f.replicas[2].leader, f.replicas[3].leader = "n3", ""
	got, err := f.admin.Map(t.Context(), &ostrakapb.MapRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &ostrakapb.MapResponse{ClusterId: "c1", Map: encodeMap(f.node.m), KeyBytesMax: 32 << 10, ValueBytesMax: 8 << 20,
		FormatLevel: FormatLevel,
		Leaders: []*ostrakapb.LeaderHint{{Shard: 1, Node: "n1", ShardTimeMs: 1_000_000}, {Shard: 2, Node: "n3", ShardTimeMs: 1_000_000},
			{Shard: 4, Node: "n1", ShardTimeMs: 1_000_000}}}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	want.Map = nil
	for _, known := range []uint64{5, 6} { // as new as ours, or newer
		if got, err := f.admin.Map(t.Context(), &ostrakapb.MapRequest{KnownEpoch: known}); err != nil || !proto.Equal(got, want) {
			t.Errorf("known epoch %d: %v, %v", known, got, err)
		}
	}
	if got, err := f.admin.Map(t.Context(), &ostrakapb.MapRequest{KnownEpoch: 4}); err != nil || got.GetMap() == nil {
		t.Errorf("known epoch 4: %v, %v", got, err)
	}
}

func TestAdminOfABlankNode(t *testing.T) {
	node := newFakeNode(t)
	node.m, node.clusterID = nil, ""
	f := serve(t, node)
	_, err := f.admin.Map(t.Context(), &ostrakapb.MapRequest{})
	wantReason(t, err, ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED)
	got, err := f.admin.Status(t.Context(), &ostrakapb.StatusRequest{})
	if err != nil || len(got.GetNodes()) != 1 || got.GetNodes()[0].GetState() != stateBlank || got.GetNodes()[0].GetAddress() != "n1.test:7400" {
		t.Errorf("status %v, %v", got, err)
	}
	_, err = f.admin.Bootstrap(t.Context(), &ostrakapb.BootstrapRequest{})
	wantReason(t, err, ostrakapb.Reason_REASON_ALREADY_MEMBER)
	node.clusterID = "c1"
	_, err = f.admin.Map(t.Context(), &ostrakapb.MapRequest{})
	wantReason(t, err, ostrakapb.Reason_REASON_NO_LEADER)
}

func TestLocalStatus(t *testing.T) {
	f := serve(t, newFakeNode(t))
	f.replicas[2].status = raftfsm.Status{Shard: 2, Replica: 4, Role: "follower", Leader: "n3", Term: 6, Keys: 8}
	got, err := f.admin.Status(t.Context(), &ostrakapb.StatusRequest{Local: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := got.GetNodes()[0]; len(got.GetNodes()) != 1 || n.GetState() != stateUp || n.GetZone() != "a" || n.GetIncarnation() != 7 || n.GetBuild() == "" {
		t.Errorf("node %v", got.GetNodes())
	}
	if got.GetClusterId() != "c1" || got.GetEpoch() != 5 || got.GetMetaLeader() != "n1" || len(got.GetShards()) != 4 {
		t.Errorf("status %v", got)
	}
	want := &ostrakapb.ShardStatus{Id: 2, Slots: 4096, Ranges: []string{"4096-8191"}, Leader: "n3", Preferred: "n2", Term: 6, Keys: 8,
		Replicas: []*ostrakapb.ReplicaStatus{{Shard: 2, Replica: 4, Node: "n1", Role: "follower", Term: 6, Keys: 8, State: replicaCatchingUp}}}
	if !proto.Equal(got.GetShards()[1], want) {
		t.Errorf("got %v, want %v", got.GetShards()[1], want)
	}
	f.node.draining = true
	got, err = f.admin.Status(t.Context(), &ostrakapb.StatusRequest{Local: true})
	if err != nil || got.GetNodes()[0].GetState() != stateDraining {
		t.Errorf("draining: %v, %v", got.GetNodes(), err)
	}
}

// TestWholeStatus merges the parts of three nodes, of which two take turns at being something odd.
func TestWholeStatus(t *testing.T) {
	nodes := make(map[shard.NodeID]*fakeServer)
	for i, id := range []shard.NodeID{"n1", "n2", "n3"} {
		node := newFakeNode(t)
		node.id = id
		nodes[id] = serve(t, node)
		for s, r := range nodes[id].replicas {
			r.status = raftfsm.Status{Shard: s, Replica: shard.ReplicaID(3*int(s) - 2 + i), Role: "follower", Term: 4, Applied: uint64(20 + i), Keys: uint64(100 + i)}
		}
	}
	// n2 led shard 1 in term 3 and has not heard of n3, which leads it in term 5.
	deposed, leader := &nodes["n2"].replicas[1].status, &nodes["n3"].replicas[1].status
	deposed.Role, deposed.Term = roleLeader, 3
	leader.Role, leader.Term, leader.Keys = roleLeader, 5, 55
	asked := nodes["n1"]
	asked.node.conns = map[shard.NodeID]*grpc.ClientConn{"n2": nodes["n2"].conn, "n3": nodes["n3"].conn}
	status := func() (*ostrakapb.StatusResponse, []string) {
		t.Helper()
		got, err := asked.admin.Status(t.Context(), &ostrakapb.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var states []string
		for _, n := range got.GetNodes() {
			states = append(states, n.GetId()+" "+n.GetState())
		}
		return got, states
	}

	got, states := status()
	if want := []string{"n1 up", "n2 up", "n3 up"}; !slices.Equal(states, want) {
		t.Errorf("nodes %v, want %v", states, want)
	}
	if s := got.GetShards()[0]; s.GetLeader() != "n3" || s.GetTerm() != 5 || s.GetKeys() != 55 || len(s.GetReplicas()) != 3 {
		t.Errorf("shard with two leaders: %v", s)
	}
	if s := got.GetShards()[1]; s.GetLeader() != "" || s.GetKeys() != 102 || s.GetSlots() != 4096 || s.GetReplicas()[2].GetNode() != "n3" {
		t.Errorf("shard without a leader: %v", s)
	}

	nodes["n2"].node.m, nodes["n2"].node.clusterID = nil, "" // wiped
	delete(asked.node.conns, "n3")
	got, states = status()
	if want := []string{"n1 up", "n2 blank", "n3 unreachable"}; !slices.Equal(states, want) {
		t.Errorf("nodes %v, want %v", states, want)
	}
	if s := got.GetShards()[0]; len(s.GetReplicas()) != 1 || s.GetLeader() != "" {
		t.Errorf("shard of one node that answers: %v", s)
	}

	nodes["n2"].node.clusterID = "c2"
	asked.node.conns["n3"] = nodes["n2"].conn // an address that another node took over
	if _, states = status(); !slices.Equal(states, []string{"n1 up", "n2 unreachable", "n3 unreachable"}) {
		t.Errorf("strangers: %v", states)
	}
	if n := got.GetNodes()[2]; n.GetAddress() != "n3.test:7400" {
		t.Errorf("unreachable: %v", n)
	}

	nodes["n2"].grpc.Stop()
	if _, states = status(); states[1] != "n2 unreachable" {
		t.Errorf("stopped: %v", states)
	}
}
