package shard

import (
	"errors"
	"slices"
	"testing"
)

func TestWithReplicas(t *testing.T) {
	nodes := []Node{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}}
	m, err := Initial(nodes, 2, 3, 10)
	if err != nil {
		t.Fatal(err)
	}
	before := m.Shards()[0]
	old := slices.Clone(before.Replicas)
	changed := Shard{ID: before.ID, Preferred: before.Replicas[1].Node}
	changed.Replicas = append(changed.Replicas, Replica{ID: 99, Node: before.Replicas[0].Node}, before.Replicas[1], before.Replicas[2])
	next, err := m.WithReplicas(changed)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := next.Shard(before.ID)
	if next.Epoch() != m.Epoch()+1 || s.Preferred != changed.Preferred || s.Replicas[2] != (Replica{ID: 99, Node: old[0].Node}) {
		t.Errorf("epoch %d: %+v", next.Epoch(), s)
	}
	if !slices.Equal(s.Ranges, before.Ranges) || next.ShardOf(0) != m.ShardOf(0) {
		t.Errorf("the slots moved: %v", s.Ranges)
	}
	if got, _ := m.Shard(before.ID); !slices.Equal(got.Replicas, old) || got.Preferred != before.Preferred {
		t.Errorf("the map that was changed from is another: %+v", got)
	}

	other := m.Shards()[1]
	for name, bad := range map[string]Shard{
		"unknown shard":               {ID: 77, Preferred: "n1", Replicas: old},
		"no replicas":                 {ID: before.ID, Preferred: "n1"},
		"preferred holds no voter":    {ID: before.ID, Preferred: old[0].Node, Replicas: []Replica{{ID: 99, Node: old[0].Node}, old[1]}},
		"an id of another shard":      {ID: before.ID, Preferred: old[1].Node, Replicas: []Replica{{ID: other.Replicas[0].ID, Node: old[0].Node}, old[1]}},
		"an unknown node":             {ID: before.ID, Preferred: old[1].Node, Replicas: []Replica{{ID: 99, Node: "n9"}, old[1]}},
		"two replicas on one machine": {ID: before.ID, Preferred: old[1].Node, Replicas: []Replica{{ID: 99, Node: old[1].Node}, old[1]}},
	} {
		if _, err := m.WithReplicas(bad); !errors.Is(err, ErrInvalidMap) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLives(t *testing.T) {
	for _, c := range []struct{ incarnation, life, next uint64 }{
		{0, 0, 1 << 32}, {17, 0, 1 << 32}, {1<<32 - 1, 0, 1 << 32}, {1 << 32, 1, 2 << 32}, {1<<32 + 5, 1, 2 << 32},
	} {
		if got := Life(c.incarnation); got != c.life {
			t.Errorf("Life(%d) is %d, want %d", c.incarnation, got, c.life)
		}
		if got := NextLife(c.incarnation); got != c.next {
			t.Errorf("NextLife(%d) is %d, want %d", c.incarnation, got, c.next)
		}
	}
}
