package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, fsys FS, path, data string) File {
	t.Helper()
	f, err := fsys.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, data); err != nil {
		t.Fatal(err)
	}
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, fsys FS, path, want string) {
	t.Helper()
	got, err := ReadFile(fsys, path)
	if err != nil || string(got) != want {
		t.Fatalf("%s holds %q, %v; want %q", path, got, err, want)
	}
}

func wantNone(t *testing.T, fsys FS, path string) {
	t.Helper()
	if _, err := fsys.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s: %v, want fs.ErrNotExist", path, err)
	}
}

// Both implementations must answer alike.
func TestFS(t *testing.T) {
	for name, open := range map[string]func(*testing.T) (FS, string){
		"OS":       func(t *testing.T) (FS, string) { return OS{}, t.TempDir() },
		"Mem":      func(*testing.T) (FS, string) { return NewMem(), "/" },
		"PowerCut": func(*testing.T) (FS, string) { return NewPowerCut(NewMem(), 1000), "." },
		"Hooked": func(*testing.T) (FS, string) {
			return NewHooked(NewMem(), func(Op, string) error { return nil }), "."
		},
	} {
		t.Run(name, func(t *testing.T) {
			fsys, root := open(t)
			at := func(name string) string { return filepath.Join(root, name) }

			must(t, MkdirAll(fsys, at("a/b")))
			must(t, MkdirAll(fsys, at("a/b")))
			f := write(t, fsys, at("a/b/one"), "hello")
			if _, err := io.WriteString(f, ", world"); err != nil {
				t.Fatal(err)
			}
			if size, err := f.Size(); size != 12 || err != nil {
				t.Fatalf("size %d, %v", size, err)
			}
			part := make([]byte, 5)
			if n, err := f.ReadAt(part, 7); n != 5 || err != nil || string(part) != "world" {
				t.Fatalf("ReadAt: %d, %v, %q", n, err, part)
			}
			if n, err := f.ReadAt(part, 9); n != 3 || err != io.EOF {
				t.Fatalf("ReadAt past the end: %d, %v", n, err)
			}
			must(t, f.Sync())
			must(t, f.Preallocate(20))
			must(t, f.Preallocate(5)) // never shortens
			if size, err := f.Size(); size != 20 || err != nil {
				t.Fatalf("size %d, %v", size, err)
			}
			must(t, f.Close())
			again, err := fsys.OpenWrite(at("a/b/one"))
			must(t, err)
			if n, err := again.WriteAt([]byte("W"), 7); n != 1 || err != nil {
				t.Fatalf("WriteAt: %d, %v", n, err)
			}
			must(t, again.Datasync())
			must(t, again.Close())
			wantFile(t, fsys, at("a/b/one"), "hello, World\x00\x00\x00\x00\x00\x00\x00\x00")
			f = write(t, fsys, at("a/b/one"), "hello, world")
			must(t, f.Close())
			if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
				t.Fatalf("second Close: %v", err)
			}
			wantFile(t, fsys, at("a/b/one"), "hello, world")

			must(t, write(t, fsys, at("a/b/two"), "2").Close())
			infos, err := fsys.ReadDir(at("a/b"))
			if got := fmt.Sprint(infos, err); got != "[{one 12 false} {two 1 false}] <nil>" {
				t.Fatalf("ReadDir: %s", got)
			}
			if infos, err := fsys.ReadDir(at("a")); err != nil || len(infos) != 1 || !infos[0].Dir || infos[0].Name != "b" {
				t.Fatalf("ReadDir: %v, %v", infos, err)
			}
			must(t, fsys.Rename(at("a/b/two"), at("a/b/one")))
			wantFile(t, fsys, at("a/b/one"), "2")
			wantNone(t, fsys, at("a/b/two"))
			must(t, fsys.SyncDir(at("a/b")))

			reader, err := fsys.Open(at("a/b/one"))
			must(t, err)
			if _, err := reader.Write([]byte("x")); err == nil {
				t.Fatal("a file opened for reading was written to")
			}
			if err := fsys.Remove(at("a/b")); err == nil {
				t.Fatal("a full directory was removed")
			}
			must(t, fsys.Remove(at("a/b/one")))
			if got, err := io.ReadAll(reader); string(got) != "2" || err != nil {
				t.Fatalf("a removed file that is still open holds %q, %v", got, err)
			}
			must(t, reader.Close())

			must(t, fsys.RemoveAll(at("a")))
			must(t, fsys.RemoveAll(at("a/b")))
			wantNone(t, fsys, at("a"))
			for what, err := range map[string]error{
				"Open":    errOf(fsys.Open(at("no"))),
				"Write":   errOf(fsys.OpenWrite(at("no"))),
				"Create":  errOf(fsys.Create(at("no/no"))),
				"ReadDir": errOf(fsys.ReadDir(at("no"))),
				"Rename":  fsys.Rename(at("no"), at("yes")),
				"Remove":  fsys.Remove(at("no")),
				"SyncDir": fsys.SyncDir(at("no")),
				"Mkdir":   fsys.Mkdir(at("no/no")),
			} {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s of what isn't there: %v", what, err)
				}
			}
			must(t, write(t, fsys, at("file"), "").Close())
			if err := MkdirAll(fsys, at("file")); err == nil {
				t.Error("MkdirAll over a file succeeded")
			}
			if err := fsys.Mkdir(at("file")); !errors.Is(err, fs.ErrExist) {
				t.Errorf("Mkdir over a file: %v", err)
			}
		})
	}
}

