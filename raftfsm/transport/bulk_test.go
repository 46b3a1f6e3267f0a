package transport

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// TestSnapshotBytes: exactly Size bytes come out, of a reader that has more.
func TestSnapshotBytes(t *testing.T) {
	for _, size := range []int{0, 1, snapshotChunkBytes - 1, snapshotChunkBytes, snapshotChunkBytes + 1, 5<<20 + 7} {
		net := newNetwork(t)
		leader, f := net.node("n1").open(7, 1), net.node("n2").open(7, 2)
		data := make([]byte, size+100)
		rand.NewChaCha8([32]byte{1}).Read(data)
		got := make(chan []byte, 1)
		go func() {
			rpc := <-f.Consumer()
			all, err := io.ReadAll(rpc.Reader)
			got <- all
			rpc.Respond(&raft.InstallSnapshotResponse{Term: 2, Success: true}, err)
		}()
		var resp raft.InstallSnapshotResponse
		err := leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, nil, size), &resp, bytes.NewReader(data))
		if err != nil || !resp.Success {
			t.Errorf("%d bytes: %+v, %v", size, resp, err)
		}
		if !bytes.Equal(<-got, data[:size]) {
			t.Errorf("%d bytes came out different", size)
		}
	}
}

// TestSnapshotTooShort: the sender's reader ends early, and neither end takes it for whole.
func TestSnapshotTooShort(t *testing.T) {
	net := newNetwork(t)
	leader, f := net.node("n1").open(7, 1), net.node("n2").open(7, 2)
	data, source := io.Pipe()
	read := make(chan error, 1)
	go func() {
		source.Write(make([]byte, snapshotChunkBytes))
		rpc := <-f.Consumer()
		io.ReadFull(rpc.Reader, make([]byte, snapshotChunkBytes))
		source.Close() // only now, or the stream may be gone before it was seen
		_, err := io.ReadAll(rpc.Reader)
		read <- err
		rpc.Respond(nil, err)
	}()
	err := leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, nil, 2*snapshotChunkBytes), &raft.InstallSnapshotResponse{}, data)
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("sending: %v", err)
	}
	if err := <-read; err == nil {
		t.Error("the receiver took it for whole")
	}
}

// TestSnapshotReader feeds it by hand.
func TestSnapshotReader(t *testing.T) {
	reader := func(size int64, chunks ...string) *snapshotReader {
		return &snapshotReader{left: size, received: &trafficCounters{}, progress: make(chan struct{}, 1),
			overtaken: func() bool { return false },
			recv: func() (*ostrakapb.SnapshotChunk, error) {
				if len(chunks) == 0 {
					return nil, io.EOF
				}
				next := chunks[0]
				chunks = chunks[1:]
				return &ostrakapb.SnapshotChunk{Data: []byte(next)}, nil
			}}
	}
	if got, err := io.ReadAll(reader(6, "abc", "", "def", "more")); string(got) != "abcdef" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := io.ReadAll(reader(6, "abc")); string(got) != "abc" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short: %q, %v", got, err)
	}
	if got, err := io.ReadAll(reader(6, "abc", "defg")); string(got) != "abc" || !errors.Is(err, ErrMalformed) {
		t.Errorf("long: %q, %v", got, err)
	}
	gone := reader(6, "abc", "def")
	gone.abandon()
	if got, err := io.ReadAll(gone); len(got) != 0 || !errors.Is(err, ErrStalled) {
		t.Errorf("abandoned: %q, %v", got, err)
	}
}

// slowReader gives one chunk per second.
type slowReader struct{}

func (slowReader) Read(p []byte) (int, error) {
	time.Sleep(time.Second)
	return len(p), nil
}

