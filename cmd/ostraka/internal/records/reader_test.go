package records

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// transcript reads all of an input and writes what came of it: a line "key=value" a record, "! error" an error.
func transcript(t *testing.T, input string, o ReadOptions) []string {
	t.Helper()
	r, err := NewReader(iotest.OneByteReader(strings.NewReader(input)), o)
	if err != nil {
		return []string{"! " + err.Error()}
	}
	var out []string
	for {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			out = append(out, "! "+err.Error())
			if _, ok := errors.AsType[*LineError](err); !ok {
				return out
			}
			continue
		}
		line := fmt.Sprintf("%s=%s", record.Key, record.Value)
		if record.TTL != 0 {
			line += " ttl " + record.TTL.String()
		}
		out = append(out, line)
	}
}

func TestReader(t *testing.T) {
	csv := ReadOptions{Format: CSV}
	tests := []struct {
		name    string
		input   string
		options ReadOptions
		want    []string
	}{
		{"jsonl", `{"key":"a","value":"1"}` + "\n\r\n\n" + `{"key_base64":"/w==","value_base64":"AA=="}`, ReadOptions{Format: JSONLines},
			[]string{"a=1", "\xff=\x00"}},
		{"jsonl with more members and a TTL", `{"key":"a","x":[{}],"value":"","version":7,"ttl_ms":1500}`, ReadOptions{Format: JSONLines},
			[]string{"a= ttl 1.5s"}},
		{"jsonl after a BOM, with CRLF", "\xef\xbb\xbf{\"key\":\"a\",\"value\":\"1\"}\r\n", ReadOptions{Format: JSONLines}, []string{"a=1"}},
		{"jsonl, errors by line", "{\n" + `{"key":"a"}` + "\n" + `{"key":"","value":""}` + "\n" + `{"key":"a","key_base64":"YQ==","value":""}` + "\n" +
			`{"key":"a","value_base64":"%"}` + "\n" + `{"key":"a","value":"","ttl_ms":-1}` + "\n" + `{"key":"b","value":"2"}` + "\n",
			ReadOptions{Format: JSONLines}, []string{
				"! line 1: syntax: unexpected end of JSON input", `! line 2: missing: "value"`, "! line 3: the key is empty",
				`! line 4: given twice: "key" and "key_base64"`, `! line 5: "value_base64": syntax: base64: illegal base64 data at input byte 0`,
				`! line 6: syntax: ttl_ms "-1" is no positive number of milliseconds`, "b=2"}},
		{"jsonl never changes bytes silently", "{\"key\":\"\xff\",\"value\":\"\"}\n" + `{"key":"\ud800","value":""}` + "\n" + `{"key":"\ufffd","value":"�"}`,
			ReadOptions{Format: JSONLines}, []string{"! line 1: syntax: not UTF-8", `! line 2: "key": syntax: half of a surrogate pair in a \u escape`, "�=�"}},
		{"jsonl, chosen members", `{"id":7,"name":"x","ttl_ms":5}`, ReadOptions{Format: JSONLines, KeyColumn: "id", ValueColumn: "name"}, []string{"7=x"}},
		{"jsonl, whole line", `{"id":"k" }` + "\r\n", ReadOptions{Format: JSONLines, KeyColumn: "id", ValueColumn: "0"}, []string{`k={"id":"k" }`}},

		{"csv with the usual names", "value,key\n1,a\n", csv, []string{"a=1"}},
		{"csv with base64 and TTL", "key,value,key_base64,value_base64,version,ttl_ms\na,,,,3,\n,,/w==,AAE=,4,250\na,b,/w==,,1,\n", csv,
			[]string{"a=", "\xff=\x00\x01 ttl 250ms", "! line 4: key: given twice: in columns 1 and 3"}},
		{"csv quotes", "key,value\n\"a,\"\"b\",\"x\r\ny\n\"\r\nc,d\"e\n", csv, []string{"a,\"b=x\r\ny\n", `c=d"e`}},
		{"csv, a byte after a closing quote", "key,value\n\"a\"x,1\nb,2\n", csv, []string{"! line 2: syntax: byte 4 of the line follows a closing quote", "b=2"}},
		{"csv, an open quote", "key,value\na,1\n\"b,2\nc,3\n", csv, []string{"a=1", "! lines 3 to 4: syntax: a quoted field has no closing quote"}},
		{"csv, a short row", "key,value\na\nb,2\n", csv, []string{"! line 2: value: missing: column 2 of a row of 1", "b=2"}},
		{"csv, no such name", "k,value\na,1\n", csv, []string{`! no such column: no column is named "key"; the header has ["k" "value"]`}},
		{"csv, by name and number", "id,name,mail\n1,ann,a@x\n", ReadOptions{Format: CSV, KeyColumn: "mail", ValueColumn: "2"}, []string{"a@x=ann"}},
		{"csv, column out of the header", "a,b\n", ReadOptions{Format: CSV, KeyColumn: "3", ValueColumn: "1"}, []string{"! no such column: 3, the header has 2 columns"}},
		{"csv, name without header", "a,b\n", ReadOptions{Format: CSV, KeyColumn: "id", NoHeader: true}, []string{`! no such column: "id" is no number, and there is no header to look it up in`}},
		{"csv, no header, semicolons", "0041;LATIN CAPITAL LETTER A;Lu\n", ReadOptions{Format: CSV, NoHeader: true, Delimiter: ';', KeyColumn: "1", ValueColumn: "2"},
			[]string{"0041=LATIN CAPITAL LETTER A"}},
		{"csv, whole line", "0041;\"A\nB\";Lu\r\n", ReadOptions{Format: CSV, NoHeader: true, Delimiter: ';', ValueColumn: "0"}, []string{"0041=0041;\"A\nB\";Lu"}},
		{"csv, empty input", "", csv, nil},
		{"csv, letter as delimiter", "", ReadOptions{Format: CSV, Delimiter: 'x'}, []string{"! " + ErrDelimiter.Error()}},

		{"tsv escapes", "key\tvalue\na\\tb\tx\\ny\\\\z\\q\\\n", ReadOptions{Format: TSV}, []string{"a\tb=x\ny\\z\\q\\"}},
		{"tsv has no quotes", "\"a\t\"b\n", ReadOptions{Format: TSV, NoHeader: true}, []string{`"a="b`}},
		{"tsv with a delimiter", "", ReadOptions{Format: TSV, Delimiter: ';'}, []string{"! " + ErrDelimiter.Error() + ": a TSV has tabs; for another delimiter the format is csv"}},

		{"utf-16", "\xff\xfek\x00", csv, []string{"! " + ErrEncoding.Error()}},
		{"a long line is passed over", "a,1\n" + strings.Repeat("x", 100_000) + "\nb,2\n", ReadOptions{Format: CSV, NoHeader: true, LineBytesMax: 70_000},
			[]string{"a=1", "! line 2: record is too long: 100001 bytes, at most 70000 allowed", "b=2"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := transcript(t, test.input, test.options)
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", test.want) {
				t.Fatalf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// What is inside the quotes is then read as rows of their own; what counts is that memory is bounded and that the
// record is not taken for a good one.
func TestQuotedRecordIsBounded(t *testing.T) {
	input := "a,\"" + strings.Repeat("x\n", 50) + "\"\nb,2\n"
	got := transcript(t, input, ReadOptions{Format: CSV, NoHeader: true, LineBytesMax: 20})
	if len(got) == 0 || !strings.HasPrefix(got[0], "! lines 1 to 9: record is too long: over 20 bytes") {
		t.Fatalf("got %q", got)
	}
}

func TestReaderStopsWhenInputFails(t *testing.T) {
	broken := errors.New("broken pipe")
	input := io.MultiReader(strings.NewReader("a,1\nb,\"2\n"), iotest.ErrReader(broken))
	r, err := NewReader(input, ReadOptions{Format: CSV, NoHeader: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	_, err = r.Next()
	if _, ok := errors.AsType[*LineError](err); ok || !errors.Is(err, broken) {
		t.Fatalf("got %v, want the input's error alone", err)
	}
}

func TestPositionsResume(t *testing.T) {
	const input = "\xef\xbb\xbfkey,value\r\na,1\n\n\"b\",\"2\n3\"\nbad\nc,4"
	read := func(from *Position) (keys []string, at []Position) {
		r, err := NewReader(strings.NewReader(input), ReadOptions{Format: CSV})
		if err != nil {
			t.Fatal(err)
		}
		if from != nil {
			if err := r.SkipTo(*from); err != nil {
				t.Fatal(err)
			}
		}
		for {
			record, err := r.Next()
			if errors.Is(err, io.EOF) {
				return keys, at
			}
			if err == nil {
				keys = append(keys, string(record.Key))
			} else {
				keys = append(keys, err.Error())
			}
			at = append(at, r.Position())
		}
	}
	keys, at := read(nil)
	if len(keys) != 4 || at[1].Line != 5 || at[3].Offset != int64(len(input)) {
		t.Fatalf("keys %q, positions %v", keys, at)
	}
	for i := range at {
		rest, _ := read(&at[i])
		if fmt.Sprint(rest) != fmt.Sprint(keys[i+1:]) {
			t.Errorf("after record %d: got %q, want %q", i, rest, keys[i+1:])
		}
	}
}

func TestSkipToFindsChanges(t *testing.T) {
	open := func(input string) *Reader {
		r, err := NewReader(strings.NewReader(input), ReadOptions{Format: TSV, NoHeader: true})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := open("a\t1\nb\t2\n")
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	for _, changed := range []string{"a\t9\nb\t2\n", "a\t", ""} {
		if err := open(changed).SkipTo(r.Position()); !errors.Is(err, ErrChanged) {
			t.Errorf("%q: got %v, want ErrChanged", changed, err)
		}
	}
	if err := open("a\t1\nmore\tnow\n").SkipTo(r.Position()); err != nil {
		t.Errorf("a longer file: %v", err)
	}
}

func TestFormats(t *testing.T) {
	for name, want := range map[string]Format{"a.jsonl": JSONLines, "a.NDJSON": JSONLines, "x/y.csv": CSV, "a.b.tsv": TSV} {
		if got, err := FormatOfFile(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"a.txt", "-", "csv"} {
		if _, err := FormatOfFile(name); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want ErrFormat", name, err)
		}
	}
	if _, err := ParseFormat("xml"); !errors.Is(err, ErrFormat) {
		t.Errorf("xml: got %v", err)
	}
	if _, err := NewReader(strings.NewReader(""), ReadOptions{Format: "xml"}); !errors.Is(err, ErrFormat) {
		t.Errorf("reader of xml: got %v", err)
	}
}

// roundTrip writes records and reads them back.
func roundTrip(t *testing.T, f Format, in []Record) {
	t.Helper()
	var text strings.Builder
	w, err := NewWriter(&text, f)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range in {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(strings.NewReader(text.String()), ReadOptions{Format: f})
	if err != nil {
		t.Fatalf("%v in %q", err, text.String())
	}
	for i, want := range in {
		got, err := r.Next()
		if err != nil {
			t.Fatalf("record %d: %v in %q", i, err, text.String())
		}
		if string(got.Key) != string(want.Key) || string(got.Value) != string(want.Value) || got.TTL != want.TTL {
			t.Fatalf("record %d: got %+v, want %+v; text %q", i, got, want, text.String())
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the last record: %v", err)
	}
}

func TestRoundTrip(t *testing.T) {
	var all []Record
	for _, s := range []string{"a", " ", "\"", "\"\"", ",", ";", "\t", "\n", "\r", "\r\n", "a\r", "\\", "\\t", "\x00", "\xff", "é", "\u2028", "�", "\xef\xbb\xbf", "<&>", "key", "0"} {
		all = append(all, Record{Key: []byte(s), Value: []byte(s + s), Version: 9, TTL: 1500 * time.Millisecond})
		all = append(all, Record{Key: []byte(s + "x"), Value: nil})
	}
	for _, f := range []Format{JSONLines, CSV, TSV} {
		t.Run(string(f), func(t *testing.T) { roundTrip(t, f, all) })
		t.Run(string(f)+" of nothing", func(t *testing.T) { roundTrip(t, f, nil) })
	}
}

// FuzzReader feeds every decoder with anything: it must end, hold to its limit, count its lines, and what it
// understood must survive being written and read again.
func FuzzReader(f *testing.F) {
	f.Add("key,value\na,1\n\"b\n\",\"\"\"\"\n", byte(0), false)
	f.Add(`{"key":"a","value_base64":"AA==","ttl_ms":5}`, byte(1), true)
	f.Add("a\\t\tb\r\n\n", byte(2), true)
	f.Add("\xef\xbb\xbf\"a", byte(0), true)
	f.Fuzz(func(t *testing.T, input string, format byte, noHeader bool) {
		o := ReadOptions{Format: []Format{CSV, JSONLines, TSV}[format%3], NoHeader: noHeader, LineBytesMax: 200}
		r, err := NewReader(strings.NewReader(input), o)
		if err != nil {
			return
		}
		var understood []Record
		for last := r.Position(); ; last = r.Position() {
			record, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if r.Position().Line <= last.Line {
				t.Fatalf("stands at %v, was at %v", r.Position(), last)
			}
			if bad, ok := errors.AsType[*LineError](err); ok {
				if bad.First <= last.Line || bad.Last != r.Position().Line {
					t.Fatalf("complains of lines %d to %d, stands at %v", bad.First, bad.Last, r.Position())
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(record.Key) > o.LineBytesMax || len(record.Value) > o.LineBytesMax {
				t.Fatalf("record of %d and %d bytes", len(record.Key), len(record.Value))
			}
			understood = append(understood, record)
		}
		if at := r.Position().Offset; at != int64(len(input)) {
			t.Fatalf("ended at byte %d of %d", at, len(input))
		}
		for _, f := range []Format{JSONLines, CSV, TSV} {
			roundTrip(t, f, understood)
		}
	})
}
