package client

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

const (
	// pageSizeDefault is the number of items of one shard fetched at once.
	pageSizeDefault = 256
	// pagesAtOnce bounds the first pages fetched side by side; the later ones are fetched one by one, as the
	// merge needs them.
	pagesAtOnce = 8
)

// Item is a key with its state, as a scan yields it.
type Item struct {
	Key []byte
	// Value is nil with KeysOnly.
	Value   []byte
	Version uint64
	// TTL is the life left when the page was read; 0: the key does not expire.
	TTL time.Duration
}

// KeyRange is the keys in [Start, End), in the order of their bytes; an empty End has no bound.
type KeyRange struct{ Start, End []byte }

// All is the range of all keys.
func All() KeyRange { return KeyRange{} }

// Prefix is the range of the keys that begin with p.
func Prefix(p []byte) KeyRange {
	end := bytes.Clone(p)
	for len(end) > 0 {
		if last := len(end) - 1; end[last] < 0xff {
			end[last]++
			break
		}
		end = end[:len(end)-1] // no key after …ff of the same length: carry
	}
	return KeyRange{Start: p, End: end}
}

// ScanOption changes what Scan does. Every ReadOption is one.
type ScanOption interface {
	scan(*scanOptions)
}

type scanOptions struct {
	read     readOptions
	limit    int // 0: none
	pageSize int
	after    []byte // nil: from the range's start
	keysOnly bool
}

type scanOption func(*scanOptions)

func (o scanOption) scan(s *scanOptions) { o(s) }

// Limit ends a scan after n items; 0 or less: no limit.
func Limit(n int) ScanOption { return scanOption(func(o *scanOptions) { o.limit = max(n, 0) }) }

// PageSize sets how many items of a shard are fetched and held at once; default 256. A scan holds at most one
// page for each shard.
func PageSize(n int) ScanOption { return scanOption(func(o *scanOptions) { o.pageSize = n }) }

// KeysOnly leaves the values out.
func KeysOnly() ScanOption { return scanOption(func(o *scanOptions) { o.keysOnly = true }) }

// After begins behind a key: the way to resume a scan is the last key that it yielded.
func After(key []byte) ScanOption {
	return scanOption(func(o *scanOptions) { o.after = append([]byte{}, key...) })
}

// Scan yields the items of a range in the order of their keys, merged over all shards. Each page is read from
// its shard's leader (or any replica, with Stale) at its own moment: the scan as a whole is no snapshot. A key
// that exists throughout is yielded exactly once, also when slots move meanwhile.
//
// An error ends the iteration: it is yielded with an empty item. Errors: ErrUnavailable, ErrInvalid. The
// client's timeout bounds each page, ctx the whole.
func (c *Client) Scan(ctx context.Context, keys KeyRange, opts ...ScanOption) iter.Seq2[Item, error] {
	o := scanOptions{pageSize: pageSizeDefault}
	for _, opt := range opts {
		opt.scan(&o)
	}
	return func(yield func(Item, error) bool) {
		if o.pageSize < 1 {
			yield(Item{}, &InvalidError{Field: "page size", Message: "must be positive"})
			return
		}
		s := &scan{c: c, options: o, next: keys.Start, end: keys.End, left: o.limit}
		if o.after != nil {
			if behind := successor(o.after); bytes.Compare(behind, s.next) > 0 {
				s.next = behind
			}
		}
		for {
			err := s.merge(ctx, yield)
			if errors.Is(err, errMapChanged) {
				continue
			}
			if err != nil {
				yield(Item{}, err)
			}
			return
		}
	}
}

// successor is the lowest key above key.
func successor(key []byte) []byte { return append(bytes.Clone(key), 0) }

// errMapChanged ends a merge whose shards are no longer those of the newest map. Slots may have moved from a
// shard already read to one that is read later, or the other way round, so nothing that is held is worth
// anything: the scan begins again behind the last key that it yielded.
var errMapChanged = errors.New("the map changed during the scan")

// scan is one running Scan.
type scan struct {
	c       *Client
	options scanOptions
	// All keys below next have been yielded; those in [next, end) are left.
	next, end []byte
	// left counts down from the limit, where there is one.
	left int
	// routes of the merge under way.
	routes *routes
}

