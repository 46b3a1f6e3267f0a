package e2e

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

const unicodeData = "testdata/unicode/UnicodeData.txt"

// A real data set is imported; the node that leads most shards is killed in the middle; what is exported at
// the end equals what was put in.
func TestImportUnicodeData(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms"}})
	at := []string{"--endpoints", strings.Join(c.Endpoints(), ",")}
	want := readUnicodeData(t)

	ctx, cancel := context.WithTimeout(testContext(t), 2*patience)
	defer cancel()
	importing := exec.CommandContext(ctx, binary, append([]string{"import", unicodeData, "--format", "csv", "--delimiter", ";",
		"--no-header", "--key-column", "1", "--value-column", "2", "--timeout", "30s", "--batch", "20", "--concurrency", "2"}, at...)...)
	var output strings.Builder
	importing.Stderr = &output
	if err := importing.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- importing.Wait() }()
	half := awaitKeys(t, c, ended, uint64(len(want)/4))
	id, shards := cluster.MostLeading(half)
	t.Logf("killing %s, which leads %d shards", id, shards)
	kill(t, c.Node(id))
	if err := <-ended; err != nil {
		t.Fatalf("import: %v\n%s", err, output.String())
	}
	restart(t, c.Node(id))

	status, stdout, stderr := ostraka(t, "", append([]string{"export", "--format", "tsv"}, at...)...)
	if status != 0 {
		t.Fatalf("export: status %d, %s", status, stderr)
	}
	compareExport(t, stdout, want)
	await(t, c, cluster.Converged)
}

// awaitKeys waits until the cluster holds that many keys while the import goes on.
func awaitKeys(t *testing.T, c *cluster.Cluster, ended <-chan error, keys uint64) *client.Status {
	t.Helper()
	return await(t, c, func(s *client.Status) bool {
		select {
		case err := <-ended:
			t.Fatalf("the import ended before anything could be killed: %v", err)
		default:
		}
		held := uint64(0)
		for _, sh := range s.Shards {
			held += sh.Keys
		}
		return held >= keys && cluster.Led(s)
	})
}

// readUnicodeData returns code point → name, the file's first two fields.
func readUnicodeData(t *testing.T) map[string]string {
	f, err := os.Open(filepath.FromSlash(unicodeData))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	records := make(map[string]string)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ";")
		records[fields[0]] = fields[1]
	}
	if err := lines.Err(); err != nil || len(records) < 34_000 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	return records
}

// compareExport holds an export of tab-separated keys and values, in key order, against what it should hold.
func compareExport(t *testing.T, stdout string, want map[string]string) {
	t.Helper()
	var keys []string
	for line := range strings.Lines(stdout) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(keys) == 0 && fields[0] == "key" {
			continue // the header
		}
		value, ok := want[fields[0]]
		if !ok || len(fields) < 2 || fields[1] != value {
			t.Fatalf("exported %q, want the value %q", line, value)
		}
		keys = append(keys, fields[0])
	}
	if len(keys) != len(want) {
		t.Errorf("%d records exported, %d imported", len(keys), len(want))
	}
	if !slices.IsSorted(keys) {
		t.Error("the export is not in key order")
	}
}

// The dev command runs a cluster one can use, and ends it whole.
func TestDev(t *testing.T) {
	// Three consecutive tens of ports that are free.
	base := freeBasePort(t)
	ctx, cancel := context.WithTimeout(testContext(t), patience)
	defer cancel()
	dev := exec.CommandContext(ctx, binary, "dev", "--base-port", base, "--data-dir", t.TempDir(), "--shards", "2")
	var output strings.Builder
	dev.Stderr = &output
	if err := dev.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		status, _, stderr := ostraka(t, "", "set", "k", "v", "--endpoints", "127.0.0.1:"+base, "--timeout", "2s")
		if status == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the cluster can't be used: %s\n%s", stderr, output.String())
		}
	}
	if err := dev.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := dev.Wait(); err != nil {
		t.Errorf("dev: %v\n%s", err, output.String())
	}
	if status, _, _ := ostraka(t, "", "get", "k", "--endpoints", "127.0.0.1:"+base, "--timeout", "1s"); status != 5 {
		t.Errorf("something still answers: status %d", status)
	}
}
