package storage

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// The expectations of raft-boltdb's own tests, on both backends.
func TestLogStore(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		r := g.open()
		wantBounds(t, r, "[0, 0]")
		wantNoEntry(t, r, 0)
		wantNoEntry(t, r, 1)
		must(t, r.Log.StoreLogs(nil))

		full := &raft.Log{Index: 1, Term: 4, Type: raft.LogConfiguration, Data: []byte("data"),
			Extensions: []byte("ext"), AppendedAt: time.Unix(1700000000, 5).UTC()}
		must(t, r.Log.StoreLog(full))
		must(t, r.Log.StoreLogs(entries(2, 5, 4)))
		wantBounds(t, r, "[1, 5]")
		wantNoEntry(t, r, 6)

		r = g.restart()
		wantBounds(t, r, "[1, 5]")
		var got raft.Log
		must(t, r.Log.GetLog(1, &got))
		if got.Index != 1 || got.Term != 4 || got.Type != full.Type || !bytes.Equal(got.Data, full.Data) ||
			!bytes.Equal(got.Extensions, full.Extensions) || !got.AppendedAt.Equal(full.AppendedAt) {
			t.Fatalf("read back %+v", got)
		}
		must(t, r.Log.DeleteRange(4, 5))
		wantBounds(t, r, "[1, 3]")
		wantNoEntry(t, r, 4)
		must(t, r.Log.StoreLogs(entries(4, 4, 5)))
		wantEntry(t, r, 4, 5)
		must(t, r.Log.DeleteRange(1, 4))
		wantBounds(t, r, "[0, 0]")
		must(t, r.Log.DeleteRange(1, 4))
		must(t, r.Log.StoreLogs(entries(1, 2, 6)))

		r = g.restart()
		wantBounds(t, r, "[1, 2]")
		wantEntry(t, r, 2, 6)
		wantNoEntry(t, r, 3)
		if got := g.fatalErrors(); got != nil {
			t.Fatal(got)
		}
	})
}

// Many entries over many bolt pages: a deletion must leave none behind, or a truncated tail would come back.
func TestDeleteRangeLeavesNothing(t *testing.T) {
	g := newRig(t, Config{Dir: t.TempDir(), NoSync: true, TailCacheBytes: 1})
	r := g.open()
	const n = 3000
	logs := entries(1, n, 1)
	for i, e := range logs {
		e.Data = make([]byte, i%700)
	}
	must(t, r.Log.StoreLogs(logs))
	must(t, r.Log.DeleteRange(1001, n))
	r = g.restart()
	wantBounds(t, r, "[1, 1000]")
	for i := uint64(1); i <= n; i++ {
		var e raft.Log
		if err := r.Log.entries.GetLog(i, &e); (err == nil) != (i <= 1000) {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
}

// Random appends, deletions of the three kinds, snapshots and restarts, against raft's in-memory store. With a tail cache
// of a few entries, reads come from both.
func TestLogModel(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		g.cfg.TailCacheBytes = 6 * entryOverheadBytes
		m := &logModel{t: t, rng: rng, g: g, r: g.restart(), want: raft.NewInmemStore(), next: 1, term: 1}
		for step := range 400 {
			did := m.step()
			m.compare(fmt.Sprintf("step %d: %s", step, did))
		}
	})
}

// logModel applies each operation to the log and, as DeleteRange's comment says, to the model.
type logModel struct {
	t    *testing.T
	rng  *rand.Rand
	g    *rig
	r    *Replica
	want *raft.InmemStore
	// next is the index to append at. It differs from the model's last only when that is empty.
	next, term uint64
	snapshots  []uint64 // kept, oldest first
}

func (m *logModel) bounds() (first, last uint64) {
	first, _ = m.want.FirstIndex()
	last, _ = m.want.LastIndex()
	return first, last
}