// merge yields what is left, in order, as long as the map stays. It is a k-way merge: the heap holds the
// shards that have more, the one with the lowest key on top.
func (s *scan) merge(ctx context.Context, yield func(Item, error) bool) error {
	s.routes = s.c.routes.Load()
	heads, err := s.firstPages(ctx)
	if err != nil {
		return err
	}
	heap.Init(&heads)
	for heads.Len() > 0 {
		top := heads[0]
		item := top.pop()
		s.next = successor(item.Key)
		if !yield(item, nil) {
			return nil
		}
		if s.options.limit > 0 {
			if s.left--; s.left == 0 {
				return nil
			}
		}
		if err := s.fill(ctx, top); err != nil {
			return err
		}
		if len(top.page) == 0 {
			heap.Pop(&heads)
		} else {
			heap.Fix(&heads, 0)
		}
	}
	return nil
}

// firstPages fetches one page of every shard and returns those that have items. Its goroutines end before it
// returns.
func (s *scan) firstPages(ctx context.Context) (heads, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, pagesAtOnce)
		all   []*head
	)
	for _, sh := range s.routes.m.Shards() {
		h := &head{shard: sh.ID, more: true}
		all = append(all, h)
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := s.fill(ctx, h); err != nil {
				cancel(err) // the first error wins, and ends the others
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			return nil, overtime(ctx, 0, nil, false)
		}
		return nil, err
	}
	return slices.DeleteFunc(heads(all), func(h *head) bool { return len(h.page) == 0 }), nil
}

// fill fetches pages of one shard until it holds an item or the shard has no more.
func (s *scan) fill(ctx context.Context, h *head) error {
	for len(h.page) == 0 && h.more {
		resp, err := s.page(ctx, h)
		if err != nil {
			return err
		}
		h.page, h.cursor = resp.GetItems(), resp.GetCursor()
		h.more = len(h.cursor) > 0
	}
	return nil
}

func (s *scan) page(ctx context.Context, h *head) (*ostrakapb.ScanResponse, error) {
	size := s.options.pageSize
	if s.options.limit > 0 {
		size = min(size, s.left)
	}
	p := &page{kind: kind{name: "scan", stale: s.options.read.stale()}, routes: s.routes, request: &ostrakapb.ScanRequest{
		Header:   new(ostrakapb.Header),
		Shard:    uint32(h.shard),
		Start:    s.next,
		End:      s.end,
		Limit:    uint32(size),
		Level:    s.options.read.level,
		Cursor:   h.cursor,
		KeysOnly: s.options.keysOnly,
	}}
	if err := s.c.repeat(ctx, &p.kind, p, new(attempt)); err != nil {
		return nil, err
	}
	return p.response, nil
}

// page is the operation that fetches one page of one shard. Each attempt is a call of its own.
type page struct {
	kind
	// routes are those that the scan began with: it has to begin again with newer ones.
	routes   *routes
	request  *ostrakapb.ScanRequest
	response *ostrakapb.ScanResponse
}

func (p *page) route(r *routes) (*shardRoute, error) {
	if r != p.routes {
		return nil, errMapChanged
	}
	return r.shards[shard.ID(p.request.GetShard())], nil
}

func (p *page) try(ctx context.Context, c *Client, a *attempt) *failure {
	c.fill(p.request.Header, a, true)
	return c.alone(ctx, a, 0, func(ctx context.Context) (err error) {
		p.response, err = a.node.kv.Scan(ctx, p.request)
		return err
	})
}

// head is one shard's part of a merge: what it holds of its current page.
type head struct {
	shard  shard.ID
	page   []*ostrakapb.Item
	cursor []byte
	// more: the shard has items behind the page.
	more bool
}

func (h *head) pop() Item {
	first := h.page[0]
	h.page[0] = nil // let the value go, the page may live long
	h.page = h.page[1:]
	return Item{Key: first.GetKey(), Value: first.GetValue(), Version: first.GetVersion(), TTL: fromMillis(first.GetTtlMs())}
}

// heads is a heap.Interface, the lowest key first. None of them is empty.
type heads []*head

func (h heads) Len() int { return len(h) }
func (h heads) Less(i, j int) bool {
	return bytes.Compare(h[i].page[0].GetKey(), h[j].page[0].GetKey()) < 0
}
func (h heads) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *heads) Push(x any)   { *h = append(*h, x.(*head)) }
func (h *heads) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
