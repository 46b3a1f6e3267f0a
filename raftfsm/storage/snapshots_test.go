package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

func (g *rig) snapPath(id string) string {
	return filepath.Join(g.node.snapshotDir(testGroup), id+snapshotSuffix)
}

func TestSnapshotRoundTrip(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		r := g.open()
		for i, size := range []int{0, 1, blockBytes - 1, blockBytes, blockBytes + 1, 3*blockBytes + 17} {
			state := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
			index := uint64(10 * (i + 1))
			sink := createSnapshot(t, r, index, 2)
			for rest := state; len(rest) > 0; {
				n := min(len(rest), 10_007)
				_, err := sink.Write(rest[:n])
				must(t, err)
				rest = rest[n:]
			}
			must(t, sink.Close())
			must(t, sink.Close()) // raft and the FSM both do
			must(t, sink.Cancel())
			if _, err := sink.Write([]byte("x")); err == nil {
				t.Fatal("written after the end")
			}
			for range 2 {
				got, err := readSnapshot(t, r, sink.ID())
				must(t, err)
				if got != string(state) {
					t.Fatalf("%d bytes of state came back as %d others", size, len(got))
				}
				metas, err := r.Snapshots.List()
				must(t, err)
				m := metas[0]
				if m.ID != sink.ID() || m.Index != index || m.Term != 2 || m.Version != raft.SnapshotVersionMax || m.ConfigurationIndex != 1 ||
					m.Size != int64(size) || fmt.Sprint(m.Configuration) != fmt.Sprint(testServers) {
					t.Fatalf("meta %+v", m)
				}
				r = g.restart()
			}
		}
	})
}

func TestSnapshotsKept(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	must(t, r.Log.StoreLogs(entries(1, 50, 1)))
	if index, all := r.Snapshots.oldestOfAll(); index != 0 || all {
		t.Fatal("an oldest snapshot of none")
	}
	first := takeSnapshot(t, r, 10, 1)
	takeSnapshot(t, r, 20, 1)
	takeSnapshot(t, r, 20, 1) // another at the same index, as RecoverCluster makes
	wantListed(t, r, "20@1 20@1 ")
	takeSnapshot(t, r, 30, 1)
	wantListed(t, r, "30@1 20@1 ")
	if index, all := r.Snapshots.oldestOfAll(); index != 20 || !all {
		t.Fatalf("oldest %d, all %v", index, all)
	}
	_, err := r.Snapshots.Create(1, 29, 1, testServers, 1, nil)
	wantErr(t, err, ErrSnapshotOld)
	_, _, err = r.Snapshots.Open(first)
	wantErr(t, err, fs.ErrNotExist)
	infos, err := g.cfg.FS.ReadDir(g.node.snapshotDir(testGroup))
	must(t, err)
	if len(infos) != 2 {
		t.Fatalf("files %v", infos)
	}
	r = g.restart()
	wantListed(t, r, "30@1 20@1 ")
	if got := r.Stable.MinIndex(); got != 30 {
		t.Fatalf("minimum index %d", got)
	}
}

// A local snapshot that is overtaken by an install while it is written must not take raft back.
func TestOvertakenSnapshotIsRefused(t *testing.T) {
	r := newMemoryRig(t).open()
	slow := createSnapshot(t, r, 10, 1)
	takeSnapshot(t, r, 20, 1)
	wantErr(t, slow.Close(), ErrSnapshotOld)
	wantErr(t, slow.Close(), ErrSnapshotOld)
	wantListed(t, r, "20@1 ")
}

func TestSnapshotLeftovers(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	takeSnapshot(t, r, 10, 1)
	unfinished := createSnapshot(t, r, 20, 1)
	cancelled := createSnapshot(t, r, 20, 1)
	must(t, cancelled.Cancel())
	wantErr(t, cancelled.Close(), errSinkEnded)
	other, err := g.node.Open(testGroup, testReplica+1)
	must(t, err)
	takeSnapshot(t, other, 99, 1)
	must(t, disk.WriteFileAtomic(g.cfg.FS, g.snapPath("notes"), []byte("mine")))

	r = g.restart()
	wantListed(t, r, "10@1 ")
	if _, err := g.cfg.FS.Stat(g.snapPath(unfinished.ID()) + asideSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the unfinished file: %v", err)
	}
	if again := takeSnapshot(t, r, 20, 1); again == unfinished.ID() {
		t.Fatal("a name was used twice")
	}
}

// Cut at each step of a snapshot, the next start finds the old one or the new one, whole, and a minimum index that it
// reaches.
func TestSnapshotCutAtEachStep(t *testing.T) {
	done := false
	for steps := 0; !done; steps++ {
		mem := disk.NewMem()
		g := newRig(t, Config{Dir: "/data", FS: mem, Memory: NewMemory(), SnapshotsKept: 1})
		r := g.open()
		setTerm(t, r, 1)
		takeSnapshot(t, r, 10, 1)
		must(t, g.node.Close())

		cut := disk.NewPowerCut(mem, steps)
		g.cfg.FS = cut
		if node, err := Open(g.cfg); err == nil {
			if r, err := node.Open(testGroup, testReplica); err == nil {
				done = snapshotOf(r, 20, bytes.Repeat([]byte("x"), 2*blockBytes)) == nil
			}
			_ = node.Close()
		}

		g.cfg.FS = cut.Left()
		g.start()
		r = g.open()
		must(t, r.Reconcile())
		metas, err := r.Snapshots.List()
		must(t, err)
		if len(metas) != 1 || (done && metas[0].Index != 20) {
			t.Fatalf("cut after %d steps: %s", steps, listed(t, r))
		}
		if got, err := readSnapshot(t, r, metas[0].ID); err != nil || len(got) != int(metas[0].Size) {
			t.Fatalf("cut after %d steps: %v", steps, err)
		}
		if steps > 100 {
			t.Fatal("never done")
		}
	}
}

