package transport

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// arrival is what one frame brought that is answered together: heartbeats, and requests that are in no hurry. The pipe's
// gatherer answers it.
type arrival struct {
	requests []collectable
	// replies to heartbeats; those that raft does not see are in here from the start.
	replies *ostrakapb.HeartbeatReplies
}

// arrivalsMax bounds the arrivals that wait for a pipe's gatherer. One comes for each HeartbeatGather, and waits as long at
// most. Requests over it are answered one by one.
const arrivalsMax = 16

// repliesMax bounds the answers to heartbeats, by rounds or parts of one, that wait for a frame: a peer that beats and does
// not read must not fill the memory. Each wait for HeartbeatGather brings one, and one for each slow group.
const repliesMax = 256

// takeFrame brings the requests of a frame to their groups, on the receiver's goroutine.
func (p *pipe) takeFrame(frame *ostrakapb.Frame) error {
	var a arrival
	if frame.DiskStalled {
		p.t.stalled(p.peer)
	}
	for _, request := range frame.Envelopes {
		if !request.Unhurried {
			p.route(request, nil)
			continue
		}
		p.route(request, &a)
	}
	if err := p.routeHeartbeats(frame.Heartbeats, &a); err != nil {
		return err
	}
	if len(a.requests) == 0 {
		if a.replies != nil {
			p.reply(a.replies, false)
		}
		return nil
	}
	select {
	case p.arriving <- &a:
	default:
		p.reply(a.replies, false)
		for _, c := range a.requests {
			c.facade.collectLate(c)
		}
	}
	return nil
}

// route brings a request to its group. What can't be delivered is answered at once.
func (p *pipe) route(request *ostrakapb.Envelope, a *arrival) {
	if request.GetConfirm() != nil {
		answer, err := p.t.answerConfirm(request)
		if err != nil {
			answer = refusal(request, err)
		}
		p.answer(answer, false)
		return
	}
	f, err := p.t.facade(shard.ID(request.GetGroup()), shard.ReplicaID(request.GetToReplica()))
	if err == nil {
		err = f.receive(p, a, request)
	}
	if err != nil {
		p.answer(refusal(request, err), false)
	}
}

// routeHeartbeats brings each heartbeat of a frame to its group.
func (p *pipe) routeHeartbeats(m *ostrakapb.Heartbeats, a *arrival) error {
	n := len(m.GetGroup())
	if n > roundRowsMax || len(m.GetFromReplica()) != n || len(m.GetToReplica()) != n || len(m.GetTerm()) != n || len(m.GetProtocol()) != n ||
		len(m.GetCommit()) != n {
		return fmt.Errorf("%w: heartbeats in columns of %d, %d, %d, %d, %d and %d rows", ErrMalformed,
			n, len(m.GetFromReplica()), len(m.GetToReplica()), len(m.GetTerm()), len(m.GetProtocol()), len(m.GetCommit()))
	}
	if n == 0 {
		return nil
	}
	a.replies = &ostrakapb.HeartbeatReplies{Round: m.Round}
	a.requests = slices.Grow(a.requests, n)
	for i := range n {
		f, err := p.t.facade(shard.ID(m.Group[i]), shard.ReplicaID(m.ToReplica[i]))
		if err == nil {
			err = f.receiveHeartbeat(p, a, uint32(i), shard.ReplicaID(m.FromReplica[i]), m.Term[i], m.Protocol[i], m.Commit[i])
		}
		if err != nil {
			refuseHeartbeat(a.replies, uint32(i), err)
		}
	}
	return nil
}

// receiveHeartbeat hands a heartbeat to raft.
func (f *Facade) receiveHeartbeat(p *pipe, a *arrival, row uint32, from shard.ReplicaID, term uint64, protocol uint32, commit uint64) error {
	if f.gate.Stalled() {
		return ErrDiskStalled
	}
	s := f.senders.of(p.peer.node, from)
	request := &raft.AppendEntriesRequest{Term: term, LeaderCommitIndex: f.agreed.lower(from, term, commit), RPCHeader: raft.RPCHeader{ID: s.id, Addr: s.address,
		ProtocolVersion: raft.ProtocolVersion(min(protocol, math.MaxInt32))}} // capped as in decodeHeader
	answer := f.t.responses.get()
	f.inbox.Lock()
	defer f.inbox.Unlock()
	if err := f.roomLocked(); err != nil {
		return err
	}
	f.history.reached(term)
	f.consumer <- raft.RPC{Command: request, RespChan: answer}
	a.requests = append(a.requests, collectable{facade: f, pipe: p, round: a.replies.Round, row: row, answer: answer})
	return nil
}

