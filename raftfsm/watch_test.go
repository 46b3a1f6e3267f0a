package raftfsm

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/store"
)

// changesOf reads what a replica has published behind a position, as "version/index key=value".
func changesOf(n *testNode, behind store.Position) ([]string, error) {
	changes, err := n.group(1).Changes()
	if err != nil {
		return nil, err
	}
	at, err := changes.Seek(behind)
	if err != nil {
		return nil, err
	}
	var all []string
	for end, _ := changes.End(); at < end; {
		at, err = changes.Read(at, math.MaxInt, func(_ uint64, c *store.Change) bool {
			all = append(all, fmt.Sprintf("%d/%d %d %s=%s was %s@%d", c.Position.Version, c.Position.Index, c.Kind, c.Key, c.Value, c.Previous, c.PreviousVersion))
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Every replica tells of the same changes at the same positions, and does so again after it was restarted and has read its log.
func TestReplicasTellTheSameChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, func(cfg *Config) { cfg.Reaping.KeysMax = 7 })
		lead := c.leader(1)
		ctx, cancel := background()
		defer cancel()
		for i := range 40 {
			op := &store.Op{Kind: store.OpSet, Key: fmt.Append(nil, "{slot}", i%15), Value: fmt.Append(nil, i), TTL: int64(i%3) * 1000}
			if i%7 == 6 {
				op = &store.Op{Kind: store.OpDelete, Key: op.Key}
			}
			if _, err := lead.group(1).Write(ctx, op, Session{}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second) // virtual: keys expire and are reaped, several at one version
		c.converged(1)
		want, err := changesOf(lead, store.Position{})
		if err != nil || len(want) < 40 {
			t.Fatalf("%d changes, %v", len(want), err)
		}
		if !slices.ContainsFunc(want, func(s string) bool { return strings.Contains(s, "/1 3 ") }) {
			t.Errorf("no version with several expired keys: the test proves little: %q", want)
		}
		for _, n := range c.nodes {
			if got, err := changesOf(n, store.Position{}); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s tells of %q, %v, want %q", n.id, got, err, want)
			}
		}
		for _, n := range c.nodes {
			n.stop()
		}
		for _, n := range c.nodes {
			n.restart()
		}
		c.leader(1)
		c.converged(1)
		for _, n := range c.nodes {
			if got, err := changesOf(n, store.Position{}); err != nil || !slices.Equal(got, want) {
				t.Errorf("after its restart %s tells of %q, %v, want %q", n.id, got, err, want)
			}
		}
	})
}

// A replica that installed a snapshot has skipped changes: it says so to who needs them, and goes on for who has them. So does one
// that was restarted behind a snapshot.
func TestChangesBehindASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, func(cfg *Config) {
			cfg.Snapshots = SnapshotConfig{LogBytes: 1000, TrailingEntries: 3}
		})
		away := c.follower(1)
		early, err := c.leader(1).group(1).Position(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		away.stop()
		for i := range 100 {
			c.leader(1).mustSet(1, fmt.Sprint("k", i), strings.Repeat("v", 100))
			if i%5 == 0 {
				time.Sleep(1200 * time.Millisecond) // virtual
			}
		}
		away.restart()
		c.converged(1)
		if _, err := changesOf(away, early); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("behind a snapshot: %v", err)
		}
		lead := c.leader(1)
		if got, err := changesOf(lead, early); err != nil || len(got) != 100 {
			t.Errorf("the leader tells of %d changes, %v", len(got), err)
		}
		now, err := lead.group(1).Position(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lead.mustSet(1, "after", "v")
		c.converged(1)
		for _, n := range c.nodes {
			if got, err := changesOf(n, now); err != nil || len(got) != 1 {
				t.Errorf("%s tells of %q, %v", n.id, got, err)
			}
		}
	})
}

// A position has all acknowledged writes behind it, is the leader's to give, and a life's end is told.
func TestPositionAndTheEndOfALife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, 1, nil)
		lead := c.leader(1)
		for i := range 20 {
			lead.mustSet(1, "k", fmt.Sprint(i))
			at, err := lead.group(1).Position(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := changesOf(lead, at); err != nil || len(got) != 0 {
				t.Fatalf("behind %v there is %q, %v", at, got, err)
			}
		}
		if _, err := c.follower(1).group(1).Position(t.Context()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("a follower gives a position: %v", err)
		}
		changes, err := lead.group(1).Changes()
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-changes.Ended:
			t.Error("it has ended before it did")
		default:
		}
		group := lead.group(1)
		lead.stop()
		<-changes.Ended
		if _, err := group.Changes(); !errors.Is(err, ErrStopped) {
			t.Errorf("changes of a stopped group: %v", err)
		}
	})
}

func TestNoHistoryIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1, 1, 1, func(cfg *Config) { cfg.HistoryBytes = -1 })
		lead := c.leader(1)
		lead.mustSet(1, "k", "v")
		if _, err := lead.group(1).Changes(); !errors.Is(err, ErrNoHistory) {
			t.Error(err)
		}
		if _, err := lead.group(1).Position(t.Context()); !errors.Is(err, ErrNoHistory) {
			t.Error(err)
		}
	})
}
