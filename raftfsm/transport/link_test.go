package transport

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// pair is one group on two nodes: a leader that the test plays, and a peer that says yes to everything.
func pair(t *testing.T, adjust ...func(*Config)) (net *network, n1, n2 *testNode, leader, f *Facade) {
	net = newNetwork(t)
	n1, n2 = net.node("n1", adjust...), net.node("n2", adjust...)
	leader, f = n1.open(7, 1), n2.open(7, 2)
	acceptAll(t, f)
	return net, n1, n2, leader, f
}

// content is an append of an entry, probe one without.
var (
	content = raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, Entries: entries(2, 2, 2), LeaderCommitIndex: 1}
	probe   = raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, LeaderCommitIndex: 1}
)

// settleLinks makes the first calls, so that all streams stand.
func settleLinks(t *testing.T, from, to *Facade) {
	t.Helper()
	if _, err := from.sendAppend(to, content); err != nil {
		t.Fatal(err)
	}
}

// TestHeartbeatsAreJoined: those of many groups make one frame, their answers another, and nothing else waits for it.
func TestHeartbeatsAreJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups = 50
		net := newNetwork(t)
		n1, n2 := net.node("n1"), net.node("n2")
		var leaders, followers []*Facade
		for g := range shard.ID(groups) {
			leaders, followers = append(leaders, n1.open(g, 1)), append(followers, n2.open(g, 2))
			acceptAll(t, followers[g])
		}
		settleLinks(t, leaders[0], followers[0])
		before := n1.Stats()["n2"]

		beats := func() {
			var all sync.WaitGroup
			for g := range groups {
				all.Go(func() {
					if err := leaders[g].heartbeat(followers[g], 2); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
		}
		began := time.Now()
		beats()
		after := n1.Stats()["n2"]
		if frames, back := after.Sent.Frames-before.Sent.Frames, after.Received.Frames-before.Received.Frames; frames != 1 || back != 1 {
			t.Errorf("%d heartbeats went in %d frames and were answered in %d, want 1 and 1", groups, frames, back)
		}
		if got := after.Sent.Heartbeats - before.Sent.Heartbeats; got != groups {
			t.Errorf("%d heartbeats counted, want %d", got, groups)
		}
		if took := time.Since(began); took < n1.cfg.HeartbeatGather || took > 3*n1.cfg.HeartbeatGather {
			t.Errorf("took %s, gathering %s", took, n1.cfg.HeartbeatGather)
		}

		// An append goes at once, and takes waiting heartbeats along.
		var waiting sync.WaitGroup
		waiting.Go(beats)
		synctest.Wait()
		before, began = n1.Stats()["n2"], time.Now()
		settleLinks(t, leaders[1], followers[1])
		if took := time.Since(began); took != 0 {
			t.Errorf("an append waited %s", took)
		}
		if after := n1.Stats()["n2"]; after.Sent.Heartbeats-before.Sent.Heartbeats != groups || after.Sent.Frames-before.Sent.Frames != 1 {
			t.Errorf("the append's frame: %+v, then %+v", before.Sent, after.Sent)
		}
		waiting.Wait()
	})
}