// replyToHeartbeat turns raft's answer to a heartbeat into a row.
func (f *Facade) replyToHeartbeat(replies *ostrakapb.HeartbeatReplies, row uint32, response raft.RPCResponse) {
	r, ok := response.Response.(*raft.AppendEntriesResponse)
	switch {
	case response.Error != nil:
		refuseHeartbeat(replies, row, response.Error)
	case f.gate.Stalled(): // since it was taken
		refuseHeartbeat(replies, row, ErrDiskStalled)
	case !ok:
		refuseHeartbeat(replies, row, fmt.Errorf("transport: raft answered with a %T", response.Response))
	default:
		f.history.reached(r.Term)
		replies.Row = append(replies.Row, row)
		replies.Term = append(replies.Term, r.Term)
		replies.Success = append(replies.Success, r.Success)
	}
}

func refuseHeartbeat(replies *ostrakapb.HeartbeatReplies, row uint32, err error) {
	replies.Refused = append(replies.Refused, &ostrakapb.HeartbeatRefusal{Row: row, Error: err.Error()})
}

// gather is the gatherer: the accepting end's goroutine that waits for raft's answers to arrivals, one after the other.
func (p *pipe) gather() {
	patience := time.NewTimer(0)
	defer patience.Stop()
	for {
		select {
		case <-p.done:
			return
		case a := <-p.arriving:
			patience.Reset(p.t.cfg.HeartbeatGather)
			p.answerArrival(a, patience.C)
		}
	}
}

// answerArrival sends the answers that come in time; the others are left to their groups' collectors.
//
// The last request is waited for first: rafts are woken in the order of the requests, and answer about in that order. Who
// waits for the first one is woken by each.
func (p *pipe) answerArrival(a *arrival, patience <-chan time.Time) {
	over := false
	for _, c := range slices.Backward(a.requests) {
		var response raft.RPCResponse
		answered := true
		select {
		case response = <-c.answer:
		default:
			if over {
				answered = false
				break
			}
			select {
			case response = <-c.answer:
			case <-patience:
				answered, over = false, true
			case <-p.done:
				return
			}
		}
		switch {
		case !answered:
			c.facade.collectLate(c)
		case c.request == nil:
			p.t.responses.put(c.answer)
			c.facade.replyToHeartbeat(a.replies, c.row, response)
		default:
			p.t.responses.put(c.answer)
			c.facade.answer(c, response)
		}
	}
	p.reply(a.replies, false)
}

// reply sends answers to heartbeats, and with them whatever waits; nil: only that.
func (p *pipe) reply(replies *ostrakapb.HeartbeatReplies, lazy bool) {
	if replies == nil {
		p.outbox.hurry()
		return
	}
	p.repliesMu.Lock()
	room := len(p.replies) < repliesMax
	if room {
		p.replies = append(p.replies, replies)
	}
	p.repliesMu.Unlock()
	if !room { // as with any answer that finds the queue full
		p.peer.counters.dropped.Add(uint64(len(replies.Row) + len(replies.Refused)))
	}
	p.outbox.join(lazy)
}

// boardReplies puts the answers to heartbeats into a frame.
func (p *pipe) boardReplies(frame *ostrakapb.Frame) (more bool) {
	p.t.boardMemory(frame)
	p.repliesMu.Lock()
	defer p.repliesMu.Unlock()
	rows := 0
	for i, r := range p.replies {
		rows += len(r.Row) + len(r.Refused)
		if i > 0 && rows > roundRowsMax {
			p.replies = slices.Clone(p.replies[i:])
			return true
		}
		frame.HeartbeatReplies = append(frame.HeartbeatReplies, r)
	}
	p.replies = nil
	return false
}
