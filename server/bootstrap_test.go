package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
)

// bootstrapNode is a real node that a test stops, wipes and starts again at the same address.
type bootstrapNode struct {
	t       *testing.T
	spec    *ostrakapb.NodeSpec
	dir     string
	peers   []string
	node    *Node // nil while stopped
	conn    *grpc.ClientConn
	log     *bytes.Buffer // of the last start; read it when the node has stopped
	endLife context.CancelFunc
	over    chan error
}

// startBlank runs nodes n1, n2, … and returns them with the request that makes them a cluster of one shard.
func startBlank(t *testing.T, count int) ([]*bootstrapNode, *ostrakapb.BootstrapRequest) {
	t.Helper()
	nodes := make([]*bootstrapNode, count)
	req := &ostrakapb.BootstrapRequest{Shards: 1}
	var held []net.Listener // all at once, so that no port is given twice
	for i := range nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, l)
		nodes[i] = &bootstrapNode{t: t, dir: filepath.Join(t.TempDir(), "data"),
			spec: &ostrakapb.NodeSpec{Id: fmt.Sprintf("n%d", i+1), Address: l.Addr().String()}}
		req.Nodes = append(req.Nodes, nodes[i].spec)
	}
	for i, n := range nodes {
		held[i].Close()
		conn, err := grpc.NewClient("passthrough:///"+n.spec.GetAddress(), insecureCredentials, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, MaxDelay: 5 * time.Millisecond}}))
		if err != nil {
			t.Fatal(err)
		}
		n.conn = conn
		n.start()
		t.Cleanup(func() { n.stop(); conn.Close() })
	}
	return nodes, req
}

// start returns once the node answers, and so has resumed what its directory says or is about to.
func (n *bootstrapNode) start() {
	n.t.Helper()
	n.log = new(bytes.Buffer)
	node, err := New(Config{ID: n.spec.GetId(), DataDir: n.dir, Listen: n.spec.GetAddress(), Peers: n.peers, Timing: raftfsm.Timing{Election: 100 * time.Millisecond},
		DrainTimeout: time.Second, Logger: slog.New(slog.NewTextHandler(n.log, nil)), Fatal: func(err error) { n.t.Error(err) }})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.node, n.endLife, n.over = node, cancel, make(chan error, 1)
	go func() { n.over <- node.Run(ctx) }()
	asked, done := context.WithTimeout(n.t.Context(), 10*time.Second)
	defer done()
	whenLed(asked, n.t, func() error { // the connection to the last start may break only now
		_, err := ostrakapb.NewRaftClient(n.conn).Hello(asked, &ostrakapb.Handshake{})
		return err
	})
}

func (n *bootstrapNode) stop() {
	if n.node == nil {
		return
	}
	n.endLife()
	if err := <-n.over; err != nil {
		n.t.Errorf("%s: %v", n.spec.GetId(), err)
	}
	n.node = nil
}

func (n *bootstrapNode) restart() {
	n.t.Helper()
	n.stop()
	n.start()
}

func (n *bootstrapNode) wipe() {
	n.t.Helper()
	n.stop()
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Fatal(err)
	}
	n.start()
}

func (n *bootstrapNode) bootstrap(req *ostrakapb.BootstrapRequest) (*ostrakapb.BootstrapResponse, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	return ostrakapb.NewAdminClient(n.conn).Bootstrap(ctx, req)
}

func (n *bootstrapNode) phase() phase { return n.node.identity.Load().Phase }

// mustWrite writes a key by whichever node leads.
func mustWrite(t *testing.T, nodes []*bootstrapNode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	whenLed(ctx, t, func() (err error) {
		for _, n := range nodes {
			if _, err = ostrakapb.NewKVClient(n.conn).Set(ctx, &ostrakapb.SetRequest{Key: []byte("k"), Value: []byte("v")}); err == nil {
				return nil
			}
		}
		return err
	})
}

