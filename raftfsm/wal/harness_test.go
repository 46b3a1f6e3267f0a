package wal

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

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

// workload makes random single changes, each of one frame, and follows them in the model.
type workload struct {
	rng   *rand.Rand
	log   *Log
	now   model
	terms uint64
	next  map[ID]uint64
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

var workloadIDs = []ID{{1, 1}, {2, 5}, {3, 9}}

// step makes one change. An error means that it may or may not be there, after a crash.
func (w *workload) step() error {
	w.terms++
	id := workloadIDs[w.rng.IntN(2)]
	if w.rng.IntN(30) == 0 {
		id = workloadIDs[2] // one that seldom writes, and so holds up old segments
	}
	r, m := w.log.Replica(id), w.now.of(id)
	switch op := w.rng.IntN(20); {
	case op == 0:
		name := fmt.Sprint("r", w.rng.IntN(2))
		m.records[name] = fmt.Sprint(w.terms)
		return r.SetRecord(name, []byte(m.records[name]))
	case op == 1 && len(m.entries) > 1:
		keep := 1 + w.rng.IntN(len(m.entries)-1)
		from := m.entries[keep].Index
		m.entries = m.entries[:keep:keep]
		w.next[id] = from
		return r.TruncateSuffix(from)
	case op < 5 && len(m.entries) > 1 && id != workloadIDs[2]:
		drop := 1 + w.rng.IntN(len(m.entries)-1)
		upTo := m.entries[drop-1].Index
		m.entries = slices.Clone(m.entries[drop:])
		return r.Compact(upTo)
	case op == 5 && w.rng.IntN(6) == 0 && id != workloadIDs[2]:
		m.entries = nil
		w.next[id] += uint64(w.rng.IntN(5))
		return r.Clear()
	}
	w.next[id] = max(w.next[id], 1)
	e := one(w.next[id], w.terms, w.rng.IntN(500))
	w.next[id]++
	m.entries = append(m.entries, e)
	return appendTo(r, e)
}

// pointFS notes at which call a power cut struck.
type pointFS struct {
	disk.FS
	mu     sync.Mutex
	struck string
}

func (p *pointFS) note(call, path string, err error) error {
	if errors.Is(err, disk.ErrPowerCut) {
		name := filepath.Base(path)
		switch {
		case name == spareName:
			name = "spare"
		case strings.HasSuffix(name, asideSuffix):
			name = "aside"
		case strings.HasSuffix(name, segmentSuffix):
			name = "segment"
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.struck == "" {
			p.struck = call + " " + name
		}
	}
	return err
}

func (p *pointFS) Create(path string) (disk.File, error) {
	f, err := p.FS.Create(path)
	return p.file(f, path), p.note("create", path, err)
}

func (p *pointFS) OpenWrite(path string) (disk.File, error) {
	f, err := p.FS.OpenWrite(path)
	return p.file(f, path), p.note("open", path, err)
}

func (p *pointFS) Rename(from, to string) error {
	return p.note("rename from "+map[bool]string{true: "spare", false: "other"}[strings.HasSuffix(from, spareName)], to, p.FS.Rename(from, to))
}
func (p *pointFS) Remove(path string) error  { return p.note("remove", path, p.FS.Remove(path)) }
func (p *pointFS) SyncDir(path string) error { return p.note("syncdir", path, p.FS.SyncDir(path)) }

func (p *pointFS) file(f disk.File, path string) disk.File {
	if f == nil {
		return nil
	}
	return &pointFile{f, p, path}
}

type pointFile struct {
	disk.File
	fs   *pointFS
	path string
}

func (f *pointFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, f.fs.note("write", f.path, err)
}

func (f *pointFile) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(b, at)
	return n, f.fs.note("write", f.path, err)
}
func (f *pointFile) Sync() error     { return f.fs.note("sync", f.path, f.File.Sync()) }
func (f *pointFile) Datasync() error { return f.fs.note("datasync", f.path, f.File.Datasync()) }
func (f *pointFile) Preallocate(n int64) error {
	return f.fs.note("preallocate", f.path, f.File.Preallocate(n))
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

// heldFS makes some calls wait until it is released.
type heldFS struct {
	disk.FS
	mu   sync.Mutex
	held chan struct{} // closed by release; nil: nothing is held
	what []string
}

// hold makes calls wait: "remove", "rename SUFFIX" of the old name, "datasync", "sync", "syncdir", "create".
func (h *heldFS) hold(what ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held, h.what = make(chan struct{}), what
}

func (h *heldFS) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held != nil {
		close(h.held)
		h.held = nil
	}
}

func (h *heldFS) wait(what, path string) {
	h.mu.Lock()
	held := h.held
	if !slices.ContainsFunc(h.what, func(w string) bool {
		name, suffix, _ := strings.Cut(w, " ")
		return name == what && strings.HasSuffix(path, suffix)
	}) {
		held = nil
	}
	h.mu.Unlock()
	if held != nil {
		<-held
	}
}

func (h *heldFS) Create(path string) (disk.File, error) {
	h.wait("create", path)
	f, err := h.FS.Create(path)
	return h.file(f, path), err
}

func (h *heldFS) OpenWrite(path string) (disk.File, error) {
	f, err := h.FS.OpenWrite(path)
	return h.file(f, path), err
}

func (h *heldFS) Rename(from, to string) error {
	h.wait("rename", from)
	return h.FS.Rename(from, to)
}

func (h *heldFS) Remove(path string) error {
	h.wait("remove", path)
	return h.FS.Remove(path)
}

func (h *heldFS) SyncDir(path string) error {
	h.wait("syncdir", path)
	return h.FS.SyncDir(path)
}

func (h *heldFS) file(f disk.File, path string) disk.File {
	if f == nil {
		return nil
	}
	return &heldFile{f, h, path}
}

type heldFile struct {
	disk.File
	fs   *heldFS
	path string
}

func (f *heldFile) Sync() error {
	f.fs.wait("sync", f.path)
	return f.File.Sync()
}

func (f *heldFile) Datasync() error {
	f.fs.wait("datasync", f.path)
	return f.File.Datasync()
}