func (m *logModel) step() string {
	first, last := m.bounds()
	switch op := m.rng.IntN(10); {
	case op < 5 || first == 0:
		to := m.next + m.rng.Uint64N(8)
		m.term += m.rng.Uint64N(2)
		logs := entries(m.next, to, m.term)
		must(m.t, m.r.Log.StoreLogs(logs))
		must(m.t, m.want.StoreLogs(logs))
		did := fmt.Sprintf("append [%d, %d]", m.next, to)
		m.next = to + 1
		return did
	case op < 6:
		m.r = m.g.restart()
		return "restart"
	case op < 7:
		return m.snapshot(first, last)
	case op < 8:
		from := m.committed() + 1 + m.rng.Uint64N(4)
		if from > last || from <= first {
			return "nothing"
		}
		must(m.t, m.r.Log.DeleteRange(from, last))
		must(m.t, m.want.DeleteRange(from, last))
		m.next = from
		return fmt.Sprintf("truncate from %d", from)
	}
	to := first + m.rng.Uint64N(last-first+1)
	must(m.t, m.r.Log.DeleteRange(first, to))
	if upTo := m.compacted(to); upTo >= first {
		must(m.t, m.want.DeleteRange(first, upTo))
	}
	if to == last && len(m.snapshots) == 0 {
		must(m.t, m.want.DeleteRange(first, last))
		m.next = 1
	}
	return fmt.Sprintf("delete [%d, %d] of [%d, %d]", first, to, first, last)
}

func (m *logModel) committed() uint64 {
	if len(m.snapshots) == 0 {
		return 0
	}
	return m.snapshots[len(m.snapshots)-1]
}

// compacted is the last entry that a compaction up to to deletes.
func (m *logModel) compacted(to uint64) uint64 {
	if len(m.snapshots) < m.r.node.cfg.SnapshotsKept {
		return 0
	}
	return min(to, m.snapshots[0]-1)
}

func (m *logModel) snapshot(first, last uint64) string {
	from := max(first, m.committed())
	index := from + m.rng.Uint64N(last-from+1)
	var e raft.Log
	must(m.t, m.want.GetLog(index, &e))
	takeSnapshot(m.t, m.r, index, e.Term)
	m.snapshots = append(m.snapshots, index)
	if len(m.snapshots) > 2 {
		m.snapshots = m.snapshots[1:]
	}
	return fmt.Sprintf("snapshot at %d", index)
}

func (m *logModel) compare(after string) {
	m.t.Helper()
	first, last := m.bounds()
	if got, want := bounds(m.t, m.r), fmt.Sprintf("[%d, %d]", first, last); got != want {
		m.t.Fatalf("%s: the log is %s, want %s", after, got, want)
	}
	for i := range last + 3 {
		var got, want raft.Log
		gotErr, wantErr := m.r.Log.GetLog(i, &got), m.want.GetLog(i, &want)
		if wantErr != nil && len(m.snapshots) > 0 && i+1 == first {
			continue // the base is asked for in a test of its own
		}
		if gotErr != wantErr || got.Index != want.Index || got.Term != want.Term || !bytes.Equal(got.Data, want.Data) {
			m.t.Fatalf("%s: GetLog(%d): %+v, %v; want %+v, %v", after, i, got, gotErr, want, wantErr)
		}
	}
}

// install does what raft does with a snapshot from the leader.
func install(t *testing.T, r *Replica, index, term uint64) {
	t.Helper()
	takeSnapshot(t, r, index, term)
	if first, last := r.Log.bounds(); last > 0 {
		must(t, r.Log.DeleteRange(first, last))
	}
}

// After an install the entry before the next one must be known, or a retried append is refused for ever.
func TestGetLogAtTheBase(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		r := g.open()
		must(t, r.Log.StoreLogs(entries(1, 10, 1)))
		install(t, r, 50, 3)
		for range 2 {
			wantBounds(t, r, "[0, 0]")
			wantEntry(t, r, 50, 3)
			wantNoEntry(t, r, 49)
			wantNoEntry(t, r, 51)
			r = g.restart()
		}
		must(t, r.Log.StoreLogs(entries(51, 55, 3)))
		for range 2 {
			wantBounds(t, r, "[51, 55]")
			wantEntry(t, r, 50, 3)
			wantNoEntry(t, r, 49)
			r = g.restart()
		}
		// The base stays known when a newer snapshot was taken.
		takeSnapshot(t, r, 53, 3)
		wantEntry(t, r, 50, 3)
	})
}

// raft sends entries from index 1 on without asking what was before them; a made-up first entry would be replicated in
// place of the bootstrap configuration.
func TestGetLogNeverMakesUpTheFirstEntry(t *testing.T) {
	r := newMemoryRig(t).open()
	must(t, r.Log.StoreLogs(entries(1, 1, 1)))
	install(t, r, 1, 2)
	wantBounds(t, r, "[0, 0]")
	wantNoEntry(t, r, 1)
	must(t, r.Log.StoreLogs(entries(2, 3, 2)))
	wantNoEntry(t, r, 1)
}

