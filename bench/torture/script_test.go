package main

import (
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

func TestSeedMakesTheSameScript(t *testing.T) {
	nodes := []string{"n1", "n2", "n3"}
	make100 := func(seed uint64) (rounds []round) {
		w := newScriptWriter(seed, faults, nodes)
		for range 100 {
			rounds = append(rounds, w.next())
		}
		return rounds
	}
	if !reflect.DeepEqual(make100(1), make100(1)) {
		t.Error("one seed made two scripts")
	}
	if reflect.DeepEqual(make100(1), make100(2)) {
		t.Error("two seeds made one script")
	}
}

// Every fault comes up, names nodes that there are, rounds without faults are mixed in, and two faults of a kind never meet.
func TestScriptsUseEveryFault(t *testing.T) {
	nodes := []string{"n1", "n2", "n3", "n4", "n5"}
	w := newScriptWriter(3, faults, nodes)
	seen := make(map[string]int)
	quiet, double := 0, 0
	for range 2000 {
		r := w.next()
		if r.HoldMS <= 0 || r.PeaceMS <= 0 {
			t.Fatalf("%+v", r)
		}
		if len(r.Actions) == 0 {
			quiet++
		}
		kinds := make(map[kind]bool)
		for _, a := range r.Actions {
			seen[a.Fault]++
			f := faultNamed(a.Fault)
			if kinds[f.kind] {
				t.Errorf("two faults of a kind at once: %+v", r.Actions)
			}
			kinds[f.kind] = true
			for _, node := range a.Nodes {
				if node != leader && !slices.Contains(nodes, node) {
					t.Errorf("%s strikes %q", a.Fault, node)
				}
			}
		}
		if len(r.Actions) == 2 {
			double++
		}
	}
	for _, f := range faults {
		if seen[f.name] == 0 {
			t.Errorf("%s never came up", f.name)
		}
	}
	if quiet < 200 || double < 100 {
		t.Errorf("of 2000 rounds %d were without a fault, and %d had two", quiet, double)
	}
}

func TestScriptIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "script.json")
	s := &script{Seed: 4, Nodes: 3, Rounds: []round{{PeaceMS: 1, HoldMS: 2}, {PeaceMS: 3, HoldMS: 4,
		Actions: []action{{Fault: "loss", Nodes: []string{"n1"}, Amount: 30}}}}}
	if err := s.write(path); err != nil {
		t.Fatal(err)
	}
	got, err := readScript(path)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%+v, %v", got, err)
	}
	s.Rounds[1].Actions[0].Fault = "meteor"
	if err := s.write(path); err != nil {
		t.Fatal(err)
	}
	if _, err := readScript(path); err == nil {
		t.Error("a script with a fault that there is not was read")
	}
}
