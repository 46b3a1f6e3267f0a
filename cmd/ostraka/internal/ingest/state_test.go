package ingest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

func TestStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := NewStateFile(path, "/in.csv", "csv", time.Hour)
	first, second := records.Position{Line: 3, Offset: 30, CRC: 5}, records.Position{Line: 4, Offset: 40, CRC: 6}
	if err := f.Keep(first, Counts{Records: 3}); err != nil {
		t.Fatal(err)
	}
	if err := f.Keep(second, Counts{Records: 4, Skipped: 1}); err != nil {
		t.Fatal(err)
	}
	read := func() State {
		t.Helper()
		s, err := NewStateFile(path, "/in.csv", "csv", 0).Resume()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := read(); s.Position != first {
		t.Errorf("within the period: got %+v, want the first", s)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if s := read(); s.Position != second || s.Counts != (Counts{Records: 4, Skipped: 1}) {
		t.Errorf("after Flush: got %+v", s)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	for range 2 { // the second time it is not there
		if err := f.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Resume(); !errors.Is(err, ErrNoState) {
		t.Errorf("after Remove: got %v", err)
	}
}

func TestStateFileRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	good := `{"format":1,"input":"/in.csv","options":"csv","position":{"line":1,"offset":2,"crc32c":3},"counts":{"records":1,"skipped":0}}`
	for name, text := range map[string]string{
		"another input":   `{"format":1,"input":"/other.csv","options":"csv"}`,
		"other options":   `{"format":1,"input":"/in.csv","options":"tsv"}`,
		"a later format":  `{"format":2,"input":"/in.csv","options":"csv"}`,
		"no JSON":         good[:20],
		"an empty file":   "",
		"a file of zeros": "\x00\x00\x00\x00",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := NewStateFile(path, "/in.csv", "csv", 0).Resume(); !errors.Is(err, ErrState) {
			t.Errorf("%s: got %v, want ErrState", name, err)
		}
	}
	if err := os.WriteFile(path, []byte(good), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := NewStateFile(path, "/in.csv", "csv", 0).Resume(); err != nil {
		t.Errorf("a good one: %v", err)
	}
}
