package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
)

// pipes is a network without sockets: listeners by address.
type pipes struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
}

func (p *pipes) bind(address string) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := bufconn.Listen(1 << 20)
	p.listeners[address] = l
	return addressed{l, address}, nil
}

func (p *pipes) dial(ctx context.Context, address string) (net.Conn, error) {
	p.mu.Lock()
	l := p.listeners[address]
	p.mu.Unlock()
	if l == nil {
		return nil, errors.New("nobody listens there")
	}
	return l.DialContext(ctx)
}

// addressed is a listener that knows where it is.
type addressed struct {
	*bufconn.Listener
	address string
}

func (a addressed) Addr() net.Addr { return pipeAddress(a.address) }

type pipeAddress string

func (pipeAddress) Network() string  { return "pipe" }
func (a pipeAddress) String() string { return string(a) }

// A whole cluster, from blank nodes over bootstrap to reads, hand-over and restart, without a socket, a file or a
// real second: everything that simulation needs is injected.
func TestClusterInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &pipes{listeners: make(map[string]*bufconn.Listener)}
		specs := []*ostrakapb.NodeSpec{{Id: "n1", Address: "n1:1"}, {Id: "n2", Address: "n2:1"}, {Id: "n3", Address: "n3:1"}}
		configs := make([]Config, len(specs))
		stops := make([]func(), len(specs))
		run := func(i int) {
			node, err := New(configs[i])
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- node.Run(ctx) }()
			stops[i] = func() {
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("%s: %v", configs[i].ID, err)
				}
			}
		}
		for i, spec := range specs {
			configs[i] = Config{ID: spec.GetId(), DataDir: "/data", Listen: spec.GetAddress(), FS: disk.NewMem(), Memory: storage.NewMemory(),
				Bind: network.bind, Dial: network.dial, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
			run(i)
		}
		conn, err := grpc.NewClient("passthrough:///n1:1", grpc.WithContextDialer(network.dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		synctest.Wait()
		_, err = ostrakapb.NewAdminClient(conn).Bootstrap(ctx, &ostrakapb.BootstrapRequest{Nodes: specs, Shards: 2})
		if err != nil {
			t.Fatal(err)
		}
		key := []byte("k")
		anywhere(t, ctx, network, specs, func(kv ostrakapb.KVClient) error {
			_, err := kv.Set(ctx, &ostrakapb.SetRequest{Key: key, Value: []byte("v")})
			return err
		})
		for i := range specs { // one after the other, each hands over first
			stops[i]()
			run(i)
			anywhere(t, ctx, network, specs, func(kv ostrakapb.KVClient) error {
				got, err := kv.Get(ctx, &ostrakapb.GetRequest{Key: key})
				if err == nil && string(got.GetValue()) != "v" {
					t.Errorf("got %v", got)
				}
				return err
			})
		}
		for _, stop := range stops {
			stop()
		}
	})
}

// anywhere asks one node after the other, in virtual time, until one does it.
func anywhere(t *testing.T, ctx context.Context, network *pipes, specs []*ostrakapb.NodeSpec, ask func(ostrakapb.KVClient) error) {
	t.Helper()
	var last error
	for ctx.Err() == nil {
		for _, spec := range specs {
			conn, err := grpc.NewClient("passthrough:///"+spec.GetAddress(), grpc.WithContextDialer(network.dial),
				grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			last = ask(ostrakapb.NewKVClient(conn))
			conn.Close()
			if last == nil {
				return
			}
		}
		time.Sleep(50 * time.Millisecond) // virtual
	}
	t.Fatal(last)
}
