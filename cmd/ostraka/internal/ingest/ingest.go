// Package ingest carries records from a reader into a cluster: the engine of `ostraka import`.
//
// It owns the order, the retries and the place up to which everything is acknowledged. It knows nothing of files'
// formats (that is records) or of terminals (that is the command).
//
//	reader ──► chunk ──► batches side by side ──► all acknowledged ──► checkpoint ──► next chunk
//	   └─ reads the next chunk meanwhile
//
// A chunk is what is in flight at once, bounded in records and bytes. It is finished as a whole before the next one
// is sent, which costs some throughput at its end and buys three things: the checkpoint is a single position; a key
// that comes twice ends with its last line's value, since two chunks never overlap and a chunk sends only the last
// of each key; and memory is bounded whatever the input holds.
//
// A write that failed as not done, or whose outcome is unknown, is sent again: a plain set may be repeated without
// harm. Run starts one goroutine for reading and one for each batch, and all have ended when it returns.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

// chunkBytesMax bounds the keys and values of a chunk, unless one record alone is larger.
const chunkBytesMax = 16 << 20

// Pauses between the attempts of a batch.
const (
	pauseMin = 50 * time.Millisecond
	pauseMax = time.Second
)

// ErrPatience: the cluster acknowledged nothing for longer than the caller wanted to wait.
var ErrPatience = errors.New("the cluster acknowledged nothing for too long")

// Source is where records come from: a *records.Reader.
type Source interface {
	Next() (records.Record, error)
	Position() records.Position
}

// Sink is where they go: a *client.Client.
type Sink interface {
	MultiSet(ctx context.Context, items []client.SetItem) []error
}

// Options of a Run. All but the functions must be set.
type Options struct {
	// Batch is the number of records of one call, Concurrency the number of calls at once.
	Batch, Concurrency int
	// Patience bounds the time that a batch goes without an acknowledgement.
	Patience time.Duration
	// TTL is given to records that have none of their own; 0: none.
	TTL time.Duration
	// Skip is told of each record that cannot be read, or that the cluster refuses for good, and the import goes
	// on. nil: the first of them ends it. Called from Run's goroutine.
	Skip func(*records.LineError)
	// Acknowledged is told that everything before a position is in the cluster. An error ends the import. Called
	// from Run's goroutine.
	Acknowledged func(records.Position, Counts) error
}

// Counts say what became of the records so far.
type Counts struct {
	Records int64 `json:"records"`
	Skipped int64 `json:"skipped"`
}

// Run imports all records of a source. Where it fails, what Acknowledged was told last holds.
//
// Errors: a *records.LineError, ErrPatience with the cluster's last answer, ctx's, or those of the source and of
// Acknowledged.
func Run(ctx context.Context, source Source, sink Sink, o Options) (Counts, error) {
	ctx, cancel := context.WithCancel(ctx)
	chunks := make(chan *chunk)
	var reading sync.WaitGroup
	reading.Go(func() { readChunks(ctx, source, o, chunks) })
	defer reading.Wait()
	defer cancel()

	var done Counts
	for c := range chunks {
		if err := c.send(ctx, sink, o); err != nil {
			return done, err
		}
		for _, bad := range c.bad {
			o.Skip(bad)
		}
		done.Records += c.records - int64(len(c.refused))
		done.Skipped += int64(len(c.bad) + len(c.refused))
		if o.Acknowledged != nil {
			if err := o.Acknowledged(c.end, done); err != nil {
				return done, err
			}
		}
		if c.failed != nil {
			return done, c.failed
		}
	}
	return done, ctx.Err()
}

// chunk is a stretch of the source.
type chunk struct {
	items []client.SetItem
	// lines are those on which the items end.
	lines []int64
	// at is the item of each key: a key's later record takes its earlier one's place.
	at    map[string]int
	bytes int
	// records counts the good ones, those that were replaced included.
	records int64
	bad     []*records.LineError
	// end is the position before which everything belongs to this chunk or an earlier one.
	end records.Position
	// failed is what ended the reading after this chunk; nil: nothing did.
	failed error

	mu sync.Mutex
	// refused are items that the cluster will never take.
	refused []*records.LineError
}

