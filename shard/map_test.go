package shard

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func threeNodes() []Node {
	return []Node{
		{ID: "n2", Address: "10.0.0.2:7400", Incarnation: 3},
		{ID: "n1", Address: "10.0.0.1:7400"},
		{ID: "n3", Address: "10.0.0.3:7400", State: NodeLeaving},
	}
}

// twoShards is a valid pair that uses everything: out of order, split ranges, a learner.
func twoShards() []Shard {
	return []Shard{
		{ID: 2, Ranges: []Range{{12000, SlotCount}, {4000, 8000}}, Preferred: "n1",
			Replicas: []Replica{{5, "n3", false}, {4, "n1", true}}},
		{ID: 1, Ranges: []Range{{8000, 12000}, {2000, 4000}, {0, 2000}}, Preferred: "n2",
			Replicas: []Replica{{2, "n2", true}, {1, "n1", true}, {3, "n3", true}}},
	}
}

func mustMap(t testing.TB, epoch Epoch, nodes []Node, shards []Shard) *Map {
	t.Helper()
	m, err := NewMap(epoch, nodes, shards)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMapAnswers(t *testing.T) {
	m := mustMap(t, 7, threeNodes(), twoShards())
	if m.Epoch() != 7 {
		t.Errorf("epoch %d", m.Epoch())
	}
	var names []NodeID
	for _, n := range m.Nodes() {
		names = append(names, n.ID)
	}
	if !slices.Equal(names, []NodeID{"n1", "n2", "n3"}) {
		t.Errorf("nodes %v", names)
	}
	if n, known := m.Node("n2"); !known || n.Incarnation != 3 {
		t.Errorf("n2: %v %v", n, known)
	}
	if _, known := m.Node("n4"); known {
		t.Error("n4 is known")
	}
	if shards := m.Shards(); len(shards) != 2 || shards[0].ID != 1 {
		t.Errorf("shards %v", shards)
	}
	one, known := m.Shard(1)
	if !known || !slices.Equal(one.Ranges, []Range{{0, 4000}, {8000, 12000}}) {
		t.Errorf("shard 1: %v", one)
	}
	if !slices.Equal(one.Replicas, []Replica{{1, "n1", true}, {2, "n2", true}, {3, "n3", true}}) {
		t.Errorf("replicas of shard 1: %v", one.Replicas)
	}
	if _, known := m.Shard(3); known {
		t.Error("shard 3 is known")
	}
	if m.SlotsOf(1) != 8000 || m.SlotsOf(2) != 8384 || m.SlotsOf(3) != 0 {
		t.Errorf("slots: %d %d %d", m.SlotsOf(1), m.SlotsOf(2), m.SlotsOf(3))
	}
	for slot, want := range map[Slot]ID{0: 1, 3999: 1, 4000: 2, 8000: 1, 12000: 2, 16383: 2} {
		if got := m.ShardOf(slot); got != want {
			t.Errorf("slot %d: shard %d, want %d", slot, got, want)
		}
	}
	if r, found := m.ReplicaOn(2, "n3"); !found || r != (Replica{5, "n3", false}) {
		t.Errorf("shard 2 on n3: %v %v", r, found)
	}
	if _, found := m.ReplicaOn(2, "n2"); found {
		t.Error("shard 2 is on n2")
	}
	if _, found := m.ReplicaOn(9, "n2"); found {
		t.Error("shard 9 is on n2")
	}
}

func TestMapKeepsNothingOfItsArguments(t *testing.T) {
	nodes, shards := threeNodes(), twoShards()
	m, same := mustMap(t, 1, nodes, shards), mustMap(t, 1, threeNodes(), twoShards())
	nodes[0].Address = "elsewhere"
	shards[0].Replicas[0].Voter = true
	shards[1].Ranges[0] = Range{}
	if !reflect.DeepEqual(m, same) {
		t.Error("changing the arguments changed the map")
	}
}

func TestNewMapRefuses(t *testing.T) {
	for _, tc := range []struct {
		names string // what the error has to name
		spoil func(nodes []Node, shards []Shard) (Epoch, []Node, []Shard)
	}{
		{"epoch", func(n []Node, s []Shard) (Epoch, []Node, []Shard) { return 0, n, s }},
		{"slot 0: has no owner", func(n []Node, s []Shard) (Epoch, []Node, []Shard) { return 1, n, nil }},
		{"slot 4000: has no owner", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[0].Ranges[1].From++
			return 1, n, s
		}},
		{"slot 7999 is already owned by shard 2", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[1].Ranges[0].From--
			return 1, n, s
		}},
		{"shard 1: range [16384, 16385)", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[1].Ranges = append(s[1].Ranges, Range{16384, 16385})
			return 1, n, s
		}},
		{"shard 1: range [5, 5)", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[1].Ranges = append(s[1].Ranges, Range{5, 5})
			return 1, n, s
		}},
		{"shard: id is 0", func(n []Node, s []Shard) (Epoch, []Node, []Shard) { s[0].ID = 0; return 1, n, s }},
		{"shard 1: listed twice", func(n []Node, s []Shard) (Epoch, []Node, []Shard) { s[0].ID = 1; return 1, n, s }},
		{"replica on node \"n3\": id is 0", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[0].Replicas[0].ID = 0
			return 1, n, s
		}},
		{"replica 4: id already used in shard 2", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[1].Replicas[0].ID = 4
			return 1, n, s
		}},
		{"replica 4: id already used in shard 2", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[0].Replicas[0].ID = 4
			return 1, n, s
		}},
		{"node \"n9\" is unknown", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[0].Replicas[0].Node = "n9"
			return 1, n, s
		}},
		{"node \"n1\" already holds one", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[0].Replicas[0].Node = "n1"
			return 1, n, s
		}},
		{"shard 2: preferred leader \"n3\"", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[0].Preferred = "n3" // holds a replica that doesn't vote
			return 1, n, s
		}},
		{"shard 2: preferred leader \"\"", func(n []Node, s []Shard) (Epoch, []Node, []Shard) {
			s[0].Preferred = ""
			return 1, n, s
		}},
		{"node \"n1\": listed twice", func(n []Node, s []Shard) (Epoch, []Node, []Shard) { n[0].ID = "n1"; return 1, n, s }},
		{"node at \"10.0.0.2:7400\"", func(n []Node, s []Shard) (Epoch, []Node, []Shard) { n[0].ID = ""; return 1, n, s }},
		{"state(9)", func(n []Node, s []Shard) (Epoch, []Node, []Shard) { n[0].State = 9; return 1, n, s }},
	} {
		_, err := NewMap(tc.spoil(threeNodes(), twoShards()))
		if !errors.Is(err, ErrInvalidMap) || !strings.Contains(err.Error(), tc.names) {
			t.Errorf("want ErrInvalidMap naming %q, got %v", tc.names, err)
		}
	}
}

