package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/backoff"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// ErrLinkDown: the stream to the peer broke or can't be opened; the cause is wrapped. A request that was on its way may
// have been taken.
var ErrLinkDown = errors.New("transport: link down")

// link keeps the dialed stream to one peer.
//
//	         something to send               handshake done
//	 idle ────────────────────► connecting ────────────────► up
//	(never tried)                   ▲  │ failed                │ broke
//	                 something to   │  ▼                       │
//	                 send, pause ── down ◄─────────────────────┘
//	                 over
//
// Nobody is dialed for nothing: after a failure the link pauses, and then waits for the next request. While it is down,
// requests fail at once, except patient ones, which wait for it to come up. The first connect is waited for by all.
type link struct {
	t    *Transport
	peer *peer

	demand chan struct{} // holds a token when something is to be sent and the link is not up
	alive  chan struct{} // holds a token when the peer was heard from; ends the pause

	mu      sync.Mutex
	current *dialed       // nil unless up
	failure error         // why the link is not up; nil while it is, and before the first failure
	changed chan struct{} // closed and replaced with each change of the two above
}

func newLink(t *Transport, p *peer) *link {
	return &link{t: t, peer: p, demand: make(chan struct{}, 1), alive: make(chan struct{}, 1), changed: make(chan struct{})}
}

// up returns the stream's end, or nil.
func (l *link) up() *dialed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

func (l *link) set(current *dialed, failure error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.failure = current, failure
	close(l.changed)
	l.changed = make(chan struct{})
}

// acquire returns the stream's end. Impatient callers get ErrLinkDown while the link is known to be down.
func (l *link) acquire(until limit, patient bool) (*dialed, error) {
	for {
		l.mu.Lock()
		current, failure, changed := l.current, l.failure, l.changed
		l.mu.Unlock()
		if current != nil {
			return current, nil
		}
		signal(l.demand)
		if failure != nil && !patient {
			return nil, fmt.Errorf("%w: %w", ErrLinkDown, failure)
		}
		var over error
		select {
		case <-changed:
			continue
		case <-until.deadline:
			over = ErrTimeout
		case <-until.ctx.Done():
			over = context.Cause(until.ctx)
		}
		if failure != nil {
			return nil, fmt.Errorf("%w: %w: %w", over, ErrLinkDown, failure)
		}
		return nil, over
	}
}

// redial is the pause between attempts, for gRPC's own connections and for the link alike.
func (t *Transport) redial() backoff.Config {
	return backoff.Config{BaseDelay: t.cfg.RedialMax / 20, Multiplier: 2, Jitter: 0.3, MaxDelay: t.cfg.RedialMax}
}

// run is the link's goroutine.
func (l *link) run() {
	pauses := l.t.redial()
	pause := pauses.BaseDelay
	for l.wait(l.demand, 0) {
		began := time.Now()
		err := l.serve()
		if l.t.ctx.Err() != nil {
			err = ErrClosed
		}
		l.set(nil, err)
		if l.t.ctx.Err() == nil {
			l.t.cfg.Logger.Log(l.t.ctx, downLevel(time.Since(began)), "link down", "peer", l.peer.node, "error", err)
		}
		if time.Since(began) > pauses.MaxDelay+l.t.cfg.DialTimeout { // it had been up for a while
			pause = pauses.BaseDelay
		}
		jitter := 1 + pauses.Jitter*(2*rand.Float64()-1)
		l.wait(l.alive, time.Duration(float64(pause)*jitter))
		pause = min(time.Duration(float64(pause)*pauses.Multiplier), pauses.MaxDelay)
	}
}

// downLevel makes a link that was up worth a warning, and the attempts to raise it again only a debug line each.
func downLevel(lasted time.Duration) slog.Level {
	if lasted > time.Second {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// wait returns at a token, or after a pause unless that is 0; false once the Transport is closed.
func (l *link) wait(token <-chan struct{}, pause time.Duration) bool {
	var over <-chan time.Time
	if pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-token:
	case <-over:
	case <-l.t.ctx.Done():
		return false
	}
	return true
}

// heardFrom tells the link that the peer lives: one that is down is tried again now, rather than by the next request, which
// would fail for it (a vote, perhaps, of a cluster that has just started).
func (l *link) heardFrom() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		signal(l.alive)
		signal(l.demand)
	}
}

// serve connects to wherever the address book says, and carries requests until the stream ends. Each attempt has its
// own gRPC connection: gRPC's would go on dialing the address it was made for.
func (l *link) serve() error {
	l.peer.counters.dials.Add(1)
	address, err := l.t.resolve(l.peer.node)
	if err != nil {
		return err
	}
	heard := newLastHeard()
	conn, err := l.t.connect(func(ctx context.Context) (net.Conn, error) {
		conn, err := l.t.cfg.Dial(ctx, address)
		return hearingConn{conn, heard}, err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(l.t.ctx)
	defer cancel(nil)

	patience := time.AfterFunc(l.t.cfg.DialTimeout, func() { cancel(fmt.Errorf("%w: connecting to %q", ErrTimeout, address)) })
	defer patience.Stop()
	stream, err := ostrakapb.NewRaftClient(conn).Exchange(ctx)
	if err != nil {
		return causeOr(ctx, err)
	}
	hs, err := l.greet(stream)
	if err != nil {
		return causeOr(ctx, err)
	}
	if !patience.Stop() {
		return context.Cause(ctx)
	}
	l.t.cfg.Learned(hs)

	d := newDialed(newPipe(l.t, l.peer, stream, heard, true))
	l.set(d, nil)
	err = d.pipe.run()
	d.end(fmt.Errorf("%w: %w", ErrLinkDown, err))
	l.t.broke(l.peer)
	return err
}

// greet exchanges handshakes, and judges the peer's.
func (l *link) greet(stream frames) (*ostrakapb.Handshake, error) {
	if err := stream.Send(&ostrakapb.Frame{Handshake: l.t.handshake(l.peer.node)}); err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if err := l.t.judge(first.Handshake, l.peer.node); err != nil {
		l.t.cfg.Logger.Warn("peer refused", "peer", l.peer.node, "error", err)
		return nil, err
	}
	return first.Handshake, nil
}

// causeOr returns why a context was cancelled, or err if it was not.
func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
