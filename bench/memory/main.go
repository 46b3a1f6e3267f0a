// Command memory holds the store's memory engine beside Redis: the same keys and values in one process each, and of both what a key
// takes in resident memory and how long a restart from a snapshot takes. Of the store also what its operations, garbage
// collections and snapshots cost, and what is left of the memory after overwrites, deletes and expiries.
//
//	go run ./bench/memory                  4 million keys of 16 bytes, values of 128; about three minutes and 2 GB
//	go run ./bench/memory -keys 100000 -json
//
// Redis is started from the PATH on a loopback port, with persistence off but for one SAVE, and ended again; without it the store
// is measured alone. The store runs in processes of this program's own.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

type options struct {
	keys       int
	keyBytes   int
	valueBytes int
	writeRate  int
	json       bool
	child      string
	dir        string
}

// report is everything measured; JSON names are for scripts.
type report struct {
	Keys       int          `json:"keys"`
	KeyBytes   int          `json:"key_bytes"`
	ValueBytes int          `json:"value_bytes"`
	Store      storeFigure  `json:"store"`
	Load       loadFigure   `json:"store_load"`
	Churn      churnFigure  `json:"store_churn"`
	Redis      *redisFigure `json:"redis,omitempty"`
	RSSRatio   float64      `json:"rss_ratio,omitempty"`  // store's by Redis's
	LoadRatio  float64      `json:"load_ratio,omitempty"` // Redis's time by the store's
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("memory: ")
	var o options
	flag.IntVar(&o.keys, "keys", 4_000_000, "`number` of keys")
	flag.IntVar(&o.valueBytes, "value-size", 128, "`bytes` of a value")
	flag.IntVar(&o.writeRate, "write-rate", 100_000, "overwrites a `second` during the snapshot; 0: as many as go")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.StringVar(&o.child, "child", "", "for this program's own use")
	flag.StringVar(&o.dir, "dir", "", "`folder` for snapshots; by default a temporary one")
	flag.Parse()
	o.keyBytes = keyBytes
	if err := run(o); err != nil {
		log.Fatal(err)
	}
}

func run(o options) error {
	switch o.child {
	case "":
		return compare(o)
	case "fill":
		return printJSON(fillAndMeasure(o))
	case "load":
		return printJSON(loadAndMeasure(o))
	case "churn":
		return printJSON(churnAndMeasure(o))
	}
	return fmt.Errorf("no child %q", o.child)
}

func printJSON[T any](figure T, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(figure)
}

func compare(o options) error {
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "ostraka-memory-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.dir = dir
	}
	r := report{Keys: o.keys, KeyBytes: o.keyBytes, ValueBytes: o.valueBytes}
	for _, child := range []struct {
		name   string
		figure any
	}{{"fill", &r.Store}, {"load", &r.Load}, {"churn", &r.Churn}} {
		log.Printf("the store: %s", child.name)
		if err := o.runChild(child.name, child.figure); err != nil {
			return fmt.Errorf("%s: %w", child.name, err)
		}
	}
	if path, err := exec.LookPath("redis-server"); err == nil {
		log.Print("redis")
		figure, err := measureRedis(o, path)
		if err != nil {
			return fmt.Errorf("redis: %w", err)
		}
		r.Redis = &figure
		r.RSSRatio = r.Store.RSSBytesPerKey / figure.RSSBytesPerKey
		r.LoadRatio = figure.LoadSeconds / r.Load.Seconds
	}
	if o.json {
		return printJSON(r, nil)
	}
	r.print()
	return nil
}

// runChild runs this program in a process of its own, whose memory is that of one store.
func (o options) runChild(name string, figure any) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-child", name, "-dir", o.dir, "-keys", fmt.Sprint(o.keys), "-value-size", fmt.Sprint(o.valueBytes), "-write-rate", fmt.Sprint(o.writeRate))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	return json.Unmarshal(out, figure)
}

func (o options) snapshotPath() string { return filepath.Join(o.dir, "store.snapshot") }

func (r *report) print() {
	s := r.Store
	fmt.Printf("%d keys of %d bytes, values of %d\n\n", r.Keys, r.KeyBytes, r.ValueBytes)
	row := func(what, store, redis string) { fmt.Printf("| %-46s | %-24s | %-14s |\n", what, store, redis) }
	redis := func(format string, of func(*redisFigure) float64) string {
		if r.Redis == nil {
			return ""
		}
		return fmt.Sprintf(format, of(r.Redis))
	}
	row("", "store", "Redis")
	row(strings.Repeat("-", 46), strings.Repeat("-", 24), strings.Repeat("-", 14))
	row("resident bytes a key", fmt.Sprintf("%.0f", s.RSSBytesPerKey), redis("%.0f", func(f *redisFigure) float64 { return f.RSSBytesPerKey }))
	row("of them over key and value", fmt.Sprintf("%.0f", s.RSSBytesPerKey-float64(r.KeyBytes+r.ValueBytes)),
		redis("%.0f", func(f *redisFigure) float64 { return f.RSSBytesPerKey - float64(r.KeyBytes+r.ValueBytes) }))
	row("load of a snapshot, s", fmt.Sprintf("%.2f", r.Load.Seconds), redis("%.2f", func(f *redisFigure) float64 { return f.LoadSeconds }))
	row("resident bytes a key after it", fmt.Sprintf("%.0f", r.Load.RSSBytesPerKey), redis("%.0f", func(f *redisFigure) float64 { return f.LoadedRSSBytesPerKey }))
	row("resident by live data after churn", fmt.Sprintf("%.2f of %.0f MB", r.Churn.RSSRatio, r.Churn.LiveMB), "")
	row("insert, random overwrite, random get, ns", fmt.Sprintf("%.0f, %.0f, %.0f", s.InsertNs, s.OverwriteNs, s.GetNs), "")
	row("scan, million keys/s", fmt.Sprintf("%.1f", s.ScanMillion), "")
	row("collection: CPU ms, longest stop ms, heap MB", fmt.Sprintf("%.1f, %.2f, %.0f", s.GCCPUMs, s.GCPauseMs, s.HeapMB), "")
	row("snapshot: taking it µs, out MB/s", fmt.Sprintf("%.0f, %.0f", s.FreezeUs, s.SnapshotMBs), "")
	row("during it: writes/s, memory more", fmt.Sprintf("%.0f, %.1f %%", s.SnapshotWrites, s.SnapshotExtra*100), "")
	row("p99.9 of a write before and during it, µs", fmt.Sprintf("%.1f, %.1f", s.WriteP999Us, s.SnapshotP999Us), "")
	row("load of the same, MB/s", fmt.Sprintf("%.0f", r.Load.MBs), "")
	if r.Redis != nil {
		fmt.Printf("\nresident memory %.2f × Redis's, load %.1f × as fast\n", r.RSSRatio, r.LoadRatio)
	}
}
