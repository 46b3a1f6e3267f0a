package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

// script is what will be done to a cluster: rounds, one after the other. The same seed makes the same script. It does not
// make the same run: processes, disks and networks are real.
type script struct {
	Seed   uint64  `json:"seed"`
	Nodes  int     `json:"nodes"`
	Rounds []round `json:"rounds"`
}

// round is a time of peace and then of faults, all at once, which are healed together.
type round struct {
	// PeaceMS and HoldMS are in milliseconds.
	PeaceMS int      `json:"peace_ms"`
	HoldMS  int      `json:"hold_ms"`
	Actions []action `json:"actions,omitempty"` // none: a round without faults
}

// action is one fault, and whom it strikes.
type action struct {
	Fault string `json:"fault"`
	// Nodes by name; "leader" is the node that leads most shards when the fault begins.
	Nodes []string `json:"nodes,omitempty"`
	// Amount is a percentage or kbit/s, where the fault has one.
	Amount int `json:"amount,omitempty"`
}

func (a action) String() string {
	s := a.Fault
	if len(a.Nodes) > 0 {
		s += fmt.Sprint(" ", a.Nodes)
	}
	if a.Amount > 0 {
		s += fmt.Sprint(" ", a.Amount)
	}
	return s
}

const leader = "leader"

// writer makes a script's rounds. One in six is without a fault, one in five has two faults that can be at once.
type scriptWriter struct {
	random *rand.Rand
	faults []*fault
	nodes  []string
}

func newScriptWriter(seed uint64, faults []*fault, nodes []string) *scriptWriter {
	return &scriptWriter{random: rand.New(rand.NewPCG(seed, 0)), faults: faults, nodes: nodes}
}

func (w *scriptWriter) next() round {
	r := round{PeaceMS: 500 + w.random.IntN(2500), HoldMS: 300 + w.random.IntN(5700)}
	if len(w.faults) == 0 || w.random.IntN(6) == 0 {
		return r
	}
	first := w.faults[w.random.IntN(len(w.faults))]
	r.Actions = append(r.Actions, first.plan(w.random, w.nodes))
	if w.random.IntN(5) == 0 {
		second := w.faults[w.random.IntN(len(w.faults))]
		if second.kind != first.kind {
			r.Actions = append(r.Actions, second.plan(w.random, w.nodes))
		}
	}
	if first.holdMax > 0 {
		r.HoldMS = min(r.HoldMS, int(first.holdMax/time.Millisecond))
	}
	return r
}

// some returns n nodes.
func some(random *rand.Rand, nodes []string, n int) []string {
	picked := slices.Clone(nodes)
	random.Shuffle(len(picked), func(i, j int) { picked[i], picked[j] = picked[j], picked[i] })
	picked = picked[:n]
	slices.Sort(picked)
	return picked
}

func readScript(path string) (*script, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := new(script)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, r := range s.Rounds {
		for _, a := range r.Actions {
			if faultNamed(a.Fault) == nil {
				return nil, fmt.Errorf("%s: there is no fault %q", path, a.Fault)
			}
		}
	}
	return s, nil
}

func (s *script) write(path string) error {
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
