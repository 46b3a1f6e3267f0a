package transport

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// gated is one group on two nodes with a fake gate at either end. The test plays the leader; the follower's raft appends
// whatever it is sent, and says yes.
type gated struct {
	t                    *testing.T
	n1, n2               *testNode
	leader, follower     *Facade
	leaderGate, diskGate *fakeGate // diskGate: the follower's
}

func newGated(t *testing.T) *gated {
	net := newNetwork(t)
	g := &gated{t: t, n1: net.node("n1"), n2: net.node("n2"), leaderGate: &fakeGate{}, diskGate: &fakeGate{}}
	g.leader = g.n1.openGated(7, 1, g.leaderGate)
	g.follower = g.n2.openGated(7, 2, g.diskGate)
	appendAll(t, g.follower, g.diskGate)
	settleLinks(t, g.leader, g.follower)
	return g
}

// appendAll plays a raft that appends all entries and says yes, until the Facade is closed.
func appendAll(t *testing.T, f *Facade, gate *fakeGate) {
	go func() {
		for {
			select {
			case rpc := <-f.Consumer():
				if a, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && len(a.Entries) > 0 {
					gate.change()
				}
				if _, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
					gate.change() // the log is cleared
				}
				say(rpc)
			case <-f.ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { f.Close() })
}

// send starts an append of entries and returns where its outcome will be.
func (g *gated) send(from, to uint64) <-chan error {
	return start(func() error {
		resp, err := g.leader.sendAppend(g.follower, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: from - 1, PrevLogTerm: 1, Entries: entries(2, from, to)})
		if err == nil && (!resp.Success || resp.LastLog != to) {
			g.t.Errorf("entries up to %d: %+v", to, resp)
		}
		return err
	})
}

// install starts a snapshot.
func (g *gated) install() <-chan error {
	return start(func() error {
		var resp raft.InstallSnapshotResponse
		req := snapshotRequest(g.leader, 2, 3, nil, 4)
		err := g.leader.InstallSnapshot("2", g.follower.LocalAddr(), req, &resp, strings.NewReader("data"))
		if err == nil && !resp.Success {
			g.t.Errorf("install: %+v", resp)
		}
		return err
	})
}

func start(call func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	return done
}

// wantHeld fails if a call has returned although all goroutines of the bubble rest.
func wantHeld(t *testing.T, why string, done <-chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-done:
		t.Fatalf("%s, and the call returned: %v", why, err)
	default:
	}
}

// wantError waits for a call that must fail, with an error whose text contains that of want: it may have come from afar.
func wantError(t *testing.T, done <-chan error, want error) {
	t.Helper()
	if err := <-done; err == nil || !strings.Contains(err.Error(), want.Error()) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func wantSuccess(t *testing.T, done <-chan error) {
	t.Helper()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestFollowerEndIsHeld: the answer to entries waits for the follower's disk, and nothing else does.
func TestFollowerEndIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		other, otherFollower := g.n1.open(8, 1), g.n2.open(8, 2)
		acceptAll(t, otherFollower)
		g.diskGate.hold()
		done := g.send(2, 4)
		wantHeld(t, "the follower's disk does not have the entries", done)
		if got := g.leader.Progress(g.follower.LocalAddr()).Index; got != 2 {
			t.Errorf("progress %d", got)
		}

		began := time.Now()
		if _, err := g.leader.sendAppend(g.follower, probe); err != nil { // vouches for nothing
			t.Error(err)
		}
		settleLinks(t, other, otherFollower)
		if took := time.Since(began); took > 2*g.n1.cfg.HeartbeatGather {
			t.Errorf("others waited %s", took)
		}
		began = time.Now()
		if err := g.leader.heartbeat(g.follower, 2); err != nil {
			t.Errorf("heartbeat: %v", err)
		}
		if took := time.Since(began); took > 2*g.n1.cfg.HeartbeatGather {
			t.Errorf("a heartbeat waited %s", took)
		}

		wantHeld(t, "the follower's disk still does not have the entries", done)
		g.diskGate.settle()
		wantSuccess(t, done)
		if got := g.leader.Progress(g.follower.LocalAddr()).Index; got != 4 {
			t.Errorf("progress %d, want 4", got)
		}
	})
}

