package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// These tests play a leader by hand against raft's own follower: the edges of raft that the transport covers.

// follower is a real raft that never stands for election by itself, and the Facade of a leader that the test plays.
func follower(t *testing.T) (*raftReplica, *Facade, *network) {
	net := newNetwork(t)
	leader := net.node("n1").open(7, 1)
	f := net.node("n2").open(7, 2)
	members := []raft.Server{member(leader), member(f)}
	patient := func(c *raft.Config) {
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = time.Hour, time.Hour, time.Hour
	}
	return startRaft(t, f, members, patient), leader, net
}

// mustAppend sends an append that the follower is to accept.
func mustAppend(t *testing.T, leader *Facade, to *raftReplica, req raft.AppendEntriesRequest) {
	t.Helper()
	resp, err := leader.sendAppend(to.facade, req)
	if err != nil || !resp.Success {
		t.Fatalf("append after %d: %+v, %v", req.PrevLogEntry, resp, err)
	}
}

// TestCommitBeyondTheMessage: a follower with a divergent tail gets an append without entries and a newer commit index.
// raft caps that at its own last index, and would apply the tail; without lowerCommit this test fails.
func TestCommitBeyondTheMessage(t *testing.T) {
	r, leader, _ := follower(t)
	// The bootstrap configuration is entry 1 of term 1.
	mustAppend(t, leader, r, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, Entries: entries(2, 2, 5), LeaderCommitIndex: 2})
	// A leader of term 3 never had 3..5 of term 2; it has committed others up to 5, which this follower lacks.
	mustAppend(t, leader, r, raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 2, PrevLogTerm: 2, LeaderCommitIndex: 5})
	if got := r.raft.CommitIndex(); got != 2 {
		t.Fatalf("commit index %d: the follower commits what the leader never had", got)
	}
	mustAppend(t, leader, r, raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 2, PrevLogTerm: 2, Entries: entries(3, 3, 5), LeaderCommitIndex: 5})
	want := "[2 of term 2 3 of term 3 4 of term 3 5 of term 3]"
	eventually(t, "all is applied", func() bool { return len(r.fsm.list()) == 4 })
	if got := fmt.Sprint(r.fsm.list()); got != want {
		t.Errorf("applied %s, want %s", got, want)
	}
}

func snapshotRequest(f *Facade, term, index uint64, members []raft.Server, size int) *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{
		RPCHeader: f.header(), SnapshotVersion: 1, Term: term, LastLogIndex: index, LastLogTerm: term,
		Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: members}), ConfigurationIndex: 1, Size: int64(size),
	}
}

// sendRaw sends a snapshot as a peer would whose stream was held up: with a sequence of the test's choosing.
func sendRaw(t *testing.T, leader *Facade, to *raftReplica, sequence uint64, req *raft.InstallSnapshotRequest, data []byte) *ostrakapb.Envelope {
	t.Helper()
	conn, err := leader.t.Conn("n2")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := ostrakapb.NewRaftClient(conn).InstallSnapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	envelope := leader.envelope(to.facade.replica, req)
	envelope.Sequence = sequence
	stream.Send(&ostrakapb.SnapshotChunk{Handshake: leader.t.handshake("n2"), Request: envelope})
	stream.Send(&ostrakapb.SnapshotChunk{Data: data})
	answer, err := stream.CloseAndRecv()
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// TestLateSnapshot: a snapshot that later appends have overtaken must not take the follower back. raft itself would
// install it; without history.deliver and the reader's check this test fails.
func TestLateSnapshot(t *testing.T) {
	r, leader, _ := follower(t)
	members := []raft.Server{member(leader), member(r.facade)}
	for i := uint64(2); i <= 6; i++ {
		mustAppend(t, leader, r, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: i - 1, PrevLogTerm: min(i-1, 2), Entries: entries(2, i, i), LeaderCommitIndex: i})
	}
	eventually(t, "all is applied", func() bool { return len(r.fsm.list()) == 5 })

	data := []byte("2 of term 2\x003 of term 2")
	answer := sendRaw(t, leader, r, 1, snapshotRequest(leader, 2, 3, members, len(data)), data)
	if !strings.Contains(answer.Error, ErrOvertaken.Error()) {
		t.Errorf("answer %v, want %v", answer, ErrOvertaken)
	}
	if got := len(r.fsm.list()); got != 5 {
		t.Errorf("state went back to %d commands, had 5", got)
	}
	// In its turn the same snapshot is fine, whether it helps or not; and appends go on after it.
	data = []byte(strings.Join(r.fsm.list(), "\x00"))
	var resp raft.InstallSnapshotResponse
	if err := leader.InstallSnapshot("2", r.facade.LocalAddr(), snapshotRequest(leader, 2, 6, members, len(data)), &resp, bytes.NewReader(data)); err != nil || !resp.Success {
		t.Fatalf("install: %+v, %v", resp, err)
	}
	mustAppend(t, leader, r, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 6, PrevLogTerm: 2, Entries: entries(2, 7, 7), LeaderCommitIndex: 7})
	eventually(t, "the next is applied", func() bool { return len(r.fsm.list()) == 6 })
}

