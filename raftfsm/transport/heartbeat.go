package transport

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// Heartbeats are most of what an idle cluster sends: each leader beats each of its followers six times a second. Those to
// one node gather for Config.HeartbeatGather into a round, which is a few columns of numbers in a frame, and are answered
// in one frame once all are:
//
//	raft's heartbeat goroutines                                          raft's main loops
//	group 1 ─┐                                                       ┌─► group 1 ─┐
//	group 4 ─┼─► round 17: groups 1 4 9, terms … ══ one frame ═══════┼─► group 4 ─┼─► gatherer
//	group 9 ─┘                                                       └─► group 9 ─┘      │
//	    ▲─────────────────── one frame ══════════════════════════════════════════════════┘
//
// A group whose raft is slow holds nobody up: what is answered leaves after another HeartbeatGather at the latest.
//
// They also tell how far the leader has committed. raft does that by appends without entries alone, of which an idle group
// would have to send many for its followers to learn soon of its last write; see agreement.

// roundRowsMax bounds the heartbeats of one round, and the answers of one frame: ErrQueueFull. A node holds far fewer groups.
const roundRowsMax = 4096

// rounds are the heartbeats that one node is sent. Its dialed's mu guards it.
type rounds struct {
	last      uint64
	gathering *round            // waits for a frame; nil: none does
	sent      map[uint64]*round // those that somebody waits for, the gathering one among them
}

// round is the heartbeats of one frame.
type round struct {
	rows    *ostrakapb.Heartbeats // not changed once it left
	waiting []beating             // by row
	left    int                   // of waiting
	expiry  *time.Timer           // Config.VoteTimeout after the first one
}

// beating is who waits for the answer to a heartbeat; the zero value: nobody any more.
type beating struct {
	facade *Facade
	answer chan<- beatAnswer // has room
}

type beatAnswer struct {
	term    uint64
	success bool
	err     error
}

// beat sends a heartbeat and waits for the answer: no longer than Config.VoteTimeout, and not at all once the Facade is
// closed. Of the answer, raft's heartbeat goroutine looks at Success only; LastLog is not carried.
func (f *Facade) beat(address raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	to, err := f.target(address)
	if err != nil {
		return err
	}
	d := to.peer.link.up()
	if d == nil {
		patience := time.NewTimer(f.t.cfg.VoteTimeout)
		defer patience.Stop()
		if d, err = to.peer.link.acquire(limit{f.ctx, patience.C}, false); err != nil {
			return err
		}
	}
	f.leads(args.Term)
	answer := f.t.beats.get()
	if err := d.addHeartbeat(f, to.replica, args, answer); err != nil {
		f.t.beats.put(answer)
		return err
	}
	d.pipe.outbox.join(true)
	a := <-answer // always comes: see addHeartbeat
	f.t.beats.put(answer)
	if a.err != nil {
		return a.err
	}
	*resp = raft.AppendEntriesResponse{Term: a.term, Success: a.success}
	return nil
}

// addHeartbeat puts a heartbeat into the gathering round. Exactly one answer comes: of the peer, when the round expires,
// from Close of the Facade, or when the pipe ends. A select over all of these for each heartbeat costs more than the rest.
func (d *dialed) addHeartbeat(f *Facade, to shard.ReplicaID, args *raft.AppendEntriesRequest, answer chan<- beatAnswer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.ended != nil:
		return d.ended
	case f.ctx.Err() != nil: // Close looks for its heartbeats afterwards
		return ErrClosed
	}
	g := d.rounds.gathering
	if g == nil {
		d.rounds.last++
		g = &round{rows: &ostrakapb.Heartbeats{Round: d.rounds.last}}
		g.expiry = time.AfterFunc(f.t.cfg.VoteTimeout, func() {
			d.endHeartbeats(ErrTimeout, func(r *round, _ *Facade) bool { return r == g })
		})
		d.rounds.gathering, d.rounds.sent[d.rounds.last] = g, g
	}
	if len(g.waiting) == roundRowsMax {
		return ErrQueueFull
	}
	g.rows.Group = append(g.rows.Group, uint32(f.group))
	g.rows.FromReplica = append(g.rows.FromReplica, uint64(f.replica))
	g.rows.ToReplica = append(g.rows.ToReplica, uint64(to))
	g.rows.Term = append(g.rows.Term, args.Term)
	g.rows.Protocol = append(g.rows.Protocol, uint32(args.ProtocolVersion))
	g.rows.Commit = append(g.rows.Commit, f.commitIndex())
	g.waiting = append(g.waiting, beating{f, answer})
	g.left++
	return nil
}

// answer ends the waiting for a row, if somebody still does.
func (r *rounds) answer(g *round, row int, a beatAnswer) {
	w := &g.waiting[row]
	if w.facade == nil {
		return
	}
	w.answer <- a
	*w = beating{}
	g.left--
	if g.left > 0 {
		return
	}
	g.expiry.Stop()
	delete(r.sent, g.rows.Round)
	if r.gathering == g { // nobody wants it any more
		r.gathering = nil
	}
}

// endHeartbeats ends the waiting for those that match.
func (d *dialed) endHeartbeats(err error, match func(*round, *Facade) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.rounds.sent {
		for row, w := range g.waiting {
			if w.facade != nil && match(g, w.facade) {
				d.rounds.answer(g, row, beatAnswer{err: err})
			}
		}
	}
}

// end refuses further heartbeats, and ends the waiting for all.
func (d *dialed) end(err error) {
	d.mu.Lock()
	d.ended = err
	d.mu.Unlock()
	d.endHeartbeats(err, func(*round, *Facade) bool { return true })
}

// settleHeartbeats hands the answers to some heartbeats of a round to who waits for them. mu is held.
func (d *dialed) settleHeartbeats(replies *ostrakapb.HeartbeatReplies) error {
	n := len(replies.Row)
	if len(replies.Term) != n || len(replies.Success) != n {
		return fmt.Errorf("%w: answers to heartbeats in columns of %d, %d and %d rows", ErrMalformed, n, len(replies.Term), len(replies.Success))
	}
	g := d.rounds.sent[replies.Round]
	if g == nil {
		return nil // nobody waits for it any more
	}
	for i, row := range replies.Row {
		if int(row) < len(g.waiting) {
			d.rounds.answer(g, int(row), beatAnswer{term: replies.Term[i], success: replies.Success[i]})
		}
	}
	for _, refused := range replies.Refused {
		if int(refused.GetRow()) < len(g.waiting) {
			d.rounds.answer(g, int(refused.GetRow()), beatAnswer{err: &RemoteError{Node: d.pipe.peer.node, Text: refused.GetError()}})
		}
	}
	return nil
}

// board puts the gathering round into a frame.
func (d *dialed) board(frame *ostrakapb.Frame) (more bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g := d.rounds.gathering; g != nil {
		frame.Heartbeats = g.rows
		d.rounds.gathering = nil
	}
	frame.DiskStalled, d.stall.due = d.stall.due, false
	return false
}
