package shard

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// checkLeaders wants every shard led by one of its nodes, and loads as even as can be: no chain of shards exists
// along which a leadership could pass from a node to one that leads at least 2 fewer.
func checkLeaders(placement Placement, leaders map[ID]NodeID) error {
	load := make(map[NodeID]int)
	for id, on := range placement {
		for _, node := range on {
			load[node] += 0
		}
		if len(on) > 0 && !slices.Contains(on, leaders[id]) {
			return fmt.Errorf("shard %d on %v: led by %q", id, on, leaders[id])
		}
		if len(on) > 0 {
			load[leaders[id]]++
		}
	}
	for start := range load {
		reached := map[NodeID]bool{start: true}
		for grown := true; grown; {
			grown = false
			for id, on := range placement {
				if !reached[leaders[id]] {
					continue
				}
				for _, node := range on {
					grown = grown || !reached[node]
					reached[node] = true
				}
			}
		}
		for node := range reached {
			if load[node] <= load[start]-2 {
				return fmt.Errorf("%q leads %d, %q could have one of them and leads %d", start, load[start], node, load[node])
			}
		}
	}
	return nil
}

// Any placement, even ones that Place would not make, and any history.
func TestPreferLeadersIsAsEvenAsCanBe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		placement := make(Placement)
		nodes := rapid.IntRange(1, 12).Draw(t, "nodes")
		for id := range rapid.IntRange(1, 60).Draw(t, "shards") {
			on := rapid.SliceOfNDistinct(rapid.IntRange(1, nodes), 0, min(nodes, 4), rapid.ID).Draw(t, "on")
			placement[ID(id+1)] = nil
			for _, n := range on {
				placement[ID(id+1)] = append(placement[ID(id+1)], NodeID(fmt.Sprint(n)))
			}
		}
		previous := make(map[ID]NodeID)
		for id := range placement {
			previous[id] = NodeID(fmt.Sprint(rapid.IntRange(1, nodes+1).Draw(t, "previous")))
		}
		for _, previous := range []map[ID]NodeID{nil, previous} {
			leaders := PreferLeaders(placement, previous)
			if err := checkLeaders(placement, leaders); err != nil {
				t.Fatal(err)
			}
			if again := PreferLeaders(placement, leaders); !maps.Equal(again, leaders) {
				t.Fatalf("what is even was changed: %v to %v", leaders, again)
			}
		}
	})
}

func TestLeadersFollowSmallChangesInSmallSteps(t *testing.T) {
	ids := idsUpTo(64)
	placement := mustPlace(t, plainNodes(3), ids, 3, nil)
	leaders := PreferLeaders(placement, nil)
	for n := 4; n <= 24; n++ {
		placement = mustPlace(t, plainNodes(n), ids, 3, placement)
		now := PreferLeaders(placement, leaders)
		least, most := 64, 0
		load := make(map[NodeID]int)
		for _, node := range now {
			load[node]++
		}
		for _, l := range load {
			least, most = min(least, l), max(most, l)
		}
		if len(load) != n || most-least > 1 {
			t.Errorf("%d nodes: leaderships %v", n, load)
		}
		changed, lost := 0, 0
		for id := range now {
			if now[id] != leaders[id] {
				changed++
			}
			if !slices.Contains(placement[id], leaders[id]) {
				lost++
			}
		}
		// The new node's share has to change, those that lost their node have to, and a chain may take one more each.
		if changed > 2*(lost+64/n) {
			t.Errorf("%d nodes: %d leaders changed, %d lost their node", n, changed, lost)
		}
		leaders = now
	}
}