// TestSnapshotOvertakenWhileWaiting: what counts is the moment at which raft begins to read.
func TestSnapshotOvertakenWhileWaiting(t *testing.T) {
	net := newNetwork(t)
	leader, f := net.node("n1").open(7, 1), net.node("n2").open(7, 2)
	members := []raft.Server{member(leader), member(f)}
	answered := make(chan error, 2)
	go func() {
		answered <- leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, members, 4), &raft.InstallSnapshotResponse{}, strings.NewReader("data"))
	}()
	eventually(t, "the snapshot waits", func() bool { return len(f.consumer) == 1 })
	go func() {
		_, err := leader.sendAppend(f, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 3, PrevLogTerm: 2, LeaderCommitIndex: 3})
		answered <- err
	}()
	go leader.heartbeat(f, 2) // must not count
	eventually(t, "append and heartbeat wait", func() bool { return len(f.consumer) == 3 })

	rpc := <-f.Consumer()
	if _, err := rpc.Reader.Read(make([]byte, 10)); !errors.Is(err, ErrOvertaken) {
		t.Errorf("first read: %v, want %v", err, ErrOvertaken)
	}
	_, err := io.Copy(io.Discard, rpc.Reader)
	rpc.Respond(nil, err)
	acceptAll(t, f)
	var errs []error
	for range 2 {
		errs = append(errs, <-answered)
	}
	if !slices.Contains(errs, nil) || !strings.Contains(errors.Join(errs...).Error(), ErrOvertaken.Error()) {
		t.Errorf("answers %v, want one success and one %v", errs, ErrOvertaken)
	}
}

// TestSnapshotIsNotOvertakenByHeartbeats: the heartbeat goroutine goes on during a snapshot.
func TestSnapshotIsNotOvertakenByHeartbeats(t *testing.T) {
	net := newNetwork(t)
	leader, f := net.node("n1").open(7, 1), net.node("n2").open(7, 2)
	members := []raft.Server{member(leader), member(f)}
	answered := make(chan error, 1)
	go func() {
		answered <- leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, members, 4), &raft.InstallSnapshotResponse{}, strings.NewReader("data"))
	}()
	eventually(t, "the snapshot waits", func() bool { return len(f.consumer) == 1 })
	beaten := make(chan error, 1)
	go func() { beaten <- leader.heartbeat(f, 2) }()
	eventually(t, "the heartbeat waits", func() bool { return len(f.consumer) == 2 })
	acceptAll(t, f)
	if err := <-answered; err != nil {
		t.Errorf("snapshot: %v", err)
	}
	if err := <-beaten; err != nil {
		t.Errorf("heartbeat: %v", err)
	}
}

// TestHistoryOutlivesTheFacade: a group that is restarted still knows what overtook a snapshot.
func TestHistoryOutlivesTheFacade(t *testing.T) {
	net := newNetwork(t)
	n2 := net.node("n2")
	leader, f := net.node("n1").open(7, 1), n2.open(7, 2)
	acceptAll(t, f)
	if _, err := leader.sendAppend(f, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 3, PrevLogTerm: 2}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	f = n2.open(7, 2)
	acceptAll(t, f)
	members := []raft.Server{member(leader), member(f)}
	answer := sendRaw(t, leader, &raftReplica{facade: f}, 1, snapshotRequest(leader, 2, 3, members, 4), []byte("data"))
	if !strings.Contains(answer.Error, ErrOvertaken.Error()) {
		t.Errorf("answer %v, want %v", answer, ErrOvertaken)
	}
}

// TestTimeoutNow: of the present term it makes the follower stand; of an earlier one it is refused. raft itself takes
// any: without history.checkTerm this test fails.
func TestTimeoutNow(t *testing.T) {
	r, leader, _ := follower(t)
	timeoutNow := func() error {
		return leader.TimeoutNow("2", r.facade.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: leader.header()}, &raft.TimeoutNowResponse{})
	}
	if err := timeoutNow(); !errors.Is(err, ErrNotLeading) {
		t.Fatalf("from a replica that never led: %v", err)
	}
	mustAppend(t, leader, r, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, Entries: entries(2, 2, 2)})

	// Another leader of term 4 is heard from; replica 1 does not know.
	other := leader.t
	third := &Facade{t: other, group: 7, replica: 3, history: newHistory(), gate: durable{}, ctx: leader.ctx, sequences: leader.sequences}
	if err := third.heartbeat(r.facade, 4); err != nil {
		t.Fatal(err)
	}
	if err := timeoutNow(); err == nil || !strings.Contains(err.Error(), ErrDeposed.Error()) {
		t.Errorf("of a deposed leader: %v, want %v", err, ErrDeposed)
	}
	if got := r.raft.State(); got != raft.Follower {
		t.Fatalf("state %v after a TimeoutNow of a deposed leader", got)
	}
	if err := leader.heartbeat(r.facade, 5); err != nil { // it leads again
		t.Fatal(err)
	}
	acceptAll(t, leader)
	if err := timeoutNow(); err != nil {
		t.Errorf("of the present leader: %v", err)
	}
	eventually(t, "the target leads", func() bool { return r.raft.State() == raft.Leader })
}

