package raftfsm

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// asked is one message of questions that the confirmer sent to a peer.
type asked struct {
	node   shard.NodeID
	items  []transport.ConfirmItem
	answer chan []bool // nil answers mean an error
}

// scriptedPeers hands every message to the test.
type scriptedPeers struct{ messages chan asked }

func (p *scriptedPeers) ask(ctx context.Context, node shard.NodeID, items []transport.ConfirmItem) ([]bool, error) {
	m := asked{node: node, items: items, answer: make(chan []bool, 1)}
	select {
	case p.messages <- m:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-m.answer:
		if a == nil {
			return nil, errors.New("no answer")
		}
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var threeVoters = []voter{{"n1", 11}, {"n2", 12}, {"n3", 13}}

// leads reports a constant leadership.
func leads(term, commit uint64, voters []voter) func() (leadership, error) {
	return func() (leadership, error) { return leadership{term: term, commit: commit, voters: voters}, nil }
}

type confirmed struct {
	commit uint64
	err    error
}

func confirmAsync(c *confirmer, group shard.ID, voters []voter, lead func() (leadership, error)) <-chan confirmed {
	out := make(chan confirmed, 1)
	go func() {
		commit, err := c.confirm(context.Background(), group, voters, lead)
		out <- confirmed{commit, err}
	}()
	return out
}

func yes(m asked) []bool {
	answers := make([]bool, len(m.items))
	for i := range answers {
		answers[i] = true
	}
	return answers
}

func TestConfirm(t *testing.T) {
	cases := []struct {
		name   string
		voters []voter
		answer map[shard.NodeID]func(asked) []bool
		want   error
	}{
		{"one voter asks nobody", threeVoters[:1], nil, nil},
		{"one yes of two is a majority of three", threeVoters,
			map[shard.NodeID]func(asked) []bool{"n2": yes, "n3": func(asked) []bool { return nil }}, nil},
		{"no answer at all", threeVoters,
			map[shard.NodeID]func(asked) []bool{"n2": func(asked) []bool { return nil }, "n3": func(asked) []bool { return nil }}, ErrNotConfirmed},
		{"both are in another term", threeVoters,
			map[shard.NodeID]func(asked) []bool{"n2": func(asked) []bool { return []bool{false} }, "n3": func(asked) []bool { return []bool{false} }}, ErrNotConfirmed},
		{"one of two voters is no majority", threeVoters[:2],
			map[shard.NodeID]func(asked) []bool{"n2": func(asked) []bool { return []bool{false} }}, ErrNotConfirmed},
		{"a wrong number of answers is none", threeVoters[:2],
			map[shard.NodeID]func(asked) []bool{"n2": func(asked) []bool { return []bool{true, true} }}, ErrNotConfirmed},
		{"a leader that does not vote needs two", []voter{{"n2", 12}, {"n3", 13}},
			map[shard.NodeID]func(asked) []bool{"n2": yes, "n3": func(asked) []bool { return nil }}, ErrNotConfirmed},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				peers := &scriptedPeers{messages: make(chan asked)}
				c := newConfirmer("n1", time.Second, peers.ask)
				defer c.close()
				got := confirmAsync(c, 1, tc.voters, leads(5, 77, tc.voters))
				var result confirmed
				for answered := false; !answered; { // a decided round asks nobody else
					select {
					case m := <-peers.messages:
						if m.items[0].Term != 5 || m.items[0].Group != 1 {
							t.Errorf("asked %+v", m.items)
						}
						m.answer <- tc.answer[m.node](m)
					case result = <-got:
						answered = true
					}
				}
				if !errors.Is(result.err, tc.want) || (tc.want == nil && (result.err != nil || result.commit != 77)) {
					t.Errorf("got %+v, want error %v", result, tc.want)
				}
			})
		})
	}
}

// The heart of the promise: a read that arrives after a question was sent may not use its answer, since a
// write may have been acknowledged by a new leader in between.
func TestConfirmNeverJoinsASentRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := &scriptedPeers{messages: make(chan asked)}
		c := newConfirmer("n1", time.Hour, peers.ask)
		defer c.close()
		first := confirmAsync(c, 1, threeVoters[:2], leads(5, 1, threeVoters[:2]))
		sent := <-peers.messages
		second := confirmAsync(c, 1, threeVoters[:2], leads(5, 2, threeVoters[:2]))
		synctest.Wait()
		sent.answer <- yes(sent)
		if got := <-first; got.err != nil || got.commit != 1 {
			t.Fatalf("first: %+v", got)
		}
		own := <-peers.messages // the second read's own question
		select {
		case got := <-second:
			t.Fatalf("the second read was answered by the first's question: %+v", got)
		default:
		}
		own.answer <- yes(own)
		if got := <-second; got.err != nil || got.commit != 2 {
			t.Fatalf("second: %+v", got)
		}
	})
}

// Reads that wait while the workers are busy share one question, and all groups share one message.
func TestConfirmSharesMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := &scriptedPeers{messages: make(chan asked)}
		c := newConfirmer("n1", time.Hour, peers.ask)
		defer c.close()
		var busy []asked
		var results []<-chan confirmed
		for group := range shard.ID(confirmWorkers) {
			results = append(results, confirmAsync(c, 100+group, threeVoters[:2], leads(1, 1, threeVoters[:2])))
			busy = append(busy, <-peers.messages)
		}
		for group := range shard.ID(5) {
			for range 10 {
				results = append(results, confirmAsync(c, 1+group, threeVoters[:2], leads(1, 9, threeVoters[:2])))
			}
		}
		synctest.Wait()
		busy[0].answer <- yes(busy[0])
		m := <-peers.messages
		if len(m.items) != 5 {
			t.Errorf("50 reads of 5 groups ask %d questions", len(m.items))
		}
		m.answer <- yes(m)
		for _, b := range busy[1:] {
			b.answer <- yes(b)
		}
		for _, r := range results {
			if got := <-r; got.err != nil {
				t.Error(got.err)
			}
		}
	})
}

