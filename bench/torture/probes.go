package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/client"
)

// probes measure how long writes of any slot stand still.
type probes struct {
	mu sync.Mutex
	// last is when each probe last succeeded; worst is the longest that one has stood still since reset.
	last  [probeKeys]time.Time
	worst time.Duration
	// failure is why each probe's latest write failed, if it did since the last success.
	failure [probeKeys]error
}

func (p *probes) run(l *load, c *client.Client) {
	var running sync.WaitGroup
	for i := range probeKeys {
		p.succeeded(i)
		running.Go(func() {
			for l.ctx.Err() == nil {
				if err := p.probe(l.ctx, c, i); err == nil {
					p.succeeded(i)
				} else {
					p.failed(i, err)
				}
				pauseFor(l.ctx, 50*time.Millisecond)
			}
		})
	}
	running.Wait()
}

func (p *probes) probe(ctx context.Context, c *client.Client, i int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.Set(ctx, probeKey(i), []byte("v"))
	return err
}

func probeKey(i int) []byte { return fmt.Appendf(nil, "probe-%d", i) }

func (p *probes) failed(i int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failure[i] = err
}

// standing says which keys took no write since then, and what their latest writes were told.
func (p *probes) standing(c *client.Client, since time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var keys []string
	for i, at := range p.last {
		if !at.After(since) {
			keys = append(keys, fmt.Sprintf("%s (shard %d): %v", probeKey(i), c.ShardOf(probeKey(i)), p.failure[i]))
		}
	}
	if shown := 4; len(keys) > shown {
		keys = append(keys[:shown], fmt.Sprintf("and %d more", len(keys)-shown))
	}
	return strings.Join(keys, "; ")
}

func (p *probes) succeeded(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.last[i].IsZero() {
		p.worst = max(p.worst, now.Sub(p.last[i]))
	}
	p.last[i], p.failure[i] = now, nil
}

// reset begins another measurement and returns what the last one's worst was.
func (p *probes) reset() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	worst := p.worst
	p.worst = 0
	return worst
}

// since reports whether every probe has succeeded after a moment.
func (p *probes) since(moment time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.last {
		if !at.After(moment) {
			return false
		}
	}
	return true
}
