package shard

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// nodesIn makes one active node per entry, which names its zone.
func nodesIn(zones ...string) []Node {
	nodes := make([]Node, len(zones))
	for i, zone := range zones {
		nodes[i] = Node{ID: NodeID(fmt.Sprintf("n%02d", i)), Zone: zone}
	}
	return nodes
}

func plainNodes(n int) []Node { return nodesIn(make([]string, n)...) }

// checkPlacement holds a placement against rules 1 to 3 of Place.
func checkPlacement(nodes []Node, shards []ID, replicas int, placement Placement) error {
	zoneOf, zoneSize := make(map[NodeID]string), make(map[string]int)
	for _, n := range nodes {
		if n.State == NodeActive {
			zoneOf[n.ID] = n.Zone
			zoneSize[n.Zone]++
		}
	}
	if len(placement) != len(shards) {
		return fmt.Errorf("%d shards placed, want %d", len(placement), len(shards))
	}
	load := make(map[NodeID]int)
	for _, id := range shards {
		on := placement[id]
		if len(on) != replicas || !slices.IsSorted(on) || len(slices.Compact(slices.Clone(on))) != replicas {
			return fmt.Errorf("shard %d: on %v, want %d different nodes in order", id, on, replicas)
		}
		inZone := make(map[string]int)
		for _, node := range on {
			zone, active := zoneOf[node]
			if !active {
				return fmt.Errorf("shard %d: on %q", id, node)
			}
			inZone[zone]++
			load[node]++
		}
		for crowded, many := range inZone {
			for other, size := range zoneSize {
				if few := inZone[other]; few+1 < many && few < size {
					return fmt.Errorf("shard %d: %d replicas in zone %q, %d in zone %q of %d nodes", id, many, crowded, few, other, size)
				}
			}
		}
	}
	squares := 0
	for _, l := range load {
		squares += l * l
	}
	if fewest := fewestSquares(zoneSize, len(shards), replicas); squares != fewest {
		return fmt.Errorf("loads %v: squares add up to %d, they could to %d", load, squares, fewest)
	}
	return nil
}

// fewestSquares is the least sum of squared loads under rule 2: the measure of evenness. It deals replicas one at a
// time to the least laden zone that may have one more, which is best because squares are convex.
func fewestSquares(zoneSize map[string]int, shards, replicas int) (squares int) {
	least := make(map[string]int) // that every shard has in the zone
	left := replicas
	for {
		var open []string
		for zone, size := range zoneSize {
			if least[zone] < size {
				open = append(open, zone)
			}
		}
		if left < len(open) || left == 0 {
			break
		}
		for _, zone := range open {
			least[zone]++
		}
		left -= len(open)
	}
	total, most := make(map[string]int), make(map[string]int)
	for zone, size := range zoneSize {
		total[zone] = least[zone] * shards
		most[zone] = min(least[zone]+1, size) * shards
	}
	for range left * shards {
		lightest := ""
		found := false
		for zone, size := range zoneSize {
			if total[zone] < most[zone] && (!found || total[zone]/size < total[lightest]/zoneSize[lightest]) {
				lightest, found = zone, true
			}
		}
		total[lightest]++
	}
	for zone, size := range zoneSize {
		for node := range size {
			load := (total[zone] + node) / size
			squares += load * load
		}
	}
	return squares
}

// moves counts the replicas that are in now but not in before.
func moves(before, now Placement) (moved int) {
	for id, on := range now {
		for _, node := range on {
			if !slices.Contains(before[id], node) {
				moved++
			}
		}
	}
	return moved
}

func mustPlace(t interface{ Fatal(...any) }, nodes []Node, shards []ID, replicas int, previous Placement) Placement {
	placement, err := Place(nodes, shards, replicas, previous)
	if err == nil {
		err = checkPlacement(nodes, shards, replicas, placement)
	}
	if err != nil {
		t.Fatal(fmt.Errorf("%d shards on %d nodes, %d replicas: %w", len(shards), len(nodes), replicas, err))
	}
	return placement
}

// Any cluster, and any other cluster after it: leaving nodes, other zones, other shards, other counts.
func TestPlaceKeepsItsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var previous Placement
		for range 3 {
			var nodes []Node
			zones := rapid.IntRange(1, 6).Draw(t, "zones")
			for i := range rapid.IntRange(1, 64).Draw(t, "nodes") {
				n := Node{ID: NodeID(fmt.Sprintf("n%d", i)), Zone: fmt.Sprint(rapid.IntRange(1, zones).Draw(t, "zone"))}
				if i > 0 && rapid.IntRange(0, 9).Draw(t, "leaving") == 0 {
					n.State = NodeLeaving
				}
				nodes = append(nodes, n)
			}
			active := 0
			for _, n := range nodes {
				if n.State == NodeActive {
					active++
				}
			}
			shards := idsUpTo(rapid.IntRange(1, 256).Draw(t, "shards"))
			replicas := rapid.IntRange(1, min(active, 7)).Draw(t, "replicas")
			previous = mustPlace(t, nodes, shards, replicas, previous)
		}
	})
}

