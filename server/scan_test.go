package server

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// fillShard writes keys of shard 1 with values of a given size, and returns them in order.
func fillShard(t *testing.T, f *fakeServer, n, size int) []string {
	t.Helper()
	var keys []string
	for i := 0; len(keys) < n; i++ {
		k := fmt.Sprintf("key-%05d", i)
		if f.node.m.ShardOf(shard.SlotOfString(k)) != 1 {
			continue
		}
		if _, err := f.kv.Set(t.Context(), &ostrakapb.SetRequest{Key: []byte(k), Value: bytes.Repeat([]byte(k[len(k)-1:]), size)}); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	return keys
}

// scanAll follows cursors to the end and returns the keys and the sizes of the pages.
func scanAll(t *testing.T, f *fakeServer, r *ostrakapb.ScanRequest) (keys []string, pages []int) {
	t.Helper()
	for {
		resp, err := f.kv.Scan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range resp.GetItems() {
			keys = append(keys, string(item.GetKey()))
			if r.GetKeysOnly() != (len(item.GetValue()) == 0) || item.GetVersion() == 0 {
				t.Fatalf("item %v", item)
			}
		}
		pages = append(pages, len(resp.GetItems()))
		if len(resp.GetCursor()) == 0 {
			return keys, pages
		}
		r.Cursor = resp.GetCursor()
		r.Start = []byte("is ignored") // as kv.proto says
	}
}

func TestScanPages(t *testing.T) {
	node := newFakeNode(t)
	node.limits.ScanItemsMax, node.limits.ScanBytesMax = 7, 1000
	f := serve(t, node)
	keys := fillShard(t, f, 40, 50)
	for name, c := range map[string]struct {
		request *ostrakapb.ScanRequest
		want    []string
		pageMax int
	}{
		"all":        {&ostrakapb.ScanRequest{}, keys, 7},
		"small":      {&ostrakapb.ScanRequest{Limit: 3}, keys, 3},
		"one by one": {&ostrakapb.ScanRequest{Limit: 1}, keys, 1},
		"huge limit": {&ostrakapb.ScanRequest{Limit: 1 << 31}, keys, 7},
		"keys only":  {&ostrakapb.ScanRequest{KeysOnly: true}, keys, 7},
		"stale":      {&ostrakapb.ScanRequest{Level: ostrakapb.ReadLevel_READ_LEVEL_STALE}, keys, 7},
		"range":      {&ostrakapb.ScanRequest{Start: []byte(keys[5]), End: []byte(keys[30])}, keys[5:30], 7},
		"empty":      {&ostrakapb.ScanRequest{Start: []byte(keys[30]), End: []byte(keys[5])}, nil, 7},
	} {
		c.request.Shard = 1
		got, pages := scanAll(t, f, c.request)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %d keys, want %d: %v", name, len(got), len(c.want), got)
		}
		if slices.Max(pages) > c.pageMax {
			t.Errorf("%s: pages of %v items", name, pages)
		}
	}
}

// TestScanPageEndsAtItsBytes: a page stops with the item that fills it, however large that is.
func TestScanPageEndsAtItsBytes(t *testing.T) {
	node := newFakeNode(t)
	node.limits.ScanBytesMax = 500
	f := serve(t, node)
	keys := fillShard(t, f, 10, 241) // 250 bytes an item
	_, pages := scanAll(t, f, &ostrakapb.ScanRequest{Shard: 1})
	if slices.Max(pages) != 2 {
		t.Errorf("pages of %v items of half a page each", pages)
	}
	if _, pages = scanAll(t, f, &ostrakapb.ScanRequest{Shard: 1, KeysOnly: true}); pages[0] != 10 {
		t.Errorf("pages of %v keys: values count that are not sent", pages)
	}
	node.limits.ScanBytesMax = 1
	if got, pages := scanAll(t, f, &ostrakapb.ScanRequest{Shard: 1}); slices.Max(pages) != 1 || !slices.Equal(got, keys) {
		t.Errorf("pages of %v items, each larger than a page", pages)
	}
}

func TestScanOfAFollower(t *testing.T) {
	f := serve(t, newFakeNode(t))
	f.replicas[1].readErr = &raftfsm.NotLeaderError{Group: 1, Leader: "n2"}
	_, err := f.kv.Scan(t.Context(), &ostrakapb.ScanRequest{Shard: 1})
	if d := wantReason(t, err, ostrakapb.Reason_REASON_NOT_LEADER); d.GetLeaderNode() != "n2" || d.GetShard() != 1 {
		t.Errorf("detail %v", d)
	}
	if _, err := f.kv.Scan(t.Context(), &ostrakapb.ScanRequest{Shard: 1, Level: ostrakapb.ReadLevel_READ_LEVEL_STALE}); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeCursor(f *testing.F) {
	f.Add(encodeCursor([]byte("key")))
	f.Add([]byte{cursorFormat})
	f.Add([]byte{9, 9})
	f.Fuzz(func(t *testing.T, cursor []byte) {
		if len(cursor) == 0 {
			return // no cursor
		}
		next, err := decodeCursor(cursor)
		if err == nil && !bytes.Equal(encodeCursor(next), cursor) {
			t.Errorf("%x decodes to %x, which encodes otherwise", cursor, next)
		}
	})
}