func TestWithNode(t *testing.T) {
	m := mustMap(t, 4, threeNodes(), twoShards())
	moved, err := m.WithNode(Node{ID: "n2", Address: "10.9.9.9:1", Incarnation: 4})
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := moved.Node("n2"); moved.Epoch() != 5 || n.Address != "10.9.9.9:1" || len(moved.Nodes()) != 3 {
		t.Errorf("epoch %d, n2 %v", moved.Epoch(), n)
	}
	if n, _ := m.Node("n2"); m.Epoch() != 4 || n.Address != "10.0.0.2:7400" {
		t.Errorf("the old map changed: epoch %d, n2 %v", m.Epoch(), n)
	}
	if !moved.Diff(m).Empty() {
		t.Error("an address is no move")
	}
	grown, err := m.WithNode(Node{ID: "n0"})
	if err != nil || grown.Nodes()[0].ID != "n0" || len(grown.Nodes()) != 4 {
		t.Errorf("n0 added: %v, %v", grown.Nodes(), err)
	}
	if _, err := moved.WithNode(Node{ID: "n2", Incarnation: 3}); !errors.Is(err, ErrStaleIncarnation) {
		t.Errorf("an older boot: %v", err)
	}
	if _, err := moved.WithNode(Node{}); !errors.Is(err, ErrInvalidMap) {
		t.Errorf("no id: %v", err)
	}
}

