package transport

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// many is a number of groups on two nodes. The test plays their leaders; their followers say yes to everything.
type many struct {
	t                  *testing.T
	n1, n2             *testNode
	leaders, followers []*Facade
}

func newMany(t *testing.T, groups int) *many {
	net := newNetwork(t)
	m := &many{t: t, n1: net.node("n1"), n2: net.node("n2")}
	for g := range shard.ID(groups) {
		m.leaders = append(m.leaders, m.n1.open(g, 1))
		m.followers = append(m.followers, m.n2.open(g, 2))
	}
	return m
}

// beat sends a heartbeat of each group at once, and returns where the outcomes will be.
func (m *many) beat() []<-chan error {
	var all []<-chan error
	for i := range m.leaders {
		all = append(all, start(func() error { return m.leaders[i].heartbeat(m.followers[i], 2) }))
	}
	return all
}

// TestSlowGroupHoldsNobodysAnswers: the others' answers leave after the gather time, and the slow group's when it has one.
func TestSlowGroupHoldsNobodysAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMany(t, 5)
		const slow = 2
		for i, f := range m.followers {
			if i != slow {
				acceptAll(t, f)
			}
		}
		settleLinks(t, m.leaders[0], m.followers[0])
		before := m.n2.Stats()["n1"].Sent.Frames
		began := time.Now()
		beats := m.beat()
		for i, done := range beats {
			if i != slow {
				wantSuccess(t, done)
			}
		}
		if took, most := time.Since(began), 2*m.n1.cfg.HeartbeatGather; took > most {
			t.Errorf("answered after %s, want at most %s", took, most)
		}
		if frames := m.n2.Stats()["n1"].Sent.Frames - before; frames != 1 {
			t.Errorf("answered in %d frames", frames)
		}
		time.Sleep(m.n1.cfg.HeartbeatGather)
		wantHeld(t, "its raft has not answered", beats[slow])
		say(<-m.followers[slow].Consumer())
		wantSuccess(t, beats[slow])
	})
}

// TestStuckGroupsAreLeftBehind: groups that never answer fill no queue that others need, round after round.
func TestStuckGroupsAreLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMany(t, 3)
		acceptAll(t, m.followers[0])
		settleLinks(t, m.leaders[0], m.followers[0])
		stuck := m.beat()
		wantSuccess(t, stuck[0])
		for range 3 * arrivalsMax {
			began := time.Now()
			beats := []<-chan error{
				start(func() error { return m.leaders[0].heartbeat(m.followers[0], 2) }),
				start(func() error { return m.leaders[1].heartbeat(m.followers[1], 2) }),
			}
			wantSuccess(t, beats[0])
			if took, most := time.Since(began), 3*m.n1.cfg.HeartbeatGather; took > most {
				t.Fatalf("answered after %s, want at most %s", took, most)
			}
		}
		for _, done := range stuck[1:] {
			wantError(t, done, ErrTimeout)
		}
	})
}

// TestRefusedHeartbeats: those for groups that are not there are told so, each by itself.
func TestRefusedHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMany(t, 4)
		for _, f := range m.followers {
			acceptAll(t, f)
		}
		settleLinks(t, m.leaders[0], m.followers[0])
		m.followers[1].Close()
		m.followers[3].Close()
		for i, done := range m.beat() {
			if i%2 == 0 {
				wantSuccess(t, done)
			} else {
				wantError(t, done, ErrNoReplica)
			}
		}
		m.followers[0].Close()
		m.followers[2].Close()
		for _, done := range m.beat() {
			wantError(t, done, ErrNoReplica)
		}
	})
}

// TestHeartbeatsEnd, at once, with what they wait on: their group's end on either side, the link, the node.
func TestHeartbeatsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*many)
		want error
	}{
		"leader closed":        {func(m *many) { m.leaders[0].Close() }, ErrClosed},
		"leader's node closed": {func(m *many) { m.n1.stop() }, ErrClosed},
		"link down":            {func(m *many) { m.n2.unplug() }, ErrLinkDown},
		"follower closed":      {func(m *many) { m.followers[0].Close() }, ErrClosed},
	} {
		for _, sent := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMany(t, 2)
					acceptAll(t, m.followers[1])
					settleLinks(t, m.leaders[1], m.followers[1])
					done := start(func() error { return m.leaders[0].heartbeat(m.followers[0], 2) })
					if sent {
						time.Sleep(2 * m.n1.cfg.HeartbeatGather)
					}
					wantHeld(t, "nobody answers", done)
					began := time.Now()
					c.end(m)
					if name == "follower closed" && !sent {
						c.want = ErrNoReplica
					}
					wantError(t, done, c.want)
					if took := time.Since(began); took > 2*m.n1.cfg.HeartbeatGather {
						t.Errorf("took %s", took)
					}
				})
			})
		}
	}
}

