package storage

import (
	"errors"
	"io/fs"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// heldDisk is a Mem whose data syncs, the write-ahead log's, wait while it is held.
type heldDisk struct {
	*disk.Mem
	free chan struct{} // closed: they may end
}

func newHeldDisk() *heldDisk {
	d := &heldDisk{Mem: disk.NewMem(), free: make(chan struct{})}
	close(d.free)
	return d
}

func (d *heldDisk) hold()    { d.free = make(chan struct{}) }
func (d *heldDisk) release() { close(d.free) }

func (d *heldDisk) Create(path string) (disk.File, error)    { return d.file(d.Mem.Create(path)) }
func (d *heldDisk) OpenWrite(path string) (disk.File, error) { return d.file(d.Mem.OpenWrite(path)) }

func (d *heldDisk) file(f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return heldFile{f, d}, nil
}

type heldFile struct {
	disk.File
	disk *heldDisk
}

func (f heldFile) Datasync() error {
	<-f.disk.free
	return f.File.Datasync()
}

func configurationOf(index uint64, voters, nonvoters int) *raft.Log {
	var c raft.Configuration
	for i := range voters + nonvoters {
		s := raft.Server{ID: raft.ServerID(rune('a' + i)), Address: raft.ServerAddress(rune('a' + i))}
		if i >= voters {
			s.Suffrage = raft.Nonvoter
		}
		c.Servers = append(c.Servers, s)
	}
	return &raft.Log{Index: index, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)}
}

// waits runs do with the disk held, and tells whether it waited for it.
func waits(t *testing.T, d *heldDisk, do func() error) (waited bool) {
	t.Helper()
	synctest.Wait()
	d.hold()
	done := make(chan error, 1)
	go func() { done <- do() }()
	synctest.Wait()
	waited = len(done) == 0
	d.release()
	must(t, <-done)
	return waited
}

// StoreLogs waits for the disk where the leader's own copy may be a majority: with one voter, where the number is not known,
// and for each configuration. Truncating the latest brings the one before back.
func TestStoreLogsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newHeldDisk()
		g := newRig(t, Config{Dir: "/data", FS: d, Memory: NewMemory()})
		r := g.open()
		next := uint64(0)
		store := func(make func(index uint64) *raft.Log) func() error {
			next++
			e := make(next)
			return func() error { return r.Log.StoreLog(e) }
		}
		command := func(index uint64) *raft.Log { return entry(index, 1) }
		config := func(voters, nonvoters int) func(uint64) *raft.Log {
			return func(index uint64) *raft.Log { return configurationOf(index, voters, nonvoters) }
		}
		step := func(what string, want bool, do func() error) {
			t.Helper()
			if got := waits(t, d, do); got != want {
				t.Errorf("%s: waited %v", what, got)
			}
		}
		step("nothing is known", true, store(command))
		step("a configuration", true, store(config(1, 2)))
		step("one voter", true, store(command))
		step("the second voter's configuration", true, store(config(2, 0)))
		step("two voters", false, store(command))
		step("three voters' configuration", true, store(config(3, 0)))
		three := next
		step("three voters", false, store(command))
		step("back to one", true, store(config(1, 0)))
		step("one voter again", true, store(command))

		must(t, r.Log.DeleteRange(three+2, next)) // the last two are overruled
		next = three + 1
		step("three again", false, store(command))
		r = g.restart()
		step("three after a restart", false, store(command))

		// A snapshot's configuration counts where the log has none.
		takeSnapshot(t, r, next, 1) // of one voter and a non-voter
		must(t, r.Log.Clear())
		step("one voter by the snapshot", true, store(command))
		r = g.restart()
		step("and after a restart", true, store(command))
		if waits(t, d, r.Log.Clear) != true {
			t.Error("a clear did not wait")
		}
	})
}

// A snapshot gets its name only when all that the log has is durable.
func TestSnapshotWaitsForTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newHeldDisk()
		g := newRig(t, Config{Dir: "/data", FS: d, Memory: NewMemory()})
		r := g.open()
		must(t, r.Log.StoreLog(configurationOf(1, 3, 0)))
		synctest.Wait()
		d.hold()
		must(t, r.Log.StoreLogs(entries(2, 10, 1)))
		sink := createSnapshot(t, r, 10, 1)
		done := make(chan error, 1)
		go func() { done <- sink.Close() }()
		synctest.Wait()
		if len(done) > 0 {
			t.Error("it was finished before the log was durable")
		}
		if _, err := g.cfg.FS.Stat(g.snapPath(sink.ID())); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("published already: %v", err)
		}
		d.release()
		must(t, <-done)
		wantListed(t, r, "10@1 ")
	})
}
