package main

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is different (go test -rewrite writes it anew):\n%s", name, got)
	}
}

// sampleReport has everything that can be shown.
func sampleReport() *report {
	r := &report{
		Format: reportFormat, Began: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Verified: true, Repeated: 4,
		Settings: settings{Rounds: 2, DurationSeconds: 2.5, WarmUpSeconds: 1, Workloads: workloadNames, Callers: []int{64, 1024},
			Keys: 1000, KeySize: 16, ValueSize: 128, Nodes: 3, Seed: 9, NoiseMaxCores: 0.2},
		Machine: machine{Cores: 2, CPU: "Fast", Kernel: "6.1", MemoryMB: 4096, Go: "go1.26", FileSystem: "ext4", SyncP50: 91.4, SyncP99: 342, Commit: "abc123"},
		Systems: []systemReport{
			{Name: nameEtcd, facts: facts{Version: "3.7 (embedded)", Writes: "Put", Reads: "Get", Client: "8 connections", Settings: "none"},
				IdleCores: 0.02, Syncs: syncCount{Why: "strace is not installed"}},
			{Name: nameRedis, facts: facts{Version: "7.0", Writes: "SET", Reads: "GET", Client: "own", Settings: "aof", Caveat: "a <weak> promise"},
				Syncs: syncCount{Counted: true, Writes: 20, PerNode: []int{20, 3, 4}}},
			{Name: nameOstraka, facts: facts{Version: "v1, commit 1", Writes: "Set", Reads: "Get", Client: "one", Settings: "defaults", Shards: 3},
				IdleCores: 0.08, Syncs: syncCount{Counted: true, Writes: 20, PerNode: []int{20, 20, 19}}},
		},
		Missing: []missing{{"other", "it is elsewhere"}},
	}
	for round := 1; round <= 2; round++ {
		for i, callers := range r.Settings.Callers {
			scale := float64(round) * float64(i+1)
			r.Measurements = append(r.Measurements,
				measured(nameEtcd, writes, callers, round, 1000*scale, 12_345),
				measured(nameOstraka, writes, callers, round, 10_000*scale, 2345),
				measured(nameEtcd, reads, callers, round, 9000*scale, 999))
			none := measured(nameRedis, writes, callers, round, 0, 0)
			none.Errors, none.Error = 7, "refused"
			r.Measurements = append(r.Measurements, none)
		}
	}
	r.finish(true)
	return r
}

func TestTables(t *testing.T) {
	var b strings.Builder
	if err := writeTables(&b, sampleReport()); err != nil {
		t.Fatal(err)
	}
	golden(t, "tables.txt", b.String())

	early := sampleReport()
	early.Measurements, early.Verified = nil, false
	early.finish(false)
	b.Reset()
	if err := writeTables(&b, early); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); !strings.Contains(got, "INCOMPLETE: the run ended early, after 0 measurements") || strings.Contains(got, "|") {
		t.Errorf("of a run that measured nothing:\n%s", got)
	}
}

func TestNumbersInTables(t *testing.T) {
	for value, want := range map[float64]string{0.0714: "0.07", 3.14159: "3.14", 12.345: "12.3", 123.4: "123"} {
		if got := millis(value); got != want {
			t.Errorf("%g ms is %s, want %s", value, got, want)
		}
	}
	for value, want := range map[float64]string{0.344: "0.34", 9.994: "9.99", 12.34: "12.3"} {
		if got := factor(value); got != want {
			t.Errorf("× %g is %s, want %s", value, got, want)
		}
	}
}

func TestPlot(t *testing.T) {
	picture := drawPlot(sampleReport())
	golden(t, "plot.svg", string(picture))
	d := xml.NewDecoder(strings.NewReader(string(picture)))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
	}
	if s := string(picture); strings.Contains(s, "NaN") || strings.Contains(s, "Inf") {
		t.Error("a number in it is none")
	}
}

func TestWhereAnAxisEnds(t *testing.T) {
	for value, want := range map[float64]float64{0: 1, 1: 1, 1.01: 1.5, 21_000: 25_000, 0.07: 0.08, 81: 100, 9.9: 10} {
		if got := niceCeiling(value); got != want {
			t.Errorf("%g: %g, want %g", value, got, want)
		}
	}
}