// TestPresentEntriesAreHeld: raft appends nothing when it has the entries already, but they may not be durable yet.
func TestPresentEntriesAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		net := g.n1.network
		third := net.node("n3")
		follower := third.openGated(7, 3, g.diskGate)
		acceptAll(t, follower) // answers, and appends nothing
		g.diskGate.hold()
		g.diskGate.change() // by an earlier append, whose answer nobody waits for any more
		done := start(func() error {
			_, err := g.leader.sendAppend(follower, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, Entries: entries(2, 2, 4)})
			return err
		})
		wantHeld(t, "the entries are there, but not on the disk", done)
		g.diskGate.settle()
		wantSuccess(t, done)
	})
}

// TestGateIsASequence: append up to 100, truncate to 50, append up to 60. A watermark of indexes would stand at 100 and
// vouch for the new 51..60.
func TestGateIsASequence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		for i := uint64(2); i <= 100; i++ {
			wantSuccess(t, g.send(i, i))
		}
		truncated := g.diskGate.Appended() + 1
		g.diskGate.hold()
		g.diskGate.change() // the log is cut
		done := g.send(51, 60)
		wantHeld(t, "indexes up to 100 were durable once", done)
		g.diskGate.settleTo(truncated)
		wantHeld(t, "the truncation is durable, what came after is not", done)
		g.diskGate.settle()
		wantSuccess(t, done)
	})
}

// TestHeldAnswersLeaveInAnyOrder: the log may tell of a later sequence first.
func TestHeldAnswersLeaveInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.diskGate.hold()
		first := g.send(2, 2)
		wantHeld(t, "held", first)
		second := g.send(3, 3)
		wantHeld(t, "held", second)
		g.diskGate.settle() // tells of the second first
		wantSuccess(t, second)
		wantSuccess(t, first)
	})
}

// TestHeldAnswersAreBounded: what is over the bound is refused, and the rest is not lost by it.
func TestHeldAnswersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.diskGate.hold()
		var held []<-chan error
		for range heldMax {
			done := g.send(2, 2)
			wantHeld(t, "held", done)
			held = append(held, done)
		}
		wantError(t, g.send(2, 2), ErrHeldFull)
		g.diskGate.settle()
		for _, done := range held {
			wantSuccess(t, done)
		}
		wantSuccess(t, g.send(3, 3))
	})
}

// TestLeaderEndIsHeld: the answer reaches raft only when what this replica had appended at the call is durable here too.
func TestLeaderEndIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.leaderGate.hold()
		g.leaderGate.change()
		atCall := g.leaderGate.Appended()
		done := g.send(2, 4)
		wantHeld(t, "the leader's own disk does not have the entries", done)
		if got := g.leader.Progress(g.follower.LocalAddr()).Index; got != 2 {
			t.Errorf("progress %d", got)
		}
		if _, err := g.leader.sendAppend(g.follower, probe); err != nil {
			t.Error(err)
		}
		if err := g.leader.heartbeat(g.follower, 2); err != nil {
			t.Errorf("heartbeat: %v", err)
		}
		g.leaderGate.change() // appended since, which is none of this call's business
		g.leaderGate.settleTo(atCall)
		wantSuccess(t, done)
		if got := g.leader.Progress(g.follower.LocalAddr()).Index; got != 4 {
			t.Errorf("progress %d, want 4", got)
		}
	})
}

