package transport

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// A process that ends, however it does, leaves its sockets to the kernel: its streams break at once, and whoever connects to
// its port is refused. Silence proves nothing and must be waited out; a refusal is as good as a word.

const (
	// goneTimeout bounds one look whether a node's process has ended.
	goneTimeout = time.Second
	// goneTries and gonePause, which doubles: the kernel closes a dead process's sockets one by one, and the one it listened on may
	// still be there, for as long as it takes on a busy machine to take the memory back.
	goneTries = 6
	gonePause = 20 * time.Millisecond
)

// OnGone sets who is told of nodes that lead no more: their process has ended, since the stream to or from them broke, and
// connecting to them is refused where the address book has them; or they said that their disk does not answer. It is called on a
// goroutine of its own, which Close waits for, and ends with ctx.
func (t *Transport) OnGone(told func(ctx context.Context, node shard.NodeID)) { t.gone.Store(&told) }

// broke is called when a stream to or from a peer, which was up, has ended.
func (t *Transport) broke(p *peer) {
	told := t.gone.Load()
	if told == nil || t.ctx.Err() != nil || !p.asked.CompareAndSwap(false, true) {
		return
	}
	t.start(func() {
		err := t.refuses(p.node)
		p.asked.Store(false)
		if err != nil {
			t.cfg.Logger.Debug("a stream broke, but the node's process may still run", "peer", p.node, "error", err)
			return
		}
		t.cfg.Logger.Info("a node's process has ended", "peer", p.node)
		(*told)(t.ctx, p.node)
	})
}

// errListens: somebody takes connections where a node had its port.
var errListens = errors.New("it takes connections")

// refuses returns nil if connecting to a node is refused, and else what came of it.
func (t *Transport) refuses(node shard.NodeID) error {
	address, err := t.resolve(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.ctx, goneTimeout)
	defer cancel()
	for try := 0; ; try++ {
		conn, err := t.cfg.Dial(ctx, address)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return nil
		case errors.Is(err, syscall.ECONNRESET): // the port was closed just now
		case err != nil:
			return err
		default:
			conn.Close()
			err = errListens
		}
		if try == goneTries-1 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(gonePause << try):
		}
	}
}

// A leader whose disk does not answer falls silent, so that its followers elect another. That alone takes them an election timeout, and
// longer where logs differ; so it tells them.

// stallNotice is what a node that is connected to is to be told. Its dialed's mu guards it.
type stallNotice struct {
	due  bool
	told time.Time
}

// stallTellEvery is how often a node is told while the disk does not answer: it may not have followed when it was told first.
const stallTellEvery = time.Second

// tellStalled tells the node of a follower that the disk here does not answer. One frame does for all groups.
func (f *Facade) tellStalled(address raft.ServerAddress) {
	to, err := f.target(address)
	if err != nil {
		return
	}
	d := to.peer.link.up()
	if d == nil {
		return
	}
	now := time.Now()
	d.mu.Lock()
	tell := now.Sub(d.stall.told) >= stallTellEvery
	if tell {
		d.stall = stallNotice{due: true, told: now}
	}
	d.mu.Unlock()
	if tell {
		d.pipe.outbox.join(true)
	}
}

// stalled is called when a peer says that its disk does not answer.
func (t *Transport) stalled(p *peer) {
	told := t.gone.Load()
	if told == nil || t.ctx.Err() != nil || !p.stalling.CompareAndSwap(false, true) {
		return
	}
	t.cfg.Logger.Info("a node's disk does not answer", "peer", p.node)
	t.start(func() {
		(*told)(t.ctx, p.node)
		p.stalling.Store(false)
	})
}

// Stand tells this replica's raft to stand for election now, as its leader does that hands over. The other voters don't refuse
// because they have a leader; they do because of a log that lacks entries, as always. A false alarm costs an election.
func (f *Facade) Stand() error {
	own := f.senders.of(f.t.cfg.Self, f.replica)
	request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: own.id, Addr: own.address}}
	f.inbox.Lock()
	defer f.inbox.Unlock()
	if err := f.roomLocked(); err != nil {
		return err
	}
	f.consumer <- raft.RPC{Command: request, RespChan: make(chan raft.RPCResponse, 1)}
	return nil
}
