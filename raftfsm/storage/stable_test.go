package storage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func vote(r *Replica, term uint64, candidate string) error {
	if err := r.Stable.SetUint64([]byte(keyLastVoteTerm), term); err != nil {
		return err
	}
	return r.Stable.Set([]byte(keyLastVoteCand), []byte(candidate))
}

func wantVote(t *testing.T, r *Replica, term uint64, candidate string) {
	t.Helper()
	gotTerm, termErr := r.Stable.GetUint64([]byte(keyLastVoteTerm))
	got, err := r.Stable.Get([]byte(keyLastVoteCand))
	if termErr != nil || err != nil || gotTerm != term || string(got) != candidate {
		t.Fatalf("vote for %q in term %d (%v, %v); want %q in %d", got, gotTerm, err, termErr, candidate, term)
	}
}

func wantTerm(t *testing.T, r *Replica, term uint64) {
	t.Helper()
	if got, err := r.Stable.GetUint64([]byte(keyCurrentTerm)); got != term || err != nil {
		t.Fatalf("term %d, %v; want %d", got, err, term)
	}
}

func TestStableStore(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		r := g.open()
		for _, key := range []string{keyCurrentTerm, keyLastVoteTerm} {
			if _, err := r.Stable.GetUint64([]byte(key)); err == nil || err.Error() != "not found" {
				t.Fatalf("%s of a new replica: %v, raft wants \"not found\"", key, err)
			}
		}
		if _, err := r.Stable.Get([]byte(keyLastVoteCand)); err == nil || err.Error() != "not found" {
			t.Fatalf("candidate of a new replica: %v", err)
		}
		setTerm(t, r, 0) // raft does so at its first start
		if _, err := r.Stable.GetUint64([]byte(keyCurrentTerm)); err != ErrNotFound {
			t.Fatalf("term after storing 0: %v", err)
		}
		setTerm(t, r, 3)
		setTerm(t, r, 3)
		must(t, vote(r, 3, "n1/7"))
		wantVote(t, r, 3, "n1/7")

		r = g.restart()
		wantTerm(t, r, 3)
		wantVote(t, r, 3, "n1/7")
		setTerm(t, r, 5)
		must(t, vote(r, 5, "n2/8"))
		must(t, vote(r, 5, "n2/8"))
		r = g.restart()
		wantTerm(t, r, 5)
		wantVote(t, r, 5, "n2/8")

		other, err := g.node.Open(testGroup, testReplica+1)
		must(t, err)
		if _, err := other.Stable.GetUint64([]byte(keyCurrentTerm)); err != ErrNotFound {
			t.Fatalf("another replica sees the term: %v", err)
		}
		wantErr(t, r.Stable.Set([]byte("else"), nil), ErrUnknownKey)
		wantErr(t, r.Stable.SetUint64([]byte(keyLastVoteCand), 1), ErrUnknownKey)
		_, err = r.Stable.Get([]byte(keyCurrentTerm))
		wantErr(t, err, ErrUnknownKey)
		_, err = r.Stable.GetUint64([]byte("else"))
		wantErr(t, err, ErrUnknownKey)
	})
}

// A crash after the term of a vote was set and before the candidate must leave the former vote, whole (raft#661).
func TestVoteIsOneRecord(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		r := g.open()
		must(t, vote(r, 4, "rival"))
		must(t, r.Stable.SetUint64([]byte(keyLastVoteTerm), 9))
		wantVote(t, r, 4, "rival")
		r = g.restart()
		wantVote(t, r, 4, "rival")

		// The same candidate in the next term is another vote, which no skipped Set may lose: a rival in that term
		// would be given a second one.
		must(t, vote(r, 5, "rival"))
		r = g.restart()
		wantVote(t, r, 5, "rival")
		wantErr(t, vote(r, 5, "other"), ErrVoteLost)
	})
}