// TestLeaderEndReturnsByItsDeadline: never a success, and never for ever; the time counts from the call.
func TestLeaderEndReturnsByItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.leaderGate.hold()
		g.leaderGate.change()
		began := time.Now()
		done := g.send(2, 4)
		wantError(t, done, ErrTimeout)
		if took := time.Since(began); took != g.n1.cfg.AppendTimeout {
			t.Errorf("returned after %s", took)
		}
		if got := g.leader.Progress(g.follower.LocalAddr()).Index; got != 2 {
			t.Errorf("progress %d", got)
		}
	})
}

// TestFollowerEndReturnsByItsDeadline: while the follower's disk hangs, the leader is told nothing.
func TestFollowerEndReturnsByItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.diskGate.hold()
		began := time.Now()
		wantError(t, g.send(2, 4), ErrTimeout)
		if took := time.Since(began); took != g.n1.cfg.AppendTimeout {
			t.Errorf("returned after %s", took)
		}
		wantError(t, g.install(), ErrDiskStalled)
		g.diskGate.settle() // what is released now finds nobody
		wantSuccess(t, g.send(2, 4))
	})
}

// TestCloseEndsHeldCalls at either end, at the leader's at once: raft's shutdown waits for them.
func TestCloseEndsHeldCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.leaderGate.hold()
		g.leaderGate.change()
		appended := g.send(2, 4)
		wantHeld(t, "held", appended)
		installed := g.install()
		wantHeld(t, "held", installed)
		began := time.Now()
		g.leader.Close()
		wantError(t, appended, ErrClosed)
		wantError(t, installed, ErrClosed)
		if took := time.Since(began); took != 0 {
			t.Errorf("returned %s after Close", took)
		}
		if got := g.leaderGate.heldNow(); got == 0 {
			t.Error("nothing was held")
		}
		g.leaderGate.settle() // must find nobody, and hang nobody
	})
}

// TestClosedFollowerReleasesNothing: a group that is shut down and started again inside the process does not vouch by the
// answers of its former life.
func TestClosedFollowerReleasesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.diskGate.hold()
		appended := g.send(2, 4)
		wantHeld(t, "held", appended)
		installed := g.install()
		wantHeld(t, "held", installed)
		g.follower.Close()
		wantError(t, installed, ErrClosed)
		reopened := g.n2.openGated(7, 2, g.diskGate)
		appendAll(t, reopened, g.diskGate)
		g.diskGate.settle()
		wantError(t, appended, ErrClosed)
		g.follower = reopened
		wantSuccess(t, g.send(2, 4))
	})
}

// TestTransportClosesOverHeldAnswers: a node that stops with answers held ends all its goroutines; goleak would tell.
func TestTransportClosesOverHeldAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.diskGate.hold()
		done := g.send(2, 4)
		wantHeld(t, "held", done)
		g.n2.stop()
		if err := <-done; err == nil {
			t.Error("success from a node that is gone")
		}
		g.diskGate.settle()
	})
}

// TestBrokenDisk: entries that will never be durable are not vouched for, at either end.
func TestBrokenDisk(t *testing.T) {
	for _, end := range []string{"leader", "follower"} {
		t.Run(end, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGated(t)
				gate := map[string]*fakeGate{"leader": g.leaderGate, "follower": g.diskGate}[end]
				gate.hold()
				gate.change()
				appended := g.send(2, 4)
				wantHeld(t, "held", appended)
				installed := g.install()
				wantHeld(t, "held", installed)
				gate.fail()
				wantError(t, appended, errDisk)
				wantError(t, installed, errDisk)
				wantError(t, g.send(2, 4), errDisk)
			})
		})
	}
}

// TestSnapshotIsHeld at both ends: raft counts the leader's and the follower's copy by its answer too.
func TestSnapshotIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.diskGate.hold()
		g.leaderGate.hold()
		g.leaderGate.change()
		done := g.install()
		wantHeld(t, "neither disk has it", done)
		g.leaderGate.settle()
		wantHeld(t, "the follower's disk does not have it", done)
		g.diskGate.settle()
		wantSuccess(t, done)

		g.leaderGate.hold()
		g.leaderGate.change()
		done = g.install()
		wantHeld(t, "the leader's disk does not have what the snapshot stands for", done)
		g.leaderGate.settle()
		wantSuccess(t, done)
	})
}

