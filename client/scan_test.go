package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// fill puts random keys into the cluster and returns them sorted.
func (f *fakeCluster) fill(random *rand.Rand, n int) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range n {
		key := make([]byte, 1+random.IntN(4))
		for i := range key {
			key[i] = "ab\x00\xff"[random.IntN(4)]
		}
		f.put(string(key), []byte("of "+string(key)), 0)
	}
	var keys []string
	for k := range f.keys {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func scanned(t *testing.T, c *Client, keys KeyRange, opts ...ScanOption) []string {
	t.Helper()
	var got []string
	for item, err := range c.Scan(t.Context(), keys, opts...) {
		if err != nil {
			t.Fatalf("after %d items: %v", len(got), err)
		}
		if string(item.Value) != "of "+string(item.Key) {
			t.Fatalf("key %q has value %q", item.Key, item.Value)
		}
		got = append(got, string(item.Key))
	}
	return got
}

func TestScanAgainstASortedList(t *testing.T) {
	f := newFakeCluster(t, 3, 5)
	c := f.client()
	random := rand.New(rand.NewPCG(1, 2))
	all := f.fill(random, 150)
	within := func(r KeyRange) []string {
		return slices.DeleteFunc(slices.Clone(all), func(k string) bool {
			return k < string(r.Start) || len(r.End) > 0 && k >= string(r.End)
		})
	}
	ranges := []KeyRange{All(), Prefix([]byte("a")), Prefix([]byte("\xff")), Prefix([]byte("a\xff\xff")), Prefix([]byte("zz")),
		{Start: []byte("a\x00"), End: []byte("b")}, {Start: []byte("b"), End: []byte("a")}, {End: []byte("b")}}
	for _, r := range ranges {
		for _, size := range []int{1, 2, 7, 1000} {
			want := within(r)
			if got := scanned(t, c, r, PageSize(size)); !slices.Equal(got, want) {
				t.Fatalf("range %q, pages of %d: got %q, want %q", r, size, got, want)
			}
			limit := random.IntN(len(want) + 2)
			if got := scanned(t, c, r, PageSize(size), Limit(limit)); limit > 0 && !slices.Equal(got, want[:min(limit, len(want))]) {
				t.Fatalf("range %q, pages of %d, limit %d: got %q", r, size, limit, got)
			}
			if len(want) > 0 {
				i := random.IntN(len(want))
				if got := scanned(t, c, r, PageSize(size), After([]byte(want[i]))); !slices.Equal(got, want[i+1:]) {
					t.Fatalf("range %q, pages of %d, after %q: got %q", r, size, want[i], got)
				}
			}
		}
	}
}

func TestPrefix(t *testing.T) {
	for _, row := range []struct{ prefix, end string }{
		{"", ""}, {"a", "b"}, {"a\xff", "b"}, {"\xff\xff", ""}, {"a\xfe\xff", "a\xff"},
	} {
		r := Prefix([]byte(row.prefix))
		if string(r.Start) != row.prefix || string(r.End) != row.end {
			t.Errorf("Prefix(%q) = [%q, %q), want the end %q", row.prefix, r.Start, r.End, row.end)
		}
	}
	p := []byte("a")
	if Prefix(p); !bytes.Equal(p, []byte("a")) {
		t.Errorf("the argument was changed to %q", p)
	}
}

// All slots change hands several times during one scan; no key is missed, none comes twice.
func TestScanWhileSlotsMove(t *testing.T) {
	f := newFakeCluster(t, 3, 4)
	c := f.client()
	want := f.fill(rand.New(rand.NewPCG(3, 4)), 150)
	var got []string
	for item, err := range c.Scan(t.Context(), All(), PageSize(3)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(item.Key))
		if len(got)%20 == 0 {
			shards := 2 + len(got)/20
			f.setMap(shard.Epoch(shards), []shard.NodeID{"n3", "n1", "n2"}, shards)
			for i := range shards {
				f.lead(shard.ID(i+1), shard.NodeID(fmt.Sprintf("n%d", i%3+1)))
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if c.Map().Epoch() < 4 {
		t.Errorf("the map moved only to epoch %d: the test tests nothing", c.Map().Epoch())
	}
}

func TestScanKeysOnlyAndPagesAreSmall(t *testing.T) {
	f := newFakeCluster(t, 2, 2)
	c := f.client()
	want := f.fill(rand.New(rand.NewPCG(5, 6)), 100)
	n := 0
	for item, err := range c.Scan(t.Context(), All(), KeysOnly(), PageSize(10), Limit(25)) {
		if err != nil || item.Value != nil || string(item.Key) != want[n] {
			t.Fatalf("item %d: %v, %v", n, item, err)
		}
		n++
	}
	for _, node := range f.nodes {
		for _, req := range requests[*ostrakapb.ScanRequest](node) {
			if !req.KeysOnly || req.Limit > 10 {
				t.Errorf("request %v", req)
			}
		}
	}
}

func TestScanStopsWhereItsCallerStops(t *testing.T) {
	f := newFakeCluster(t, 1, 1)
	c := f.client()
	f.fill(rand.New(rand.NewPCG(7, 8)), 100)
	for range c.Scan(t.Context(), All(), PageSize(5)) {
		break
	}
	if got := len(requests[*ostrakapb.ScanRequest](f.node("n1"))); got != 1 {
		t.Errorf("%d pages were fetched for one item", got)
	}
}

func TestScanErrors(t *testing.T) {
	f := newFakeCluster(t, 2, 3)
	c := f.client()
	f.fill(rand.New(rand.NewPCG(9, 10)), 100)
	f.node("n1").play(func(_ context.Context, req any) (any, error) {
		if r, ok := req.(*ostrakapb.ScanRequest); ok && len(r.Cursor) > 0 {
			return nil, detailed(notDone(ostrakapb.Reason_REASON_UNSUPPORTED))
		}
		return nil, nil
	})
	items, errs := 0, 0
	for item, err := range c.Scan(t.Context(), All(), PageSize(2)) {
		if err == nil {
			items++
			continue
		}
		if errs++; !errors.Is(err, ErrUnsupported) || item.Key != nil {
			t.Errorf("yielded %v, %v", item, err)
		}
	}
	if errs != 1 || items == 0 {
		t.Errorf("%d errors after %d items", errs, items)
	}
	for _, err := range c.Scan(t.Context(), All(), PageSize(0)) {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("page size 0: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range c.Scan(ctx, All()) {
		if !errors.Is(err, context.Canceled) || strings.Count(err.Error(), "scan") > 1 {
			t.Errorf("cancelled: %v", err)
		}
	}
}