func TestCompactionKeepsTheLogBackToTheOldestSnapshot(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		r := g.open()
		must(t, r.Log.StoreLogs(entries(1, 100, 1)))
		must(t, r.Log.DeleteRange(1, 50))
		wantBounds(t, r, "[1, 100]") // without a snapshot nothing may go

		takeSnapshot(t, r, 40, 1)
		must(t, r.Log.DeleteRange(1, 40))
		wantBounds(t, r, "[1, 100]") // nor before there are two
		takeSnapshot(t, r, 80, 1)
		must(t, r.Log.DeleteRange(1, 80))
		wantBounds(t, r, "[40, 100]")
		wantNoEntry(t, r, 39)
		takeSnapshot(t, r, 90, 1)
		wantListed(t, r, "90@1 80@1 ")
		must(t, r.Log.DeleteRange(40, 60))
		wantBounds(t, r, "[61, 100]")
		// Without trailing entries a compaction may cover the whole log; it is still one.
		takeSnapshot(t, r, 100, 1)
		must(t, r.Log.DeleteRange(61, 100))
		wantBounds(t, r, "[90, 100]")
		wantEntry(t, g.restart(), 90, 1)
	})
}

func TestInstallClearsALogThatDoesNotAgree(t *testing.T) {
	for _, c := range []struct {
		name        string
		last, term  uint64 // of the log
		index, of   uint64 // of the snapshot
		wantBounds  string
		wantListing string
	}{
		{"shorter", 30, 1, 50, 2, "[0, 0]", "50@2 "},
		{"divergent", 60, 1, 50, 2, "[0, 0]", "50@2 "},
		// A late install over a log that goes on from the snapshot must not take what was vouched for.
		{"agreeing", 60, 2, 50, 2, "[10, 60]", "50@2 10@2 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBothBackends(t, func(t *testing.T, g *rig) {
				r := g.open()
				must(t, r.Log.StoreLogs(entries(1, c.last, c.term)))
				takeSnapshot(t, r, 10, c.term)
				install(t, r, c.index, c.of)
				wantBounds(t, r, c.wantBounds)
				wantListed(t, r, c.wantListing)
				r = g.restart()
				wantBounds(t, r, c.wantBounds)
				wantListed(t, r, c.wantListing)
			})
		})
	}
}

func TestClear(t *testing.T) {
	r := newMemoryRig(t).open()
	must(t, r.Log.Clear())
	must(t, r.Log.StoreLogs(entries(1, 10, 1)))
	takeSnapshot(t, r, 5, 1)
	must(t, r.Log.Clear())
	wantBounds(t, r, "[0, 0]")
	must(t, r.Log.StoreLogs(entries(6, 7, 1)))
}

// raft's idea of its last entry can be wrong (raft#697); no gap may come of it.
func TestGapsAreRefused(t *testing.T) {
	for name, do := range map[string]func(*Log) error{
		"after the end":     func(l *Log) error { return l.StoreLogs(entries(12, 12, 1)) },
		"before the end":    func(l *Log) error { return l.StoreLogs(entries(10, 11, 1)) },
		"within":            func(l *Log) error { return l.StoreLogs([]*raft.Log{entry(11, 1), entry(13, 1)}) },
		"empty, above base": func(l *Log) error { return errors.Join(l.Clear(), l.StoreLogs(entries(7, 7, 1))) },
		"hole":              func(l *Log) error { return l.DeleteRange(3, 5) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newMemoryRig(t)
			r := g.open()
			must(t, r.Log.StoreLogs(entries(1, 10, 1)))
			takeSnapshot(t, r, 5, 1)
			wantErr(t, do(r.Log), ErrLogGap)
			g.wantFatal(ErrLogGap)
		})
	}
}

