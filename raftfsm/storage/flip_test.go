package storage

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// raceDetector is set in builds with -race.
var raceDetector bool

// Bytes flipped anywhere in either records file: the replica comes back with its vote, or it doesn't come back. bolt
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
	files := []string{filepath.Join(walDir, "votes.bolt"), filepath.Join(metaDir, "meta.bolt")}
	var good [2][]byte
	for i, file := range files {
		good[i] = readTestFile(t, filepath.Join(g.cfg.Dir, file))
	}
	g.start()
	cfg := g.cfg
	for round := range 60 {
		cfg.Dir = t.TempDir()
		node, err := Open(cfg)
		must(t, err)
		must(t, node.Close())
		for i, file := range files {
			data := bytes.Clone(good[i])
			if i == round%2 {
				data[rng.IntN(len(data))] ^= byte(1 + rng.IntN(255))
			}
			writeTestFile(t, filepath.Join(cfg.Dir, file), data)
		}
		if node, err = Open(cfg); err != nil {
			continue
		}
		if r, err := node.Open(testGroup, testReplica); err == nil {
			wantVote(t, r, 6, "n2/8")
		}
		must(t, node.Close())
	}
}
