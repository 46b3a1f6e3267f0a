package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestImport(t *testing.T) {
	for _, test := range []struct {
		name, file, text, flags string
		code                    int
		want                    string // key=value of all that is stored
		errOut                  string
	}{
		{"jsonl by its name", "a.jsonl", `{"key":"a","value":"1"}`, "", 0, "a=1", "imported 1 records"},
		{"chosen columns", "a.csv", "id,x,name\n7,-,ann\n", "--key-column id --value-column 3", 0, "7=ann", "imported 1"},
		{"unicode data", "u.txt", "0041;LATIN CAPITAL LETTER A;Lu\n", "--format csv --delimiter ; --no-header --key-column 1 --value-column 2", 0,
			"0041=LATIN CAPITAL LETTER A", "imported 1"},
		{"tab as delimiter", "a.csv", "a\t\"1\"\n", `--delimiter \t --no-header`, 0, "a=1", ""},
		{"a bad line", "a.tsv", "key\tvalue\na\t1\nb\nc\t3\n", "", exitError, "a=1", "line 3: value: missing"},
		{"skip it", "a.tsv", "key\tvalue\na\t1\nb\nc\t3\n", "--on-error skip", 0, "a=1 c=3", "skipped: line 3: value: missing"},
		{"a long line", "a.tsv", "key\tvalue\na\t" + strings.Repeat("x", 200) + "\n", "--line-bytes-max 100", exitError, "", "line 2: record is too long"},
		{"no format", "a.dat", "", "", exitUsage, "", "say it with --format"},
		{"no such column", "a.csv", "k,v\n", "", exitUsage, "", `no column is named "key"`},
		{"long delimiter", "a.csv", "", "--delimiter ::", exitUsage, "", "delimiter must be one"},
		{"on-error", "a.csv", "", "--on-error ask", exitUsage, "", "--on-error is fail or skip"},
		{"batch", "a.csv", "", "--batch 0", exitUsage, "", "must be positive"},
		{"nothing to go on with", "a.csv", "key,value\n", "--resume", exitUsage, "", "no state of an earlier import"},
		{"summary as JSON", "a.tsv", "a\t1\n", "--no-header --json", 0, "a=1", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake()
			args := append([]string{"import", write(t, test.file, test.text)}, strings.Fields(test.flags)...)
			got := f.ostraka(t, "", nil, args...)
			var stored []string
			for _, key := range strings.Fields("a b c 7 0041") {
				if v, ok := f.data[key]; ok {
					stored = append(stored, fmt.Sprintf("%s=%s", key, v.Value))
				}
			}
			if got.code != test.code || strings.Join(stored, " ") != test.want || !strings.Contains(got.errOut, test.errOut) {
				t.Errorf("got %+v, stored %v; want code %d, %q, stderr %q", got, stored, test.code, test.want, test.errOut)
			}
			if strings.Contains(test.flags, "--json") && !strings.HasPrefix(got.out, `{"records":1,"skipped":0,"seconds":`) {
				t.Errorf("printed %q", got.out)
			}
		})
	}
}

func TestImportResumes(t *testing.T) {
	var text strings.Builder
	text.WriteString("key,value\n")
	for i := range 100 {
		fmt.Fprintf(&text, "k%03d,%d\n", i, i)
	}
	path := write(t, "in.csv", text.String())
	f := newFake()
	f.setsLeft = 45
	args := []string{"import", path, "--batch", "10", "--concurrency", "1"}
	if got := f.ostraka(t, "", nil, args...); got.code != exitError || !strings.Contains(got.errOut, "broken off after 40 records") {
		t.Fatalf("%+v", got)
	}

	again := newFake() // empty, so that it shows what the second run sends
	if got := again.ostraka(t, "", nil, append(args, "--resume", "--key-column", "1")...); got.code != exitUsage || !strings.Contains(got.errOut, "does not fit") {
		t.Errorf("with other options: %+v", got)
	}
	got := again.ostraka(t, "", nil, append(args, "--resume")...)
	if got.code != 0 || !strings.Contains(got.errOut, "going on behind line 41: 40 records are there") || !strings.Contains(got.errOut, "imported 60 records") {
		t.Fatalf("%+v", got)
	}
	if _, sent := again.data["k039"]; sent || len(again.data) != 60 {
		t.Errorf("sent %d records again or anew", len(again.data))
	}
	if _, err := os.Stat(path + ".import-state"); !os.IsNotExist(err) {
		t.Errorf("the state is left: %v", err)
	}
}

func TestImportFindsChangedFile(t *testing.T) {
	path := write(t, "in.tsv", "a\t1\nbad\n")
	f := newFake()
	f.ostraka(t, "", nil, "import", path, "--no-header")
	if err := os.WriteFile(path, []byte("a\t2\nb\t3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := f.ostraka(t, "", nil, "import", path, "--no-header", "--resume"); got.code != exitError || !strings.Contains(got.errOut, "the input has changed") {
		t.Errorf("%+v", got)
	}
}

func TestImportFromStdin(t *testing.T) {
	f := newFake()
	if got := f.ostraka(t, "a\t1\n", nil, "import", "-", "--format", "tsv", "--no-header"); got.code != 0 || len(f.data) != 1 {
		t.Errorf("%+v", got)
	}
	if got := f.ostraka(t, "", nil, "import", "-", "--format", "tsv", "--resume"); got.code != exitUsage || !strings.Contains(got.errOut, "--state FILE") {
		t.Errorf("%+v", got)
	}
}

func TestExportImportsBack(t *testing.T) {
	from := newFake()
	for _, s := range []string{"plain", "\xff\x00", "tab\t", "line\r\n", `"`, "日本", " "} {
		from.put([]byte(s), []byte(s+s), 0)
	}
	from.put([]byte("short-lived"), nil, time.Minute)
	for _, format := range []string{"jsonl", "csv", "tsv"} {
		exported := from.ostraka(t, "", nil, "export", "--format", format)
		to := newFake()
		if got := to.ostraka(t, exported.out, nil, "import", "-", "--format", format); got.code != 0 {
			t.Fatalf("%s: %+v", format, got)
		}
		for key, want := range from.data {
			if got := to.data[key]; string(got.Value) != string(want.Value) || got.TTL != want.TTL {
				t.Errorf("%s: %q is %+v, want %+v", format, key, got, want)
			}
		}
		if len(to.data) != len(from.data) {
			t.Errorf("%s: %d keys, want %d", format, len(to.data), len(from.data))
		}
	}
}
