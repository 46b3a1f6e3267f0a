package wal

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// model is what all replicas of a log should hold.
type model map[ID]*modelReplica

type modelReplica struct {
	entries []Entry
	records map[string]string
}

func (m model) of(id ID) *modelReplica {
	if m[id] == nil {
		m[id] = &modelReplica{records: map[string]string{}}
	}
	return m[id]
}

func (m model) clone() model {
	c := model{}
	for id, r := range m {
		c[id] = &modelReplica{entries: slices.Clone(r.entries), records: maps.Clone(r.records)}
	}
	return c
}

// differs says how a log differs from the model; empty: not at all.
func (m model) differs(l *Log) string {
	for id, want := range m {
		r := l.Replica(id)
		if err := r.Damage(); err != nil {
			return fmt.Sprintf("%s: %v", id, err)
		}
		first, last := r.Bounds()
		if len(want.entries) != int(last-first)+min(1, int(last)) {
			return fmt.Sprintf("%s: [%d, %d], want %d entries", id, first, last, len(want.entries))
		}
		for _, w := range want.entries {
			got, err := r.Get(w.Index)
			if err != nil || got.Term != w.Term || string(got.Data) != string(w.Data) || got.Type != w.Type {
				return fmt.Sprintf("%s: entry %d: %d %q, %v", id, w.Index, got.Term, got.Data, err)
			}
		}
		for name, value := range want.records {
			if got := string(r.Record(name)); got != value {
				return fmt.Sprintf("%s: record %s is %q, want %q", id, name, got, value)
			}
		}
	}
	return ""
}

// workload makes random changes and follows them in a model.
type workload struct {
	rng   *rand.Rand
	log   *Log
	now   model
	terms uint64
	next  map[ID]uint64
	// states are those that the log had, the first before all changes: one for each frame. nil: they are not kept.
	states []model
	// durable is the last of the states that must outlive a power cut.
	durable int
	// noWaiting leaves out what waits for the disk.
	noWaiting bool
}

func newWorkload(seed uint64, l *Log, start model) *workload {
	w := &workload{rng: rand.New(rand.NewPCG(seed, 7)), log: l, now: start.clone(), next: map[ID]uint64{}}
	for id, r := range w.now {
		if n := len(r.entries); n > 0 {
			w.next[id] = r.entries[n-1].Index + 1
			w.terms = max(w.terms, r.entries[n-1].Term)
		}
	}
	return w
}

func (w *workload) keepStates() { w.states = []model{w.now.clone()} }

func (w *workload) note() {
	if w.states != nil {
		w.states = append(w.states, w.now.clone())
	}
}

var workloadIDs = []ID{{1, 1}, {2, 5}, {3, 9}}

// step makes one change. An error means that it may or may not be there, after a crash.
func (w *workload) step() error {
	w.terms++
	id := workloadIDs[w.rng.IntN(2)]
	if w.rng.IntN(30) == 0 {
		id = workloadIDs[2] // one that seldom writes, and so holds up old segments
	}
	r, m := w.log.Replica(id), w.now.of(id)
	seldom := id == workloadIDs[2]
	switch op := w.rng.IntN(20); {
	case op == 0 && !w.noWaiting:
		name := fmt.Sprint("r", w.rng.IntN(2))
		m.records[name] = fmt.Sprint(w.terms)
		w.note()
		at := len(w.states) - 1
		err := r.SetRecord(name, []byte(m.records[name]))
		if err == nil {
			w.durable = at
		}
		return err
	case op == 1 && len(m.entries) > 1:
		keep := 1 + w.rng.IntN(len(m.entries)-1)
		from := m.entries[keep].Index
		m.entries = m.entries[:keep:keep]
		w.next[id] = from
		w.note()
		return r.TruncateSuffix(from)
	case op < 5 && len(m.entries) > 1 && !seldom:
		drop := 1 + w.rng.IntN(len(m.entries)-1)
		upTo := m.entries[drop-1].Index
		m.entries = slices.Clone(m.entries[drop:])
		w.note()
		return r.Compact(upTo)
	case op == 5 && w.rng.IntN(6) == 0 && !seldom:
		m.entries = nil
		w.next[id] += uint64(w.rng.IntN(5))
		w.note()
		return r.Clear()
	case op == 6 && w.rng.IntN(12) == 0:
		m.entries = nil
		clear(m.records)
		w.note()
		return r.Forget()
	}
	var entries []Entry
	for range max(1, w.rng.IntN(8)-4) {
		w.next[id] = max(w.next[id], 1)
		e := one(w.next[id], w.terms, w.rng.IntN(500))
		w.next[id]++
		entries = append(entries, e)
		m.entries = append(m.entries, e)
		w.note()
	}
	return appendTo(r, entries...)
}

// settle waits until all is durable.
func (w *workload) settle(ctx context.Context) error {
	at := len(w.states) - 1
	upTo := Sequence(0)
	for _, id := range workloadIDs {
		upTo = max(upTo, w.log.Replica(id).Appended())
	}
	err := w.log.WaitDurable(ctx, upTo)
	if err == nil {
		w.durable = at
	}
	return err
}

// like returns the last of the states that a log is in, from one on; -1: none, and how it differs from that one.
func like(states []model, from int, l *Log) (at int, why string) {
	for at := len(states) - 1; at >= from; at-- {
		if why = states[at].differs(l); why == "" {
			return at, ""
		}
	}
	return -1, why
}

// tailOf returns the segment that is appended to.
func tailOf(l *Log) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.segments[len(l.segments)-1]
}

// segmentsOf returns the files of a log in order.
func segmentsOf(t testing.TB, fsys disk.FS) []segmentFile {
	t.Helper()
	files, err := listSegments(fsys, "/wal")
	must(t, err)
	return files
}

func rewriteFile(t testing.TB, fsys disk.FS, path string, b []byte) {
	t.Helper()
	must(t, disk.WriteFileAtomic(fsys, path, b))
}

// holder makes calls wait until they are released.
type holder struct {
	mu   sync.Mutex
	held chan struct{} // closed by release; nil: nothing is held
	what func(op disk.Op, path string) bool
	// waiting counts calls that were held.
	waiting int
}

func (h *holder) hook(op disk.Op, path string) error {
	h.mu.Lock()
	held := h.held
	if held != nil && !h.what(op, path) {
		held = nil
	}
	if held != nil {
		h.waiting++
	}
	h.mu.Unlock()
	if held != nil {
		<-held
	}
	return nil
}

func (h *holder) hold(what func(op disk.Op, path string) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held, h.what = make(chan struct{}), what
}

func (h *holder) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held != nil {
		close(h.held)
		h.held = nil
	}
}

// purging is a call by which a segment goes: any, or the one of a path.
func purging(path string) func(op disk.Op, path string) bool {
	return func(op disk.Op, p string) bool {
		return (op == disk.OpRename || op == disk.OpRemove) && strings.HasSuffix(p, segmentSuffix) && (path == "" || p == path)
	}
}

// waitFor waits for a condition.
func waitFor(t testing.TB, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
