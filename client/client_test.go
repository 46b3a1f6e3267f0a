package client

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/connectivity"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client(WithTimeout(time.Minute), WithAttemptTimeout(time.Minute))
	f.node("n1").play(hang)
	errs := make(chan error, 2)
	go func() { _, err := c.Set(t.Context(), []byte("k"), nil); errs <- err }()
	go func() { _, err := c.Get(t.Context(), []byte("k")); errs <- err }()
	waitFor(t, "both to arrive", func() bool {
		n := f.node("n1")
		return len(requests[*ostrakapb.SetRequest](n)) == 1 && len(requests[*ostrakapb.GetRequest](n)) == 1
	})
	c.Close()
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrClosed) {
			t.Errorf("error %v", err)
		}
	}
	if _, err := c.Set(t.Context(), []byte("k"), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func TestCloseWaitsForTheRefresher(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client(WithAttemptTimeout(time.Minute))
	f.node("n1").play(func(ctx context.Context, _ any) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	ended := c.refreshSoon()
	waitFor(t, "the request", func() bool { return len(requests[*ostrakapb.MapRequest](f.node("n1"))) == 2 })
	c.Close()
	select {
	case <-ended:
	default:
		t.Error("Close returned before the refresher had ended")
	}
	if c.refreshSoon() != nil {
		t.Error("a fetch began after Close")
	}
}

func TestConnectionsToAddressesOutOfUseAreClosed(t *testing.T) {
	f := newFakeCluster(t, 3, 3)
	c := f.client()
	for _, key := range []string{"a", "b", "c", "d", "e", "f"} {
		mustSet(t, c, key, "1")
	}
	gone, err := c.pool.node("n3:7400")
	if err != nil {
		t.Fatal(err)
	}
	f.setMap(2, []shard.NodeID{"n2"}, 1)
	if err := c.fetchAny(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := gone.conn.GetState(); got != connectivity.Shutdown {
		t.Errorf("the connection to a node that left is %v", got)
	}
	if kept := slices.Sorted(maps.Keys(c.pool.nodes)); !slices.Equal(kept, []string{"n1:7400", "n2:7400"}) {
		t.Errorf("nodes %q are kept, want the endpoint and the member", kept)
	}
}

func TestNew(t *testing.T) {
	f := newFakeCluster(t, 2, 1)
	dial := WithDialer(f.dial)
	fail := func(want error, endpoints ...string) {
		t.Helper()
		c, err := New(t.Context(), endpoints, dial, WithAttemptTimeout(100*time.Millisecond))
		if !errors.Is(err, want) {
			t.Errorf("New(%q) = %v, want %v", endpoints, err, want)
		}
		if c != nil {
			c.Close()
		}
	}
	fail(ErrNoEndpoint)
	fail(ErrInvalid, "")
	fail(ErrNoEndpoint, "nowhere:1", "nowhere:2")
	fail(nil, "nowhere:1", "n2:7400")
	f.mu.Lock()
	f.silent["hole:1"], f.m = true, nil
	f.mu.Unlock()
	fail(ErrNotBootstrapped, "hole:1", "n1:7400")
	if _, err := New(t.Context(), []string{"n1:7400"}, dial, WithTimeout(-1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("negative timeout: %v", err)
	}
}

func TestANodeOfAnotherClusterIsNotBelieved(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	f.setMap(2, []shard.NodeID{"n1"}, 2)
	f.mu.Lock()
	f.clusterID = "c2"
	f.mu.Unlock()
	if err := c.fetchAny(t.Context()); !errors.Is(err, ErrWrongCluster) {
		t.Errorf("fetch: %v", err)
	}
	if c.Map().Epoch() != 1 || c.ClusterID() != "c1" {
		t.Errorf("epoch %d of %s was adopted", c.Map().Epoch(), c.ClusterID())
	}
}