// TestRefusalsAreNotHeld: an append that the follower could not place is not counted, and the search for the entry that
// both have goes on without the disks.
func TestRefusalsAreNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		leaderGate, diskGate := &fakeGate{}, &fakeGate{}
		leader := net.node("n1").openGated(7, 1, leaderGate)
		follower := net.node("n2").openGated(7, 2, diskGate)
		go func() {
			rpc := <-follower.Consumer()
			rpc.Respond(&raft.AppendEntriesResponse{Term: 2, LastLog: 1, NoRetryBackoff: true}, nil)
		}()
		for _, g := range []*fakeGate{leaderGate, diskGate} {
			g.hold()
			g.change()
		}
		resp, err := leader.sendAppend(follower, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 9, PrevLogTerm: 1, Entries: entries(2, 10, 10)})
		if err != nil || resp.Success || resp.LastLog != 1 {
			t.Errorf("%+v, %v", resp, err)
		}
	})
}

// TestStalledDisk: past the log's patience nothing is sent or answered by which raft would take the replica for alive.
func TestStalledDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		signs := map[string]func() error{
			"heartbeat": func() error { return g.leader.heartbeat(g.follower, 2) },
			"append without entries": func() error {
				_, err := g.leader.sendAppend(g.follower, probe)
				return err
			},
		}
		g.diskGate.stalled.Store(true)
		for sign, send := range signs {
			if err := send(); err == nil || !strings.Contains(err.Error(), ErrDiskStalled.Error()) {
				t.Errorf("%s answered by a stalled node: %v", sign, err)
			}
		}
		g.diskGate.hold()
		done := g.send(2, 4) // is taken, for its answer is held anyway
		wantHeld(t, "held", done)
		g.diskGate.stalled.Store(false)
		g.diskGate.settle()
		wantSuccess(t, done)

		g.leaderGate.stalled.Store(true)
		signs["append"] = func() error { return <-g.send(5, 5) }
		signs["snapshot"] = func() error { return <-g.install() }
		before := g.n1.Stats()["n2"].Sent.Envelopes
		for sign, send := range signs {
			if err := send(); !errors.Is(err, ErrDiskStalled) {
				t.Errorf("%s sent by a stalled node: %v", sign, err)
			}
		}
		if after := g.n1.Stats()["n2"].Sent.Envelopes; after != before {
			t.Errorf("%d messages sent by a stalled node", after-before)
		}
	})
}

// TestStalledWhileRaftAnswers: what counts is the moment at which the answer would leave.
func TestStalledWhileRaftAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		gate := &fakeGate{}
		leader, follower := net.node("n1").open(7, 1), net.node("n2").openGated(7, 2, gate)
		beaten := start(func() error { return leader.heartbeat(follower, 2) })
		rpc := <-follower.Consumer()
		gate.stalled.Store(true)
		say(rpc)
		wantError(t, beaten, ErrDiskStalled)
	})
}

// TestFullDisk: entries are refused before raft has them, and everything else goes on.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		g.diskGate.full = errors.New("no space")
		before := g.diskGate.Appended()
		wantError(t, g.send(2, 4), g.diskGate.full)
		if asked := g.diskGate.asked; len(asked) == 0 || asked[0] == 0 {
			t.Errorf("for entries it asks for room for %v bytes", asked)
		}
		wantError(t, g.install(), g.diskGate.full)
		if _, err := g.leader.sendAppend(g.follower, probe); err != nil {
			t.Error(err)
		}
		if err := g.leader.heartbeat(g.follower, 2); err != nil {
			t.Error(err)
		}
		if g.diskGate.Appended() != before {
			t.Error("raft was given entries")
		}
	})
}