func snapshotOf(r *Replica, index uint64, state []byte) error {
	sink, err := r.Snapshots.Create(raft.SnapshotVersionMax, index, 1, testServers, 1, nil)
	if err != nil {
		return err
	}
	if _, err := sink.Write(state); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Every flipped byte, every cut and every addition is found, and named by file and offset.
func TestSnapshotDamage(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	id := takeSnapshot(t, r, 10, 1)
	path := g.snapPath(id)
	good, err := disk.ReadFile(g.cfg.FS, path)
	must(t, err)
	must(t, verifySnapshot(g.cfg.FS, path))

	check := func(what string, data []byte, at int) {
		t.Helper()
		must(t, disk.WriteFileAtomic(g.cfg.FS, path, data))
		var damaged *SnapshotDamagedError
		if err := verifySnapshot(g.cfg.FS, path); !errors.As(err, &damaged) || !errors.Is(err, ErrSnapshotDamaged) {
			t.Fatalf("%s: %v", what, err)
		}
		if damaged.Path != path || damaged.Offset > int64(at) || !strings.Contains(damaged.Error(), path) {
			t.Fatalf("%s at %d: %v", what, at, damaged)
		}
	}
	for at := range good {
		for _, flip := range []byte{1, 0x80, 0xff} {
			data := bytes.Clone(good)
			data[at] ^= flip
			check("flip", data, at)
		}
	}
	for n := range good {
		check("cut", good[:n], n)
	}
	check("addition", append(bytes.Clone(good), 0), len(good))
}

// Blocks that are whole but in the wrong place, or of another snapshot, are damage too; each with the offset of
// the block.
func TestSnapshotBlocksOutOfPlace(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	write := func(index uint64) ([]byte, string) {
		sink := createSnapshot(t, r, index, 1)
		for _, c := range []byte("abc") {
			_, err := sink.Write(bytes.Repeat([]byte{c}, blockBytes))
			must(t, err)
		}
		must(t, sink.Close())
		data, err := disk.ReadFile(g.cfg.FS, g.snapPath(sink.ID()))
		must(t, err)
		return data, sink.ID()
	}
	one, _ := write(11)
	two, id := write(12)
	const block = blockHeadBytes + blockBytes
	head := len(two) - endBytes - 3*block
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	blockOf := func(data []byte, i int) []byte { return data[head+i*block : head+(i+1)*block] }
	end := two[len(two)-endBytes:]
	miscounted := bytes.Clone(end)
	binary.BigEndian.PutUint64(miscounted[4:], 3*blockBytes-1)
	binary.BigEndian.PutUint32(miscounted[12:], endSum(crc32.Checksum(two[:head-sumBytes], castagnoli), int64(head+3*block), 3*blockBytes-1))
	for what, c := range map[string]struct {
		data   []byte
		offset int
	}{
		"swapped":    {join(two[:head], blockOf(two, 0), blockOf(two, 2), blockOf(two, 1), end), head + block},
		"foreign":    {join(two[:head], blockOf(two, 0), blockOf(one, 1), blockOf(two, 2), end), head + block},
		"miscounted": {join(two[:len(two)-endBytes], miscounted), head + 3*block},
		"left out":   {join(two[:head], blockOf(two, 0), blockOf(two, 1), end), head + 2*block},
	} {
		must(t, disk.WriteFileAtomic(g.cfg.FS, g.snapPath(id), c.data))
		var damaged *SnapshotDamagedError
		if err := verifySnapshot(g.cfg.FS, g.snapPath(id)); !errors.As(err, &damaged) || damaged.Offset != int64(c.offset) {
			t.Errorf("%s: %v, want offset %d", what, err, c.offset)
		}
	}
}

// A format from the future is not damage: it must not be set aside.
func TestSnapshotFormat(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	path := g.snapPath(takeSnapshot(t, r, 10, 1))
	data, err := disk.ReadFile(g.cfg.FS, path)
	must(t, err)
	must(t, r.Close())
	must(t, disk.WriteFileAtomic(g.cfg.FS, path, withFormat(data, snapshotFormat+1)))
	_, err = g.node.Open(testGroup, testReplica)
	wantErr(t, err, ErrSnapshotFormat)
}

// Damage that is only met while a snapshot is sent or restored ends the read with an error, never with io.EOF, and
// the snapshot before takes its place.
func TestDamageFoundWhileReading(t *testing.T) {
	g := newMemoryRig(t)
	r := g.open()
	must(t, r.Log.StoreLogs(entries(1, 50, 1)))
	takeSnapshot(t, r, 10, 1)
	sink := createSnapshot(t, r, 20, 1)
	_, err := sink.Write(bytes.Repeat([]byte("x"), 3*blockBytes))
	must(t, err)
	must(t, sink.Close())
	path := g.snapPath(sink.ID())
	data, err := disk.ReadFile(g.cfg.FS, path)
	must(t, err)
	data[len(data)-endBytes-1] ^= 1
	must(t, disk.WriteFileAtomic(g.cfg.FS, path, data))

	_, source, err := r.Snapshots.Open(sink.ID())
	must(t, err)
	n, err := io.Copy(io.Discard, source)
	wantErr(t, err, ErrSnapshotDamaged)
	if n != 2*blockBytes {
		t.Fatalf("%d bytes were given out before the damaged block", n)
	}
	must(t, source.Close())
	wantListed(t, r, "10@1 ")
	if _, err := g.cfg.FS.Stat(path + damagedSuffix); err != nil {
		t.Fatal(err)
	}
	setTerm(t, r, 1)
	r = g.restart()
	must(t, r.Reconcile())
	wantListed(t, r, "10@1 ")
}