// TestSlowSnapshotBesideAppends: a snapshot may take long while it moves, and nothing else waits for it.
func TestSlowSnapshotBesideAppends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		n1, n2 := net.node("n1"), net.node("n2")
		leader, f := n1.open(7, 1), n2.open(7, 2)
		other, otherFollower := n1.open(8, 1), n2.open(8, 2)
		acceptAll(t, f)
		acceptAll(t, otherFollower)
		const seconds = 100
		sent := make(chan error, 1)
		began := time.Now()
		go func() {
			sent <- leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, nil, seconds*snapshotChunkBytes), &raft.InstallSnapshotResponse{}, slowReader{})
		}()
		time.Sleep(50 * time.Second)
		at := time.Now()
		settleLinks(t, other, otherFollower)
		if waited := time.Since(at); waited != 0 {
			t.Errorf("an append waited %s for a snapshot", waited)
		}
		if err := <-sent; err != nil {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if took := time.Since(began); took != seconds*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// TestFastSnapshotBesideAppends: a snapshot that takes all that its connection carries has a connection of its own: what an
// append waits for is its own bytes.
func TestFastSnapshotBesideAppends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Minute) }) // gRPC's last words, too, take their time
		const bytesPerSecond, snapshotBytes = 1 << 20, 30 << 20
		net := newNetwork(t)
		net.bytesPerSecond = bytesPerSecond
		n1, n2 := net.node("n1"), net.node("n2")
		leader, f := n1.open(7, 1), n2.open(7, 2)
		other, otherFollower := n1.open(8, 1), n2.open(8, 2)
		acceptAll(t, f)
		acceptAll(t, otherFollower)
		settleLinks(t, other, otherFollower)
		appendTime := func() time.Duration {
			began := time.Now()
			settleLinks(t, other, otherFollower)
			return time.Since(began)
		}
		alone := appendTime()
		began := time.Now()
		sent := start(func() error {
			return leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, nil, snapshotBytes), &raft.InstallSnapshotResponse{}, zeros{})
		})
		time.Sleep(time.Second)
		for range 100 {
			if took := appendTime(); took > 2*alone {
				t.Fatalf("an append took %s beside a snapshot, and %s alone", took, alone)
			}
			time.Sleep(37 * time.Millisecond)
		}
		wantHeld(t, "the snapshot is still on its way", sent)
		wantSuccess(t, sent)
		if took := time.Since(began); took < snapshotBytes/bytesPerSecond*time.Second {
			t.Errorf("the snapshot took %s: it was not the bottleneck", took)
		}
	})
}

// TestDeafConnectionIsGivenUp: packets were lost for ever on the connection that snapshots share. The sender hears nothing, and
// the next snapshot has a new one.
func TestDeafConnectionIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		n1, n2 := net.node("n1"), net.node("n2")
		leader, f := n1.open(7, 1), n2.open(7, 2)
		acceptAll(t, f)
		install := func() error {
			return leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, nil, 10), &raft.InstallSnapshotResponse{}, zeros{})
		}
		if err := install(); err != nil {
			t.Fatal(err)
		}
		net.isolate("n2")
		net.heal("n2") // what was lost stays lost, on connections that stand
		began := time.Now()
		if err := install(); !errors.Is(err, ErrStalled) || time.Since(began) != n1.cfg.DialTimeout {
			t.Errorf("after %s: %v, want %v after %s", time.Since(began), err, ErrStalled, n1.cfg.DialTimeout)
		}
		if err := install(); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

// TestSnapshotReceiverGivesUp: a sender that falls silent in the middle is given up by the receiver, and raft's read
// with it.
func TestSnapshotReceiverGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		leader := net.node("n1", func(c *Config) { c.SnapshotProgressTimeout = time.Hour }).open(7, 1)
		n2 := net.node("n2")
		f := n2.open(7, 2)
		blocked, release := io.Pipe()
		go leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, nil, 10), &raft.InstallSnapshotResponse{}, blocked)
		rpc := <-f.Consumer()
		began := time.Now()
		_, err := io.ReadAll(rpc.Reader)
		if took := time.Since(began); err == nil || took != n2.cfg.SnapshotProgressTimeout {
			t.Errorf("after %s: %v, want an error after %s", took, err, n2.cfg.SnapshotProgressTimeout)
		}
		release.Close()
	})
}

