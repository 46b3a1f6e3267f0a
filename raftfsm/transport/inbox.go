package transport

import (
	"bytes"
	"fmt"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// receive hands a request to raft, on a pipe's receiving goroutine; the collector sends the answer. An error means that
// raft will not see the request.
func (f *Facade) receive(p *pipe, a *arrival, request *ostrakapb.Envelope) error {
	command, err := f.admit(p.peer.node, request)
	if err == nil {
		err = f.refuseByDisk(request)
	}
	if err != nil {
		return err
	}
	if _, install := command.(*raft.InstallSnapshotRequest); install {
		return fmt.Errorf("%w: a snapshot on the shared stream", ErrMalformed)
	}
	answer := f.t.responses.get()
	rpc, c := raft.RPC{Command: command, RespChan: answer}, collectable{facade: f, pipe: p, request: request, answer: answer}
	if a == nil {
		return f.deliver(request, rpc, &c)
	}
	err = f.deliver(request, rpc, nil)
	if err == nil {
		a.requests = append(a.requests, c)
	}
	return err
}

// admit decodes a request and checks that it is from whom it says.
func (f *Facade) admit(from shard.NodeID, request *ostrakapb.Envelope) (any, error) {
	command, err := decodeRequest(request)
	if err != nil {
		return nil, err
	}
	// raft keys its vote by the header's address; the handshake vouches for the node, the header for nothing.
	header := command.(raft.WithRPCHeader).GetRPCHeader()
	want := f.senders.of(from, shard.ReplicaID(request.GetFromReplica()))
	if !bytes.Equal(header.Addr, want.address) || !bytes.Equal(header.ID, want.id) {
		return nil, fmt.Errorf("%w: %q (%q) by way of %q", ErrNotSender, header.Addr, header.ID, want.address)
	}
	if a, ok := command.(*raft.AppendEntriesRequest); ok {
		lowerCommit(a)
	}
	return command, nil
}

// lowerCommit caps the commit index at the last entry that the message itself speaks of. raft caps it at the follower's
// last index instead, so an append without entries lets it apply a tail that the leader never had:
//
//	leader    1a 2a 3c 4c   commit 4; sends prev 2a, no entries, commit 4
//	follower  1a 2a 3b 4b   would apply 3b and 4b, which were never committed; with commit 2 it applies 2a
//
// Lowering is always safe: a commit index is a lower bound, and the next append brings a higher one.
func lowerCommit(a *raft.AppendEntriesRequest) {
	a.LeaderCommitIndex = min(a.LeaderCommitIndex, a.PrevLogEntry+uint64(len(a.Entries)))
}

// isOrdered tells whether a request must not be delivered after a later one of its sender. Votes and heartbeats change
// neither log nor state machine, and heartbeats overtake snapshots all the time.
func isOrdered(request *ostrakapb.Envelope) bool {
	switch request.GetBody().(type) {
	case *ostrakapb.Envelope_Install, *ostrakapb.Envelope_TimeoutNow:
		return true
	case *ostrakapb.Envelope_Append:
		return !isHeartbeat(request)
	}
	return false
}

// deliver puts a request into raft's channel, without ever waiting for raft. Its answer goes to the collector unless
// collect is nil.
func (f *Facade) deliver(request *ostrakapb.Envelope, rpc raft.RPC, collect *collectable) error {
	f.inbox.Lock()
	defer f.inbox.Unlock()
	if err := f.roomLocked(); err != nil {
		return err
	}
	if err := f.note(request); err != nil {
		return err
	}
	f.consumer <- rpc
	if collect != nil {
		f.collecting <- *collect
	}
	return nil
}

// roomLocked says why a request can't be put into raft's channel. Room that is there stays while inbox is held.
func (f *Facade) roomLocked() error {
	switch {
	case f.closed:
		return ErrClosed
	case len(f.consumer) == cap(f.consumer) || len(f.collecting) == cap(f.collecting):
		return ErrInboxFull
	}
	return nil
}

// note keeps the replica's history, or refuses by it.
func (f *Facade) note(request *ostrakapb.Envelope) error {
	switch request.GetBody().(type) {
	case *ostrakapb.Envelope_TimeoutNow:
		if err := f.history.checkTerm(request.GetTerm()); err != nil {
			return err
		}
	case *ostrakapb.Envelope_Append, *ostrakapb.Envelope_Install:
		f.history.reached(request.GetTerm())
	}
	if !isOrdered(request) {
		return nil
	}
	return f.history.deliver(shard.ReplicaID(request.GetFromReplica()), positionOf(request))
}

func positionOf(request *ostrakapb.Envelope) position {
	return position{term: request.GetTerm(), sequence: request.GetSequence()}
}

// collect is the Facade's goroutine. It takes raft's answers one by one: raft's main loop answers in the order in which
// it took the requests. A raft that shuts down leaves requests unanswered; Close deals with those.
func (f *Facade) collect() {
	defer close(f.collected)
	for c := range f.collecting {
		select {
		case response := <-c.answer:
			f.t.responses.put(c.answer)
			f.answer(c, response)
		case <-f.ctx.Done():
			c.refuse(ErrClosed)
		}
	}
}

// collectLate leaves to the collector a request of an arrival that raft was slow to answer. One that finds no room is not
// answered.
func (f *Facade) collectLate(c collectable) {
	f.inbox.Lock()
	defer f.inbox.Unlock()
	switch {
	case f.closed:
		c.refuse(ErrClosed)
	case len(f.collecting) < cap(f.collecting):
		f.collecting <- c
	default:
		c.pipe.peer.counters.dropped.Add(1)
	}
}

func (c collectable) refuse(err error) {
	if c.request == nil {
		replies := &ostrakapb.HeartbeatReplies{Round: c.round}
		refuseHeartbeat(replies, c.row, err)
		c.pipe.reply(replies, true)
		return
	}
	c.pipe.answer(refusal(c.request, err), false)
}

// reply turns raft's answer into an envelope.
func (f *Facade) reply(request *ostrakapb.Envelope, response raft.RPCResponse) *ostrakapb.Envelope {
	if response.Error != nil {
		return refusal(request, response.Error)
	}
	answer := answerTo(request)
	if err := setReply(answer, response.Response); err != nil {
		return refusal(request, err)
	}
	switch response.Response.(type) {
	case *raft.AppendEntriesResponse, *raft.RequestVoteResponse, *raft.InstallSnapshotResponse:
		f.history.reached(answer.Term) // not of a pre-vote: that may name the term asked for
	}
	return answer
}
