package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// verifyTest is a cluster whose leaders compare its replicas. It implements VerifyPeers: who is fenced is dropped.
type verifyTest struct {
	*testCluster
	mu     sync.Mutex
	fenced []shard.ReplicaID
	// lie changes what a replica says, if set.
	lie func(Member, []SlotSum) []SlotSum
}

func newVerifyTest(t *testing.T, nodes int, adjust func(*Config)) *verifyTest {
	c := &verifyTest{testCluster: newTestCluster(t, nodes, nodes, 1, func(cfg *Config) {
		cfg.Verify.Every, cfg.Verify.SlotsMax = -1, 5000
		if adjust != nil {
			adjust(cfg)
		}
	})}
	for _, n := range c.nodes {
		n.host.SetVerifyPeers(c)
	}
	return c
}

func (c *verifyTest) nodeOf(id shard.NodeID) *testNode {
	return c.nodes[slices.IndexFunc(c.nodes, func(n *testNode) bool { return n.id == id })]
}

func (c *verifyTest) SlotSums(ctx context.Context, group shard.ID, m Member, index uint64, asked bool) ([]SlotSum, error) {
	host := c.nodeOf(m.Node).host
	if host == nil {
		return nil, errors.New("it does not run")
	}
	sums, err := host.SlotSums(ctx, group, m.Replica, index, asked)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lie != nil && err == nil {
		sums = c.lie(m, slices.Clone(sums))
	}
	return sums, err
}

func (c *verifyTest) Fence(_ context.Context, group shard.ID, m Member, why string) error {
	c.mu.Lock()
	c.fenced = append(c.fenced, m.Replica)
	c.mu.Unlock()
	return c.nodeOf(m.Node).host.Drop(group)
}

// lead waits for a leader among the replicas that were not dropped.
func (c *verifyTest) lead() (found *testNode) {
	c.t.Helper()
	c.eventually("a leader", func() bool {
		for _, n := range c.nodes {
			if g, ok := n.host.Group(1); ok && g.IsLeader() {
				found = n
			}
		}
		return found != nil
	})
	return found
}

// verifyAll compares the whole shard.
func (c *verifyTest) verifyAll() (all []Verification) {
	c.t.Helper()
	for from, more := uint16(0), true; more; {
		ctx, cancel := background()
		v, err := c.lead().host.Verify(ctx, 1, from, true)
		cancel()
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, *v)
		from, more = v.To, v.More
	}
	return all
}

func differencesOf(all []Verification) (found []Difference) {
	for _, v := range all {
		found = append(found, v.Differences...)
	}
	return found
}

// spoil makes one replica hold what no other does.
func (n *testNode) spoil(key, value string) uint16 {
	_, m, err := n.group(1).life()
	if err != nil {
		n.c.t.Fatal(err)
	}
	slot := uint16(shard.SlotOf([]byte(key)))
	if r := m.store.Load().Apply(slot, &store.Op{Kind: store.OpSet, Key: []byte(key), Value: []byte(value)}); r.Status != store.StatusOK {
		n.c.t.Fatal(r)
	}
	return slot
}

func (c *verifyTest) fill() *testNode {
	lead := c.leader(1)
	for i := range 200 {
		lead.mustSet(1, fmt.Sprint("key", i), "v")
	}
	c.converged(1)
	return lead
}

func TestVerifySoundReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newVerifyTest(t, 3, nil)
		lead := c.fill()
		stop := make(chan struct{})
		var writing sync.WaitGroup
		writing.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					if err := lead.set(1, fmt.Sprint("key", i%300), strings.Repeat("v", i%50)); err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
		slots, keys := 0, int64(0)
		for range 10 {
			all := c.verifyAll()
			if len(all) != 4 {
				t.Errorf("%d looks at 16384 slots by 5000", len(all))
			}
			for _, v := range all {
				slots += v.Slots
				keys += v.Keys
				for _, r := range v.Replicas {
					if r.Err != nil {
						t.Errorf("%+v", r)
					}
				}
			}
			if found := differencesOf(all); len(found) > 0 {
				t.Errorf("%v", found)
			}
		}
		close(stop)
		writing.Wait()
		if s := lead.host.VerifyStats(); slots != 10*store.SlotCount || s.Slots != uint64(slots) || s.Passes != 10 || s.Differences != 0 || s.Keys < 2000 || keys < 2000 {
			t.Errorf("%d slots, %d keys, %+v", slots, keys, s)
		}
		if len(c.fenced) > 0 || lead.group(1).Alarm() != "" {
			t.Errorf("fenced %v, alarm %q", c.fenced, lead.group(1).Alarm())
		}
	})
}

// One follower, or the leader, holds something else: it is found, named and stopped, and what is left agrees.
func TestVerifyFindsTheOddOne(t *testing.T) {
	for _, who := range []string{"a follower", "the leader"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newVerifyTest(t, 3, nil)
				odd := c.fill()
				if who == "a follower" {
					odd = c.follower(1)
				}
				id := c.replicaOn(1, odd.id)
				slot := odd.spoil("key7", "w")
				found := differencesOf(c.verifyAll())
				if len(found) != 1 || found[0].Slot != slot || len(found[0].Odd) != 1 || found[0].Odd[0].Replica != id || found[0].NotFenced != nil ||
					!strings.Contains(found[0].String(), fmt.Sprintf("slot %d differs: replica %d on %s is odd and was stopped", slot, id, odd.id)) {
					t.Fatalf("%+v", found)
				}
				if !slices.Equal(c.fenced, []shard.ReplicaID{id}) {
					t.Errorf("fenced: %v", c.fenced)
				}
				lead := c.lead()
				if got, ok, err := lead.get(1, "key7", Linearizable); got != "v" || !ok || err != nil {
					t.Errorf("after it: %q, %v, %v", got, ok, err)
				}
				for _, v := range c.verifyAll() {
					for _, r := range v.Replicas {
						if (r.Err != nil) != (r.Replica == id) || len(v.Differences) > 0 {
							t.Errorf("%+v, %v", r, v.Differences)
						}
					}
				}
				if who == "a follower" {
					if s := lead.host.VerifyStats(); s.Differences != 1 || s.Fenced != 1 {
						t.Errorf("%+v", s)
					}
					if _, found := lead.host.Odd(1, id); !found {
						t.Error("the leader does not stand by it")
					}
					if _, found := lead.host.Odd(1, c.replicaOn(1, lead.id)); found {
						t.Error("and says it of itself")
					}
				}
			})
		})
	}
}

// Without a majority that agrees nobody is stopped; the alarm stays until all agree again.
func TestVerifyUndecided(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		t.Run(fmt.Sprint(nodes, " replicas"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newVerifyTest(t, nodes, nil)
				lead := c.fill()
				for i, n := range c.nodes {
					n.spoil("key7", fmt.Sprint("w", i))
				}
				found := differencesOf(c.verifyAll())
				if len(found) != 1 || len(found[0].Odd) != 0 || len(found[0].Says) != nodes || !strings.Contains(found[0].String(), "no majority") {
					t.Errorf("%+v", found)
				}
				if alarm := lead.group(1).Alarm(); !strings.Contains(alarm, "no majority agrees") || lead.group(1).Status().Alarm != alarm {
					t.Errorf("alarm %q", alarm)
				}
				if c.follower(1).group(1).Alarm() != "" {
					t.Error("a follower raises it too")
				}
				lead.mustSet(1, "key7", "v") // versions are equal again
				c.converged(1)
				if found := differencesOf(c.verifyAll()); len(found) > 0 || lead.group(1).Alarm() != "" {
					t.Errorf("%+v, alarm %q", found, lead.group(1).Alarm())
				}
				if len(c.fenced) > 0 {
					t.Errorf("fenced: %v", c.fenced)
				}
			})
		})
	}
}