// TestOrder: many goroutines send through one facade; had any two been swapped, one would have been overtaken.
func TestOrder(t *testing.T) {
	_, _, _, leader, f := pair(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				if _, err := leader.sendAppend(f, content); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got := leader.sequences[f.replica]; got != (position{2, 400}) {
		t.Errorf("last sequence %+v", got)
	}
}

// TestFullInboxBlocksNobody: a group whose raft is stuck is refused, and the others go on.
func TestFullInboxBlocksNobody(t *testing.T) {
	net := newNetwork(t)
	n1, n2 := net.node("n1"), net.node("n2")
	leader, stuck := n1.open(1, 1), n2.open(1, 2)
	otherLeader, other := n1.open(2, 1), n2.open(2, 2)
	acceptAll(t, other)
	refused := make(chan error, inboxMax+10)
	var all sync.WaitGroup
	for range inboxMax + 10 {
		all.Go(func() {
			if _, err := leader.sendAppend(stuck, content); err != nil {
				refused <- err
			}
		})
	}
	for range 10 {
		if err := <-refused; !strings.Contains(err.Error(), ErrInboxFull.Error()) {
			t.Errorf("%v, want %v", err, ErrInboxFull)
		}
	}
	settleLinks(t, otherLeader, other)
	acceptAll(t, stuck)
	all.Wait()
	if len(refused) != 0 {
		t.Errorf("%v, though there was room", <-refused)
	}
}

// TestDeadlines: a raft that never answers costs each call its deadline, and no more.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		n1, n2 := net.node("n1"), net.node("n2")
		leader, f := n1.open(7, 1), n2.open(7, 2)
		members := []raft.Server{member(leader), member(f)}
		cfg := n1.cfg
		header := leader.header()
		for _, c := range []struct {
			name string
			want time.Duration
			err  error
			call func() error
		}{
			{"append", cfg.AppendTimeout, ErrTimeout, func() error { _, err := leader.sendAppend(f, content); return err }},
			{"heartbeat", cfg.VoteTimeout, ErrTimeout, func() error { return leader.heartbeat(f, 2) }},
			{"vote", cfg.VoteTimeout, ErrTimeout, func() error {
				return leader.RequestVote("2", f.LocalAddr(), &raft.RequestVoteRequest{RPCHeader: header, Term: 2}, &raft.RequestVoteResponse{})
			}},
			{"pre-vote", cfg.VoteTimeout, ErrTimeout, func() error {
				return leader.RequestPreVote("2", f.LocalAddr(), &raft.RequestPreVoteRequest{RPCHeader: header, Term: 2}, &raft.RequestPreVoteResponse{})
			}},
			{"TimeoutNow", cfg.VoteTimeout, ErrTimeout, func() error {
				return leader.TimeoutNow("2", f.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{})
			}},
			{"snapshot", cfg.SnapshotProgressTimeout, ErrStalled, func() error {
				return leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, members, 8<<20), &raft.InstallSnapshotResponse{}, zeros{})
			}},
			{"confirm", time.Second, context.DeadlineExceeded, func() error {
				net.isolate("n2")
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := n1.Confirm(ctx, "n2", []ConfirmItem{{7, 2, 2}})
				return err
			}},
		} {
			began := time.Now()
			err := c.call()
			if took := time.Since(began); took != c.want {
				t.Errorf("%s took %s, want %s", c.name, took, c.want)
			}
			remote := &RemoteError{} // the receiver of a stalled snapshot may be the first to say so
			if !errors.Is(err, c.err) && !(errors.As(err, &remote) && strings.Contains(remote.Text, c.err.Error())) {
				t.Errorf("%s: %v, want %v", c.name, err, c.err)
			}
		}
	})
}

// zeros is a reader without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLinkDown: while a peer refuses connections, heartbeats and votes fail at once, and an append waits for it.
func TestLinkDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, n1, n2, leader, f := pair(t)
		settleLinks(t, leader, f)
		n2.unplug()
		synctest.Wait()
		began := time.Now()
		if err := leader.heartbeat(f, 2); !errors.Is(err, ErrLinkDown) {
			t.Errorf("heartbeat: %v, want %v", err, ErrLinkDown)
		}
		if _, err := n1.Confirm(t.Context(), "n2", []ConfirmItem{{7, 2, 2}}); !errors.Is(err, ErrLinkDown) {
			t.Errorf("confirm: %v, want %v", err, ErrLinkDown)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("failing fast took %s", took)
		}
		if _, err := leader.sendAppend(f, content); !errors.Is(err, ErrTimeout) || !errors.Is(err, ErrLinkDown) {
			t.Errorf("append: %v, want %v for %v", err, ErrTimeout, ErrLinkDown)
		}
		if took := time.Since(began); took != n1.cfg.AppendTimeout {
			t.Errorf("the append waited %s, want %s", took, n1.cfg.AppendTimeout)
		}
		// A patient call wanted the peer for ten seconds: it was dialed with pauses in between.
		if dials := n1.Stats()["n2"].Dials; dials < 8 || dials > 30 {
			t.Errorf("%d dials in %s", dials, n1.cfg.AppendTimeout)
		}
		dials := n1.Stats()["n2"].Dials
		time.Sleep(time.Minute)
		if got := n1.Stats()["n2"].Dials; got > dials+1 {
			t.Errorf("%d dials with nothing to send", got-dials)
		}

		served := make(chan error, 1)
		go func() { _, err := leader.sendAppend(f, content); served <- err }()
		time.Sleep(3 * time.Second)
		began = time.Now()
		n2.listen()
		if err := <-served; err != nil {
			t.Errorf("append that waited: %v", err)
		}
		if took := time.Since(began); took > 2*n1.cfg.RedialMax {
			t.Errorf("took %s to come back", took)
		}
	})
}

