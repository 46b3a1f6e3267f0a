package storage

import (
	"encoding/binary"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/ostraka-db/ostraka/shard"
)

// An entry of the meta group's log that can't be read, or is gone from its middle, is found before raft runs, which would
// panic at it; one below the snapshot is of no use to raft, and found by who reads it.
func TestRottenMetaEntry(t *testing.T) {
	const last, snapshot = 9, 4
	for name, rot := range map[string]func(*bbolt.Bucket, []byte) error{
		"rotten": func(b *bbolt.Bucket, key []byte) error { return b.Put(key, []byte{0xc1, 0xc1, 0xc1}) },
		"gone":   func(b *bbolt.Bucket, key []byte) error { return b.Delete(key) },
	} {
		for index := uint64(2); index < last; index++ {
			g := newRig(t, Config{Dir: t.TempDir(), NoSync: true})
			r, err := g.node.Open(shard.MetaGroup, testReplica)
			must(t, err)
			must(t, r.Stable.SetUint64([]byte(keyCurrentTerm), 1))
			must(t, r.Log.StoreLogs(entries(1, last, 1)))
			takeSnapshot(t, r, snapshot, 1)
			must(t, r.Close())
			db, err := bbolt.Open(filepath.Join(g.cfg.Dir, metaDir, "log-7.bolt"), 0o600, nil)
			must(t, err)
			must(t, db.Update(func(tx *bbolt.Tx) error {
				return rot(tx.Bucket([]byte("logs")), binary.BigEndian.AppendUint64(nil, index))
			}))
			must(t, db.Close())
			r, err = g.node.Open(shard.MetaGroup, testReplica)
			must(t, err)
			err = r.Reconcile()
			switch {
			case index > snapshot && name == "rotten":
				wantErr(t, err, ErrLogDamaged)
			case index > snapshot:
				wantErr(t, err, ErrLogGap)
			case index < snapshot && name == "rotten":
				must(t, err)
				var e raft.Log
				wantErr(t, r.Log.GetLog(index, &e), ErrLogDamaged)
				wantErr(t, r.Log.Damage(), ErrLogDamaged)
			}
			must(t, r.Close())
		}
	}
}

// Half of the used pages of the meta group's log are rotten: it is found damaged, or it was of none of the pages in use and
// every entry is there. bolt panics at what it finds; the node must not.
func TestGarbledMetaLog(t *testing.T) {
	if raceDetector {
		t.Skip("-race brings checkptr, which ends the process where bolt follows a rotten offset; this runs without it")
	}
	found := 0
	for last := uint64(3); last < 40; last++ {
		g := newRig(t, Config{Dir: t.TempDir(), NoSync: true})
		r, err := g.node.Open(shard.MetaGroup, testReplica)
		must(t, err)
		must(t, r.Stable.SetUint64([]byte(keyCurrentTerm), 1))
		for i := uint64(1); i <= last; i++ {
			must(t, r.Log.StoreLog(entry(i, 1)))
		}
		must(t, r.Close())
		path := filepath.Join(g.cfg.Dir, metaDir, "log-7.bolt")
		b := readTestFile(t, path)
		used, err := boltUsed(path)
		must(t, err)
		for i := used / 4; i < 3*used/4; i++ {
			b[i] ^= 0x5a
		}
		writeTestFile(t, path, b)
		r, err = g.node.Open(shard.MetaGroup, testReplica)
		if err == nil {
			if err = r.Reconcile(); err == nil {
				for i := uint64(1); i <= last; i++ {
					wantEntry(t, r, i, 1)
				}
			}
			must(t, r.Close())
		}
		if err != nil {
			found++
			wantErr(t, err, ErrLogDamaged)
		}
	}
	if found == 0 {
		t.Error("nothing that is in use was garbled")
	}
}
