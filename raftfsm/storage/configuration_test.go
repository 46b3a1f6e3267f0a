package storage

import (
	"testing"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// The latest configuration is found whatever holds it: entries of this life or an earlier one, a truncated log, a snapshot,
// in the logs of shards and in that of the meta group.
func TestConfigurationIndex(t *testing.T) {
	for _, group := range []shard.ID{shard.MetaGroup, 1} {
		onBothBackends(t, func(t *testing.T, g *rig) { configurationIndexOf(t, g, group) })
	}
}

func configurationIndexOf(t *testing.T, g *rig, group shard.ID) {
	var r *Replica
	open := func() {
		t.Helper()
		var err error
		r, err = g.node.Open(group, 1)
		must(t, err)
	}
	want := func(index uint64, voters int) {
		t.Helper()
		if got := r.Log.ConfigurationIndex(); got != index {
			t.Errorf("shard %d: at index %d, want %d", group, got, index)
		}
		c, err := r.Log.Configuration()
		if (err == nil) != (index > 0) || countVoters(c) != voters {
			t.Errorf("shard %d: %d voters, %v", group, countVoters(c), err)
		}
	}
	configuration := func(index uint64, voters int) *raft.Log {
		var c raft.Configuration
		for i := range voters {
			id := string(rune('a' + i))
			c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
		}
		return &raft.Log{Index: index, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)}
	}
	open()
	want(0, 0)
	must(t, r.Log.StoreLogs([]*raft.Log{configuration(1, 3), entry(2, 1), configuration(3, 2), entry(4, 1)}))
	want(3, 2)
	must(t, r.Close())
	open()
	want(3, 2)
	must(t, r.Log.StoreLogs([]*raft.Log{configuration(5, 4)}))
	want(5, 4)
	must(t, r.Close())
	open()
	must(t, r.Log.DeleteRange(5, 5))
	want(3, 2)
	must(t, r.Close())
	open()
	want(3, 2)
	must(t, r.Log.StoreLogs([]*raft.Log{configuration(5, 4)}))
	must(t, r.Log.DeleteRange(5, 5))
	want(3, 2)
	must(t, r.Log.DeleteRange(1, 4))
	want(0, 0)
}