// Without zones loads differ by at most 1, whatever the numbers; and each node that comes or goes moves its share.
func TestOneNodeMoreOrLessMovesItsShare(t *testing.T) {
	for _, shards := range []int{1, 2, 7, 16, 64, 100, 256} {
		ids := idsUpTo(shards)
		placement := mustPlace(t, plainNodes(3), ids, 3, nil)
		for n := 4; n <= 64; n++ {
			now := mustPlace(t, plainNodes(n), ids, 3, placement)
			if moved, share := moves(placement, now), float64(3*shards)/float64(n); float64(moved) > 1.2*share {
				t.Fatalf("%d shards: node %d moved %d replicas, its share is %.1f", shards, n, moved, share)
			}
			placement = now
		}
		for n := 63; n >= 3; n-- {
			gone := NodeID(fmt.Sprintf("n%02d", n*7919%(n+1))) // not always the last that came
			nodes := slices.DeleteFunc(plainNodes(n+1), func(node Node) bool { return node.ID == gone })
			for i := range nodes {
				nodes[i].ID = NodeID(fmt.Sprintf("n%02d", i))
			}
			placement = checkRemoval(t, renamed(placement, gone, n), nodes, ids)
		}
	}
}

// renamed gives the nodes but the one that goes the names n00, n01, … and the one that goes the name "gone".
func renamed(placement Placement, gone NodeID, n int) Placement {
	name := map[NodeID]NodeID{gone: "gone"}
	next := 0
	for i := range n + 1 {
		if id := NodeID(fmt.Sprintf("n%02d", i)); id != gone {
			name[id] = NodeID(fmt.Sprintf("n%02d", next))
			next++
		}
	}
	now := make(Placement)
	for id, on := range placement {
		for _, node := range on {
			now[id] = append(now[id], name[node])
		}
	}
	return now
}

func checkRemoval(t *testing.T, before Placement, left []Node, ids []ID) Placement {
	t.Helper()
	lost := 0
	for _, on := range before {
		if slices.Contains(on, "gone") {
			lost++
		}
	}
	now := mustPlace(t, left, ids, 3, before)
	if moved := moves(before, now); moved > lost {
		t.Fatalf("%d shards, %d nodes left: %d replicas moved, only %d had to", len(ids), len(left), moved, lost)
	}
	return now
}

func TestZonesGrowEvenly(t *testing.T) {
	ids := idsUpTo(64)
	zones := []string{"a", "b", "c"}
	placement := mustPlace(t, nodesIn(zones...), ids, 3, nil)
	for len(zones) < 24 {
		zones = append(zones, zones[len(zones)%3])
		now := mustPlace(t, nodesIn(zones...), ids, 3, placement)
		// Each zone has one replica of each shard, so a node's share is of its zone.
		inZone := (len(zones) + 2) / 3
		if moved := moves(placement, now); moved > 64/inZone {
			t.Errorf("node %d, one of %d in its zone, moved %d replicas", len(zones), inZone, moved)
		}
		placement = now
	}
}

func TestPlaceIsDeterministic(t *testing.T) {
	nodes, ids := nodesIn("a", "a", "b", "b", "c"), idsUpTo(20)
	first := mustPlace(t, nodes, ids, 3, nil)
	slices.Reverse(nodes)
	slices.Reverse(ids)
	if second := mustPlace(t, nodes, ids, 3, nil); !maps.EqualFunc(first, second, slices.Equal) {
		t.Errorf("%v\n%v", first, second)
	}
	if nodes[0].ID != "n04" || ids[0] != 20 {
		t.Error("the arguments were sorted in place")
	}
}

func TestPlaceRefuses(t *testing.T) {
	nodes := plainNodes(3)
	nodes[1].State = NodeLeaving
	if _, err := Place(nodes, idsUpTo(4), 3, nil); !errors.Is(err, ErrTooFewNodes) {
		t.Errorf("3 replicas on 2 active nodes: %v", err)
	}
	if _, err := Place(nodes, idsUpTo(4), 0, nil); err == nil || errors.Is(err, ErrTooFewNodes) {
		t.Errorf("0 replicas: %v", err)
	}
}

func TestCheckPlacementSeesWhatIsWrong(t *testing.T) {
	nodes := append(nodesIn("a", "a", "b"), Node{ID: "n03", Zone: "b", State: NodeLeaving})
	for name, bad := range map[string]Placement{
		"one zone":  {1: {"n00", "n01"}, 2: {"n01", "n02"}},
		"one node":  {1: {"n00", "n00"}, 2: {"n01", "n02"}},
		"leaving":   {1: {"n00", "n03"}, 2: {"n01", "n02"}},
		"uneven":    {1: {"n00", "n02"}, 2: {"n00", "n02"}},
		"one short": {1: {"n00", "n02"}, 2: {"n01"}},
		"none":      {1: {"n00", "n02"}},
	} {
		if checkPlacement(nodes, idsUpTo(2), 2, bad) == nil {
			t.Errorf("%s: passed", name)
		}
	}
	good := Placement{1: {"n00", "n02"}, 2: {"n01", "n02"}}
	if err := checkPlacement(nodes, idsUpTo(2), 2, good); err != nil {
		t.Error(err)
	}
}

func BenchmarkPlace(b *testing.B) {
	nodes, ids := plainNodes(64), idsUpTo(256)
	for b.Loop() {
		if _, err := Place(nodes, ids, 3, nil); err != nil {
			b.Fatal(err)
		}
	}
}
