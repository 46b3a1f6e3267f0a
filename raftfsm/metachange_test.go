package raftfsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/shard"
)

// testState has nodes n1, n2, n3 with meta replicas 1, 2, 3, and three shards on all of them: replicas 4 to 12.
func testState(t *testing.T) *ClusterState {
	t.Helper()
	nodes := []shard.Node{{ID: "n1", Address: "n1:1", Incarnation: 5}, {ID: "n2", Address: "n2:1", Incarnation: 6}, {ID: "n3", Address: "n3:1", Incarnation: 7}}
	m, err := shard.Initial(nodes, 3, 3, 4)
	if err != nil {
		t.Fatal(err)
	}
	return &ClusterState{ClusterID: "c", FormatLevel: 1, Map: m, NextReplica: 13,
		Meta: []Member{{"n1", 1, true}, {"n2", 2, true}, {"n3", 3, true}}}
}

// metaApply sends an entry through its encoding to a machine.
func metaApply(t *testing.T, m *metaMachine, ent *metaEntry) error {
	t.Helper()
	data, err := encodeMetaEntry(ent)
	if err != nil {
		t.Fatal(err)
	}
	response, err := m.apply(1, data)
	if err != nil {
		t.Fatal(err)
	}
	refused, _ := response.(error)
	return refused
}