// What is seen once and not again stops nobody, and neither does it where the group could not do without the replica.
func TestVerifyIsCareful(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newVerifyTest(t, 3, nil)
		lead := c.fill()
		odd := c.follower(1)
		lied := false
		c.lie = func(m Member, sums []SlotSum) []SlotSum {
			if m.Node == odd.id && !lied {
				lied = true
				sums[0].Counted.Checksum++
			}
			return sums
		}
		found := differencesOf(c.verifyAll())
		if len(found) != 1 || len(found[0].Odd) != 1 || found[0].NotFenced == nil || len(c.fenced) > 0 {
			t.Errorf("once: %+v, fenced %v", found, c.fenced)
		}
		c.lie = nil
		// With the third node away there is no majority against the odd one.
		odd.spoil("key7", "w")
		for _, n := range c.nodes {
			if n != lead && n != odd {
				c.isolate(n.id)
				n.kill()
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		defer cancel()
		v, err := lead.host.Verify(ctx, 1, 0, true)
		for err == nil && len(v.Differences) == 0 && v.More {
			v, err = lead.host.Verify(ctx, 1, v.To, true)
		}
		if err != nil || len(v.Differences) != 1 || len(v.Differences[0].Odd) != 0 || len(c.fenced) > 0 {
			t.Errorf("one away: %+v, %v, fenced %v", v, err, c.fenced)
		}
		c.heal()
	})
}

// The scheduler looks by itself, and again after a pass; a leader's mark is nothing to a replica but an audit.
func TestVerifyInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newVerifyTest(t, 3, func(cfg *Config) { cfg.Verify.Every, cfg.Verify.PassEvery = time.Second, 20*time.Second })
		lead := c.fill()
		time.Sleep(10 * time.Second)
		if s := lead.host.VerifyStats(); s.Passes != 1 || s.Slots != store.SlotCount {
			t.Errorf("after a pass: %+v", s)
		}
		odd := c.follower(1)
		odd.spoil("key7", "w")
		c.eventually("it is found", func() bool { return lead.host.VerifyStats().Fenced == 1 })
		if !slices.Equal(c.fenced, []shard.ReplicaID{c.replicaOn(1, odd.id)}) {
			t.Errorf("fenced: %v", c.fenced)
		}
	})
}

func TestSlotSumsOfOtherMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newVerifyTest(t, 1, nil)
		lead := c.fill()
		v := c.verifyAll()[0]
		ctx, cancel := background()
		defer cancel()
		id := c.replicaOn(1, lead.id)
		if _, err := lead.host.SlotSums(ctx, 1, id, v.Index, false); !errors.Is(err, ErrNoAudit) { // later marks ended it
			t.Error(err)
		}
		if _, err := lead.host.SlotSums(ctx, 1, id+1, v.Index, false); err == nil {
			t.Error("another replica's")
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := lead.host.SlotSums(short, 1, id, v.Index+1000, false); !errors.Is(err, ErrDeadline) {
			t.Error(err)
		}
		_, m, _ := lead.group(1).life()
		time.Sleep(2 * captureLife)
		lead.host.forgetCaptures()
		if m.capture.Load() != nil {
			t.Error("sums are kept for ever")
		}
	})
}

