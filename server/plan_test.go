package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
)

// testPlan is for nodes n1..n6, more than may vote in the meta group.
func testPlan(t *testing.T) *ostrakapb.BootstrapPlan {
	t.Helper()
	req := &ostrakapb.BootstrapRequest{Shards: 2, Replicas: 3}
	for i := range raftfsm.MetaVotersMax + 1 {
		req.Nodes = append(req.Nodes, &ostrakapb.NodeSpec{Id: fmt.Sprintf("n%d", i+1), Address: fmt.Sprintf("host%d:7400", i+1)})
	}
	plan, err := newPlan(req)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func TestCheckPlan(t *testing.T) {
	if err := checkPlan(testPlan(t), "n1"); err != nil {
		t.Errorf("our own plan: %v", err)
	}
	shardOf := func(p *ostrakapb.BootstrapPlan) *ostrakapb.MapShard { return p.GetMap().GetShards()[0] }
	for name, spoil := range map[string]func(*ostrakapb.BootstrapPlan){
		"newer format":       func(p *ostrakapb.BootstrapPlan) { p.Format++ },
		"no cluster":         func(p *ostrakapb.BootstrapPlan) { p.ClusterId = "" },
		"long cluster id":    func(p *ostrakapb.BootstrapPlan) { p.ClusterId = strings.Repeat("c", clusterIDBytesMax+1) },
		"no format level":    func(p *ostrakapb.BootstrapPlan) { p.FormatLevel = 0 },
		"newer format level": func(p *ostrakapb.BootstrapPlan) { p.FormatLevel = FormatLevel + 1 },
		"no map":             func(p *ostrakapb.BootstrapPlan) { p.Map = nil },
		"node id": func(p *ostrakapb.BootstrapPlan) {
			p.Map.Nodes = append(p.Map.Nodes, &ostrakapb.MapNode{Id: "a b", Address: "h:1"})
		},
		"node address":            func(p *ostrakapb.BootstrapPlan) { p.Map.Nodes[1].Address = "nowhere" },
		"this node is not named":  func(p *ostrakapb.BootstrapPlan) { p.Meta = p.Meta[1:] },
		"meta replica without id": func(p *ostrakapb.BootstrapPlan) { p.Meta[1].Id = 0 },
		"meta replica ids twice":  func(p *ostrakapb.BootstrapPlan) { p.Meta[1].Id = p.Meta[0].Id },
		"meta and shard share id": func(p *ostrakapb.BootstrapPlan) { p.Meta[1].Id = shardOf(p).Replicas[0].Id },
		"meta replica on no node": func(p *ostrakapb.BootstrapPlan) { p.Meta[1].Node = "n9" },
		"two meta replicas":       func(p *ostrakapb.BootstrapPlan) { p.Meta[1].Node = "n1" },
		"too many meta voters":    func(p *ostrakapb.BootstrapPlan) { p.Meta[raftfsm.MetaVotersMax].Voter = true },
		"no meta voters": func(p *ostrakapb.BootstrapPlan) {
			for _, r := range p.Meta {
				r.Voter = false
			}
		},
		"next id is taken":   func(p *ostrakapb.BootstrapPlan) { p.NextReplicaId-- },
		"next id is a shard": func(p *ostrakapb.BootstrapPlan) { p.NextReplicaId = uint64(len(p.Meta)) + 1 },
		"too many shards": func(p *ostrakapb.BootstrapPlan) {
			for id := uint32(3); len(p.Map.Shards) <= shardsMax; id++ {
				p.Map.Shards = append(p.Map.Shards, &ostrakapb.MapShard{Id: id, Preferred: "n1",
					Replicas: []*ostrakapb.MapReplica{{Id: p.NextReplicaId, Node: "n1", Voter: true}}})
				p.NextReplicaId++
			}
		},
		"too many replicas": func(p *ostrakapb.BootstrapPlan) {
			for i := range replicasMax + 1 {
				node := fmt.Sprintf("m%d", i)
				p.Map.Nodes = append(p.Map.Nodes, &ostrakapb.MapNode{Id: node, Address: "h:1"})
				shardOf(p).Replicas = append(shardOf(p).Replicas, &ostrakapb.MapReplica{Id: p.NextReplicaId, Node: node, Voter: true})
				p.NextReplicaId++
			}
		},
	} {
		plan := testPlan(t)
		spoil(plan)
		if err := checkPlan(plan, "n1"); !errors.Is(err, ErrBootstrapRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChoosePlan(t *testing.T) {
	const (
		blank    = ostrakapb.NodePhase_NODE_PHASE_BLANK
		adopting = ostrakapb.NodePhase_NODE_PHASE_ADOPTING
		member   = ostrakapb.NodePhase_NODE_PHASE_MEMBER
		unknown  = ostrakapb.NodePhase_NODE_PHASE_UNSPECIFIED
	)
	plan := testPlan(t)
	other := proto.CloneOf(plan)
	other.ClusterId = "other"
	found := func(phases ...ostrakapb.NodePhase) []*ostrakapb.HelloResponse {
		var all []*ostrakapb.HelloResponse
		for i, p := range phases {
			answer := &ostrakapb.HelloResponse{Self: &ostrakapb.Handshake{NodeId: fmt.Sprintf("n%d", i+1)}, Phase: p}
			if p != blank {
				answer.Plan = plan
			}
			all = append(all, answer)
		}
		return all
	}
	for name, c := range map[string]struct {
		found          []*ostrakapb.HelloResponse
		fresh, already bool
		err            error
	}{
		"all blank":              {found: found(blank, blank), fresh: true},
		"pass 1 cut off":         {found: found(adopting, blank)},
		"between the passes":     {found: found(adopting, adopting)},
		"pass 2 cut off":         {found: found(member, adopting)},
		"done":                   {found: found(member, member), already: true},
		"a wiped node":           {found: found(member, blank), err: ErrAlreadyMember},
		"a wiped node in pass 2": {found: found(adopting, member, blank), err: ErrAlreadyMember},
		"an unknown phase":       {found: found(unknown, blank), err: ErrAlreadyMember},
		"two clusters": {found: slices.Concat(found(adopting), []*ostrakapb.HelloResponse{{Plan: other, Phase: adopting}}),
			err: ErrAlreadyMember},
	} {
		got, already, err := choosePlan(plan.GetRequest(), c.found)
		if !errors.Is(err, c.err) || already != c.already {
			t.Errorf("%s: already %v, %v", name, already, err)
		}
		if err == nil && (got.GetClusterId() != plan.GetClusterId()) != c.fresh {
			t.Errorf("%s: plan of cluster %s", name, got.GetClusterId())
		}
	}
	if _, _, err := choosePlan(&ostrakapb.BootstrapRequest{Shards: 5}, found(adopting)); !errors.Is(err, ErrAlreadyMember) {
		t.Errorf("another request: %v", err)
	}
}