// TestBeatsOfOneReplicaTwice: a leader of a new term may beat while the old one's goroutine still waits.
func TestBeatsOfOneReplicaTwice(t *testing.T) {
	_, _, _, leader, f := pair(t)
	var all sync.WaitGroup
	for term := range uint64(50) {
		all.Go(func() {
			if err := leader.heartbeat(f, term+1); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestMalformedHeartbeats end the stream: what else the columns hold can't be told.
func TestMalformedHeartbeats(t *testing.T) {
	p := &pipe{t: &Transport{}}
	for name, m := range map[string]*ostrakapb.Heartbeats{
		"short":    {Group: []uint32{1, 2}, FromReplica: []uint64{1}, ToReplica: []uint64{1, 2}, Term: []uint64{1, 2}, Protocol: []uint32{3, 3}, Commit: []uint64{0, 0}},
		"no index": {Group: []uint32{1}, FromReplica: []uint64{1}, ToReplica: []uint64{1}, Term: []uint64{1}, Protocol: []uint32{3}},
		"missing":  {Group: []uint32{1}},
		"too many": {Group: make([]uint32, roundRowsMax+1), FromReplica: make([]uint64, roundRowsMax+1), ToReplica: make([]uint64, roundRowsMax+1), Term: make([]uint64, roundRowsMax+1), Protocol: make([]uint32, roundRowsMax+1), Commit: make([]uint64, roundRowsMax+1)},
	} {
		if err := p.takeFrame(&ostrakapb.Frame{Heartbeats: m}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want %v", name, err, ErrMalformed)
		}
	}
	d := newDialed(&pipe{t: &Transport{}, peer: &peer{}, outbox: &outbox{}})
	for name, m := range map[string]*ostrakapb.HeartbeatReplies{
		"short": {Round: 1, Row: []uint32{0}, Term: []uint64{1}},
		"long":  {Round: 1, Term: []uint64{1}, Success: []bool{true}},
	} {
		if err := d.settle(&ostrakapb.Frame{HeartbeatReplies: []*ostrakapb.HeartbeatReplies{m}}); !errors.Is(err, ErrMalformed) {
			t.Errorf("answer %s: %v, want %v", name, err, ErrMalformed)
		}
	}
	// Rows and rounds that nobody asked about are nobody's.
	_, n1, _, leader, f := pair(t)
	settleLinks(t, leader, f)
	link, _ := n1.peer("n2")
	stranger := &ostrakapb.HeartbeatReplies{Round: 1, Row: []uint32{9, 1 << 31}, Term: []uint64{1, 1}, Success: []bool{true, true},
		Refused: []*ostrakapb.HeartbeatRefusal{nil, {Row: 77}}}
	answer := make(chan beatAnswer, 1)
	if err := link.link.up().addHeartbeat(leader, 2, &raft.AppendEntriesRequest{Term: 2}, answer); err != nil {
		t.Fatal(err)
	}
	for _, round := range []uint64{1, 2} {
		stranger.Round = round
		if err := link.link.up().settle(&ostrakapb.Frame{HeartbeatReplies: []*ostrakapb.HeartbeatReplies{stranger}}); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if a := <-answer; a.success || a.err == nil {
		t.Errorf("answered %+v, want the refusal of row 0", a)
	}
}

// TestHeartbeatsTellWhatIsCommitted, no further than both logs are known to be alike: raft would apply whatever its own holds.
func TestHeartbeatsTellWhatIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		n1, n2, n3 := net.node("n1"), net.node("n2"), net.node("n3")
		leader, rival, follower := n1.open(7, 1), n3.open(7, 3), n2.open(7, 2)
		for _, f := range []*Facade{leader, rival} {
			f.CommitFrom(func() uint64 { return 5 })
		}
		told := func(what string, from *Facade, term, want uint64) {
			t.Helper()
			done := start(func() error { return from.heartbeat(follower, term) })
			rpc := <-follower.Consumer()
			if got := rpc.Command.(*raft.AppendEntriesRequest).LeaderCommitIndex; got != want {
				t.Errorf("%s: told %d, want %d", what, got, want)
			}
			say(rpc)
			wantSuccess(t, done)
		}
		appended := func(from *Facade, term, first, last uint64, answer error) {
			t.Helper()
			done := start(func() error {
				_, err := from.sendAppend(follower, raft.AppendEntriesRequest{Term: term, PrevLogEntry: first - 1, PrevLogTerm: 1, Entries: entries(term, first, last)})
				return err
			})
			rpc := <-follower.Consumer()
			if answer != nil {
				rpc.Respond(&raft.AppendEntriesResponse{Term: term}, answer)
				wantError(t, done, answer)
				return
			}
			say(rpc)
			wantSuccess(t, done)
		}
		told("nothing is known of the log", leader, 2, 0)
		appended(leader, 2, 2, 3, nil)
		told("alike up to 3", leader, 2, 3)
		appended(leader, 2, 4, 9, errors.New("its log refused"))
		told("refused", leader, 2, 3)
		appended(leader, 2, 4, 9, nil)
		told("alike up to 9", leader, 2, 5)
		appended(leader, 2, 3, 3, nil)
		told("a repeated append", leader, 2, 5)
		told("a newer term", leader, 3, 0)
		told("another leader", rival, 3, 0)
		appended(rival, 3, 2, 2, nil)
		told("another leader's append", rival, 3, 2)
		told("a leader of the past", leader, 2, 0)

		follower.Close()
		follower = n2.open(7, 2)
		told("another life", rival, 3, 0)
	})
}

// TestRoundIsBounded: more heartbeats than fit are refused, and none of the others lost.
func TestRoundIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, n1, _, leader, f := pair(t)
		settleLinks(t, leader, f)
		p, _ := n1.peer("n2")
		d := p.link.up()
		answers := make(chan beatAnswer, roundRowsMax)
		for range roundRowsMax {
			if err := d.addHeartbeat(leader, 99, &raft.AppendEntriesRequest{Term: 2}, answers); err != nil {
				t.Fatal(err)
			}
		}
		if err := leader.heartbeat(f, 2); !errors.Is(err, ErrQueueFull) {
			t.Errorf("%v, want %v", err, ErrQueueFull)
		}
		d.pipe.outbox.join(false)
		for range roundRowsMax {
			if a := <-answers; a.err == nil || !strings.Contains(a.err.Error(), ErrNoReplica.Error()) {
				t.Fatalf("%+v", a)
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if n := len(d.rounds.sent); n != 0 {
			t.Errorf("%d rounds are kept", n)
		}
	})
}

// TestRepliesAreBounded: answers that don't fit into one frame go with the next.
func TestRepliesAreBounded(t *testing.T) {
	p := &pipe{t: &Transport{}}
	p.outbox = newOutbox(&Config{QueueMessagesMax: 2, FrameBytesMax: 100})
	p.outbox.board = p.boardReplies
	for round := range uint64(3) {
		p.reply(&ostrakapb.HeartbeatReplies{Round: round, Row: make([]uint32, roundRowsMax*2/3)}, false)
	}
	var rounds []uint64
	for frame, _ := p.outbox.take(); frame != nil; frame, _ = p.outbox.take() {
		if len(frame.HeartbeatReplies) != 1 {
			t.Errorf("%d answers in a frame", len(frame.HeartbeatReplies))
		}
		for _, r := range frame.HeartbeatReplies {
			rounds = append(rounds, r.Round)
		}
	}
	if len(rounds) != 3 || rounds[0] != 0 || rounds[2] != 2 {
		t.Errorf("rounds %v", rounds)
	}
}

// TestUnreadRepliesAreBounded: a peer that beats and never reads the answers makes nothing grow.
func TestUnreadRepliesAreBounded(t *testing.T) {
	p := &pipe{peer: &peer{}}
	p.outbox = newOutbox(&Config{QueueMessagesMax: 2, FrameBytesMax: 100})
	for round := range uint64(repliesMax + 9) {
		p.reply(&ostrakapb.HeartbeatReplies{Round: round, Row: make([]uint32, 3), Refused: make([]*ostrakapb.HeartbeatRefusal, 2)}, false)
	}
	if n := len(p.replies); n != repliesMax {
		t.Errorf("%d are kept", n)
	}
	if n := p.peer.counters.dropped.Load(); n != 9*5 {
		t.Errorf("%d counted as dropped", n)
	}
}

// TestRestingAppends: without entries, and with none before for a while, an append travels with the heartbeats. Right after
// entries it does not wait, and Hurry ends the waiting, and prevents it for a while.
func TestRestingAppends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMany(t, 3)
		for _, f := range m.followers {
			acceptAll(t, f)
		}
		timed := func(what string, want time.Duration, send func() error) {
			t.Helper()
			began := time.Now()
			if err := send(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if took := time.Since(began); took != want {
				t.Errorf("%s took %s, want %s", what, took, want)
			}
		}
		send := func(req raft.AppendEntriesRequest) func() error {
			return func() error { _, err := m.leaders[0].sendAppend(m.followers[0], req); return err }
		}
		settleLinks(t, m.leaders[0], m.followers[0])
		timed("right after entries", 0, send(probe))
		time.Sleep(restMin)
		timed("entries", 0, send(content))
		time.Sleep(restMin)
		before := m.n1.Stats()["n2"]
		gather := m.n1.cfg.HeartbeatGather
		beats := m.beat()
		timed("at rest", gather, send(probe))
		for _, done := range beats {
			wantSuccess(t, done)
		}
		after := m.n1.Stats()["n2"]
		if out, in := after.Sent.Frames-before.Sent.Frames, after.Received.Frames-before.Received.Frames; out != 1 || in != 1 {
			t.Errorf("heartbeats and an append went in %d frames, their answers in %d", out, in)
		}

		began := time.Now()
		waiting := start(send(probe))
		wantHeld(t, "it gathers", waiting)
		m.leaders[1].Hurry() // none of its own waits
		wantHeld(t, "it gathers", waiting)
		m.leaders[0].Hurry()
		wantSuccess(t, waiting)
		if took := time.Since(began); took != 0 {
			t.Errorf("hurried, it took %s", took)
		}
		// What is about to be written may not have been sent yet.
		timed("right after a hurry", 0, send(probe))
		time.Sleep(restMin)
		timed("at rest again", gather, send(probe))
	})
}

