package transport

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

func TestHandshakes(t *testing.T) {
	cluster := func(id string) func(*Config) {
		return func(c *Config) { c.ClusterID = func() string { return id } }
	}
	for _, c := range []struct {
		name           string
		n1, n2         func(*Config)
		want, accepted error
	}{
		{"another cluster", cluster("a"), cluster("b"), ErrWrongCluster, ErrWrongCluster},
		{"a blank peer", cluster("a"), cluster(""), ErrWrongCluster, ErrWrongCluster},
		{"a blank node", cluster(""), cluster("a"), ErrWrongCluster, ErrWrongCluster},
		{"two blank nodes", cluster(""), cluster(""), ErrWrongCluster, ErrWrongCluster},
		{"another node at the address", cluster("a"), func(c *Config) { cluster("a")(c); c.Self = "n9" }, ErrWrongNode, ErrWrongNode},
		{"a namesake", cluster("a"), func(c *Config) { cluster("a")(c); c.Self = "n1" }, ErrWrongNode, ErrWrongNode},
	} {
		t.Run(c.name, func(t *testing.T) {
			net := newNetwork(t)
			n1, n2 := net.node("n1", c.n1), net.node("n2", c.n2)
			leader, f := n1.open(7, 1), n2.open(7, 2)
			toN2 := Address("n2", 2)
			err := leader.RequestVote("2", toN2, &raft.RequestVoteRequest{RPCHeader: leader.header(), Term: 2}, &raft.RequestVoteResponse{})
			if !errors.Is(err, c.want) {
				t.Errorf("dialing: %v, want %v", err, c.want)
			}
			if err := <-n2.refusals; !errors.Is(err, c.accepted) {
				t.Errorf("accepting: %v, want %v", err, c.accepted)
			}
			err = leader.InstallSnapshot("2", toN2, snapshotRequest(leader, 2, 3, nil, 4), &raft.InstallSnapshotResponse{}, strings.NewReader("data"))
			if err == nil {
				t.Error("a stranger installs a snapshot")
			}
			if err := <-n2.refusals; !errors.Is(err, c.accepted) {
				t.Errorf("accepting a snapshot: %v, want %v", err, c.accepted)
			}
			if len(f.consumer) != 0 || len(n1.learned)+len(n2.learned) != 0 {
				t.Error("a stranger was listened to")
			}
		})
	}
}

func TestHandshakeFormat(t *testing.T) {
	tr, err := New(Config{Self: "n1", ClusterID: func() string { return "a" }, Resolve: newNetwork(t).resolve, Logger: newNetwork(t).node("n9").cfg.Logger})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	for _, c := range []struct {
		hs   *ostrakapb.Handshake
		want error
	}{
		{nil, ErrMalformed},
		{&ostrakapb.Handshake{Format: HandshakeFormat + 1, ClusterId: "a", NodeId: "n2"}, ErrFormat},
		{&ostrakapb.Handshake{Format: HandshakeFormat, ClusterId: "a"}, ErrWrongNode},
		{&ostrakapb.Handshake{Format: HandshakeFormat, ClusterId: "a", NodeId: "n2", TargetNodeId: "n3"}, ErrWrongNode},
		{&ostrakapb.Handshake{Format: HandshakeFormat, ClusterId: "a", NodeId: "n2"}, nil},
	} {
		if err := tr.judge(c.hs, ""); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.hs, err, c.want)
		}
	}
}

// TestLearned: both ends of an accepted stream learn the other's address and incarnation.
func TestLearned(t *testing.T) {
	_, n1, n2, leader, f := pair(t)
	settleLinks(t, leader, f)
	if hs := <-n1.learned; hs.NodeId != "n2" || hs.Address != n2.address || hs.Incarnation != 1 {
		t.Errorf("n1 learned %v", hs)
	}
	if hs := <-n2.learned; hs.NodeId != "n1" || hs.Address != n1.address || hs.TargetNodeId != "n2" {
		t.Errorf("n2 learned %v", hs)
	}
}

// dialAs opens a stream to a node by hand.
func dialAs(t *testing.T, net *network, to *testNode, hs *ostrakapb.Handshake) frames {
	t.Helper()
	helper := net.node(shard.NodeID(fmt.Sprintf("helper%d", hs.Incarnation)))
	conn, err := helper.Conn(to.id)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := ostrakapb.NewRaftClient(conn).Exchange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&ostrakapb.Frame{Handshake: hs}); err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.Handshake.GetNodeId() != string(to.id) {
		t.Fatalf("answer %v, %v", first, err)
	}
	return stream
}

// TestStrangers: a node that the cluster doesn't know is refused, and nothing is kept about it.
func TestStrangers(t *testing.T) {
	net := newNetwork(t)
	n2 := net.node("n2", func(c *Config) { c.Known = func(id shard.NodeID) bool { return id == "n1" } })
	hs := func(id string, incarnation uint64) *ostrakapb.Handshake {
		return &ostrakapb.Handshake{Format: HandshakeFormat, ClusterId: testCluster, NodeId: id, Incarnation: incarnation}
	}
	stranger := dialAs(t, net, n2, hs("ghost", 1))
	if _, err := stranger.Recv(); err == nil {
		t.Error("a stranger's stream is taken")
	}
	if err := <-n2.refusals; !errors.Is(err, ErrStranger) {
		t.Errorf("it ended with %v, want %v", err, ErrStranger)
	}
	ghost := net.node("ghost").open(7, 1)
	if err := ghost.InstallSnapshot("2", Address("n2", 2), snapshotRequest(ghost, 2, 3, nil, 4), &raft.InstallSnapshotResponse{}, strings.NewReader("data")); err == nil {
		t.Error("a stranger installs a snapshot")
	}
	if err := <-n2.refusals; !errors.Is(err, ErrStranger) {
		t.Errorf("the snapshot ended with %v, want %v", err, ErrStranger)
	}
	if peers := n2.Stats(); len(peers) != 0 || len(n2.learned) != 0 {
		t.Errorf("kept about strangers: %v", peers)
	}
	dialAs(t, net, n2, hs("n1", 2))
	if hs := <-n2.learned; hs.NodeId != "n1" {
		t.Errorf("learned %v", hs)
	}
}

// TestIncarnations: a later start's stream replaces the earlier's, and an earlier one does not come back.
func TestIncarnations(t *testing.T) {
	net := newNetwork(t)
	n2 := net.node("n2")
	hs := func(incarnation uint64) *ostrakapb.Handshake {
		return &ostrakapb.Handshake{Format: HandshakeFormat, ClusterId: testCluster, NodeId: "n1", Incarnation: incarnation}
	}
	first := dialAs(t, net, n2, hs(4))
	<-n2.learned
	second := dialAs(t, net, n2, hs(5))
	if _, err := first.Recv(); err == nil {
		t.Error("the first start's stream goes on")
	}
	if err := <-n2.refusals; !errors.Is(err, ErrReplaced) {
		t.Errorf("it ended with %v, want %v", err, ErrReplaced)
	}
	late := dialAs(t, net, n2, hs(3))
	if _, err := late.Recv(); err == nil {
		t.Error("an earlier start's stream is taken")
	}
	if err := <-n2.refusals; !errors.Is(err, ErrOldIncarnation) {
		t.Errorf("it ended with %v, want %v", err, ErrOldIncarnation)
	}
	if err := second.Send(&ostrakapb.Frame{}); err != nil {
		t.Fatal(err)
	}
	if frame, err := second.Recv(); err != nil || len(frame.Envelopes) != 0 {
		t.Errorf("an empty frame was answered by %v, %v", frame, err)
	}
}