// TestTermOfAnswersDeposes: the replica's own answers tell its term too.
func TestTermOfAnswersDeposes(t *testing.T) {
	r, leader, _ := follower(t)
	if err := leader.heartbeat(r.facade, 2); err != nil {
		t.Fatal(err)
	}
	var vote raft.RequestVoteResponse
	req := &raft.RequestVoteRequest{RPCHeader: leader.header(), Term: 9, LastLogIndex: 9, LastLogTerm: 9, LeadershipTransfer: true}
	if err := leader.RequestVote("2", r.facade.LocalAddr(), req, &vote); err != nil || !vote.Granted {
		t.Fatalf("vote: %+v, %v", vote, err)
	}
	err := leader.TimeoutNow("2", r.facade.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: leader.header()}, &raft.TimeoutNowResponse{})
	if err == nil || !strings.Contains(err.Error(), ErrDeposed.Error()) {
		t.Errorf("TimeoutNow of term 2 in term 9: %v, want %v", err, ErrDeposed)
	}
}

// TestPreVoteErrorIsNoGrant: raft counts an error that holds "unexpected command" as a granted pre-vote.
func TestPreVoteErrorIsNoGrant(t *testing.T) {
	net := newNetwork(t)
	candidate, f := net.node("n1").open(7, 1), net.node("n2").open(7, 2)
	answering := make(chan struct{})
	go func() {
		defer close(answering)
		rpc := <-f.Consumer()
		rpc.Respond(nil, errors.New("unexpected command"))
	}()
	err := candidate.RequestPreVote("2", f.LocalAddr(), &raft.RequestPreVoteRequest{RPCHeader: candidate.header(), Term: 2}, &raft.RequestPreVoteResponse{})
	<-answering
	if !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "unexpected command") {
		t.Errorf("got %q, want %q", err, ErrRefused)
	}
}

// TestFacadeContract holds what raft must find, and must not use.
func TestFacadeContract(t *testing.T) {
	net := newNetwork(t)
	leader, f := net.node("n1").open(7, 1), net.node("n2").open(7, 2)
	if _, err := f.AppendEntriesPipeline("1", leader.LocalAddr()); err != raft.ErrPipelineReplicationNotSupported {
		t.Errorf("AppendEntriesPipeline: %v", err)
	}
	if got := f.LocalAddr(); got != "n2/2" {
		t.Errorf("LocalAddr %q", got)
	}
	if got := f.DecodePeer(f.EncodePeer("1", "n1/1")); got != "n1/1" {
		t.Errorf("a peer becomes %q", got)
	}
	f.SetHeartbeatHandler(func(rpc raft.RPC) {
		t.Error("heartbeat beside the main loop")
		say(rpc)
	})
	beaten := make(chan error, 1)
	go func() { beaten <- leader.heartbeat(f, 2) }()
	rpc := <-f.Consumer()
	if cap(rpc.RespChan) != 1 {
		t.Errorf("RespChan has capacity %d", cap(rpc.RespChan))
	}
	say(rpc)
	if err := <-beaten; err != nil {
		t.Error(err)
	}
}

// TestSenderMustBeNamed: the header, by which raft keeps its vote, can't name another replica than the sender.
func TestSenderMustBeNamed(t *testing.T) {
	net := newNetwork(t)
	candidate, f := net.node("n1").open(7, 1), net.node("n2").open(7, 2)
	for _, forged := range []raft.RPCHeader{
		{ProtocolVersion: 3, ID: []byte("3"), Addr: []byte("n3/3")},
		{ProtocolVersion: 3, ID: []byte("1"), Addr: []byte("n1/3")},
		{ProtocolVersion: 3, ID: []byte("3"), Addr: []byte("n1/1")},
		{},
	} {
		err := candidate.RequestVote("2", f.LocalAddr(), &raft.RequestVoteRequest{RPCHeader: forged, Term: 2}, &raft.RequestVoteResponse{})
		if err == nil || !strings.Contains(err.Error(), ErrNotSender.Error()) {
			t.Errorf("header %q: %v, want %v", forged.Addr, err, ErrNotSender)
		}
	}
}