func TestLastVisible(t *testing.T) {
	kinds := func(r *Replica, from uint64, text string) {
		for i, c := range text {
			e := entry(from+uint64(i), 1)
			e.Type = map[rune]raft.LogType{'c': raft.LogCommand, 'n': raft.LogNoop, 'b': raft.LogBarrier, 'f': raft.LogConfiguration}[c]
			must(t, r.Log.StoreLog(e))
		}
	}
	check := func(r *Replica, want map[uint64]uint64) {
		t.Helper()
		for index, visible := range want {
			if got := r.Log.LastVisible(index); got != visible {
				t.Errorf("LastVisible(%d) is %d, want %d", index, got, visible)
			}
		}
	}
	onBothBackends(t, func(_ *testing.T, g *rig) {
		r := g.open()
		check(r, map[uint64]uint64{0: 0, 5: 0})
		kinds(r, 1, "fnbccnb")
		check(r, map[uint64]uint64{0: 0, 1: 1, 2: 1, 3: 1, 4: 4, 5: 5, 6: 5, 7: 5, 8: 5})
		r = g.restart() // what a former life appended is read from the log
		check(r, map[uint64]uint64{0: 0, 1: 1, 3: 1, 4: 4, 7: 5})
		kinds(r, 8, "nb")
		check(r, map[uint64]uint64{9: 5, 8: 5, 4: 4})
		must(t, r.Log.DeleteRange(6, 9))
		kinds(r, 6, "cncnb")
		check(r, map[uint64]uint64{5: 5, 6: 6, 7: 6, 8: 8, 9: 8, 10: 8})
		must(t, r.Log.DeleteRange(9, 10))
		kinds(r, 9, "cn")
		check(r, map[uint64]uint64{9: 9, 10: 9})
		takeSnapshot(t, r, 6, 1)
		takeSnapshot(t, r, 7, 1)
		must(t, r.Log.DeleteRange(1, 7))
		wantBounds(t, r, "[6, 10]")
		check(r, map[uint64]uint64{7: 6, 10: 9})
		install(t, r, 20, 2) // after it, no-ops only: everything visible is in the snapshot
		kinds(r, 21, "nb")
		check(r, map[uint64]uint64{20: 0, 21: 0, 22: 0})
		kinds(r, 23, "c")
		check(r, map[uint64]uint64{22: 0, 23: 23})
		check(g.restart(), map[uint64]uint64{22: 0, 23: 23})
	})
}

func TestAppendedBytes(t *testing.T) {
	r := newMemoryRig(t).open()
	must(t, r.Log.StoreLog(&raft.Log{Index: 1, Term: 1, Data: make([]byte, 1000)}))
	if got := r.Log.AppendedBytes(); got != 1000+entryOverheadBytes {
		t.Fatalf("%d bytes", got)
	}
	must(t, r.Log.DeleteRange(1, 1))
	must(t, r.Log.StoreLog(&raft.Log{Index: 1, Term: 1}))
	if got := r.Log.AppendedBytes(); got != 1000+2*entryOverheadBytes {
		t.Fatalf("%d bytes", got)
	}
}

// What a log holds beyond the newest snapshot counts in the next life, too.
func TestAppendedBytesAfterARestart(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	for index := range uint64(10) {
		must(t, r.Log.StoreLog(&raft.Log{Index: index + 1, Term: 1, Data: make([]byte, 1000)}))
	}
	between := func(low, high uint64) {
		t.Helper()
		r = g.restart()
		if got := r.Log.AppendedBytes(); got < low || got > high {
			t.Errorf("%d bytes, want %d to %d", got, low, high)
		}
	}
	between(10_000, 11_000)
	takeSnapshot(t, r, 7, 1)
	between(3_000, 3_300)
	takeSnapshot(t, r, 10, 1)
	between(0, 0)
}

// A short disk is relieved of all before the newest snapshot, which is kept back to the one before it otherwise.
func TestRelieve(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	must(t, r.Log.StoreLogs(entries(1, 20, 1)))
	must(t, r.Log.Relieve(3))
	wantBounds(t, r, "[1, 20]") // nothing else has them
	takeSnapshot(t, r, 5, 1)
	takeSnapshot(t, r, 15, 1)
	must(t, r.Log.DeleteRange(1, 12))
	wantBounds(t, r, "[5, 20]")
	must(t, r.Log.Relieve(3))
	wantBounds(t, r, "[13, 20]")
	must(t, r.Log.Relieve(100))
	wantBounds(t, r, "[13, 20]")
	r = g.restart()
	wantBounds(t, r, "[13, 20]")
	takeSnapshot(t, r, 20, 1)
	must(t, r.Log.Relieve(3))
	wantBounds(t, r, "[18, 20]")
}

