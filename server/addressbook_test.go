package server

import (
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/shard"
)

func TestAddressBook(t *testing.T) {
	const start = incarnationLeapMax + 1 // far enough for the first leap, when nothing is known of a node
	for name, c := range map[string]struct {
		node        shard.NodeID
		address     string
		incarnation uint64
		learnt      bool
	}{
		"a later start":            {"n2", "b:1", start + 1, true},
		"the longest leap":         {"n2", "b:1", start + incarnationLeapMax, true},
		"a longer leap":            {"n2", "b:1", start + incarnationLeapMax + 1, false},
		"the last number there is": {"n2", "b:1", 1<<64 - 1, false},
		"the same start":           {"n2", "b:1", start, false},
		"an earlier start":         {"n2", "b:1", start - 1, false},
		"a stranger":               {"n9", "b:1", start + 1, false},
		"nobody":                   {"", "b:1", start + 1, false},
		"the node itself":          {"n1", "b:1", start + 1, false},
		"no address":               {"n2", "", start + 1, false},
		"no host":                  {"n2", ":1", start + 1, false},
		"no port":                  {"n2", "b", start + 1, false},
		"port 0":                   {"n2", "b:0", start + 1, false},
		"no port number":           {"n2", "b:http", start + 1, false},
		"a control character":      {"n2", "b\x00:1", start + 1, false},
		"the longest address":      {"n2", strings.Repeat("b", addressBytesMax-2) + ":1", start + 1, true},
		"a longer address":         {"n2", strings.Repeat("b", addressBytesMax-1) + ":1", start + 1, false},
	} {
		changes := 0
		b := newAddressBook("n1", map[shard.NodeID]bookEntry{"n2": {Address: "a:2", Incarnation: start}}, func() { changes++ })
		b.setSelf("a:1", 1)
		changes = 0
		b.learn(c.node, c.address, c.incarnation)
		got, _ := b.address(c.node)
		if learnt := got == c.address && changes == 1; learnt != c.learnt {
			t.Errorf("%s: learnt %v, at %q, %d changes", name, learnt, got, changes)
		}
		if !c.learnt && (changes != 0 || len(b.snapshot()) != 2 || b.snapshot()["n2"].Address != "a:2") {
			t.Errorf("%s: the book says %v", name, b.snapshot())
		}
	}
}

// TestAddressBookAndMap: a map makes members, and moves them where it knows of a later start; never this node.
func TestAddressBookAndMap(t *testing.T) {
	changes := 0
	b := newAddressBook("n1", map[shard.NodeID]bookEntry{"n2": {Address: "later:1", Incarnation: 4}, "n0": {Address: "old:1", Incarnation: 1}},
		func() { changes++ })
	b.setSelf("here:1", 1)
	if b.isMember("n3") {
		t.Error("n3 is a member without a map")
	}
	b.learnMap(testMap(t)) // n1 in start 7, n2 in start 3, n3 in start 0
	for id, want := range map[shard.NodeID]string{"n0": "old:1", "n1": "here:1", "n2": "later:1", "n3": "n3.test:7400"} {
		if got, _ := b.address(id); got != want || !b.isMember(id) {
			t.Errorf("%s at %q, want %q; member: %v", id, got, want, b.isMember(id))
		}
	}
	if changes != 2 {
		t.Errorf("%d changes were told, want one of this node and one of n3", changes)
	}
}