// TestSlowRestore: from the last byte on, a large snapshot's restore has longer than a step of its transfer.
func TestSlowRestore(t *testing.T) {
	tr := &Transport{cfg: Config{SnapshotProgressTimeout: 30 * time.Second}}
	for size, want := range map[int64]time.Duration{0: 30 * time.Second, 1 << 28: time.Minute, 1 << 30: 150 * time.Second} {
		if got := tr.installTimeout(size); got != want {
			t.Errorf("%d bytes: %s, want %s", size, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		leader, f := net.node("n1").open(7, 1), net.node("n2").open(7, 2)
		go func() {
			rpc := <-f.Consumer()
			io.Copy(io.Discard, rpc.Reader)
			time.Sleep(29 * time.Second)
			rpc.Respond(&raft.InstallSnapshotResponse{Success: true}, nil)
		}()
		if err := leader.InstallSnapshot("2", f.LocalAddr(), snapshotRequest(leader, 2, 3, nil, 4), &raft.InstallSnapshotResponse{}, strings.NewReader("data")); err != nil {
			t.Error(err)
		}
	})
}

// TestCutBatch: raft is told what was sent by the request that it gave.
func TestCutBatch(t *testing.T) {
	net := newNetwork(t)
	leader, f := net.node("n1", func(c *Config) { c.FrameBytesMax = 100 }).open(7, 1), net.node("n2").open(7, 2)
	logs := entries(2, 2, 20)
	for _, l := range logs {
		l.Data = make([]byte, 40)
	}
	logs[4].Data = make([]byte, 1000) // entry 6
	acceptAll(t, f)
	next := uint64(2)
	var sizes []int
	for next <= 20 {
		req := raft.AppendEntriesRequest{RPCHeader: leader.header(), Term: 2, PrevLogEntry: next - 1, PrevLogTerm: 1, Entries: logs[next-2:]}
		var resp raft.AppendEntriesResponse
		if err := leader.AppendEntries("2", f.LocalAddr(), &req, &resp); err != nil {
			t.Fatal(err)
		}
		if want := next - 1 + uint64(len(req.Entries)); resp.LastLog != want {
			t.Fatalf("the follower got up to %d, raft is told %d", resp.LastLog, want)
		}
		sizes = append(sizes, len(req.Entries))
		next += uint64(len(req.Entries))
	}
	if len(sizes) != 10 || sizes[2] != 1 {
		t.Errorf("batches of %v", sizes)
	}
}

// TestHugeEntry: the largest value that can be configured passes, more is refused, and the stream survives both.
func TestHugeEntry(t *testing.T) {
	// The race detector on a busy machine takes seconds to decode the value, and nothing is heard meanwhile.
	_, n1, _, leader, f := pair(t, func(c *Config) { c.Pulse = 10 * time.Second })
	send := func(bytes int) error {
		log := &raft.Log{Index: 2, Term: 2, Data: make([]byte, bytes)}
		resp, err := leader.sendAppend(f, raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, Entries: []*raft.Log{log}})
		if err == nil && resp.LastLog != 2 {
			t.Errorf("%d bytes: %+v", bytes, resp)
		}
		return err
	}
	if err := send(64<<20 + 64<<10); err != nil {
		t.Error(err)
	}
	if err := send(MessageBytesMax); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v, want %v", err, ErrTooLarge)
	}
	if got := n1.Stats()["n2"]; got.Dials != 1 || !got.Connected {
		t.Errorf("the stream broke: %+v", got)
	}
}

// TestQueueFull: the bound on waiting messages is kept, and a call that gave up leaves the queue.
func TestQueueFull(t *testing.T) {
	o := newOutbox(&Config{QueueMessagesMax: 2, FrameBytesMax: 100})
	first, second := &ostrakapb.Envelope{Call: 1}, &ostrakapb.Envelope{Call: 2}
	if o.push(first, false) != nil || o.push(second, true) != nil {
		t.Fatal("no room")
	}
	if err := o.push(&ostrakapb.Envelope{}, false); !errors.Is(err, ErrQueueFull) {
		t.Errorf("%v, want %v", err, ErrQueueFull)
	}
	o.withdraw(first)
	if frame, _ := o.take(); len(frame.Envelopes) != 1 || frame.Envelopes[0] != second {
		t.Errorf("frame %v", frame)
	}
	if frame, _ := o.take(); frame != nil {
		t.Errorf("frame %v from an empty queue", frame)
	}
}

// TestFrames: waiting messages are joined up to the bound, a larger one goes alone, order is kept.
func TestFrames(t *testing.T) {
	o := newOutbox(&Config{QueueMessagesMax: 100, FrameBytesMax: 100})
	for call, bytes := range []int{30, 30, 30, 500, 30, 90, 5} {
		o.push(&ostrakapb.Envelope{Call: uint64(call), Error: strings.Repeat("x", bytes)}, false)
	}
	var frames [][]uint64
	for frame, _ := o.take(); frame != nil; frame, _ = o.take() {
		var calls []uint64
		for _, e := range frame.Envelopes {
			calls = append(calls, e.Call)
		}
		frames = append(frames, calls)
	}
	if got, want := len(frames), 5; got != want {
		t.Errorf("frames %v", frames)
	}
	next := uint64(0)
	for _, calls := range frames {
		for _, call := range calls {
			if call != next {
				t.Errorf("frames %v", frames)
			}
			next++
		}
	}
}

func TestConfig(t *testing.T) {
	good := newNetwork(t).node("n1").cfg
	for name, spoil := range map[string]func(*Config){
		"no self":          func(c *Config) { c.Self = "" },
		"no cluster":       func(c *Config) { c.ClusterID = nil },
		"no address book":  func(c *Config) { c.Resolve = nil },
		"no logger":        func(c *Config) { c.Logger = nil },
		"a negative time":  func(c *Config) { c.Pulse = -1 },
		"a long gathering": func(c *Config) { c.HeartbeatGather = c.VoteTimeout },
		"a huge frame":     func(c *Config) { c.FrameBytesMax = MessageBytesMax },
	} {
		bad := good
		spoil(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