func TestDiffNamesEachMoveOnce(t *testing.T) {
	from := mustMap(t, 1, threeNodes(), twoShards())
	if d := from.Diff(from); !d.Empty() || d.SlotCount() != 0 {
		t.Errorf("to itself: %+v", d)
	}
	shards := twoShards()
	shards[0].Replicas[0].Voter = true                                                            // 5 on n3 promoted
	shards[1].Replicas = []Replica{{1, "n1", true}, {2, "n2", true}, {9, "n3", false}}            // 3 replaced in place by 9
	shards[0].Ranges = []Range{{13000, SlotCount}, {4000, 8000}, {100, 200}}                      // gets 100..199
	shards[1].Ranges = []Range{{8000, 11000}, {200, 4000}, {0, 100}}                              // gives to 2 and 3
	shards = append(shards, Shard{3, []Range{{11000, 13000}}, []Replica{{10, "n1", true}}, "n1"}) // new
	to := mustMap(t, 2, threeNodes(), shards)
	want := Diff{
		Slots: []SlotMove{
			{1, 2, []Range{{100, 200}}},
			{1, 3, []Range{{11000, 12000}}},
			{2, 3, []Range{{12000, 13000}}},
		},
		Replicas: []ReplicaChange{
			{Shard: 1, Added: []Replica{{9, "n3", false}}, Removed: []Replica{{3, "n3", true}}},
			{Shard: 2, Altered: []Replica{{5, "n3", true}}},
			{Shard: 3, Added: []Replica{{10, "n1", true}}},
		},
	}
	if got := from.Diff(to); !reflect.DeepEqual(got, want) || got.SlotCount() != 2100 {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Carrying out a difference on the old map gives the new one, and no slot is named that doesn't change hands.
func TestDiffLeadsFromOneMapToTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawMap(t, "from"), drawMap(t, "to")
		d := from.Diff(to)
		owner := *from.owner
		for _, move := range d.Slots {
			for _, r := range move.Ranges {
				for slot := r.From; slot < r.To; slot++ {
					if owner[slot] != move.From || from.ShardOf(Slot(slot)) != move.From {
						t.Fatalf("slot %d is said to leave shard %d", slot, move.From)
					}
					owner[slot] = move.To
				}
			}
		}
		if owner != *to.owner {
			t.Fatal("the moves don't lead to the new map")
		}
		back := to.Diff(from)
		if back.SlotCount() != d.SlotCount() || len(back.Replicas) != len(d.Replicas) {
			t.Fatalf("there %+v, back %+v", d, back)
		}
	})
}

func drawMap(t *rapid.T, label string) *Map {
	nodes := make([]Node, rapid.IntRange(1, 5).Draw(t, label+" nodes"))
	for i := range nodes {
		nodes[i].ID = NodeID(fmt.Sprintf("n%d", i))
	}
	shards := rapid.IntRange(1, 20).Draw(t, label+" shards")
	replicas := rapid.IntRange(1, len(nodes)).Draw(t, label+" replicas")
	m, err := Initial(nodes, shards, replicas, ReplicaID(rapid.IntRange(1, 4).Draw(t, label+" first id")))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNodeStateText(t *testing.T) {
	if NodeActive.String() != "active" || NodeLeaving.String() != "leaving" {
		t.Errorf("%v %v", NodeActive, NodeLeaving)
	}
}

func BenchmarkMapShardOf(b *testing.B) {
	m, err := Initial([]Node{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}}, 64, 3, 1)
	if err != nil {
		b.Fatal(err)
	}
	slot := Slot(0)
	var sum ID
	for b.Loop() {
		sum += m.ShardOf(slot)
		slot = (slot + 5003) % SlotCount
	}
	if sum == 0 {
		b.Fatal("no slot has an owner")
	}
}
