package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
)

// TestServicesOverRealReplicas runs one whole node in this process: what the fakes of the other tests stand for.
func TestServicesOverRealReplicas(t *testing.T) {
	node, address, conn := startNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	kv, admin := ostrakapb.NewKVClient(conn), ostrakapb.NewAdminClient(conn)
	_, err := kv.Get(ctx, &ostrakapb.GetRequest{Key: []byte("k")})
	wantReason(t, err, ostrakapb.Reason_REASON_NOT_BOOTSTRAPPED)
	if _, err := admin.Bootstrap(ctx, &ostrakapb.BootstrapRequest{Shards: 3, Nodes: []*ostrakapb.NodeSpec{{Id: "n1", Address: address}}}); err != nil {
		t.Fatal(err)
	}
	whenLed(ctx, t, func() error {
		_, err := kv.Set(ctx, &ostrakapb.SetRequest{Key: []byte("k"), Value: []byte("v"), TtlMs: 60_000})
		return err
	})
	got, err := kv.Get(ctx, &ostrakapb.GetRequest{Key: []byte("k")})
	if err != nil || string(got.GetValue()) != "v" || got.GetTtlMs() <= 0 || got.GetTtlMs() > 60_000 {
		t.Errorf("get: %v, %v", got, err)
	}
	ttl, err := kv.TTL(ctx, &ostrakapb.TTLRequest{Key: []byte("k"), Level: ostrakapb.ReadLevel_READ_LEVEL_STALE})
	if err != nil || ttl.GetValueSize() != 1 {
		t.Errorf("ttl: %v, %v", ttl, err)
	}

	const keys = 500
	var names []string
	for i := range keys {
		names = append(names, fmt.Sprintf("key-%04d", i))
	}
	whenLed(ctx, t, func() error { // every shard may have its first election yet to come
		resp, err := kv.Batch(ctx, &ostrakapb.BatchRequest{Ops: setOps(func(int) []byte { return []byte("w") }, names...)})
		for _, r := range resp.GetResults() {
			if d := r.GetError(); d != nil {
				err = errors.Join(err, fmt.Errorf("%v", d))
			}
		}
		return err
	})
	scanned := 0
	for id := range uint32(3) {
		page, err := kv.Scan(ctx, &ostrakapb.ScanRequest{Shard: id + 1, Start: []byte("key-"), End: []byte("key.")})
		if err != nil {
			t.Fatal(err)
		}
		scanned += len(page.GetItems())
	}
	if scanned != keys {
		t.Errorf("%d keys scanned, want %d", scanned, keys)
	}

	m, err := admin.Map(ctx, &ostrakapb.MapRequest{})
	if err != nil || len(m.GetMap().GetShards()) != 3 || len(m.GetLeaders()) != 3 || m.GetLeaders()[0].GetNode() != "n1" {
		t.Errorf("map: %v, %v", m, err)
	}
	st, err := admin.Status(ctx, &ostrakapb.StatusRequest{})
	if err != nil || len(st.GetShards()) != 3 || st.GetShards()[0].GetLeader() != "n1" || st.GetNodes()[0].GetState() != stateUp {
		t.Errorf("status: %v, %v", st, err)
	}
	var held uint64
	for _, s := range st.GetShards() {
		held += s.GetKeys()
	}
	if held != keys+1 {
		t.Errorf("%d keys held, want %d", held, keys+1)
	}
	if leads := sample(t, node.metrics, `ostraka_replica_leader{replica="2",shard="1"}`); leads != 1 {
		t.Errorf("shard 1 is led %v times", leads)
	}
}

// startNode runs a node on a port of loopback until the test ends, when it must drain and return nil.
func startNode(t *testing.T) (*Node, string, *grpc.ClientConn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	node, err := New(Config{ID: "n1", DataDir: t.TempDir(), Listen: address, Timing: raftfsm.Timing{Election: 100 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- node.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///"+address, insecureCredentials, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return node, address, conn
}

// whenLed repeats what fails for want of a leader until it succeeds or the context ends.
func whenLed(ctx context.Context, t *testing.T, do func() error) {
	t.Helper()
	beat := time.NewTicker(10 * time.Millisecond)
	defer beat.Stop()
	for {
		err := do()
		if err == nil {
			return
		}
		select {
		case <-beat.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}