// The cache may never exceed its bound, and must hold a gapless newest part of the log.
func TestTailCache(t *testing.T) {
	const bytesMax = 10_000
	c := tailCache{bytesMax: bytesMax}
	rng := rand.New(rand.NewPCG(1, 2))
	var last uint64
	for range 5000 {
		switch rng.IntN(20) {
		case 0:
			last -= rng.Uint64N(min(last, 20) + 1)
			c.truncate(last + 1)
		case 1:
			c.dropBefore(last - min(last, rng.Uint64N(30)))
		default:
			last++
			e := entry(last, 1)
			e.Data = make([]byte, rng.IntN(1000))
			if rng.IntN(100) == 0 {
				e.Data = make([]byte, 2*bytesMax)
			}
			c.append(e)
		}
		total, held := 0, len(c.entries)-c.head
		for i := range held {
			e, ok := c.get(last - uint64(i))
			if !ok || e.Index != last-uint64(i) {
				t.Fatalf("entry %d of %d cached is missing", last-uint64(i), held)
			}
			total += entryBytes(&e)
		}
		if total != c.bytes || total > bytesMax {
			t.Fatalf("%d bytes cached, %d counted, at most %d", total, c.bytes, bytesMax)
		}
		if _, ok := c.get(last - uint64(held)); ok {
			t.Fatal("more cached than there is")
		}
		for i, e := range c.entries[:cap(c.entries)] {
			if (i < c.head || i >= len(c.entries)) && e.Data != nil {
				t.Fatal("an evicted entry is kept alive")
			}
		}
	}
}

// faultyEntries fails or blocks writes.
type faultyEntries struct {
	entryStore
	fail  error
	block chan struct{}
}

func (f *faultyEntries) StoreLogs(logs []*raft.Log) error {
	if f.block != nil {
		<-f.block
	}
	if f.fail != nil {
		return f.fail
	}
	return f.entryStore.StoreLogs(logs)
}

// watched: by the node, as if these were bolt's.
func (f *faultyEntries) watched() bool { return false }

func (f *faultyEntries) truncate(from, last uint64) error {
	if f.fail != nil {
		return f.fail
	}
	return f.entryStore.truncate(from, last)
}

// countingEntries counts what is read.
type countingEntries struct {
	entryStore
	reads int
}

func (c *countingEntries) GetLog(index uint64, entry *raft.Log) error {
	c.reads++
	return c.entryStore.GetLog(index, entry)
}

// A log is opened without being read: the meta group's, whose copies are durable at once, needs no voters, and of a shard's
// the types are known.
func TestOpenReadsNoEntries(t *testing.T) {
	g := newRig(t, Config{Dir: t.TempDir(), NoSync: true})
	for _, group := range []shard.ID{shard.MetaGroup, testGroup} {
		r, err := g.node.Open(group, testReplica)
		must(t, err)
		must(t, r.Log.StoreLogs(entries(1, 100, 1)))
		counting := &countingEntries{entryStore: r.Log.entries}
		l, err := openLog(g.node, r.who, counting, r.Snapshots)
		must(t, err)
		if counting.reads > 0 || l.last != 100 {
			t.Errorf("group %d: %d entries were read, the log ends at %d", group, counting.reads, l.last)
		}
		must(t, r.Close())
	}
}

func TestWriteErrorIsFatal(t *testing.T) {
	broken := errors.New("input/output error")
	for name, do := range map[string]func(*Log) error{
		"StoreLogs":   func(l *Log) error { return l.StoreLogs(entries(11, 12, 1)) },
		"DeleteRange": func(l *Log) error { return l.DeleteRange(5, 10) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newMemoryRig(t)
			r := g.open()
			must(t, r.Log.StoreLogs(entries(1, 10, 1)))
			faulty := &faultyEntries{entryStore: r.Log.entries, fail: broken}
			r.Log.entries = faulty
			wantErr(t, do(r.Log), broken)
			g.wantFatal(broken)
			wantBounds(t, r, "[1, 10]")

			// A sync that succeeds after one that failed proves nothing: nothing is written any more.
			faulty.fail = nil
			wantErr(t, do(r.Log), broken)
			wantErr(t, r.Stable.SetUint64([]byte(keyCurrentTerm), 9), broken)
			if last, err := faulty.LastIndex(); last != 10 || err != nil {
				t.Fatalf("written after the failure: the log ends at %d, %v", last, err)
			}
			g.wantFatal(broken)
			wantEntry(t, r, 10, 1)
		})
	}
}

func TestHungDiskIsFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMemoryRig(t)
		r := g.open()
		faulty := &faultyEntries{entryStore: r.Log.entries, block: make(chan struct{})}
		r.Log.entries = faulty
		answer := make(chan error, 1)
		go func() { answer <- r.Log.StoreLogs(entries(1, 1, 1)) }()

		time.Sleep(10*time.Second - time.Millisecond) // virtual
		synctest.Wait()
		if got := g.fatalErrors(); got != nil {
			t.Fatalf("too early: %v", got)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		g.wantFatal(ErrStalled)
		// The write that comes back at last must not be answered with success.
		close(faulty.block)
		wantErr(t, <-answer, ErrStalled)
	})
}
