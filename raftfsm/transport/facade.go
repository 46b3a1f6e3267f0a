package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/shard"
)

var (
	// ErrNoReplica: the replica that a request is for is not open here.
	ErrNoReplica = errors.New("transport: no such replica here")
	// ErrInboxFull: the replica's raft is behind by inboxMax requests.
	ErrInboxFull = errors.New("transport: the replica's inbox is full")
	// ErrNotSender: the request's header names another replica than the one it came from.
	ErrNotSender = errors.New("transport: the header names another sender")
	// ErrNotLeading: a TimeoutNow of a replica that has led in no term.
	ErrNotLeading = errors.New("transport: no term to hand over")
	// ErrRefused: the peer refused a pre-vote request.
	ErrRefused = errors.New("transport: refused by the node")
)

// RemoteError is what a peer answered in place of a result.
type RemoteError struct {
	Node shard.NodeID
	Text string
}

func (e *RemoteError) Error() string { return fmt.Sprintf("transport: node %s: %s", e.Node, e.Text) }

// inboxMax bounds the requests that wait for one replica's raft. A peer replica has at most two or three under way, and
// those that it has given up on are few, at one per deadline. A request over it is answered with ErrInboxFull.
const inboxMax = 64

// Facade is one group's raft.Transport (and raft.WithPreVote, raft.WithClose) over the shared streams. Its life is that
// of one raft.Raft: from Transport.Open to Close.
type Facade struct {
	t       *Transport
	group   shard.ID
	replica shard.ReplicaID
	history *history
	gate    Gate
	// held counts the answers that wait for the disk; at most heldMax.
	held atomic.Int32
	// ctx ends with Close; the context of each call hangs below it.
	ctx    context.Context
	cancel context.CancelCauseFunc

	consumer chan raft.RPC // never closed: raft takes a closed channel's zero value for a request
	// collecting holds, in the order in which raft takes them, the requests whose answers the collector waits for.
	collecting chan collectable
	collected  chan struct{} // closed when the collector has ended

	inbox  sync.Mutex // held while a request is put into consumer and collecting, so that both have the same order
	closed bool       // guarded by inbox

	outbound  sync.Mutex // held from taking a sequence to queueing the message, so that both have the same order
	sequences map[shard.ReplicaID]position
	ledTerm   atomic.Uint64 // the last term in which this replica sent appends; written under outbound

	progress sync.Mutex
	acked    map[raft.ServerAddress]Progress // guarded by progress

	agreed agreement
	// committed is raft's commit index; nil: not told.
	committed atomic.Pointer[func() uint64]

	targets   targets
	senders   senders
	unhurried atomic.Int32 // appends that wait to be joined with others
	hurriedAt atomic.Int64 // when Hurry was last called, in nanoseconds since the Transport began
}

// Progress is how far a peer's log is known to agree with this leader's: its last answer to an append with content.
type Progress struct {
	Term, Index uint64
	At          time.Time
}

// collectable is a request that raft has or will have, and the pipe that waits for the answer.
type collectable struct {
	facade  *Facade
	pipe    *pipe
	request *ostrakapb.Envelope // nil: the heartbeat in that row of the round
	round   uint64
	row     uint32
	answer  chan raft.RPCResponse
}

var (
	_ raft.Transport   = (*Facade)(nil)
	_ raft.WithPreVote = (*Facade)(nil)
	_ raft.WithClose   = (*Facade)(nil)
)

func newFacade(t *Transport, group shard.ID, replica shard.ReplicaID, gate Gate, h *history) *Facade {
	f := &Facade{
		t: t, group: group, replica: replica, history: h, gate: gate,
		consumer: make(chan raft.RPC, inboxMax),
		// One more than consumer holds: raft works on one while the collector still has it.
		collecting: make(chan collectable, inboxMax+1),
		collected:  make(chan struct{}),
		acked:      make(map[raft.ServerAddress]Progress), sequences: make(map[shard.ReplicaID]position),
	}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	return f
}

