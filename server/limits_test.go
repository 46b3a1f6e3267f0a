package server

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/store"
)

func TestLimitsDefaults(t *testing.T) {
	l, err := Limits{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if l.store() != store.DefaultLimits() {
		t.Errorf("keys and values: %v", l.store())
	}
	if again, err := l.withDefaults(); err != nil || again != l {
		t.Errorf("defaults change themselves: %v, %v", again, err)
	}
	// The largest values need larger batches than the default.
	if _, err := (Limits{ValueBytesMax: store.MaxLimits().ValueBytesMax}).withDefaults(); err != nil {
		t.Error(err)
	}
}

func TestLimitsRefused(t *testing.T) {
	for name, l := range map[string]Limits{
		"key_bytes_max":              {KeyBytesMax: 32<<10 + 1},
		"value_bytes_max":            {ValueBytesMax: 64<<20 + 1},
		"batch_ops_max":              {BatchOpsMax: -1},
		"batch_bytes_max":            {BatchBytesMax: 8 << 20},
		"scan_items_max":             {ScanItemsMax: -1},
		"scan_bytes_max":             {ScanBytesMax: -1},
		"connections_max":            {ConnectionsMax: -1},
		"streams_per_connection_max": {StreamsPerConnectionMax: -1},
		"request_timeout":            {RequestTimeout: -time.Second},
	} {
		if _, err := l.withDefaults(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLargestMessagesPass: what the limits allow fits into gRPC's messages, with the largest values there can be.
func TestLargestMessagesPass(t *testing.T) {
	l, err := Limits{ValueBytesMax: store.MaxLimits().ValueBytesMax}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if page := l.ScanBytesMax + l.ValueBytesMax + l.KeyBytesMax; l.messageBytesMax() <= page {
		t.Errorf("messages of %d bytes, pages of %d", l.messageBytesMax(), page)
	}
	if answer := l.BatchBytesMax + l.ValueBytesMax; l.messageBytesMax() <= answer {
		t.Errorf("messages of %d bytes, answers to batches of %d", l.messageBytesMax(), answer)
	}
	op := &store.Op{Kind: store.OpCompareAndSet, Key: []byte("k"), Old: make([]byte, l.ValueBytesMax), Value: []byte("v")}
	if err := checkOp(op, l.store()); !errors.Is(err, errLimit) {
		t.Errorf("two values that no entry carries: %v", err)
	}
	if entry := compareAndSetBytesMax + l.KeyBytesMax + messageOverhead; entry > transport.MessageBytesMax {
		t.Errorf("entries of %d bytes, nodes exchange %d", entry, transport.MessageBytesMax)
	}
}

func TestConnectionsOverTheLimit(t *testing.T) {
	m := newMetrics(newFakeNode(t))
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limitConnections(inner, 2, m)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	connect := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	connect()
	first := <-accepted
	connect()
	second := <-accepted
	if _, err := connect().Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("one connection too many: %v", err)
	}
	if n := sample(t, m, "ostraka_connections_refused_total"); n != 1 {
		t.Errorf("%v refused", n)
	}
	first.Close()
	first.Close() // gRPC may; it must not free two places
	connect()
	third := <-accepted
	if _, err := connect().Read(make([]byte, 1)); err == nil {
		t.Error("closing twice made two places")
	}
	if n := sample(t, m, "ostraka_connections"); n != 2 {
		t.Errorf("%v open", n)
	}
	second.Close()
	third.Close()
	if n := sample(t, m, "ostraka_connections"); n != 0 {
		t.Errorf("%v open at the end", n)
	}
	l.Close()
	if _, open := <-accepted; open {
		t.Error("accepts after Close")
	}
}

// TestRefusedConnectionIsUnavailable: a client of gRPC sees at once that it got nowhere.
func TestRefusedConnectionIsUnavailable(t *testing.T) {
	node := newFakeNode(t)
	node.limits.ConnectionsMax = 1
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	m := newMetrics(node)
	ostrakapb.RegisterKVServer(s, newKVService(node))
	go s.Serve(limitConnections(inner, 1, m))
	t.Cleanup(s.Stop)
	holder, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if _, err := io.ReadFull(holder, make([]byte, 9)); err != nil { // the server's settings: it was accepted
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+inner.Addr().String(), insecureCredentials)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := ostrakapb.NewKVClient(conn).Get(t.Context(), &ostrakapb.GetRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("over the limit: %v", err)
	}
}
