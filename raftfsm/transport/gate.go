package transport

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
)

// Gate tells what of one replica's log is on the disk. StoreLogs returns before that, and raft counts a copy when an
// answer comes: so answers are held here, on both ends, until the copies they vouch for are durable.
//
//	leader                                             follower
//	AppendEntries: note own sequence ── request ──►    StoreLogs (memory) ─► raft answers
//	                                                   note own sequence at or after that, wait until it is durable
//	wait until the noted sequence is durable ◄─ answer ┘
//	raft counts both copies
//
// With at least two voters every commit needs an answer of a follower for that index or a later one, so no entry is
// committed that is not durable on a majority. Answers without entries are never counted by raft, and never held. Peers
// that don't vote are held like the others: an answer under way can be counted after a promotion. Where there is one
// voter nobody answers, and StoreLogs itself waits; that is the log's business.
//
// A wait that ends in any other way (timeout, a closed Facade, a log that failed) gives an error, which raft takes for a
// peer that could not be reached.
type Gate interface {
	// Appended returns the sequence of the replica's newest change of its log; appends, truncations and clears all
	// count. It is not a log index, and never goes back while the process lives. It is published before StoreLogs
	// returns.
	Appended() uint64
	// Notify calls done once, from any goroutine, when everything up to a sequence is durable (nil) or never will be
	// (why not); done must not block. If it is durable already, Notify returns true and never calls done.
	Notify(sequence uint64, done func(error)) (already bool)
	// Stalled tells that the disk has not answered for so long that the replica should not be taken for alive: no append is
	// sent then, and heartbeats and appends without entries are not answered, or a hung disk would never cause an election
	// (raft#503, #666).
	Stalled() bool
	// Room is why entries of so many bytes should be refused before raft has them: there is no room for them on the disk.
	// nil: there is.
	Room(bytes int) error
}

// ErrDiskStalled: the disk of the replica's node does not answer.
var ErrDiskStalled = errors.New("transport: the disk does not answer")

// ErrHeldFull: too many answers of a replica wait for its disk.
var ErrHeldFull = errors.New("transport: too many answers wait for the disk")

// heldMax bounds the answers of one replica that wait for its disk. A peer has one append under way and a few that it has
// given up on.
const heldMax = 64

// entryBytes is what the entries of an append take, 0 for an install.
func entryBytes(request *ostrakapb.Envelope) (bytes int) {
	for _, e := range request.GetAppend().GetEntries() {
		bytes += len(e.GetData()) + len(e.GetExtensions())
	}
	return bytes
}

// vouches tells whether raft counts this replica's copy by a successful answer to a request.
func vouches(request *ostrakapb.Envelope) bool {
	switch body := request.GetBody().(type) {
	case *ostrakapb.Envelope_Append:
		return len(body.Append.GetEntries()) > 0
	case *ostrakapb.Envelope_Install:
		return true
	}
	return false
}

// isSuccess tells whether raft's answer is one by which a copy may be counted. A refused append only makes the leader look
// for an earlier entry that both have, and need not wait for any disk.
func isSuccess(answer *ostrakapb.Envelope) bool {
	return answer.GetAppendReply().GetSuccess() || answer.GetInstallReply().GetSuccess()
}

// hold calls release when what the log holds now is durable, or never will be; before it returns, or later from any
// goroutine.
func (f *Facade) hold(release func(error)) {
	if knownbad.FollowerGate || knownbad.NonVoterGate && !votes(f.gate) {
		release(nil)
		return
	}
	if f.held.Add(1) > heldMax {
		f.held.Add(-1)
		release(ErrHeldFull)
		return
	}
	settled := func(err error) {
		f.held.Add(-1)
		if err == nil && f.ctx.Err() != nil {
			err = ErrClosed // the raft that answered has been shut down
		}
		release(err)
	}
	if f.gate.Notify(f.gate.Appended(), settled) {
		settled(nil)
	}
}

// votes is for the build that does not hold the answers of replicas without a vote. Gates don't tell; a test's does.
func votes(gate Gate) bool {
	g, tells := gate.(interface{ Votes() bool })
	return !tells || g.Votes()
}

// awaitDurable waits until this replica's log is durable up to a sequence.
func (f *Facade) awaitDurable(until limit, sequence uint64) error {
	if knownbad.LeaderGate {
		return nil
	}
	done := make(chan error, 1)
	if f.gate.Notify(sequence, func(err error) { done <- err }) {
		return nil
	}
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("transport: the answer is not vouched for here: %w", err)
		}
		return nil
	case <-until.deadline:
		return ErrTimeout
	case <-until.ctx.Done():
		return context.Cause(until.ctx)
	}
}

// refuseByDisk says why a request must not reach raft, by the state of the disk; nil: it may. Beyond the log's patience only
// what will be held is taken: the answer to an append without entries would leave at once, and raft takes any answer for a
// sign of life, not only those to heartbeats.
func (f *Facade) refuseByDisk(request *ostrakapb.Envelope) error {
	switch {
	case vouches(request):
		return f.gate.Room(entryBytes(request))
	case request.GetAppend() != nil && f.gate.Stalled():
		return ErrDiskStalled
	}
	return nil
}

// answer sends raft's answer to a request, at once or when the copy that it vouches for is durable.
func (f *Facade) answer(c collectable, response raft.RPCResponse) {
	if c.request == nil {
		replies := &ostrakapb.HeartbeatReplies{Round: c.round}
		f.replyToHeartbeat(replies, c.row, response)
		c.pipe.reply(replies, true)
		return
	}
	answer := f.reply(c.request, response)
	if isSuccess(answer) {
		f.agreed.note(c.request)
	}
	switch {
	case vouches(c.request) && isSuccess(answer):
		f.hold(func(err error) {
			if err != nil {
				answer = refusal(c.request, err)
			}
			c.pipe.answer(answer, false)
		})
		return
	case c.request.GetAppend() != nil && f.gate.Stalled(): // since it was taken
		answer = refusal(c.request, ErrDiskStalled)
	}
	c.pipe.answer(answer, c.request.Unhurried)
}