func errOf[T any](_ T, err error) error { return err }

// What a power cut leaves, step by step.
func TestCrash(t *testing.T) {
	m := NewMem()
	f := write(t, m, "f", "one")
	wantNone(t, m.Crash(), "f")
	must(t, m.SyncDir("/"))
	wantFile(t, m.Crash(), "f", "") // the name is there, the contents aren't
	must(t, f.Sync())
	_, err := io.WriteString(f, " two")
	must(t, err)
	wantFile(t, m.Crash(), "f", "one")
	wantFile(t, m, "f", "one two")
	must(t, f.Close())
	over, err := m.OpenWrite("f")
	must(t, err)
	must(t, over.Datasync())
	_, err = over.WriteAt([]byte("ONE"), 0)
	must(t, err)
	wantFile(t, m.Crash(), "f", "one two")
	must(t, over.Datasync())
	wantFile(t, m.Crash(), "f", "ONE two")
	_, err = over.WriteAt([]byte("one"), 0)
	must(t, err)
	must(t, write(t, m, "f", "").Close()) // emptied, not synced
	wantFile(t, m.Crash(), "f", "ONE two")
	must(t, write(t, m, "f", "one").Sync())

	g := write(t, m, "g", "synced contents, unsynced name")
	must(t, g.Sync())
	wantNone(t, m.Crash(), "g")
	must(t, m.Rename("g", "f"))
	wantFile(t, m.Crash(), "f", "one")
	must(t, m.SyncDir("/"))
	wantFile(t, m.Crash(), "f", "synced contents, unsynced name")

	must(t, m.Remove("f"))
	wantFile(t, m.Crash(), "f", "synced contents, unsynced name")
	must(t, m.SyncDir("/"))
	wantNone(t, m.Crash(), "f")

	must(t, m.Mkdir("d"))
	must(t, m.SyncDir("d"))
	wantNone(t, m.Crash(), "d")

	// A killed process leaves what it wrote, and a power cut after that what was synced.
	killed := m.Clone()
	must(t, write(t, m, "d/after", "").Close())
	wantNone(t, killed, "d/after")
	if info, err := killed.Stat("d"); err != nil || !info.Dir {
		t.Fatalf("%+v, %v", info, err)
	}
	wantNone(t, killed.Crash(), "d")

	// What a failed sync leaves looks well, and the next sync helps nothing.
	failed := write(t, m, "failed", "old")
	must(t, failed.Sync())
	must(t, m.SyncDir("/"))
	_, err = failed.WriteAt([]byte("new"), 0)
	must(t, err)
	must(t, m.SyncFailed("failed"))
	must(t, failed.Sync())
	wantFile(t, m, "failed", "new")
	wantFile(t, m.Crash(), "failed", "old")

	// A crashed copy is a filesystem of its own.
	must(t, write(t, m, "h", "h").Sync())
	must(t, m.SyncDir("/"))
	c := m.Crash()
	must(t, write(t, c, "h", "changed").Sync())
	wantFile(t, m, "h", "h")
	wantFile(t, c.Crash(), "h", "changed")
}

