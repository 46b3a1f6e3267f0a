package storage

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/wal"
	"github.com/ostraka-db/ostraka/shard"
)

// onDisk is the room that a file has on the disk, which may be less than its length.
func onDisk(t *testing.T, path string) (allocated, length int64) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Blocks * 512, info.Size()
}

// The files in meta/ have the room that votes and entries take, before they need it: when they are new, when they have
// grown, and when they are opened again.
func TestBoltHasRoom(t *testing.T) {
	dir := t.TempDir()
	g := newRig(t, Config{Dir: dir, NoSync: true})
	records, log := filepath.Join(dir, metaDir, "meta.bolt"), filepath.Join(dir, metaDir, "log-7.bolt")
	open := func() *Replica {
		r, err := g.node.Open(shard.MetaGroup, testReplica)
		must(t, err)
		return r
	}
	r := open()
	if allocated, _ := onDisk(t, records); allocated < recordsRoomBytes {
		t.Errorf("the records have %d bytes", allocated)
	}
	check := func(when string) {
		t.Helper()
		must(t, r.Log.Full())
		allocated, length := onDisk(t, log)
		used, err := boltUsed(log)
		must(t, err)
		if used > length || allocated < used+roomMargin {
			t.Fatalf("%s: of %d bytes %d are on the disk and %d are used", when, length, allocated, used)
		}
	}
	check("new")
	for index := uint64(1); ; index++ {
		e := entry(index, 1)
		e.Data = make([]byte, 100<<10)
		must(t, r.Log.Room(len(e.Data)))
		must(t, r.Log.StoreLog(e))
		check("growing")
		if used, _ := boltUsed(log); used > 3*entriesRoomBytes {
			break
		}
	}
	must(t, r.Close())
	r = open()
	check("again")

	// Where there is no room, entries are refused, with the reason. A file this large no filesystem here holds.
	if err := r.Log.Room(1 << 60 / entryPages); !errors.Is(err, wal.ErrNoSpace) {
		t.Errorf("%v", err)
	}
	check("after a refusal")
	must(t, r.Close())
}