func newTestMachine(t *testing.T) *metaMachine {
	t.Helper()
	m := newMetaMachine(func() {})
	if err := metaApply(t, m, &metaEntry{Kind: metaInit, State: testState(t)}); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestReplaceAReplica(t *testing.T) {
	m := newTestMachine(t)
	before := m.state.Load()
	old, _ := before.MemberOn(2, "n2")
	if err := metaApply(t, m, &metaEntry{Kind: metaReplace, Group: 2, Replica: old.Replica}); err != nil {
		t.Fatal(err)
	}
	s := m.state.Load()
	got, _ := s.MemberOn(2, "n2")
	if got != (Member{Node: "n2", Replica: 13}) || s.NextReplica != 14 || s.Map.Epoch() != before.Map.Epoch()+1 {
		t.Errorf("%+v, next %d, epoch %d", got, s.NextReplica, s.Map.Epoch())
	}
	described, _ := s.Map.Shard(2)
	if described.Preferred == "n2" {
		t.Error("the shard still prefers a node without a voter")
	}
	// The same order again comes from somebody who has not heard of the first.
	if err := metaApply(t, m, &metaEntry{Kind: metaReplace, Group: 2, Replica: old.Replica}); !errors.Is(err, ErrStaleReplica) || m.state.Load() != s {
		t.Errorf("again: %v", err)
	}
	for range 2 { // idempotent
		if err := metaApply(t, m, &metaEntry{Kind: metaPromoted, Group: 2, Replica: 13}); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := m.state.Load().MemberOn(2, "n2"); !got.Voter {
		t.Error("promoted, but no voter")
	}
	if epoch := m.state.Load().Map.Epoch(); epoch != s.Map.Epoch()+1 {
		t.Errorf("epoch %d after one change of %d", epoch, s.Map.Epoch())
	}
	for _, ent := range []metaEntry{{Kind: metaPromoted, Group: 2, Replica: old.Replica}, {Kind: metaPromoted, Group: 9, Replica: 1}, {Kind: metaReplace, Group: 9, Replica: 1}} {
		if err := metaApply(t, m, &ent); !errors.Is(err, ErrStaleReplica) || !errors.Is(err, ErrBadMeta) {
			t.Errorf("%+v: %v", ent, err)
		}
	}
}

func TestReplaceAMetaReplica(t *testing.T) {
	m := newTestMachine(t)
	for i, old := range []shard.ReplicaID{1, 2} {
		if err := metaApply(t, m, &metaEntry{Kind: metaReplace, Replica: old}); err != nil {
			t.Fatal(err)
		}
		if got, _ := m.state.Load().MemberOn(shard.MetaGroup, shard.NodeID(fmt.Sprint("n", i+1))); got.Replica != shard.ReplicaID(13+i) || got.Voter {
			t.Errorf("%+v", got)
		}
	}
	if err := metaApply(t, m, &metaEntry{Kind: metaReplace, Replica: 3}); !errors.Is(err, ErrLastVoter) {
		t.Errorf("the last voter: %v", err)
	}
	if err := metaApply(t, m, &metaEntry{Kind: metaPromoted, Replica: 13}); err != nil {
		t.Fatal(err)
	}
	if err := metaApply(t, m, &metaEntry{Kind: metaReplace, Replica: 3}); err != nil {
		t.Errorf("with another voter: %v", err)
	}
}

// A node that lost everything gets fresh ids for all that it held, in another life; and afterwards the shards' preferences
// are even again.
func TestRejoin(t *testing.T) {
	m := newTestMachine(t)
	before := m.state.Load()
	rejoin := &metaEntry{Kind: metaRejoin, Node: "n3", Address: "n3:2", Incarnation: 7}
	if err := metaApply(t, m, rejoin); err != nil {
		t.Fatal(err)
	}
	s := m.state.Load()
	groups := s.GroupsOn("n3")
	if !slices.Equal(groups, []shard.ID{0, 1, 2, 3}) || s.NextReplica != 17 {
		t.Errorf("groups %v, next %d", groups, s.NextReplica)
	}
	ids := make(map[shard.ReplicaID]bool)
	for _, g := range groups {
		got, _ := s.MemberOn(g, "n3")
		if got.Voter || got.Replica < before.NextReplica || ids[got.Replica] {
			t.Errorf("shard %d: %+v", g, got)
		}
		ids[got.Replica] = true
		for _, node := range []shard.NodeID{"n1", "n2"} {
			now, _ := s.MemberOn(g, node)
			if was, _ := before.MemberOn(g, node); now != was {
				t.Errorf("shard %d on %s: %+v was %+v", g, node, now, was)
			}
		}
	}
	node, _ := s.Map.Node("n3")
	if node.Address != "n3:2" || node.Incarnation != shard.NextLife(7) {
		t.Errorf("%+v", node)
	}
	for _, described := range s.Map.Shards() {
		if described.Preferred == "n3" {
			t.Errorf("shard %d prefers n3", described.ID)
		}
	}
	if err := metaApply(t, m, rejoin); !errors.Is(err, ErrStaleReplica) {
		t.Errorf("again: %v", err)
	}
	// What its former life still says of itself counts no more.
	if err := metaApply(t, m, &metaEntry{Kind: metaSetNode, Node: "n3", Address: "old:1", Incarnation: 9999}); err != nil || m.state.Load() != s {
		t.Errorf("an old life's address: %v", err)
	}
	for g := range ids {
		group := slices.IndexFunc(groups, func(id shard.ID) bool { held, _ := s.MemberOn(id, "n3"); return held.Replica == g })
		if err := metaApply(t, m, &metaEntry{Kind: metaPromoted, Group: groups[group], Replica: g}); err != nil {
			t.Fatal(err)
		}
	}
	prefers := make(map[shard.NodeID]int)
	for _, described := range m.state.Load().Map.Shards() {
		prefers[described.Preferred]++
	}
	if prefers["n1"] != 1 || prefers["n2"] != 1 || prefers["n3"] != 1 {
		t.Errorf("preferences %v", prefers)
	}
	if err := metaApply(t, m, &metaEntry{Kind: metaRejoin, Node: "n9", Incarnation: 7}); !errors.Is(err, ErrBadMeta) {
		t.Errorf("an unknown node: %v", err)
	}
}

// A cluster rebuilt from one node: it alone votes, everything else is fresh, and the others begin another life.
func TestRecoveredState(t *testing.T) {
	before := testState(t)
	survivors := make(map[shard.ID]Survivor)
	for _, g := range before.GroupsOn("n2") {
		held, _ := before.MemberOn(g, "n2")
		survivors[g] = Survivor{Node: "n2", Replica: held.Replica}
	}
	survivors[3] = Survivor{Node: "n2"} // nothing is left of it
	after, err := before.Recovered("another", survivors, []shard.NodeID{"n2"})
	if err != nil {
		t.Fatal(err)
	}
	if after.ClusterID != "another" || after.Map.Epoch() <= before.Map.Epoch() {
		t.Errorf("cluster %s, epoch %d", after.ClusterID, after.Map.Epoch())
	}
	seen := make(map[shard.ReplicaID]bool)
	for _, node := range before.Map.Nodes() {
		for _, g := range before.GroupsOn(node.ID) {
			was, _ := before.MemberOn(g, node.ID)
			now, _ := after.MemberOn(g, node.ID)
			kept := node.ID == "n2" && g != 3
			if now.Voter != (node.ID == "n2") || (now.Replica == was.Replica) != kept || !kept && now.Replica < before.NextReplica || seen[now.Replica] {
				t.Errorf("shard %d on %s: %+v was %+v", g, node.ID, now, was)
			}
			seen[now.Replica] = true
		}
		now, _ := after.Map.Node(node.ID)
		if reborn := shard.Life(now.Incarnation) > shard.Life(node.Incarnation); reborn != (node.ID != "n2") {
			t.Errorf("%s: incarnation %#x was %#x", node.ID, now.Incarnation, node.Incarnation)
		}
	}
	for _, s := range after.Map.Shards() {
		if s.Preferred != "n2" {
			t.Errorf("shard %d prefers %s", s.ID, s.Preferred)
		}
	}
	delete(survivors, 2)
	if _, err := before.Recovered("another", survivors, []shard.NodeID{"n2"}); !errors.Is(err, ErrBadMeta) {
		t.Errorf("a shard nobody goes on with: %v", err)
	}
}

// All of the state comes back from a snapshot.
func TestMetaSnapshot(t *testing.T) {
	m := newTestMachine(t)
	frozen, err := m.freeze(7)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := frozen.persist(&b); err != nil {
		t.Fatal(err)
	}
	restored := newMetaMachine(func() {})
	index, err := restored.restore(&b)
	if err != nil || index != 7 {
		t.Fatalf("index %d, %v", index, err)
	}
	got, want := restored.state.Load(), m.state.Load()
	if got.NextReplica != want.NextReplica || !slices.Equal(got.Meta, want.Meta) || got.Map.Epoch() != want.Map.Epoch() {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestUnknownMetaKindStops(t *testing.T) {
	m := newTestMachine(t)
	data, err := encodeMetaEntry(&metaEntry{Kind: 200})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.apply(1, data); !errors.Is(err, ErrUnknownEntry) {
		t.Errorf("%v", err)
	}
}

// metaCluster lets the meta group look after itself, as on a real node.
type metaCluster struct {
	*memberTest
	on *testNode
}

func (c metaCluster) State() *ClusterState {
	if m := c.on.answering.Load().Meta(); m != nil {
		return m.State()
	}
	return nil
}

// The meta group replaces its own replicas, and gives the vote to whoever has caught up first, up to its bound.
func TestMetaReplicaReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes = 7
		c := &memberTest{testCluster: newTestCluster(t, nodes, nodes, 0, nil)}
		seed := testState(t)
		seed.Meta = nil
		var described []shard.Node
		for i, n := range c.nodes {
			seed.Meta = append(seed.Meta, Member{Node: n.id, Replica: shard.ReplicaID(100 + i), Voter: i < MetaVotersMax})
			described = append(described, shard.Node{ID: n.id, Address: string(n.id)})
		}
		var err error
		if seed.Map, err = shard.Initial(described, 1, 3, 4); err != nil {
			t.Fatal(err)
		}
		seed.NextReplica = 200
		for i, n := range c.nodes {
			n.host.SetCluster(metaCluster{c, n})
			if err := n.host.Bootstrap(shard.MetaGroup, seed.Meta[i].Replica, seed.Meta); err != nil {
				t.Fatal(err)
			}
			if _, err := n.host.StartMeta(seed.Meta[i].Replica, seed); err != nil {
				t.Fatal(err)
			}
		}
		var lead *testNode
		c.eventually("the meta group has a leader", func() bool {
			for _, n := range c.nodes {
				if m := n.host.Meta(); m != nil && m.IsLeader() && m.State() != nil {
					lead = n
					return true
				}
			}
			return false
		})
		lost := c.nodes[0]
		if lost == lead {
			lost = c.nodes[1]
		}
		old, _ := lead.host.Meta().State().MemberOn(shard.MetaGroup, lost.id)
		if err := lost.host.Drop(shard.MetaGroup); err != nil {
			t.Fatal(err)
		}
		if err := lead.host.Spare(shard.MetaGroup, old.Replica); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := background()
		defer cancel()
		s, err := lead.host.Meta().Replace(ctx, shard.MetaGroup, old.Replica)
		if err != nil {
			t.Fatal(err)
		}
		fresh, _ := s.MemberOn(shard.MetaGroup, lost.id)
		if err := lost.disks.Remove(shard.MetaGroup, old.Replica); err != nil {
			t.Fatal(err)
		}
		settled := make(chan struct{})
		if _, err := lost.host.StartMetaJoiner(fresh.Replica, func() error { close(settled); return nil }); err != nil {
			t.Fatal(err)
		}
		<-settled
		c.eventually("the fresh one has the state", func() bool {
			m := lost.host.Meta().State()
			return m != nil && m.Map.Epoch() >= s.Map.Epoch()
		})
		c.eventually("five vote", func() bool {
			voters := 0
			for _, m := range lead.host.Meta().State().Meta {
				if m.Voter {
					voters++
				}
			}
			return voters == MetaVotersMax
		})
		time.Sleep(time.Minute)
		voters := 0
		for _, m := range lead.host.Meta().State().Meta {
			got := c.node(m.Node).host.Standing(shard.MetaGroup, m.Replica)
			if !got.Running || got.Voter != m.Voter {
				t.Errorf("%+v stands as %+v", m, got)
			}
			if m.Voter {
				voters++
			}
		}
		if voters != MetaVotersMax {
			t.Errorf("%d voters", voters)
		}
	})
}

// Promoted implements Cluster.
func (c metaCluster) Promoted(ctx context.Context, group shard.ID, id shard.ReplicaID) error {
	return c.on.host.Meta().Promoted(ctx, group, id)
}