// planFor draws up the plan as Bootstrap on a node would.
func planFor(t *testing.T, n *bootstrapNode, req *ostrakapb.BootstrapRequest) *ostrakapb.BootstrapPlan {
	t.Helper()
	full, err := n.node.checkBootstrap(req)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := newPlan(full)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// carryOut takes the first steps of a bootstrap: pass 1 on every node, then pass 2. What follows is cut off.
func carryOut(t *testing.T, nodes []*bootstrapNode, plan *ostrakapb.BootstrapPlan, steps int) {
	t.Helper()
	for step := range steps {
		if err := nodes[0].node.adoptOn(t.Context(), nodes[step%len(nodes)].spec, plan, step >= len(nodes)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBootstrapCutOffAnywhere cuts a bootstrap off before each of its steps, and starts every node anew. Nothing may
// run before all nodes hold the plan, and the same request to any of them finishes what was begun.
func TestBootstrapCutOffAnywhere(t *testing.T) {
	const count = 3
	for steps := range 2*count + 1 {
		t.Run(fmt.Sprintf("after %d steps", steps), func(t *testing.T) {
			t.Parallel()
			nodes, req := startBlank(t, count)
			plan := planFor(t, nodes[0], req)
			carryOut(t, nodes, plan, steps)
			for i, n := range nodes {
				n.restart()
				want := phaseBlank
				switch {
				case steps > count+i:
					want = phaseMember
				case steps > i:
					want = phaseAdopting
				}
				if got := n.phase(); got != want {
					t.Errorf("n%d is %s, want %s", i+1, got, want)
				}
				if want != phaseMember && n.node.Host() != nil {
					t.Errorf("n%d runs replicas while it is %s", i+1, want)
				}
			}
			resp, err := nodes[count-1].bootstrap(req)
			if err != nil {
				t.Fatal(err)
			}
			if steps > 0 && resp.GetClusterId() != plan.GetClusterId() {
				t.Errorf("another cluster %s was made, not %s", resp.GetClusterId(), plan.GetClusterId())
			}
			if resp.GetAlready() != (steps == 2*count) {
				t.Errorf("already: %v", resp.GetAlready())
			}
			mustWrite(t, nodes)
		})
	}
}

// TestNothingStartsBeforeAllHoldThePlan: one node is held up in pass 1, so that the coordinator's time runs out.
func TestNothingStartsBeforeAllHoldThePlan(t *testing.T) {
	nodes, req := startBlank(t, 3)
	slow := nodes[2].node
	slow.adoption.Lock()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := ostrakapb.NewAdminClient(nodes[0].conn).Bootstrap(ctx, req)
	for _, n := range nodes[:2] {
		if n.phase() == phaseMember || n.node.Host() != nil {
			t.Errorf("%s is %s while n3 is %s", n.spec.GetId(), n.phase(), nodes[2].phase())
		}
	}
	slow.adoption.Unlock()
	if err == nil {
		t.Error("bootstrapped without n3")
	}
	if _, err := nodes[0].bootstrap(req); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, nodes)
}

// TestBootstrapNamesWhoIsAway: nodes that hang take all the time that they are given, and still the answer names them,
// within the caller's time.
func TestBootstrapNamesWhoIsAway(t *testing.T) {
	t.Parallel()
	nodes, req := startBlank(t, 2)
	for _, id := range []string{"n3", "n4"} {
		silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		req.Nodes = append(req.Nodes, &ostrakapb.NodeSpec{Id: id, Address: silent.Addr().String()})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // less than helloTimeout
	defer cancel()
	_, err := ostrakapb.NewAdminClient(nodes[0].conn).Bootstrap(ctx, req)
	d := detailOf(t, err)
	if d.GetOutcome() != notDone || !strings.Contains(d.GetMessage(), "n3 at") || !strings.Contains(d.GetMessage(), "n4 at") ||
		strings.Contains(d.GetMessage(), "n2 at") {
		t.Errorf("%v", d)
	}
	if nodes[0].phase() != phaseBlank || nodes[1].phase() != phaseBlank {
		t.Errorf("n1 is %s, n2 %s", nodes[0].phase(), nodes[1].phase())
	}

	req.Nodes = req.Nodes[:2]
	slow := nodes[1].node
	slow.adoption.Lock() // it greets, and then hangs
	defer slow.adoption.Unlock()
	ctx, cancel = context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if _, err := ostrakapb.NewAdminClient(nodes[0].conn).Bootstrap(ctx, req); ctx.Err() != nil || !strings.Contains(err.Error(), "node n2 at") {
		t.Errorf("a node that does not adopt: %v", err)
	}
}

// TestAdoptingNodeSaysSo: between the passes a node serves nothing, and its log, its probe, its status and its
// refusals say what is to be done.
func TestAdoptingNodeSaysSo(t *testing.T) {
	nodes, req := startBlank(t, 2)
	carryOut(t, nodes, planFor(t, nodes[0], req), len(nodes))
	n := nodes[1]
	n.restart()
	_, err := ostrakapb.NewKVClient(n.conn).Get(t.Context(), &ostrakapb.GetRequest{Key: []byte("k")})
	if d := wantReason(t, err, ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED); !strings.Contains(d.GetMessage(), "unfinished") {
		t.Errorf("get: %v", d)
	}
	if why := whyNotReady(n.node); n.node.health.serving.Load() || !strings.Contains(why, "unfinished") {
		t.Errorf("ready: %s", why)
	}
	st, err := ostrakapb.NewAdminClient(n.conn).Status(t.Context(), &ostrakapb.StatusRequest{})
	if err != nil || st.GetNodes()[0].GetState() != stateAdopting {
		t.Errorf("status: %v, %v", st, err)
	}
	n.stop()
	if !strings.Contains(n.log.String(), "unfinished") {
		t.Errorf("log: %s", n.log)
	}
}

// TestWipedNodeIsNotBootstrappedAgain: once a node of the cluster is a member, one that comes back blank may have
// forgotten votes. It stays blank, whoever is asked, until a majority of members takes it back.
func TestWipedNodeIsNotBootstrappedAgain(t *testing.T) {
	for name, c := range map[string]struct{ steps, wiped int }{
		"it was adopting, another started": {4, 2},
		"it was a member, one not yet":     {5, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes, req := startBlank(t, 3)
			carryOut(t, nodes, planFor(t, nodes[0], req), c.steps)
			wiped := nodes[c.wiped]
			wiped.wipe()
			for _, asked := range nodes {
				_, err := asked.bootstrap(req)
				d := wantReason(t, err, ostrakapb.Reason_REASON_ALREADY_MEMBER)
				if !strings.Contains(d.GetMessage(), wiped.spec.GetId()+" is blank: its data is gone") {
					t.Errorf("asked %s: %s", asked.spec.GetId(), d.GetMessage())
				}
			}
			if got := wiped.phase(); got != phaseBlank || wiped.node.Host() != nil {
				t.Errorf("the wiped node is %s", got)
			}
		})
	}
}

// TestBlankNodeStartsNothing: pass 2 is for those that pass 1 has reached.
func TestBlankNodeStartsNothing(t *testing.T) {
	nodes, req := startBlank(t, 1)
	n, plan := nodes[0], planFor(t, nodes[0], req)
	if _, err := n.node.adopt(plan, true); !errors.Is(err, ErrBootstrapRequest) || n.phase() != phaseBlank {
		t.Errorf("start on a blank node: %v, now %s", err, n.phase())
	}
	if _, err := n.node.adopt(plan, false); err != nil {
		t.Fatal(err)
	}
	other := planFor(t, n, req)
	if _, err := n.node.adopt(other, false); !errors.Is(err, ErrAlreadyMember) {
		t.Errorf("another plan: %v", err)
	}
	other.ClusterId = plan.GetClusterId()
	other.NextReplicaId++
	if _, err := n.node.adopt(other, true); !errors.Is(err, ErrBootstrapRequest) || n.node.Host() != nil {
		t.Errorf("another plan under the same name: %v", err)
	}
	if _, err := n.bootstrap(req); err != nil {
		t.Fatal(err)
	}
}

// TestStrangersChangeNoAddress: with the cluster's id, which anyone is told, one can still not enter invented nodes,
// nor move those that there are out of reach.
func TestStrangersChangeNoAddress(t *testing.T) {
	nodes, req := startBlank(t, 1)
	if _, err := nodes[0].bootstrap(req); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	node, address, raft := nodes[0].node, nodes[0].spec.GetAddress(), ostrakapb.NewRaftClient(nodes[0].conn)
	for name, c := range map[string]struct {
		id, address string
		incarnation uint64
		reason      ostrakapb.Reason
	}{
		"an invented node": {"ghost", "127.0.0.1:9", 1, ostrakapb.Reason_REASON_WRONG_CLUSTER},
		"the node itself":  {"n1", "127.0.0.1:9", 5, ostrakapb.Reason_REASON_WRONG_CLUSTER},
		"no address":       {"n1", "not an address", 5, ostrakapb.Reason_REASON_INVALID},
		"a long address":   {"n1", strings.Repeat("a", addressBytesMax) + ":9", 5, ostrakapb.Reason_REASON_INVALID},
	} {
		hs := &ostrakapb.Handshake{Format: handshakeFormat, ClusterId: node.ClusterID(), NodeId: c.id, Address: c.address, Incarnation: c.incarnation}
		if _, err := raft.Hello(ctx, hs); err != nil {
			t.Errorf("%s: hello: %v", name, err)
		}
		_, err := raft.Announce(ctx, hs)
		if d := detailOf(t, err); d.GetReason() != c.reason {
			t.Errorf("%s: announce: %v", name, d)
		}
	}
	if book := node.book.snapshot(); len(book) != 1 || book["n1"].Address != address {
		t.Errorf("the book says %v", book)
	}
	if at, _ := node.Map().Node("n1"); at.Address != address {
		t.Errorf("the map says %v", at)
	}
}

// TestAnnouncedIncarnations: what a member is told about another may be later, but not by more than starts can be.
func TestAnnouncedIncarnations(t *testing.T) {
	nodes, req := startBlank(t, 2)
	if _, err := nodes[0].bootstrap(req); err != nil {
		t.Fatal(err)
	}
	n := nodes[0].node
	hs := &ostrakapb.Handshake{NodeId: "n2", Address: "127.0.0.1:9", Incarnation: incarnationLeapMax}
	if err := n.checkAnnounced(hs); err != nil {
		t.Error(err)
	}
	hs.Incarnation = 1<<64 - 1
	if err := n.checkAnnounced(hs); !errors.Is(err, errIncarnationLeap) {
		t.Errorf("a leap: %v", err)
	}
}

func TestDefaultShards(t *testing.T) {
	for _, c := range []struct{ nodes, replicas, want int }{
		{1, 1, 1}, {2, 2, 1}, {3, 3, 1}, {3, 1, 3}, {4, 3, 4}, {5, 3, 5}, {6, 3, 2}, {9, 3, 3}, {7, 5, 7}, {257, 3, 256},
	} {
		if got := DefaultShards(c.nodes, c.replicas); got != c.want {
			t.Errorf("%d nodes, %d replicas: %d shards, want %d", c.nodes, c.replicas, got, c.want)
		}
	}
	nodes, req := startBlank(t, 1)
	req.Shards = 0
	made, err := ostrakapb.NewAdminClient(nodes[0].conn).Bootstrap(t.Context(), req)
	if err != nil || made.GetShards() != 1 {
		t.Fatalf("bootstrap by default: %v, %v", made, err)
	}
}
