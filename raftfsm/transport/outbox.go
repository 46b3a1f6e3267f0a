package transport

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

var (
	// ErrQueueFull: Config.QueueMessagesMax messages already wait for the peer.
	ErrQueueFull = errors.New("transport: the queue to the node is full")
	// ErrTooLarge: a message over MessageBytesMax. Sent, it would end the stream for all groups.
	ErrTooLarge = errors.New("transport: message too large")
)

// frameBytesSpare is what a frame may need beside its envelopes: heartbeats and their answers, mostly.
const frameBytesSpare = 1 << 20

// outbox holds what waits for one stream, in order, and joins it into frames.
//
// A lazy message may wait for the gather time; any other flushes at once everything that waits. Lazy messages keep their
// place in the queue, so none is ever sent out of order. Heartbeats and their answers have no order and no queue: the pipe
// keeps them, asks for a frame by join, and puts them in by board.
type outbox struct {
	messagesMax int
	bytesMax    int // of one frame; a larger message goes alone
	gather      time.Duration
	// board adds what the pipe keeps to the next frame, and tells whether that was not all. Called with mu held, after join.
	board func(*ostrakapb.Frame) (more bool)

	urgent chan struct{} // holds a token after a message that must not wait
	lazy   chan struct{} // holds a token after the first lazy message since the last frame

	mu        sync.Mutex
	waiting   []waitingEnvelope // at most messagesMax
	gathering bool              // lazy holds, or held, a token for what waits
	joined    bool              // board has something to add
	pinged    bool              // an empty frame is wanted
}

type waitingEnvelope struct {
	envelope *ostrakapb.Envelope
	bytes    int
}

func newOutbox(cfg *Config) *outbox {
	return &outbox{
		messagesMax: cfg.QueueMessagesMax,
		bytesMax:    cfg.FrameBytesMax,
		gather:      cfg.HeartbeatGather,
		urgent:      make(chan struct{}, 1),
		lazy:        make(chan struct{}, 1),
	}
}

// signal leaves a token in a channel of capacity one.
func signal(token chan struct{}) {
	select {
	case token <- struct{}{}:
	default:
	}
}

func (o *outbox) push(envelope *ostrakapb.Envelope, lazy bool) error {
	bytes := proto.Size(envelope)
	if bytes > MessageBytesMax-frameBytesSpare {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, bytes, MessageBytesMax-frameBytesSpare)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) >= o.messagesMax {
		return ErrQueueFull
	}
	o.waiting = append(o.waiting, waitingEnvelope{envelope, bytes})
	o.signalLocked(lazy)
	return nil
}

func (o *outbox) signalLocked(lazy bool) {
	switch {
	case !lazy:
		signal(o.urgent)
	case !o.gathering:
		o.gathering = true
		signal(o.lazy)
	}
}

// join asks for a frame that board is to add to.
func (o *outbox) join(lazy bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.joined = true
	o.signalLocked(lazy)
}

// hurry ends the waiting of what waits.
func (o *outbox) hurry() { signal(o.urgent) }

// ping asks for a frame even if nothing waits.
func (o *outbox) ping() {
	o.mu.Lock()
	o.pinged = true
	o.mu.Unlock()
	signal(o.urgent)
}

// withdraw takes back a message whose sender has stopped waiting, if it still waits.
func (o *outbox) withdraw(envelope *ostrakapb.Envelope) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting = slices.DeleteFunc(o.waiting, func(w waitingEnvelope) bool { return w.envelope == envelope })
}

// take returns the next frame and the bytes of its messages, or nil.
func (o *outbox) take() (*ostrakapb.Frame, int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gathering = false // even if there is nothing: it may have been withdrawn
	if len(o.waiting) == 0 && !o.pinged && !o.joined {
		return nil, 0
	}
	count, bytes := 0, 0
	for count < len(o.waiting) && (count == 0 || bytes+o.waiting[count].bytes <= o.bytesMax) {
		bytes += o.waiting[count].bytes
		count++
	}
	frame := &ostrakapb.Frame{Envelopes: make([]*ostrakapb.Envelope, count)}
	for i := range frame.Envelopes {
		frame.Envelopes[i] = o.waiting[i].envelope
	}
	// Shifting keeps one backing array for ever; what remains is short, for a frame usually takes everything.
	o.waiting = slices.Delete(o.waiting, 0, count)
	o.joined = o.joined && o.board(frame)
	o.pinged = false
	return frame, bytes
}

// run sends frames until done is closed or send fails. It is the stream's only sender.
func (o *outbox) run(done <-chan struct{}, send func(*ostrakapb.Frame, int) error) error {
	gathered := time.NewTimer(o.gather)
	gathered.Stop()
	defer gathered.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-o.lazy:
			gathered.Reset(o.gather)
			continue
		case <-gathered.C:
		case <-o.urgent:
		}
		for frame, bytes := o.take(); frame != nil; frame, bytes = o.take() {
			if err := send(frame, bytes); err != nil {
				return err
			}
		}
	}
}