// TestPeerThatDialsIsAlive: a peer's own stream brings the link back before anything is sent.
func TestPeerThatDialsIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, n1, n2, leader, f := pair(t)
		acceptAll(t, leader)
		settleLinks(t, leader, f)
		n2.unplug()
		time.Sleep(time.Minute)
		if n1.Stats()["n2"].Connected {
			t.Fatal("connected to nobody")
		}
		n2.listen()
		settleLinks(t, f, leader)
		synctest.Wait()
		if !n1.Stats()["n2"].Connected {
			t.Error("still down")
		}
		if err := leader.heartbeat(f, 2); err != nil {
			t.Error(err)
		}
	})
}

// TestSilentPeer: packets vanish, nothing refuses. The stream ends within quietPulsesMax beats, and a new one is made
// when the network is back.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, n1, _, leader, f := pair(t)
		settleLinks(t, leader, f)
		time.Sleep(time.Minute)
		if got := n1.Stats()["n2"]; got.Dials != 1 || !got.Connected {
			t.Fatalf("an idle stream did not last: %+v", got)
		}
		net.isolate("n2")
		began := time.Now()
		_, err := leader.sendAppend(f, content)
		if took := time.Since(began); !errors.Is(err, ErrSilent) || took > quietPulsesMax*n1.cfg.Pulse {
			t.Errorf("after %s: %v, want %v within %s", took, err, ErrSilent, quietPulsesMax*n1.cfg.Pulse)
		}
		if err := leader.heartbeat(f, 2); !errors.Is(err, ErrLinkDown) {
			t.Errorf("heartbeat: %v, want %v", err, ErrLinkDown)
		}
		time.Sleep(time.Minute)
		net.heal("n2")
		began = time.Now()
		settleLinks(t, leader, f)
		if took, most := time.Since(began), n1.cfg.DialTimeout+2*n1.cfg.RedialMax; took > most {
			t.Errorf("took %s to come back, want at most %s", took, most)
		}
	})
}

// TestSilentDialer: the accepting end waits longer, and then ends the stream of a peer that is gone.
func TestSilentDialer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		n2 := net.node("n2")
		dialAs(t, net, n2, &ostrakapb.Handshake{Format: HandshakeFormat, ClusterId: testCluster, NodeId: "n1", Incarnation: 1})
		began := time.Now()
		err := <-n2.refusals
		if took, want := time.Since(began), n2.cfg.AppendTimeout+quietPulsesMax*n2.cfg.Pulse; !errors.Is(err, ErrSilent) || took > want {
			t.Errorf("after %s: %v, want %v by %s", took, err, ErrSilent, want)
		}
	})
}

// TestSlowIsNotSilent: a huge entry crawls over a thin line for longer than silence would be borne. No frame comes back
// meanwhile, and both ends know better than to hang up.
func TestSlowIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Minute) }) // gRPC's last words, too, take their time
		net := newNetwork(t)
		net.bytesPerSecond = 1 << 20
		n1, n2 := net.node("n1"), net.node("n2")
		leader, f := n1.open(7, 1), n2.open(7, 2)
		acceptAll(t, f)
		log := &raft.Log{Index: 2, Term: 2, Data: make([]byte, 8<<20)}
		began := time.Now()
		if _, err := leader.sendAppend(f, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, Entries: []*raft.Log{log}}); err != nil {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if took := time.Since(began); took < 8*time.Second {
			t.Errorf("took only %s", took)
		}
	})
}

// TestAddressChange: the address book is asked at each dial.
func TestAddressChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, n1, n2, leader, f := pair(t)
		settleLinks(t, leader, f)
		before, err := n1.Conn("n2")
		if err != nil {
			t.Fatal(err)
		}
		n2.unplug()
		n2.address = "elsewhere"
		n2.listen()
		synctest.Wait() // n1 has noticed: a call that is on its way would fail
		settleLinks(t, leader, f)
		if after, err := n1.Conn("n2"); err != nil || after == before {
			t.Errorf("the shared connection still goes to the old address, %v", err)
		}
		net.mu.Lock()
		delete(net.book, "n2")
		net.mu.Unlock()
		if _, err := n1.Conn("n2"); !errors.Is(err, ErrUnknownNode) {
			t.Errorf("a node without address: %v", err)
		}
		if _, err := n1.Conn("n1"); !errors.Is(err, ErrWrongNode) {
			t.Errorf("the node itself: %v", err)
		}
	})
}

