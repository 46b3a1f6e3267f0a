package client

import (
	"context"
	"math"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// fakeWatch is how a node's Watch behaves. Guarded by the cluster's mutex.
type fakeWatch struct {
	// floor: the node holds no changes up to this version.
	floor uint64
	// mute: the node takes streams and says nothing; refuse: it ends every one.
	mute   bool
	refuse *ostrakapb.ErrorDetail
	// again: it sends the last change before each watch's position once more, as no node should.
	again bool
	// tellsLeader: progress names the leader.
	tellsLeader bool
	// streams counts those begun, watches those created.
	streams, watches int
}

// note adds a change at the present version, which changes the key. The cluster's mutex is held.
func (f *fakeCluster) note(c *ostrakapb.Change) {
	if before := f.keys[string(c.GetKey())]; before != nil {
		c.Existed, c.Previous, c.PreviousVersion = true, before.Value, before.Version
	}
	c.Position = &ostrakapb.Position{Version: f.version, Index: math.MaxUint32}
	c.TimeMs = int64(f.version)
	if f.changes == nil {
		f.changes = make(map[shard.ID][]*ostrakapb.Change)
	}
	id := f.m.ShardOf(shard.SlotOf(c.GetKey()))
	f.changes[id] = append(f.changes[id], c)
}

func (n *fakeNode) Position(_ context.Context, r *ostrakapb.PositionRequest) (*ostrakapb.PositionResponse, error) {
	f := n.cluster
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := n.checkShard(shard.ID(r.GetShard())); d != nil {
		return nil, detailed(d)
	}
	return &ostrakapb.PositionResponse{Position: &ostrakapb.Position{Version: f.version, Index: math.MaxUint32}}, nil
}

// fakeWatched is one watch of a stream.
type fakeWatched struct {
	*ostrakapb.WatchCreate
	credit int64
	sent   uint64 // version
}

// Watch serves a stream by looking every few milliseconds for what there is.
func (n *fakeNode) Watch(stream grpc.BidiStreamingServer[ostrakapb.WatchRequest, ostrakapb.WatchResponse]) error {
	f := n.cluster
	requests := make(chan *ostrakapb.WatchRequest)
	go func() {
		defer close(requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	f.mu.Lock()
	n.watch.streams++
	f.mu.Unlock()
	var id shard.ID
	all := make(map[uint64]*fakeWatched)
	created := uint64(0)
	beat := time.NewTicker(5 * time.Millisecond)
	defer beat.Stop()
	for {
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			if r.GetShard() != 0 {
				id = shard.ID(r.GetShard())
			}
			f.mu.Lock()
			for _, c := range r.GetCreate() {
				w := &fakeWatched{c, c.GetCredit(), c.GetBehind().GetVersion()}
				if n.watch.again && w.sent > 0 {
					w.sent--
				}
				all[c.GetWatch()] = w
				created++
				n.watch.watches++
			}
			f.mu.Unlock()
			for _, number := range r.GetCancel() {
				delete(all, number)
			}
			for _, c := range r.GetCredit() {
				if w := all[c.GetWatch()]; w != nil {
					w.credit += c.GetBytes()
				}
			}
		case <-beat.C:
			f.mu.Lock()
			response := n.due(id, all)
			response.Progress.Creates = created
			mute, refuse := n.watch.mute, n.watch.refuse
			f.mu.Unlock()
			switch {
			case refuse != nil:
				return detailed(refuse)
			case mute:
				continue
			}
			if err := stream.Send(response); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

// due is what the watches are to hear. The cluster's mutex is held.
func (n *fakeNode) due(id shard.ID, all map[uint64]*fakeWatched) *ostrakapb.WatchResponse {
	f := n.cluster
	r := &ostrakapb.WatchResponse{Progress: &ostrakapb.WatchProgress{Position: &ostrakapb.Position{Version: f.version, Index: math.MaxUint32}}}
	if n.watch.mute {
		return r
	}
	if n.watch.tellsLeader {
		r.Progress.LeaderNode = string(f.leaders[id])
	}
	for number, w := range all {
		if w.sent < n.watch.floor {
			r.Ends = append(r.Ends, &ostrakapb.WatchEnd{Watch: number, Error: notDone(ostrakapb.Reason_REASON_COMPACTED),
				Restart: &ostrakapb.Position{Version: f.version, Index: math.MaxUint32}})
			delete(all, number)
			r.Progress.Except = append(r.Progress.Except, number)
			continue
		}
		changes := &ostrakapb.WatchChanges{Watch: number}
		held := false
		for _, c := range f.changes[id] {
			key := string(c.GetKey())
			if c.GetPosition().GetVersion() <= w.sent || key < string(w.GetStart()) || len(w.GetEnd()) > 0 && key >= string(w.GetEnd()) {
				continue
			}
			if w.credit <= 0 {
				r.Progress.Except = append(r.Progress.Except, number)
				held = true
				break
			}
			w.sent = c.GetPosition().GetVersion()
			w.credit -= int64(len(c.GetKey()) + len(c.GetValue()) + changeOverhead)
			sent := &ostrakapb.Change{Kind: c.GetKind(), Key: c.GetKey(), Value: c.GetValue(), Position: c.GetPosition(), TimeMs: c.GetTimeMs(),
				TtlMs: c.GetTtlMs(), Existed: c.GetExisted(), PreviousVersion: c.GetPreviousVersion()}
			if w.GetPrevious() {
				sent.Previous = c.GetPrevious()
				w.credit -= int64(len(sent.Previous))
			}
			changes.Changes = append(changes.Changes, sent)
		}
		if !held {
			w.sent = max(w.sent, f.version)
		}
		if len(changes.Changes) > 0 {
			r.Changes = append(r.Changes, changes)
		}
	}
	return r
}
