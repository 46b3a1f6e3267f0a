// Package failover measures how long the clients of a replicated database wait when the process that leads is ended, again
// and again. To every group of replicas a write is sent every few milliseconds, whether or not earlier ones were answered, so that calls
// which hang hide nothing; what counts is the longest time between two acknowledgements of the group that fared worst.
//
//	all well? ─► writes get going ─► the node that leads most is ended ─► every group is served again ─► it is started again
//
// It knows no database: Cluster is one, and ForOstraka makes Ostraka's. Another's stands beside the comparison with it
// (bench/compare).
package failover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Cluster is what is measured. Its methods are called by one goroutine, except for Write.
type Cluster interface {
	// Groups is how many groups of replicas there are, each with a leader of its own.
	Groups() int
	// Write writes a key of a group, counted from 0, as an application would: by a client that retries what it safely can
	// until ctx ends. From any goroutine.
	Write(ctx context.Context, group int) error
	// Settle waits until every node runs and has caught up, and returns the one that leads most groups.
	Settle(ctx context.Context) (node string, err error)
	// End ends a node's process, with SIGKILL or, gently, with SIGTERM, and returns once it has ended.
	End(ctx context.Context, node string, gently bool) error
	// Restart runs a node that was ended again.
	Restart(ctx context.Context, node string) error
}

// Sample is what the end of one process did.
type Sample struct {
	Node string
	// Gap is the longest time between two acknowledgements of one group's writes, which are sent every writeEvery, from just
	// before the end until every group is served again.
	Gap time.Duration
	// Failed counts the calls begun until then that failed, after all that their client tried. FirstError is one of them.
	Failed     int
	FirstError error
}

const (
	// writeEvery is the time between two writes of a group.
	writeEvery = 5 * time.Millisecond
	// callMax bounds one call, and so, with writeEvery, how many are under way.
	callMax = 5 * time.Second
	// settleMax bounds how long a cluster may take until all is well, recoverMax until all groups are served again.
	settleMax  = time.Minute
	recoverMax = 30 * time.Second
	// writesBefore is how many acknowledgements each group has before the process is ended.
	writesBefore = 50
)

// Once ends the process that leads most and measures what that does. The process is started again before it returns.
func Once(ctx context.Context, c Cluster, gently bool) (Sample, error) {
	settled, cancel := context.WithTimeout(ctx, settleMax)
	node, err := c.Settle(settled)
	cancel()
	if err != nil {
		return Sample{}, err
	}
	sample, err := end(ctx, c, node, gently)
	if err != nil {
		return Sample{}, fmt.Errorf("after the end of %s: %w", node, err)
	}
	return sample, c.Restart(ctx, node)
}

func end(ctx context.Context, c Cluster, node string, gently bool) (Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, recoverMax)
	defer cancel()
	writing, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	writers := make([]*writer, c.Groups())
	for i := range writers {
		w := &writer{served: make(chan struct{}, 1)}
		writers[i] = w
		running.Go(func() { w.run(writing, ctx, c, i) })
	}
	err := endAmid(ctx, c, node, gently, writers)
	stop()
	running.Wait()
	if err != nil {
		return Sample{}, err
	}
	sample := Sample{Node: node}
	for _, w := range writers {
		sample.Gap = max(sample.Gap, w.worst)
		sample.Failed += w.failed
		if sample.FirstError == nil {
			sample.FirstError = w.err
		}
	}
	return sample, nil
}

// endAmid ends a node among writes, and returns once every group is served again.
func endAmid(ctx context.Context, c Cluster, node string, gently bool, writers []*writer) error {
	for _, w := range writers {
		if err := w.await(ctx, func() bool { return w.acknowledged >= writesBefore }); err != nil {
			return err
		}
		w.reset()
	}
	if err := c.End(ctx, node, gently); err != nil {
		return err
	}
	ended := time.Now()
	for _, w := range writers {
		if err := w.await(ctx, func() bool { return w.begun.After(ended) }); err != nil {
			return err
		}
	}
	return nil
}

// writer writes one group's key again and again.
type writer struct {
	// served holds a token after each acknowledgement.
	served chan struct{}

	mu           sync.Mutex
	acknowledged int
	last         time.Time // of the latest acknowledgement
	begun        time.Time // when the newest acknowledged call began
	worst        time.Duration
	failed       int
	err          error // the first
}

// run begins writes until writing ends, and returns when all have their outcome, or ctx has ended.
func (w *writer) run(writing, ctx context.Context, c Cluster, group int) {
	var calls sync.WaitGroup
	defer calls.Wait()
	beat := time.NewTicker(writeEvery)
	defer beat.Stop()
	for {
		select {
		case <-beat.C:
		case <-writing.Done():
			return
		}
		calls.Go(func() {
			began := time.Now()
			call, cancel := context.WithTimeout(ctx, callMax)
			defer cancel()
			w.note(began, c.Write(call, group))
		})
	}
}

func (w *writer) note(began time.Time, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.failed++
		if w.err == nil {
			w.err = err
		}
		return
	}
	now := time.Now()
	if !w.last.IsZero() {
		w.worst = max(w.worst, now.Sub(w.last))
	}
	w.acknowledged++
	w.last = now
	if began.After(w.begun) {
		w.begun = began
	}
	select {
	case w.served <- struct{}{}:
	default:
	}
}

// reset forgets what was before, but for when the latest acknowledgement came.
func (w *writer) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.worst, w.failed, w.err = 0, 0, nil
}

// await waits until holds, which is called with the lock held, after an acknowledgement.
func (w *writer) await(ctx context.Context, holds func() bool) error {
	for {
		w.mu.Lock()
		ok := holds()
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-w.served:
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			return fmt.Errorf("a group takes no writes: %w (%w)", ctx.Err(), cmp.Or(w.err, errNoFailure))
		}
	}
}

var errNoFailure = errors.New("no call has failed")

// Summary is what many samples say.
type Summary struct {
	Ends int `json:"ends"`
	// Failed counts calls that failed after all that their client tried.
	Failed int `json:"failed"`
	// GapMS are percentiles of the gaps in milliseconds, by nearest rank.
	GapMS Percentiles `json:"gap_ms"`
}

// Percentiles of a duration in milliseconds.
type Percentiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Summarize sums samples up.
func Summarize(samples []Sample) Summary {
	s := Summary{Ends: len(samples)}
	var gaps []time.Duration
	for _, sample := range samples {
		s.Failed += sample.Failed
		gaps = append(gaps, sample.Gap)
	}
	slices.Sort(gaps)
	at := func(share float64) float64 {
		if len(gaps) == 0 {
			return 0
		}
		rank := max(1, int(math.Ceil(share*float64(len(gaps)))))
		return float64(gaps[rank-1].Microseconds()) / 1000
	}
	s.GapMS = Percentiles{at(0.5), at(0.9), at(0.99), at(1)}
	return s
}