// Close ends the Facade and no stream: its waiting calls return ErrClosed, and requests that raft has not answered are
// answered with an error. Close it before waiting for raft's shutdown, which waits for those calls. It may be repeated.
func (f *Facade) Close() error {
	f.inbox.Lock()
	if !f.closed {
		f.closed = true
		close(f.collecting)
		f.cancel(ErrClosed)
	}
	f.inbox.Unlock()
	<-f.collected
	f.eachDialed(func(d *dialed) {
		d.endHeartbeats(ErrClosed, func(_ *round, of *Facade) bool { return of == f })
	})

	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if f.t.facades[f.group] == f {
		delete(f.t.facades, f.group)
	}
	return nil
}

// CommitFrom says where heartbeats take the commit index from that they tell of: raft's CommitIndex.
func (f *Facade) CommitFrom(index func() uint64) { f.committed.Store(&index) }

func (f *Facade) commitIndex() uint64 {
	if index := f.committed.Load(); index != nil {
		return (*index)()
	}
	return 0
}

// Consumer is where raft's main loop takes requests.
func (f *Facade) Consumer() <-chan raft.RPC { return f.consumer }

// LocalAddr is Address of this replica.
func (f *Facade) LocalAddr() raft.ServerAddress { return Address(f.t.cfg.Self, f.replica) }

// EncodePeer returns the address bytes.
func (f *Facade) EncodePeer(_ raft.ServerID, address raft.ServerAddress) []byte {
	return []byte(address)
}

// DecodePeer is the inverse of EncodePeer.
func (f *Facade) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler is ignored. The handler would change raft's term and state on the receiver's goroutine, beside
// the main loop, by which committed entries can be lost (raft#695).
func (f *Facade) SetHeartbeatHandler(func(raft.RPC)) {}

// AppendEntriesPipeline is not supported: after one refused append raft's pipeline can starve the follower (raft#612).
func (f *Facade) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries sends an append, at most Config.FrameBytesMax of its entries, and waits for the answer: by
// Config.AppendTimeout, or Config.VoteTimeout for a heartbeat. A success is returned only once the entries are durable on
// both ends (see Gate). The entries that were left out are cut from args, which is where raft looks for what was sent.
func (f *Facade) AppendEntries(_ raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if f.gate.Stalled() {
		f.tellStalled(target)
		return ErrDiskStalled // any append tells the follower that this leader lives
	}
	if args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0 {
		return f.beat(target, args, resp)
	}
	args.Entries = cutBatch(args.Entries, f.t.cfg.FrameBytesMax)
	err := f.call(target, args, resp, callOptions{timeout: f.t.cfg.AppendTimeout, ordered: true, patient: true, entries: len(args.Entries)})
	if knownbad.Quorum && err != nil && len(args.Entries) > 0 {
		*resp, err = raft.AppendEntriesResponse{Term: args.Term, Success: true}, nil
	}
	if err == nil && resp.Success {
		f.progress.Lock()
		f.acked[target] = Progress{Term: args.Term, Index: args.PrevLogEntry + uint64(len(args.Entries)), At: time.Now()}
		f.progress.Unlock()
	}
	return err
}

// Progress returns what a peer last acknowledged to this replica; raft keeps that to itself. The zero Progress:
// nothing yet.
func (f *Facade) Progress(target raft.ServerAddress) Progress {
	f.progress.Lock()
	defer f.progress.Unlock()
	return f.acked[target]
}

// RequestVote asks for a vote.
func (f *Facade) RequestVote(_ raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	f.history.reached(args.Term)
	return f.call(target, args, resp, callOptions{timeout: f.t.cfg.VoteTimeout})
}

// RequestPreVote asks whether a vote would be given.
//
// raft takes an error that contains "unexpected command" for a peer too old to know pre-votes, and counts it as granted.
// So a peer's own words must not reach it.
func (f *Facade) RequestPreVote(_ raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	err := f.call(target, args, resp, callOptions{timeout: f.t.cfg.VoteTimeout})
	var remote *RemoteError
	if errors.As(err, &remote) {
		return ErrRefused
	}
	return err
}

// TimeoutNow tells the target to stand for election at once. It carries the term in which this replica last led.
func (f *Facade) TimeoutNow(_ raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return f.call(target, args, resp, callOptions{timeout: f.t.cfg.VoteTimeout, ordered: true})
}

