package transport

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// ErrSilent: nothing came from the peer for too long, not even an answer to an empty frame.
var ErrSilent = errors.New("transport: the node has fallen silent")

// quietPulsesMax times Config.Pulse without a byte end a stream at the dialing end, at the next beat. A partition that swallows packets
// is noticed by this, long before TCP gives up. Bytes count, not frames: while a huge entry crawls to the peer, all that
// comes back is HTTP/2's flow control.
const quietPulsesMax = 3

// quietMax is how long a silence this end bears. The accepting end sees frames and no bytes, so it waits as long as
// the peer would for the answer to a single huge append, and the beats on top.
func (p *pipe) quietMax() time.Duration {
	if p.dialing {
		return quietPulsesMax * p.t.cfg.Pulse
	}
	return quietPulsesMax*p.t.cfg.Pulse + p.t.cfg.AppendTimeout
}

// frames is one end of an Exchange stream; gRPC's client and server types both are.
type frames interface {
	Send(*ostrakapb.Frame) error
	Recv() (*ostrakapb.Frame, error)
}

// pipe runs one Exchange stream after the handshake, on either end: a sender empties the outbox, a receiver hands
// what each frame holds to its end, and run watches over both.
//
//	dialing end    sends requests, and an empty frame at each beat that heard nothing
//	accepting end  sends answers, and an empty frame for each empty frame
type pipe struct {
	t       *Transport
	peer    *peer
	stream  frames
	dialing bool
	// handle takes a frame's contents on the receiver's goroutine; it must not block, for all groups wait behind it. An error
	// ends the pipe.
	handle func(*ostrakapb.Frame) error
	outbox *outbox

	// arriving and replies are the accepting end's: what waits for the gatherer, and answers to heartbeats that wait for a
	// frame.
	arriving  chan *arrival
	repliesMu sync.Mutex
	replies   []*ostrakapb.HeartbeatReplies

	heard *lastHeard

	done chan struct{} // closed by fail
	once sync.Once
	err  error // why it ended; constant once done is closed
}

// newPipe's heard is touched at each frame, and by whoever else hears of the peer.
func newPipe(t *Transport, p *peer, stream frames, heard *lastHeard, dialing bool) *pipe {
	return &pipe{t: t, peer: p, stream: stream, dialing: dialing, heard: heard, outbox: newOutbox(&t.cfg),
		arriving: make(chan *arrival, arrivalsMax), done: make(chan struct{})}
}

// lastHeard is when something last came from a peer. It is a time and not a mark that each beat takes back: with
// marks, a byte right after a beat bought the silence behind it one beat more than one right before it.
type lastHeard struct {
	origin time.Time    // times are counted from here, by the monotonic clock
	since  atomic.Int64 // nanoseconds after origin
}

func newLastHeard() *lastHeard { return &lastHeard{origin: time.Now()} }

func (h *lastHeard) touch() { h.since.Store(int64(time.Since(h.origin))) }

func (h *lastHeard) silence() time.Duration {
	return time.Since(h.origin) - time.Duration(h.since.Load())
}

// hearingConn notes that bytes have come.
type hearingConn struct {
	net.Conn
	heard *lastHeard
}

func (c hearingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.touch()
	}
	return n, err
}

// fail ends the pipe with the first reason given.
func (p *pipe) fail(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.done)
	})
}

// run returns when the stream has ended, with the reason. The caller must then end the stream itself, for sender and
// receiver may still stand in a gRPC call; Transport.Close waits for them.
func (p *pipe) run() error {
	started := p.t.start(func() {
		if err := p.outbox.run(p.done, p.send); err != nil {
			p.fail(err)
		}
	}) && p.t.start(p.receive) && (p.dialing || p.t.start(p.gather))
	if !started {
		p.fail(ErrClosed)
	}
	p.watch()
	return p.err
}

// watch waits for the end, and brings it about when the peer is silent or the Transport closes.
func (p *pipe) watch() {
	pulse := time.NewTicker(p.t.cfg.Pulse)
	defer pulse.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-p.t.ctx.Done():
			p.fail(ErrClosed)
			return
		case <-pulse.C:
		}
		silence := p.heard.silence()
		if silence >= p.quietMax() {
			p.fail(fmt.Errorf("%w: %q", ErrSilent, p.peer.node))
			return
		}
		if p.dialing && silence >= p.t.cfg.Pulse {
			p.outbox.ping()
		}
	}
}

func (p *pipe) send(frame *ostrakapb.Frame, bytes int) error {
	sent := &p.peer.counters.sent
	sent.frames.Add(1)
	sent.bytes.Add(uint64(bytes + heartbeatBytes(frame)))
	sent.count(frame)
	return p.stream.Send(frame)
}

func (p *pipe) receive() {
	received := &p.peer.counters.received
	for {
		frame, err := p.stream.Recv()
		if err != nil {
			p.fail(err)
			return
		}
		p.heard.touch()
		received.frames.Add(1)
		received.count(frame)
		received.bytes.Add(uint64(proto.Size(frame)))
		if len(frame.Envelopes) == 0 && frame.Heartbeats == nil && !p.dialing {
			p.outbox.ping()
		}
		if err := p.handle(frame); err != nil {
			p.fail(err)
			return
		}
	}
}

// answer sends the answer to a request that came by this pipe. One that finds the queue full is dropped: the requester's
// deadline deals with it, as with one that is lost on the way.
func (p *pipe) answer(e *ostrakapb.Envelope, lazy bool) {
	if err := p.outbox.push(e, lazy); err != nil {
		p.peer.counters.dropped.Add(1)
	}
}

// answerTo begins the answer to a request.
func answerTo(request *ostrakapb.Envelope) *ostrakapb.Envelope {
	return &ostrakapb.Envelope{
		Call: request.GetCall(), Group: request.GetGroup(),
		FromReplica: request.GetToReplica(), ToReplica: request.GetFromReplica(),
	}
}

// refusal is an answer that reports a failure.
func refusal(request *ostrakapb.Envelope, err error) *ostrakapb.Envelope {
	answer := answerTo(request)
	answer.Error = err.Error()
	return answer
}

// isHeartbeat recognises the append of raft's heartbeat goroutine: leader and term, and nothing else.
func isHeartbeat(e *ostrakapb.Envelope) bool {
	a := e.GetAppend()
	return a != nil && a.PrevLogEntry == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}