// readChunks runs on its own goroutine until the source or ctx ends.
func readChunks(ctx context.Context, source Source, o Options, chunks chan<- *chunk) {
	defer close(chunks)
	for more := true; more; {
		var c *chunk
		c, more = readChunk(source, o)
		select {
		case chunks <- c:
		case <-ctx.Done():
			return
		}
	}
}

// readChunk reads until a chunk is full. more is false when it is the last.
func readChunk(source Source, o Options) (c *chunk, more bool) {
	c = &chunk{at: make(map[string]int), end: source.Position()}
	for len(c.items) < o.Batch*o.Concurrency && c.bytes < chunkBytesMax {
		record, err := source.Next()
		if errors.Is(err, io.EOF) {
			c.end = source.Position() // with empty lines at the end
			return c, false
		}
		bad, isBad := errors.AsType[*records.LineError](err)
		switch {
		case isBad && o.Skip != nil:
			c.bad = append(c.bad, bad)
		case err != nil:
			c.failed = err
			return c, false
		default:
			c.add(record, source.Position().Line, o.TTL)
		}
		c.end = source.Position()
	}
	return c, true
}

func (c *chunk) add(r records.Record, line int64, ttl time.Duration) {
	item := client.SetItem{Key: r.Key, Value: r.Value, TTL: r.TTL}
	if item.TTL == 0 {
		item.TTL = ttl
	}
	c.records++
	c.bytes += len(r.Key) + len(r.Value)
	if i, again := c.at[string(r.Key)]; again {
		c.items[i], c.lines[i] = item, line
		return
	}
	c.at[string(r.Key)] = len(c.items)
	c.items = append(c.items, item)
	c.lines = append(c.lines, line)
}

// send writes the items, and returns when all are acknowledged or refused for good.
func (c *chunk) send(ctx context.Context, sink Sink, o Options) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var batches sync.WaitGroup
	for from := 0; from < len(c.items); from += o.Batch {
		batches.Go(func() {
			if err := c.sendBatch(ctx, sink, o, from, min(from+o.Batch, len(c.items))); err != nil {
				cancel(err) // the first error wins, and ends the others
			}
		})
	}
	batches.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, refused := range c.refused {
		o.Skip(refused)
	}
	return nil
}

// sendBatch writes items [from, to) until each is settled.
func (c *chunk) sendBatch(ctx context.Context, sink Sink, o Options, from, to int) error {
	pending := make([]int, 0, to-from)
	for i := from; i < to; i++ {
		pending = append(pending, i)
	}
	pause, progress := pauseMin, time.Now()
	for {
		again, err := c.attempt(ctx, sink, o, pending)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case len(again) == 0:
			return err
		case err != nil && !retryable(err):
			return err
		case len(again) < len(pending):
			pause, progress = pauseMin, time.Now()
		case time.Since(progress) > o.Patience:
			return fmt.Errorf("%w (%s), lines %d to %d: %w", ErrPatience, o.Patience, c.lines[from], c.lines[to-1], err)
		}
		pending = again
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, pauseMax)
	}
}

// attempt sends the pending items once and returns those to send again, with the last of their errors; or an error
// that must end the import.
func (c *chunk) attempt(ctx context.Context, sink Sink, o Options, pending []int) (again []int, last error) {
	items := make([]client.SetItem, len(pending))
	for i, p := range pending {
		items[i] = c.items[p]
	}
	for i, err := range sink.MultiSet(ctx, items) {
		if err == nil {
			continue
		}
		if retryable(err) {
			again, last = append(again, pending[i]), err
			continue
		}
		line := c.lines[pending[i]]
		refused := &records.LineError{First: line, Last: line, Err: err}
		if o.Skip == nil || !aboutTheRecord(err) {
			return pending[i:], refused
		}
		c.mu.Lock()
		c.refused = append(c.refused, refused)
		c.mu.Unlock()
	}
	return again, last
}

// retryable: sending a plain set again may succeed, and can do no harm.
func retryable(err error) bool {
	return errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrOutcomeUnknown)
}

// aboutTheRecord: another record may well be taken.
func aboutTheRecord(err error) bool {
	return errors.Is(err, client.ErrLimit) || errors.Is(err, client.ErrInvalid)
}