func TestNothingIsForgotten(t *testing.T) {
	for name, do := range map[string]func(*Replica) error{
		"lower term":                  func(r *Replica) error { return r.Stable.SetUint64([]byte(keyCurrentTerm), 4) },
		"vote in a lower term":        func(r *Replica) error { return vote(r, 3, "a") },
		"other candidate in the term": func(r *Replica) error { return vote(r, 5, "b") },
		"candidate without a term":    func(r *Replica) error { return r.Stable.Set([]byte(keyLastVoteCand), []byte("b")) },
		"term without a candidate":    func(r *Replica) error { return vote(r, 6, "") },
		"candidate after a staged one": func(r *Replica) error {
			return errors.Join(vote(r, 5, "a"), r.Stable.Set([]byte(keyLastVoteCand), []byte("b")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newMemoryRig(t)
			r := g.open()
			setTerm(t, r, 5)
			must(t, vote(r, 5, "a"))
			wantErr(t, do(r), ErrVoteLost)
			r = g.restart()
			wantTerm(t, r, 5)
			wantVote(t, r, 5, "a")
		})
	}
}

// copyState sets what a copy of a record holds: write n of it, or nothing for n = 0.
func copyState(c recordStore, n uint64, payload string) {
	if n > 0 {
		_ = c.set(testIdentity, recordVote, record{counter: n, payload: []byte(payload)}.encode(recordKey(testIdentity, recordVote)))
	}
}

var testIdentity = identity{testGroup, testReplica}

func newMemoryCopies() [2]recordStore {
	return [2]recordStore{&memoryRecords{values: make(map[string][]byte)}, &memoryRecords{values: make(map[string][]byte)}}
}

// Which disagreements of the two copies a crash leaves, and which are rot.
func TestRecordCopies(t *testing.T) {
	for _, c := range []struct {
		first, second               uint64 // how many writes each copy has seen
		firstPayload, secondPayload string
		want                        string // the payload, or what is wrong
		behind                      bool
	}{
		{0, 0, "", "", "", false},
		{1, 1, "a", "a", "a", false},
		{9, 9, "a", "a", "a", false},
		{1, 0, "a", "", "a", true},
		{9, 8, "b", "a", "b", true},
		{9, 9, "a", "b", "rot", false},
		{0, 1, "", "a", "rot", false},
		{2, 0, "a", "", "rot", false},
		{8, 9, "a", "b", "rot", false},
		{9, 7, "a", "b", "rot", false},
		{7, 9, "a", "b", "rot", false},
	} {
		t.Run(fmt.Sprintf("%d%s-%d%s", c.first, c.firstPayload, c.second, c.secondPayload), func(t *testing.T) {
			copies := newMemoryCopies()
			copyState(copies[0], c.first, c.firstPayload)
			copyState(copies[1], c.second, c.secondPayload)
			r, behind, err := readRecord(copies, testIdentity, recordVote)
			if c.want == "rot" {
				wantErr(t, err, ErrVoteRecordDamaged)
				return
			}
			if err != nil || string(r.payload) != c.want || behind != c.behind || r.counter != c.first {
				t.Fatalf("write %d: %q, behind %v, %v", r.counter, r.payload, behind, err)
			}
		})
	}
}

// failingCopy fails the set after so many of both copies together.
type failingCopy struct {
	recordStore
	left *int
}

var errSet = errors.New("no more sets")

func (c failingCopy) set(who identity, name string, value []byte) error {
	if *c.left == 0 {
		return errSet
	}
	*c.left--
	return c.recordStore.set(who, name, value)
}

// Cut at each write of a series of terms and votes, the replica comes back with the newest answered one or the one
// being written, never an older or mixed one, and goes on.
func TestVotesSurviveACrashAtEachWrite(t *testing.T) {
	const votes = 4
	for sets := range 4*votes + 1 {
		g := newMemoryRig(t)
		left := sets
		for i, c := range g.node.copies {
			g.node.copies[i] = failingCopy{c, &left}
		}
		r := g.open()
		answered := uint64(0)
		for term := uint64(1); term <= votes; term++ {
			if r.Stable.SetUint64([]byte(keyCurrentTerm), term) != nil || vote(r, term, fmt.Sprint("n", term)) != nil {
				break
			}
			answered = term
		}
		if (answered == votes) != (sets == 4*votes) {
			t.Fatalf("%d sets: answered %d", sets, answered)
		}
		for range 2 { // the second start finds what the first repaired
			r = g.restart()
			must(t, r.Reconcile())
			term, err := r.Stable.GetUint64([]byte(keyLastVoteTerm))
			if answered > 0 {
				must(t, err)
			}
			if term != answered && term != answered+1 {
				t.Fatalf("%d sets: vote in term %d after one in %d was answered", sets, term, answered)
			}
			if term > 0 {
				wantVote(t, r, term, fmt.Sprint("n", term))
				wantTermAtLeast(t, r, term)
			}
		}
		setTerm(t, r, votes+1)
		must(t, vote(r, votes+1, "next"))
		r = g.restart()
		wantVote(t, r, votes+1, "next")
	}
}

func wantTermAtLeast(t *testing.T, r *Replica, term uint64) {
	t.Helper()
	if got := r.Stable.currentTerm(); got < term {
		t.Fatalf("term %d, want at least %d", got, term)
	}
}

// Each flipped byte of each record in each copy is found, and the file named.
func TestFlippedVoteBytes(t *testing.T) {
	g := newMemoryRig(t)
	g.node.copies = newMemoryCopies()
	r := g.open()
	setTerm(t, r, 6)
	must(t, vote(r, 6, "n1/7"))
	must(t, r.Stable.raiseMinIndex(4))
	must(t, r.Close())
	for _, copied := range g.node.copies {
		c := copied.(*memoryRecords)
		for key, value := range c.values {
			for at := range value {
				for _, flip := range []byte{1, 0x80, 0xff} {
					c.values[key] = bytes.Clone(value)
					c.values[key][at] ^= flip
					_, err := g.node.Open(testGroup, testReplica)
					wantErr(t, err, ErrVoteRecordDamaged)
					if !errorNames(err, c.name()) {
						t.Fatalf("%v does not name %s", err, c.name())
					}
				}
			}
			for cut := range len(value) {
				c.values[key] = value[:cut]
				_, err := g.node.Open(testGroup, testReplica)
				wantErr(t, err, ErrVoteRecordDamaged)
			}
			c.values[key] = value
		}
	}
	wantVote(t, g.open(), 6, "n1/7")
}

// A record of another replica, or of another kind, doesn't pass for this one.
func TestRecordUnderAnotherKey(t *testing.T) {
	encoded := record{counter: 1, payload: []byte("a")}.encode("3/7/vote")
	if _, err := decodeRecord("3/8/vote", encoded); err == nil {
		t.Fatal("taken")
	}
}

// bolt falls back to its older meta page without a word when the newer is damaged. Here the file as it was before the
// last write stands for that: the first copy makes up for it.
func TestBoltFallsBackToAnOlderPage(t *testing.T) {
	g := newRig(t, Config{Dir: t.TempDir(), NoSync: true})
	path := filepath.Join(g.cfg.Dir, metaDir, "meta.bolt")
	must(t, vote(g.open(), 1, "a"))
	must(t, g.node.Close())
	before := readTestFile(t, path)
	g.start()
	must(t, vote(g.open(), 2, "b"))
	must(t, g.node.Close())
	writeTestFile(t, path, before)
	g.start()
	wantVote(t, g.open(), 2, "b")
}

// A write-ahead log that is gone takes the votes with it; the second copy tells.
func TestLostLogIsFound(t *testing.T) {
	g := newRig(t, Config{Dir: t.TempDir(), NoSync: true})
	must(t, vote(g.open(), 1, "a"))
	must(t, g.node.Close())
	must(t, os.RemoveAll(filepath.Join(g.cfg.Dir, walDir)))
	g.start()
	_, err := g.node.Open(testGroup, testReplica)
	wantErr(t, err, ErrVoteRecordDamaged)
}