func TestCheckLeadersSeesWhatIsWrong(t *testing.T) {
	shared := Placement{1: {"a", "b"}, 2: {"a", "b"}, 3: {"b", "c"}, 4: {"a"}}
	for name, tc := range map[string]struct {
		placement Placement
		leaders   map[ID]NodeID
	}{
		"not a replica": {shared, map[ID]NodeID{1: "c", 2: "a", 3: "b", 4: "a"}},
		"no leader":     {shared, map[ID]NodeID{1: "b", 2: "a", 3: "c"}},
		"one step away": {shared, map[ID]NodeID{1: "a", 2: "a", 3: "c", 4: "a"}},
		// a leads 2 and c none; a can't give c anything, but 2 may go from a to b, and then 3 from b to c.
		"a chain of steps": {
			Placement{1: {"a"}, 2: {"a", "b"}, 3: {"b", "c"}},
			map[ID]NodeID{1: "a", 2: "a", 3: "b"},
		},
	} {
		if checkLeaders(tc.placement, tc.leaders) == nil {
			t.Errorf("%s: passed", name)
		}
	}
	if err := checkLeaders(shared, map[ID]NodeID{1: "b", 2: "b", 3: "c", 4: "a"}); err != nil {
		t.Error(err)
	}
}

func TestInitial(t *testing.T) {
	nodes := nodesIn("a", "b", "c", "a")
	m, err := Initial(nodes, 10, 3, 100)
	if err != nil {
		t.Fatal(err)
	}
	if m.Epoch() != 1 || len(m.Shards()) != 10 || len(m.Nodes()) != 4 {
		t.Errorf("epoch %d, %d shards, %d nodes", m.Epoch(), len(m.Shards()), len(m.Nodes()))
	}
	next := ReplicaID(100)
	for i, s := range m.Shards() {
		if s.ID != ID(i+1) || len(s.Ranges) != 1 || s.Ranges[0] != FreshRanges(10)[i] {
			t.Errorf("shard %d at place %d: %v", s.ID, i, s.Ranges)
		}
		for _, r := range s.Replicas {
			if r.ID != next || !r.Voter {
				t.Errorf("shard %d: replica %+v, want voter %d", s.ID, r, next)
			}
			next++
		}
	}
	if err := checkPlacement(nodes, idsUpTo(10), 3, m.Placement()); err != nil {
		t.Error(err)
	}
	if err := checkLeaders(m.Placement(), m.PreferredLeaders()); err != nil {
		t.Error(err)
	}
	again, err := Initial(nodes, 10, 3, 100)
	if err != nil || !reflect.DeepEqual(again, m) {
		t.Errorf("the same call made another map: %v", err)
	}
}

func TestInitialOfEverySize(t *testing.T) {
	for n := 1; n <= 64; n += 3 {
		for _, shards := range []int{1, 3, 16, 64, 256} {
			m, err := Initial(plainNodes(n), shards, min(n, 3), 1)
			if err != nil {
				t.Fatalf("%d nodes, %d shards: %v", n, shards, err)
			}
			if err := checkPlacement(m.Nodes(), idsUpTo(shards), min(n, 3), m.Placement()); err != nil {
				t.Errorf("%d nodes, %d shards: %v", n, shards, err)
			}
			if err := checkLeaders(m.Placement(), m.PreferredLeaders()); err != nil {
				t.Errorf("%d nodes, %d shards: %v", n, shards, err)
			}
		}
	}
}

func TestInitialRefuses(t *testing.T) {
	for _, tc := range []struct {
		nodes            []Node
		shards, replicas int
		first            ReplicaID
		want             error
	}{
		{plainNodes(2), 4, 3, 1, ErrTooFewNodes},
		{plainNodes(3), 0, 3, 1, ErrInvalidMap},
		{plainNodes(3), SlotCount + 1, 3, 1, ErrInvalidMap},
		{plainNodes(3), 4, 3, 0, ErrInvalidMap},
		{append(plainNodes(3), Node{ID: "n00"}), 4, 3, 1, ErrInvalidMap},
	} {
		if _, err := Initial(tc.nodes, tc.shards, tc.replicas, tc.first); !errors.Is(err, tc.want) {
			t.Errorf("%d nodes, %d shards, %d replicas from %d: %v, want %v",
				len(tc.nodes), tc.shards, tc.replicas, tc.first, err, tc.want)
		}
	}
}