// TestGivenUpLeavesNoTrace: a lazy message that was withdrawn must not make the next one wait for ever.
func TestGivenUpLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(&Config{QueueMessagesMax: 2, FrameBytesMax: 100, HeartbeatGather: time.Second})
		done, sent := make(chan struct{}), make(chan *ostrakapb.Frame, 2)
		go o.run(done, func(frame *ostrakapb.Frame, _ int) error { sent <- frame; return nil })
		first, second := &ostrakapb.Envelope{Call: 1}, &ostrakapb.Envelope{Call: 2}
		o.push(first, true)
		o.withdraw(first)
		time.Sleep(10 * time.Second)
		o.push(second, true)
		began := time.Now()
		select {
		case frame := <-sent:
			if frame.Envelopes[0] != second || time.Since(began) != time.Second {
				t.Errorf("%v after %s", frame, time.Since(began))
			}
		case <-time.After(time.Minute):
			t.Error("never sent")
		}
		close(done)
	})
}

// TestLateAnswerIsNobodysElse: what calls wait at is used again, and an answer that comes after its caller has given up must
// not reach the next one.
func TestLateAnswerIsNobodysElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		leader, f := net.node("n1", func(c *Config) { c.AppendTimeout, c.VoteTimeout = time.Second, time.Second }).open(7, 1), net.node("n2").open(7, 2)
		call := func(index uint64) <-chan error {
			return start(func() error {
				resp, err := leader.sendAppend(f, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: index - 1, PrevLogTerm: 1, Entries: entries(2, index, index)})
				if err == nil && resp.LastLog != index {
					t.Errorf("entry %d was answered for %d", index, resp.LastLog)
				}
				return err
			})
		}
		for index := uint64(2); index < 20; index += 2 {
			given := call(index)
			late := <-f.Consumer()
			wantError(t, given, ErrTimeout)
			next := call(index + 1)
			say(late)
			synctest.Wait()
			say(<-f.Consumer())
			wantSuccess(t, next)

			beaten := start(func() error { return leader.heartbeat(f, 2) })
			late = <-f.Consumer()
			wantError(t, beaten, ErrTimeout)
			beaten = start(func() error { return leader.heartbeat(f, 3) })
			late.Respond(nil, errors.New("late"))
			say(<-f.Consumer())
			wantSuccess(t, beaten)
		}
	})
}

// TestWaitersAreEmpty: an answer may come at the very moment at which its caller gives up.
func TestWaitersAreEmpty(t *testing.T) {
	var pool waiters[int]
	for range 100 {
		w := pool.get(time.Hour)
		if len(w.answer) != 0 {
			t.Fatal("holds the answer to an earlier call")
		}
		w.answer <- 1
		pool.put(w)
	}
}
