package ostraka_test

import (
	"go/build"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ostraka-db/ostraka/"

// mayImport is design.md's picture as a table: what each folder's code may import of this module. A folder's
// own subfolders are always allowed. Tests may import more, within testsMayImport.
var mayImport = map[string][]string{
	"cmd":     {"server", "client", "bench", "raftfsm/wal"},
	"bench":   {"client"},
	"server":  {"raftfsm", "store", "shard", "proto"},
	"raftfsm": {"store", "shard", "proto"},
	"client":  {"shard", "proto"},
	"store":   {},
	"shard":   {},
	"proto":   {},
	// The store alone, beside Redis.
	"bench/memory": {"store"},
	// A real node for users' own tests.
	"client/clienttest": {"server", "client", "shard", "proto"},
}

// onlyIn lists modules that only one folder may import: what they are must not leak above it.
var onlyIn = map[string]string{
	"github.com/hashicorp/raft":               "raftfsm",
	"github.com/hashicorp/raft-boltdb":        "raftfsm",
	"go.etcd.io/bbolt":                        "raftfsm",
	"github.com/vmihailenco/msgpack":          "raftfsm",
	"github.com/tidwall/btree":                "store",
	"github.com/spf13/cobra":                  "cmd",
	"github.com/prometheus":                   "server",
	"github.com/HdrHistogram/hdrhistogram-go": "bench",
}

// topFolders are all there may be.
var topFolders = []string{"bench", "client", "cmd", "deploy", "docs", "proto", "raftfsm", "server", "shard", "store"}

func TestImportsRunOneWay(t *testing.T) {
	packages := 0
	err := filepath.WalkDir(".", func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if name := entry.Name(); dir != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "data") {
			return fs.SkipDir
		}
		pkg, err := build.ImportDir(dir, 0)
		if err != nil {
			return nil // no Go files here
		}
		packages++
		folder := filepath.ToSlash(dir)
		for _, path := range pkg.Imports {
			if why := forbidden(folder, path); why != "" {
				t.Errorf("%s imports %s: %s", folder, path, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if packages < 8 {
		t.Fatalf("only %d packages were looked at", packages)
	}
}

// forbidden says why a folder's code may not import a path; empty: it may.
func forbidden(folder, path string) string {
	top, _, _ := strings.Cut(folder, "/")
	for prefix, owner := range onlyIn {
		if strings.HasPrefix(path, prefix) && top != owner {
			return "only " + owner + " may"
		}
	}
	imported, ours := strings.CutPrefix(path, module)
	if !ours {
		if top == "store" && strings.Contains(strings.Split(path, "/")[0], ".") && !strings.HasPrefix(path, "github.com/tidwall/btree") {
			return "store imports only the standard library and leaf data structures"
		}
		return ""
	}
	allowed, known := mayImport[folder]
	if !known {
		allowed, known = mayImport[top]
	}
	if !known {
		return "the folder is not in design.md"
	}
	for _, a := range append(slices.Clone(allowed), top) {
		if imported == a || strings.HasPrefix(imported, a+"/") {
			return ""
		}
	}
	return "imports run one way: " + top + " → " + strings.Join(allowed, ", ")
}

func TestForbiddenImportsAreFound(t *testing.T) {
	for _, c := range []struct{ folder, path string }{
		{"store", module + "shard"},
		{"store", "github.com/hashicorp/raft"},
		{"store", "google.golang.org/grpc"},
		{"client", module + "server"},
		{"server", module + "client"},
		{"server", "github.com/hashicorp/raft"},
		{"cmd/ostraka", module + "store"},
		{"bench", module + "server"},
		{"raftfsm/transport", module + "server"},
	} {
		if forbidden(c.folder, c.path) == "" {
			t.Errorf("%s may import %s", c.folder, c.path)
		}
	}
	if why := forbidden("raftfsm/transport", module+"shard"); why != "" {
		t.Error(why)
	}
}

func TestTopLevelFolders(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && e.Name() != "data" && !slices.Contains(topFolders, e.Name()) {
			t.Errorf("folder %s is not in design.md", e.Name())
		}
	}
}
