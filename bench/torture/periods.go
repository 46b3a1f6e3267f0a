package main

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/bench/history"
)

// periods cuts the registers' history into pieces that porcupine can check: every piece has keys of its own. A piece that
// is full is closed once its last operation has ended, and checked while the next ones run.
type periods struct {
	report    func(format string, args ...any)
	artefacts string

	mu      sync.Mutex
	current *period
	// checked counts operations in pieces that were found good.
	checked int64
	pending sync.WaitGroup
	queue   chan *period
	checker sync.WaitGroup
}

// period is one piece.
type period struct {
	number   int
	recorder *history.Recorder
	inside   int  // workers with an operation under way; guarded by periods.mu
	closed   bool // nobody enters any more; guarded by periods.mu

	mu   sync.Mutex
	last map[string]string // what was last written, so that swaps win sometimes
}

const (
	// periodOperations is small enough for porcupine even with a dozen open operations a key.
	periodOperations = 2500
	// checkPatience: a verdict that takes longer is a failure.
	checkPatience = 2 * time.Minute
	// periodsMax bounds the pieces that wait for their check: then the load waits.
	periodsMax = 256
)

func newPeriods(report func(string, ...any), artefacts string) *periods {
	p := &periods{report: report, artefacts: artefacts, queue: make(chan *period, periodsMax)}
	p.current = newPeriod(0)
	p.checker.Go(func() {
		for piece := range p.queue {
			p.check(piece)
		}
	})
	return p
}

func newPeriod(number int) *period {
	return &period{number: number, recorder: history.NewRecorder(), last: make(map[string]string)}
}

// enter gives a worker the current piece; leave must follow.
func (p *periods) enter() *period {
	p.mu.Lock()
	var left *period // full, and nobody is inside
	if full := p.current; full.recorder.Len() >= periodOperations {
		full.closed = true
		p.current = newPeriod(full.number + 1)
		p.pending.Add(1)
		if full.inside == 0 {
			left = full
		}
	}
	p.current.inside++
	entered := p.current
	p.mu.Unlock()
	if left != nil {
		p.queue <- left
	}
	return entered
}

func (p *periods) leave(piece *period) {
	p.mu.Lock()
	piece.inside--
	last := piece.closed && piece.inside == 0
	p.mu.Unlock()
	if last {
		p.queue <- piece
	}
}

// end checks what is left. No worker may be inside.
func (p *periods) end() {
	p.pending.Add(1)
	p.queue <- p.current
	p.pending.Wait()
	close(p.queue)
	p.checker.Wait()
}

func (p *periods) check(piece *period) {
	defer p.pending.Done()
	picture := filepath.Join(p.artefacts, fmt.Sprintf("history-%d.html", piece.number))
	if err := piece.recorder.Check(checkPatience, picture); err != nil {
		p.report("registers of period %d are not linearizable: %v", piece.number, err)
		return
	}
	p.mu.Lock()
	p.checked += int64(piece.recorder.Len())
	p.mu.Unlock()
}

func (p *periods) checkedOperations() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checked
}

func (p *period) wrote(key, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[key] = value
}

func (p *period) lastOf(key string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last[key]
}