// A peer that hangs delays the reads that were first to find out, by confirmPatience. Those after them ask the other one, and
// their questions don't pile up behind it.
func TestConfirmWithADeadPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		dead := 0
		c := newConfirmer("n1", time.Minute, func(ctx context.Context, node shard.NodeID, items []transport.ConfirmItem) ([]bool, error) {
			if node == "n2" {
				mu.Lock()
				dead++
				mu.Unlock()
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return yes(asked{items: items}), nil
		})
		defer c.close()
		began := time.Now()
		for range 100 {
			if _, err := c.confirm(context.Background(), 1, threeVoters, leads(1, 1, threeVoters)); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != confirmPatience {
			t.Errorf("100 reads took %s of virtual time, want %s", took, confirmPatience)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if dead != 1 {
			t.Errorf("the dead peer was asked %d times", dead)
		}
	})
}

// No more peers are asked than a majority takes, unless one of them is of no help.
func TestConfirmAsksAMajority(t *testing.T) {
	fiveVoters := []voter{{"n1", 11}, {"n2", 12}, {"n3", 13}, {"n4", 14}, {"n5", 15}}
	refuses := func(asked) []bool { return nil }
	denies := func(m asked) []bool { return make([]bool, len(m.items)) }
	for name, tc := range map[string]struct {
		self   shard.NodeID
		voters []voter
		// answers of the nodes that are to be asked, in their order; those of others are not waited for.
		order  []shard.NodeID
		answer map[shard.NodeID]func(asked) []bool
	}{
		"one of two":                        {"n1", threeVoters, []shard.NodeID{"n2"}, nil},
		"another leader asks another":       {"n2", threeVoters, []shard.NodeID{"n3"}, nil},
		"two of four":                       {"n4", fiveVoters, []shard.NodeID{"n5", "n1"}, nil},
		"one that can't be reached":         {"n1", threeVoters, []shard.NodeID{"n2", "n3"}, map[shard.NodeID]func(asked) []bool{"n2": refuses}},
		"one that is in another term":       {"n1", threeVoters, []shard.NodeID{"n2", "n3"}, map[shard.NodeID]func(asked) []bool{"n2": denies}},
		"two of five that are of no help":   {"n1", fiveVoters, []shard.NodeID{"n2", "n3", "n4", "n5"}, map[shard.NodeID]func(asked) []bool{"n2": refuses, "n3": denies}},
		"a leader that is no voter itself":  {"n9", threeVoters, []shard.NodeID{"n1", "n2"}, nil},
		"one that was silent is asked last": {"n3", threeVoters, []shard.NodeID{"n2"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				peers := &scriptedPeers{messages: make(chan asked)}
				c := newConfirmer(tc.self, time.Second, peers.ask)
				defer c.close()
				if name == "one that was silent is asked last" {
					c.mu.Lock()
					c.peer("n1").failed = time.Now()
					c.mu.Unlock()
				}
				began := time.Now()
				got := confirmAsync(c, 1, tc.voters, leads(5, 77, tc.voters))
				var order []shard.NodeID
				for range tc.order {
					m := <-peers.messages
					order = append(order, m.node)
					answer := tc.answer[m.node]
					if answer == nil {
						answer = yes
					}
					m.answer <- answer(m)
				}
				if r := <-got; r.err != nil || r.commit != 77 {
					t.Errorf("got %+v", r)
				}
				slices.Sort(order) // those of one moment come in any order
				if want := slices.Sorted(slices.Values(tc.order)); !slices.Equal(order, want) {
					t.Errorf("asked %v, want %v", order, want)
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("it took %s", took)
				}
				select {
				case m := <-peers.messages:
					t.Errorf("%s was asked too", m.node)
				case <-time.After(10 * confirmPatience):
				}
			})
		})
	}
}

func TestConfirmFailsWhenLeadershipIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := &scriptedPeers{messages: make(chan asked)}
		c := newConfirmer("n1", time.Hour, peers.ask)
		defer c.close()
		lost := &NotLeaderError{Group: 1, Leader: "n2"}
		got := <-confirmAsync(c, 1, threeVoters, func() (leadership, error) { return leadership{}, lost })
		if !errors.Is(got.err, ErrNotLeader) {
			t.Errorf("got %v", got.err)
		}
		// Voters that changed between joining and sealing: the majority would be counted over the wrong set.
		got = <-confirmAsync(c, 2, threeVoters, leads(1, 1, threeVoters[:2]))
		if !errors.Is(got.err, ErrNotConfirmed) {
			t.Errorf("got %v", got.err)
		}
	})
}

func TestConfirmAfterClose(t *testing.T) {
	c := newConfirmer("n1", time.Second, nil)
	c.close()
	if _, err := c.confirm(context.Background(), 1, threeVoters, leads(1, 1, threeVoters)); !errors.Is(err, ErrStopped) {
		t.Errorf("got %v", err)
	}
}