func TestJudge(t *testing.T) {
	a, b, c := store.Stats{Checksum: 1}, store.Stats{Checksum: 2}, store.Stats{Checksum: 3}
	sound := func(s store.Stats) SlotSum { return SlotSum{Kept: s, Counted: s} }
	for name, test := range map[string]struct {
		sums   []SlotSum
		silent []int
		learns []int // without a vote
		want   []int // odd; nil: none
		equal  bool
	}{
		"all equal":                    {sums: []SlotSum{sound(a), sound(a), sound(a)}, equal: true},
		"one applied something else":   {sums: []SlotSum{sound(a), sound(b), sound(a)}, want: []int{1}},
		"a bit flipped in one":         {sums: []SlotSum{sound(a), sound(a), {Kept: a, Counted: b}}, want: []int{2}},
		"one kept the wrong figures":   {sums: []SlotSum{{Kept: b, Counted: a}, sound(a), sound(a)}, want: []int{0}},
		"all kept the wrong figures":   {sums: []SlotSum{{Kept: b, Counted: a}, {Kept: b, Counted: a}, {Kept: b, Counted: a}}},
		"three say three things":       {sums: []SlotSum{sound(a), sound(b), sound(c)}},
		"two differ":                   {sums: []SlotSum{sound(a), sound(b)}},
		"two of three, one silent":     {sums: []SlotSum{sound(a), sound(b), {}}, silent: []int{2}},
		"two equal, one silent":        {sums: []SlotSum{sound(a), sound(a), {}}, silent: []int{2}, equal: true},
		"two of five are odd":          {sums: []SlotSum{sound(a), sound(b), sound(a), sound(c), sound(a)}, want: []int{1, 3}},
		"one of five, two silent":      {sums: []SlotSum{sound(a), sound(b), sound(a), {}, {}}, silent: []int{3, 4}},
		"a majority not of the voters": {sums: []SlotSum{sound(a), sound(b), sound(b)}, learns: []int{2}},
		"one without a vote":           {sums: []SlotSum{sound(a), sound(a), sound(b)}, learns: []int{2}, want: []int{2}},
		"a bit flipped in each of two": {sums: []SlotSum{{Kept: a, Counted: b}, {Kept: a, Counted: c}, sound(a)}},
	} {
		replicas := make([]VerifiedReplica, len(test.sums))
		voters := 0
		for i := range replicas {
			replicas[i] = VerifiedReplica{Member: Member{Replica: shard.ReplicaID(i), Voter: !slices.Contains(test.learns, i)}}
			if replicas[i].Voter {
				voters++
			}
			if slices.Contains(test.silent, i) {
				replicas[i].Err = ErrStopped
			}
		}
		d, differs := judge(7, replicas, test.sums, voters)
		var odd []int
		for _, m := range d.Odd {
			odd = append(odd, int(m.Replica))
		}
		if differs == test.equal || !slices.Equal(odd, test.want) {
			t.Errorf("%s: differs %v, odd %v", name, differs, odd)
		}
	}
}

// TestAuditorKeepsToItsShare: with a share of a tenth, counting takes several times as long as with all of a core.
func TestAuditorKeepsToItsShare(t *testing.T) {
	s := store.New(formatLimits)
	s.Own(1)
	for i := range 100_000 {
		s.Apply(1, &store.Op{Kind: store.OpSet, Key: fmt.Append(nil, i), Value: make([]byte, 100)})
	}
	took := func(share int) time.Duration {
		a := newAuditor(VerifyConfig{Share: share, ShareAsked: 100})
		c := &capture{audit: s.Audit(0, store.SlotCount), done: make(chan struct{})}
		began := time.Now()
		if err := a.count(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		c.end(nil)
		return time.Since(began)
	}
	whole, tenth := took(100), took(10)
	t.Logf("%s with all of a core, %s with a tenth", whole, tenth)
	if tenth < 3*whole {
		t.Error("that is no tenth")
	}
}

// A capture that is given up while it waits is closed at once, and while it is counted soon; the auditor keeps none of them.
func TestCapturesAreGivenUp(t *testing.T) {
	m := newShardMachine(1, NewSystemClock())
	m.store.Load().Own(1)
	for i := range uint64(100) {
		m.mark(i+1, 0, store.SlotCount)
	}
	if n := len(m.auditor.waiting); n > 2 {
		t.Errorf("%d captures wait", n)
	}
	last := m.capture.Load()
	if last.index != 100 || last.phase.Load() != captureWaits {
		t.Errorf("%+v", last)
	}
	last.giveUp()
	last.giveUp()
	<-last.done
	if !errors.Is(last.err, ErrNoAudit) {
		t.Error(last.err)
	}
}
