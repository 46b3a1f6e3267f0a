package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/client"
)

// watching follows the unique keys and the sets all run long. A change comes once; those of a key come in order, each with the change
// before it as its previous state; and at the end every acknowledged unique write has been told of. A watch that the nodes could
// not serve any more, since they were restarted or it was too slow, begins anew where it is told to: what was begun until then
// need not come, and of keys seen before then the next change may follow on none that was seen.
type watching struct {
	mu sync.Mutex
	// versions are the newest seen of each key; seen counts the changes of unique keys.
	versions map[string]uint64
	seen     map[string]int
	// gap is until when changes may be missing, and gaps how often there was one; the first is before the watches began.
	gap     time.Time
	gaps    int
	changes int64
}

func newWatching() *watching {
	return &watching{versions: make(map[string]uint64), seen: make(map[string]int)}
}

// watched are the prefixes that are followed.
var watched = []string{"unique-", "set-"}

// run follows a prefix until ctx ends.
func (w *watching) run(ctx context.Context, l *load, c *client.Client, prefix string) {
	var from []client.WatchOption
	for ctx.Err() == nil {
		begun, cancel := context.WithTimeout(ctx, callTimeout)
		watch, err := c.Watch(begun, client.Prefix([]byte(prefix)), from...)
		cancel()
		if err != nil {
			pauseFor(ctx, 50*time.Millisecond)
			continue
		}
		if from == nil { // nothing before is told of
			w.begin()
		}
		err = w.follow(ctx, l, watch)
		token := watch.Token()
		watch.Close()
		var compacted *client.CompactedError
		switch {
		case errors.As(err, &compacted):
			token = compacted.Restart
			w.begin()
		case ctx.Err() == nil:
			l.report("a watch of %q ended as %v", prefix, err)
			return
		}
		from = []client.WatchOption{client.From(token)}
	}
}

func (w *watching) follow(ctx context.Context, l *load, watch *client.Watch) error {
	for {
		change, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		w.note(l, &change)
	}
}

func (w *watching) note(l *load, change *client.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes++
	key := string(change.Key)
	last, known := w.versions[key]
	switch {
	case known && change.Version <= last:
		l.report("a watch told of version %d of %s after version %d", change.Version, key, last)
	case known && (change.Previous == nil || change.Previous.Version != last):
		l.report("a watch told of version %d of %s, which follows on %+v, after version %d", change.Version, key, change.Previous, last)
	}
	w.versions[key] = change.Version
	if strings.HasPrefix(key, "unique-") {
		w.seen[key]++
	}
}

// begin is called where a watch has begun anew.
func (w *watching) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gaps++
	w.gap = time.Now()
	clear(w.versions)
}

// missing counts the acknowledged unique writes that were not told of, and names one.
func (w *watching) missing(u *uniques) (count int, one string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range u.acknowledged {
		if w.seen[key] == 0 && u.begun[key].After(w.gap) {
			count++
			one = key
		}
	}
	return count, one
}

// check waits until the watches have told of everything, and ends them.
func (w *watching) check(ctx context.Context, l *load) {
	for {
		count, one := w.missing(&l.uniques)
		if count == 0 {
			break
		}
		if ctx.Err() != nil {
			l.report("a watch told nothing of %d acknowledged writes, %s among them", count, one)
			break
		}
		pauseFor(ctx, 50*time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, n := range w.seen {
		if n > 1 {
			l.report("a watch told of %s, which was written once, %d times", key, n)
			return
		}
	}
}