// InstallSnapshot sends a snapshot of args.Size bytes and waits until it is installed; see sendSnapshot.
func (f *Facade) InstallSnapshot(_ raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	node, replica, err := ParseAddress(target)
	if err != nil {
		return err
	}
	if f.gate.Stalled() {
		return ErrDiskStalled
	}
	own := f.gate.Appended()
	answer, err := f.sendSnapshot(node, f.envelope(replica, args), args.Size, data)
	if err != nil {
		return err
	}
	if isSuccess(answer) {
		patience := time.NewTimer(f.t.cfg.AppendTimeout)
		defer patience.Stop()
		if err := f.awaitDurable(limit{f.ctx, patience.C}, own); err != nil {
			return err
		}
	}
	return readReply(answer, resp)
}

type callOptions struct {
	timeout time.Duration
	ordered bool // carries a sequence, and is refused if it arrives after a later one
	patient bool // waits for a link that is down
	// entries of an append: by its success raft counts this replica's own copy too.
	entries int
}

// call sends one request and fills in the response. It returns by the timeout, and at once when the Facade is closed.
func (f *Facade) call(address raft.ServerAddress, args, resp any, opts callOptions) error {
	own := f.gate.Appended() // before anything is sent
	to, err := f.target(address)
	if err != nil {
		return err
	}
	w := f.t.calls.get(opts.timeout)
	defer f.t.calls.put(w)
	until := w.limit(f.ctx)
	d, err := to.peer.link.acquire(until, opts.patient)
	if err != nil {
		return err
	}
	request := f.envelope(to.replica, args)
	if now := time.Since(f.t.began); request.GetAppend() != nil && to.rests(now, opts.entries) && !f.hurried(now) {
		request.Unhurried = true
		f.unhurried.Add(1)
		defer f.unhurried.Add(-1)
	}
	if err := f.submit(d, request, w, opts); err != nil {
		return err
	}
	if request.Unhurried && f.hurried(time.Since(f.t.began)) { // a Hurry at the same time may not have found it
		d.pipe.outbox.hurry()
	}
	answer, err := d.wait(until, request, w)
	if err != nil {
		return err
	}
	if opts.entries > 0 && isSuccess(answer) {
		if err := f.awaitDurable(until, own); err != nil {
			return err
		}
	}
	return readReply(answer, resp)
}

func (f *Facade) envelope(to shard.ReplicaID, args any) *ostrakapb.Envelope {
	e := &ostrakapb.Envelope{Group: uint32(f.group), FromReplica: uint64(f.replica), ToReplica: uint64(to)}
	setRequest(e, args)
	return e
}

// submit queues a request, with its sequence if it is ordered.
func (f *Facade) submit(d *dialed, request *ostrakapb.Envelope, w *waiter[*ostrakapb.Envelope], opts callOptions) error {
	f.outbound.Lock()
	defer f.outbound.Unlock()
	if err := f.stampLocked(request, opts.ordered); err != nil {
		return err
	}
	return d.submit(request, w)
}

// leads notes that this replica leads in a term.
func (f *Facade) leads(term uint64) {
	if f.ledTerm.Load() == term { // nearly always
		return
	}
	f.outbound.Lock()
	f.ledTerm.Store(max(f.ledTerm.Load(), term))
	f.outbound.Unlock()
	f.history.reached(term)
}

// stampLocked adds what raft's own messages lack: the leader's term to a TimeoutNow, and a sequence.
func (f *Facade) stampLocked(request *ostrakapb.Envelope, ordered bool) error {
	switch request.Body.(type) {
	case *ostrakapb.Envelope_Append, *ostrakapb.Envelope_Install:
		f.ledTerm.Store(max(f.ledTerm.Load(), request.Term))
		f.history.reached(request.Term)
	case *ostrakapb.Envelope_TimeoutNow:
		if request.Term = f.ledTerm.Load(); request.Term == 0 {
			return ErrNotLeading
		}
	}
	if !ordered {
		return nil
	}
	to := shard.ReplicaID(request.ToReplica)
	at := f.sequences[to]
	if at.term != request.Term {
		at = position{term: request.Term}
	}
	at.sequence++
	f.sequences[to] = at
	request.Sequence = at.sequence
	return nil
}

// cutBatch returns the first entries, up to bytesMax of data but at least one.
func cutBatch(entries []*raft.Log, bytesMax int) []*raft.Log {
	bytes := 0
	for i, l := range entries {
		bytes += len(l.Data) + len(l.Extensions)
		if i > 0 && bytes > bytesMax {
			return entries[:i]
		}
	}
	return entries
}
