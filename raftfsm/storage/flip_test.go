package storage

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// raceDetector is set in builds with -race.
var raceDetector bool

// Bytes flipped anywhere in the records file: the replica comes back with its vote, or it doesn't come back. bolt
// checks only its meta pages, so this is what two copies with checksums are for.
func TestFlippedBoltBytes(t *testing.T) {
	if raceDetector {
		t.Skip("-race brings checkptr, which ends the process where bolt follows a rotten offset; this runs without it")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	g := newRig(t, Config{Dir: t.TempDir(), NoSync: true})
	r := g.open()
	for term := uint64(1); term <= 5; term++ {
		setTerm(t, r, term)
		must(t, vote(r, term, "n1/7"))
	}
	must(t, vote(r, 6, "n2/8"))
	must(t, g.node.Close())
	path := filepath.Join(g.cfg.Dir, metaDir, "meta.bolt")
	good := readTestFile(t, path)
	defer writeTestFile(t, path, good)
	used, err := boltUsed(path)
	must(t, err)
	for range 60 {
		data := bytes.Clone(good)
		data[rng.Int64N(used)] ^= byte(1 + rng.IntN(255))
		writeTestFile(t, path, data)
		node, err := Open(g.cfg)
		if err != nil {
			continue
		}
		if r, err := node.Open(testGroup, testReplica); err == nil {
			wantVote(t, r, 6, "n2/8")
		}
		must(t, node.Close())
	}
}