// TestCloseFacade: ends its calls on both ends, no stream, and the group can be opened again.
func TestCloseFacade(t *testing.T) {
	net := newNetwork(t)
	n1, n2 := net.node("n1"), net.node("n2")
	leader, f := n1.open(7, 1), n2.open(7, 2)
	call := func() <-chan error {
		failed := make(chan error, 1)
		go func() { _, err := leader.sendAppend(f, content); failed <- err }()
		eventually(t, "the request waits", func() bool { return len(f.consumer) > 0 })
		return failed
	}
	if _, err := n2.Open(7, 3, durable{}); !errors.Is(err, ErrAlreadyOpen) {
		t.Errorf("open twice: %v", err)
	}
	failed := call()
	f.Close()
	f.Close()
	if err := <-failed; err == nil || !strings.Contains(err.Error(), ErrClosed.Error()) {
		t.Errorf("a queued request was answered by %v, want %v", err, ErrClosed)
	}
	if _, err := leader.sendAppend(f, content); err == nil || !strings.Contains(err.Error(), ErrNoReplica.Error()) {
		t.Errorf("to a closed group: %v, want %v", err, ErrNoReplica)
	}
	f = n2.open(7, 2)
	failed = call()
	leader.Close()
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Errorf("a waiting call: %v, want %v", err, ErrClosed)
	}
	acceptAll(t, f)
	leader = n1.open(7, 1)
	if _, err := leader.sendAppend(f, raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 1, PrevLogTerm: 1}); err != nil {
		t.Errorf("after reopening: %v", err)
	}
	if dials := n1.Stats()["n2"].Dials; dials != 1 {
		t.Errorf("%d dials, want 1", dials)
	}
}

// TestWrongReplica: a message for a replica's predecessor is not its successor's.
func TestWrongReplica(t *testing.T) {
	_, n1, _, leader, f := pair(t)
	wrong := &Facade{t: f.t, group: f.group, replica: 99, gate: durable{}}
	if _, err := leader.sendAppend(wrong, content); err == nil || !strings.Contains(err.Error(), ErrNoReplica.Error()) {
		t.Errorf("%v, want %v", err, ErrNoReplica)
	}
	if _, err := n1.Open(7, 1, durable{}); !errors.Is(err, ErrAlreadyOpen) {
		t.Errorf("%v, want %v", err, ErrAlreadyOpen)
	}
}

// TestConfirm: one message, many groups, answers in order.
func TestConfirm(t *testing.T) {
	var asked [][]ConfirmItem
	_, n1, _, leader, f := pair(t, func(c *Config) {
		if c.Self == "n2" {
			c.Confirmer = func(items []ConfirmItem) []bool {
				asked = append(asked, items)
				var answers []bool
				for _, item := range items {
					answers = append(answers, item.Term == 5)
				}
				return answers
			}
		}
	})
	settleLinks(t, leader, f)
	items := []ConfirmItem{{0, 1, 5}, {7, 2, 4}, {8, 3, 5}}
	got, err := n1.Confirm(t.Context(), "n2", items)
	if err != nil || !slices.Equal(got, []bool{true, false, true}) {
		t.Errorf("got %v, %v", got, err)
	}
	if len(asked) != 1 || !slices.Equal(asked[0], items) {
		t.Errorf("asked %v", asked)
	}
	var remote *RemoteError
	if _, err := n1.Confirm(t.Context(), "n2", make([]ConfirmItem, confirmItemsMax+1)); !errors.As(err, &remote) || !strings.Contains(remote.Text, ErrMalformed.Error()) {
		t.Errorf("too many questions: %v, want %v", err, ErrMalformed)
	}
	if len(asked) != 1 {
		t.Errorf("%d questions were passed on", len(asked[1]))
	}
	n1.Close()
	if _, err := n1.Confirm(t.Context(), "n2", items); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestCloseEndsEverything: calls of all kinds return, and both ends' goroutines go (the package's leak check sees).
func TestCloseEndsEverything(t *testing.T) {
	net := newNetwork(t)
	n1, n2 := net.node("n1"), net.node("n2")
	leader, f := n1.open(7, 1), n2.open(7, 2)
	failed := make(chan error, 2)
	go func() { _, err := leader.sendAppend(f, content); failed <- err }()
	eventually(t, "the append waits", func() bool { return len(f.consumer) == 1 })
	go func() {
		failed <- leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, nil, 8<<20), &raft.InstallSnapshotResponse{}, zeros{})
	}()
	eventually(t, "the snapshot waits, too", func() bool { return len(f.consumer) == 2 })
	n1.Close()
	for range 2 {
		if err := <-failed; !errors.Is(err, ErrClosed) {
			t.Errorf("%v, want %v", err, ErrClosed)
		}
	}
	if _, err := n1.Open(8, 1, durable{}); !errors.Is(err, ErrClosed) {
		t.Errorf("open after Close: %v", err)
	}
	if err := n1.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}