// What a harsher power cut leaves: any sectors of what was not synced, any of the changes of a directory.
func TestCrashTorn(t *testing.T) {
	m := NewMem()
	const sectors = 8
	f := write(t, m, "f", strings.Repeat("o", sectors*sectorBytes))
	must(t, f.Sync())
	must(t, m.SyncDir("/"))
	_, err := f.WriteAt([]byte(strings.Repeat("N", (sectors-1)*sectorBytes)), sectorBytes/2)
	must(t, err)
	must(t, write(t, m, "g", "g").Sync())
	seen := map[string]bool{}
	for i := range 200 {
		left := m.CrashTorn(rand.New(rand.NewPCG(1, uint64(i))))
		got, err := ReadFile(left, "f")
		must(t, err)
		for at := 0; at < len(got); at += sectorBytes / 2 { // halves, since the first and the last sector were written in part
			half := string(got[at : at+sectorBytes/2])
			written := at > 0 && at < len(got)-sectorBytes/2
			switch {
			case half == strings.Repeat("o", len(half)):
				seen[fmt.Sprint(at, " old")] = true
			case half == strings.Repeat("N", len(half)) && written:
				seen[fmt.Sprint(at, " new")] = true
			default:
				t.Fatalf("at %d: %q", at, half)
			}
			if at%sectorBytes != 0 && written && at > sectorBytes && got[at] != got[at-1] {
				t.Fatalf("the sector at %d is torn", at-sectorBytes/2)
			}
		}
		_, err = left.Stat("g")
		seen[fmt.Sprint("g ", err == nil)] = true
	}
	if want := 2*(2*sectors-2) + 2 + 2; len(seen) != want {
		t.Errorf("%d outcomes, want %d: %v", len(seen), want, seen)
	}
	must(t, f.Sync())
	must(t, m.SyncDir("/"))
	for i := range 20 {
		left := m.CrashTorn(rand.New(rand.NewPCG(2, uint64(i))))
		got, err := ReadFile(left, "f")
		must(t, err)
		if n := strings.Count(string(got), "N"); n != (sectors-1)*sectorBytes {
			t.Fatalf("after a sync, %d bytes are new", n)
		}
		wantFile(t, left, "g", "g")
	}
}

// A hook hears every call by the name that its file has now, and decides what becomes of it.
func TestHooked(t *testing.T) {
	var calls []string
	refused := errors.New("refused")
	m := NewMem()
	h := NewHooked(m, func(op Op, path string) error {
		calls = append(calls, fmt.Sprint(op, " ", path))
		if op == OpDatasync {
			return refused
		}
		return nil
	})
	f := write(t, h, "a", "x")
	must(t, h.Rename("a", "b"))
	must(t, f.Sync())
	if err := f.Datasync(); err != refused {
		t.Fatal(err)
	}
	must(t, f.Preallocate(10))
	_, err := f.ReadAt(make([]byte, 1), 0)
	must(t, err)
	must(t, h.SyncDir("/"))
	must(t, f.Close())
	if _, err := h.Open("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	want := "[create a write a rename a sync b datasync b preallocate b read b syncdir / open a]"
	if got := fmt.Sprint(calls); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	wantFile(t, m, "b", "x\x00\x00\x00\x00\x00\x00\x00\x00\x00")
}

// Cut at any step, the file holds the old contents or the new, and the new once the call has succeeded.
func TestWriteFileAtomic(t *testing.T) {
	done := false
	for steps := 0; !done; steps++ {
		m := NewMem()
		must(t, WriteFileAtomic(m, "f", []byte("old")))
		cut := NewPowerCut(m, steps)
		err := WriteFileAtomic(cut, "f", []byte("new"))
		got, readErr := ReadFile(cut.Left(), "f")
		must(t, readErr)
		switch done = err == nil; {
		case done && string(got) != "new":
			t.Fatalf("after success, a power cut leaves %q", got)
		case !done && !errors.Is(err, ErrPowerCut):
			t.Fatal(err)
		case string(got) != "old" && string(got) != "new":
			t.Fatalf("cut after %d steps: %q", steps, got)
		}
	}
}

func TestMkdirAllIsDurable(t *testing.T) {
	m := NewMem()
	must(t, MkdirAll(m, "/a/b/c"))
	info, err := m.Crash().Stat("/a/b/c")
	if err != nil || !info.Dir {
		t.Fatalf("%+v, %v", info, err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "LOCK")
	held, err := Lock(path)
	must(t, err)
	var locked *LockedError
	if _, err := Lock(path); !errors.Is(err, ErrLocked) || !errors.As(err, &locked) {
		t.Fatalf("second lock: %v", err)
	}
	if locked.PID != os.Getpid() || locked.Path != path {
		t.Fatalf("held by %+v", locked)
	}
	if pid, held := HeldBy(path); !held || pid != os.Getpid() {
		t.Fatalf("held: %v, by %d", held, pid)
	}
	must(t, held.Unlock())
	if pid, held := HeldBy(path); held {
		t.Fatalf("still held, by %d", pid)
	}
	if _, held := HeldBy(path + "not there"); held {
		t.Fatal("what isn't there is held")
	}

	again, err := Lock(path)
	must(t, err)
	defer again.Unlock()
	must(t, os.WriteFile(path, []byte("rubbish"), 0o600))
	if _, err := Lock(path); !errors.As(err, &locked) || locked.PID != 0 {
		t.Fatalf("with an unreadable pid: %v", err)
	}
}
