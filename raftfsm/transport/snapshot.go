package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

const (
	// snapshotChunkBytes is the data in one message of a snapshot stream.
	snapshotChunkBytes = 256 << 10
	// installBytesPerTimeout: the receiver of a whole snapshot may take one more SnapshotProgressTimeout for each of these.
	installBytesPerTimeout = 256 << 20
)

// ErrStalled: a snapshot stood still for Config.SnapshotProgressTimeout.
var ErrStalled = errors.New("transport: the snapshot makes no progress")

// installTimeout bounds the time from a snapshot's last byte to the answer: it is written out and restored meanwhile.
func (t *Transport) installTimeout(size int64) time.Duration {
	return t.cfg.SnapshotProgressTimeout * time.Duration(1+size/installBytesPerTimeout)
}

// sendSnapshot streams size bytes of data and returns the answer. It has a stream of its own on the connection that is
// not the appends', and may take as long as it likes while each chunk finds its way within SnapshotProgressTimeout. The peer
// takes the stream within DialTimeout, by sending its header.
func (f *Facade) sendSnapshot(node shard.NodeID, request *ostrakapb.Envelope, size int64, data io.Reader) (_ *ostrakapb.Envelope, failed error) {
	conn, err := f.t.Conn(node)
	if err != nil {
		return nil, err
	}
	p, err := f.t.peer(node)
	if err != nil {
		return nil, err
	}
	f.outbound.Lock()
	err = f.stampLocked(request, true)
	f.outbound.Unlock()
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithCancelCause(f.ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(f.t.cfg.DialTimeout, func() { cancel(ErrStalled) })
	defer watchdog.Stop()
	defer func() {
		if errors.Is(failed, ErrStalled) {
			p.dropSilent(conn, f.t.cfg.DialTimeout)
		}
	}()
	stream, err := ostrakapb.NewRaftClient(conn).InstallSnapshot(ctx)
	if err != nil {
		return nil, causeOr(ctx, err)
	}
	first := &ostrakapb.SnapshotChunk{Handshake: f.t.handshake(node), Request: request}
	err = stream.Send(first)
	p.counters.sent.envelopes.Add(1)
	if err == nil {
		_, err = stream.Header()
	}
	watchdog.Reset(f.t.cfg.SnapshotProgressTimeout)
	for left := size; left > 0 && err == nil; {
		chunk := make([]byte, min(left, snapshotChunkBytes)) // not reused: gRPC may still hold it
		if _, err := io.ReadFull(data, chunk); err != nil {
			return nil, fmt.Errorf("transport: snapshot ends %d bytes early: %w", left, err)
		}
		watchdog.Reset(f.t.cfg.SnapshotProgressTimeout)
		err = stream.Send(&ostrakapb.SnapshotChunk{Data: chunk})
		p.counters.sent.bytes.Add(uint64(len(chunk)))
		left -= int64(len(chunk))
	}
	if err != nil && !errors.Is(err, io.EOF) { // EOF: the peer has ended the stream, and its answer says why
		return nil, causeOr(ctx, err)
	}
	watchdog.Reset(f.t.installTimeout(size))
	answer, err := stream.CloseAndRecv()
	switch {
	case err != nil:
		return nil, causeOr(ctx, err)
	case answer.Error != "":
		return nil, &RemoteError{Node: node, Text: answer.Error}
	}
	p.counters.received.envelopes.Add(1)
	return answer, nil
}

// InstallSnapshot is the accepting end of a snapshot stream; the server's Raft service embeds it. raft's main loop reads
// the data from it.
func (t *Transport) InstallSnapshot(stream grpc.ClientStreamingServer[ostrakapb.SnapshotChunk, ostrakapb.Envelope]) error {
	if !t.enter() {
		return ErrClosed
	}
	defer t.running.Done()

	first, err := receive(t, stream.Recv)
	if err != nil {
		return err
	}
	hs, request := first.GetHandshake(), first.GetRequest()
	if err := t.judge(hs, ""); err != nil {
		t.cfg.Logger.Warn("snapshot refused", "error", err)
		return err
	}
	p, err := t.peer(shard.NodeID(hs.NodeId))
	if err != nil {
		return err
	}
	p.counters.received.envelopes.Add(1)
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	answer, err := t.install(p, request, stream.Recv)
	if err != nil {
		answer = refusal(request, err)
	}
	p.counters.sent.envelopes.Add(1)
	return stream.SendAndClose(answer)
}

// install hands a snapshot to its group's raft and waits for the answer, or until it stands still.
func (t *Transport) install(p *peer, request *ostrakapb.Envelope, recv func() (*ostrakapb.SnapshotChunk, error)) (*ostrakapb.Envelope, error) {
	f, err := t.facade(shard.ID(request.GetGroup()), shard.ReplicaID(request.GetToReplica()))
	if err != nil {
		return nil, err
	}
	command, err := f.admit(p.node, request)
	if err == nil {
		err = f.refuseByDisk(request)
	}
	if err != nil {
		return nil, err
	}
	args, ok := command.(*raft.InstallSnapshotRequest)
	if !ok {
		return nil, fmt.Errorf("%w: %T on a snapshot stream", ErrMalformed, command)
	}
	from, at := shard.ReplicaID(request.GetFromReplica()), positionOf(request)
	reader := &snapshotReader{
		recv: recv, left: args.Size, received: &p.counters.received,
		progress:  make(chan struct{}, 1),
		overtaken: func() bool { return f.history.overtaken(from, at) },
	}
	defer reader.abandon()
	response := make(chan raft.RPCResponse, 1)
	if err := f.deliver(request, raft.RPC{Command: args, Reader: reader, RespChan: response}, nil); err != nil {
		return nil, err
	}
	return f.awaitInstalled(request, args.Size, reader, response)
}

func (f *Facade) awaitInstalled(request *ostrakapb.Envelope, size int64, reader *snapshotReader, response <-chan raft.RPCResponse) (*ostrakapb.Envelope, error) {
	watchdog := time.NewTimer(f.t.cfg.SnapshotProgressTimeout)
	defer watchdog.Stop()
	for {
		select {
		case r := <-response:
			return f.installed(request, r)
		case <-reader.progress:
			// Any chunk may be the last; the longer patience for restoring is then in force already.
			patience := f.t.cfg.SnapshotProgressTimeout
			if reader.whole.Load() {
				patience = f.t.installTimeout(size)
			}
			watchdog.Reset(patience)
		case <-watchdog.C:
			return nil, ErrStalled
		case <-f.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// installed holds raft's answer to an install until what this replica's log holds by then is durable.
func (f *Facade) installed(request *ostrakapb.Envelope, response raft.RPCResponse) (*ostrakapb.Envelope, error) {
	answer := f.reply(request, response)
	if !isSuccess(answer) {
		return answer, nil
	}
	durable := make(chan error, 1)
	f.hold(func(err error) { durable <- err })
	patience := time.NewTimer(f.t.cfg.AppendTimeout)
	defer patience.Stop()
	select {
	case err := <-durable:
		return answer, err
	case <-patience.C:
		return nil, ErrDiskStalled
	case <-f.ctx.Done():
		return nil, ErrClosed
	}
}

// snapshotReader gives raft exactly the announced bytes of a snapshot stream. Read is called on raft's main loop only.
type snapshotReader struct {
	recv      func() (*ostrakapb.SnapshotChunk, error)
	overtaken func() bool
	received  *trafficCounters
	progress  chan struct{} // holds a token after a chunk has come

	abandoned atomic.Bool // the handler has gone
	whole     atomic.Bool // all bytes have been read

	started bool
	left    int64 // bytes that have not been received
	chunk   []byte
	err     error // the first one is the last
}

// abandon makes further reads fail: the stream ends with its handler.
func (r *snapshotReader) abandon() { r.abandoned.Store(true) }

// Read implements io.Reader. Its first call is the last moment at which raft can be kept from installing a snapshot
// that later messages of its sender have overtaken: whatever reaches raft's channel from then on is handled after it.
func (r *snapshotReader) Read(p []byte) (int, error) {
	if !r.started {
		r.started = true
		if r.overtaken() {
			r.err = fmt.Errorf("%w: snapshot", ErrOvertaken)
		}
	}
	if len(r.chunk) == 0 && r.err == nil {
		r.chunk, r.err = r.next()
	}
	if len(r.chunk) == 0 {
		return 0, r.err
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// next returns the next chunk that holds data, and io.EOF after the last announced byte.
func (r *snapshotReader) next() ([]byte, error) {
	for {
		switch {
		case r.left == 0:
			r.whole.Store(true)
			signal(r.progress)
			return nil, io.EOF
		case r.abandoned.Load():
			return nil, ErrStalled
		}
		chunk, err := r.recv()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		data := chunk.GetData()
		switch {
		case err != nil:
			return nil, fmt.Errorf("transport: snapshot ends %d bytes early: %w", r.left, err)
		case int64(len(data)) > r.left:
			return nil, fmt.Errorf("%w: snapshot is longer than announced", ErrMalformed)
		case len(data) > 0:
			r.left -= int64(len(data))
			r.received.bytes.Add(uint64(len(data)))
			signal(r.progress)
			return data, nil
		}
	}
}
