package transport

import (
	"fmt"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// Exchange is the accepting end of the Raft service's stream; the server's Raft service embeds it. It returns when the
// stream has ended. Refusals: ErrWrongCluster, ErrStranger, ErrWrongNode, ErrFormat, ErrMalformed, ErrOldIncarnation,
// ErrTimeout.
func (t *Transport) Exchange(stream grpc.BidiStreamingServer[ostrakapb.Frame, ostrakapb.Frame]) error {
	if !t.enter() {
		return ErrClosed
	}
	defer t.running.Done()

	first, err := receive(t, stream.Recv)
	if err != nil {
		return err
	}
	// Sent even to a stranger, so that it learns why it is refused.
	if err := stream.Send(&ostrakapb.Frame{Handshake: t.handshake("")}); err != nil {
		return err
	}
	hs := first.GetHandshake()
	if err := t.judge(hs, ""); err != nil {
		t.cfg.Logger.Warn("stream refused", "error", err)
		return err
	}
	p, err := t.peer(shard.NodeID(hs.NodeId))
	if err != nil {
		return err
	}
	accepted := newPipe(t, p, stream, newLastHeard(), false)
	accepted.handle, accepted.outbox.board = accepted.takeFrame, accepted.boardReplies
	if err := p.accept(accepted, hs.Incarnation); err != nil {
		return err
	}
	defer p.leave(accepted)
	t.cfg.Learned(hs)
	p.link.heardFrom()
	err = accepted.run()
	t.broke(p)
	return err
}

// accept makes a stream the peer's newest. An earlier one ends, unless it belongs to a later start of the peer: a
// connection that was held up must not push out the living one.
func (p *peer) accept(newest *pipe, incarnation uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.accepted != nil {
		if incarnation < p.incarnation {
			return fmt.Errorf("%w: %q, %d before %d", ErrOldIncarnation, p.node, incarnation, p.incarnation)
		}
		p.accepted.fail(ErrReplaced)
	}
	p.accepted, p.incarnation = newest, incarnation
	return nil
}

func (p *peer) leave(ended *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.accepted == ended {
		p.accepted = nil
	}
}

func (p *peer) acceptedNow() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted != nil
}
