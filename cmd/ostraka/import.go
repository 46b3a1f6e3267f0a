package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/ingest"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

// stateEvery is how often an import writes down how far it has come.
const stateEvery = time.Second

// importFlags are those of import.
type importFlags struct {
	format, keyColumn, valueColumn, delimiter string
	noHeader                                  bool
	lineBytesMax                              int
	onError                                   string
	batch, concurrency                        int
	ttl, retryFor                             time.Duration
	resume                                    bool
	state                                     string
	json                                      bool
}

const importLong = `Writes the records of FILE, or of stdin with -, into the cluster.

Formats: jsonl has {"key":"…","value":"…"} a line, with key_base64 and value_base64 for bytes that are not UTF-8, and
ttl_ms for a limited life. csv and tsv have columns of those names, or others chosen by --key-column and --value-column:
by name in the header, or by number from 1; 0 is the whole line. With --no-header columns 1 and 2 are taken. For jsonl
the two choose members of the objects. By default the format follows the file's name.

A line that cannot be read, or that the cluster refuses, ends the import with its number; --on-error skip reports it and
goes on. Where a key comes twice, its last line wins.

Writes that fail are sent again as long as --retry-for allows, those whose outcome is unknown too: setting a key to the
same value twice does no harm, unless somebody else writes the same keys meanwhile.

An import that was broken off goes on with --resume. How far it came is kept in FILE.import-state (or the file that
--state names; for stdin only there), which is removed at the end.`

func (a *app) importCommand() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Write the records of a file",
		Long:  importLong,
		Example: `  ostraka import users.jsonl
  ostraka import users.csv --key-column email --value-column name --on-error skip
  ostraka import UnicodeData.txt --format csv --delimiter ';' --no-header --key-column 1 --value-column 2
  zcat big.tsv.gz | ostraka import - --format tsv --state big.import-state`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", "", "jsonl, csv or tsv; by default as the file is named")
	flags.StringVar(&f.keyColumn, "key-column", "", "`column` of the keys, by name or number")
	flags.StringVar(&f.valueColumn, "value-column", "", "`column` of the values, by name or number; 0: the whole line")
	flags.StringVar(&f.delimiter, "delimiter", "", "`character` between the columns of a csv, by default a comma")
	flags.BoolVar(&f.noHeader, "no-header", false, "the first line is a record")
	flags.IntVar(&f.lineBytesMax, "line-bytes-max", records.LineBytesMaxDefault, "longest record's text in `bytes`")
	flags.StringVar(&f.onError, "on-error", "fail", "at a bad line: fail or skip")
	flags.IntVar(&f.batch, "batch", 256, "records in a call")
	flags.IntVar(&f.concurrency, "concurrency", 8, "calls at once")
	flags.DurationVar(&f.ttl, "ttl", 0, "life of records that have none of their own; 0: no limit")
	flags.DurationVar(&f.retryFor, "retry-for", time.Minute, "give up when nothing was acknowledged for so long")
	flags.BoolVar(&f.resume, "resume", false, "go on where an earlier import was broken off")
	flags.StringVar(&f.state, "state", "", "`file` for how far the import has come")
	addJSON(cmd, &f.json)
	return a.longCommand(cmd, func(args []string) (call, error) {
		o, err := f.readOptions(args[0])
		return func(ctx context.Context, kv keyValue) error { return a.importFile(ctx, kv, args[0], &f, o) }, err
	})
}

// readOptions checks the flags and turns them into those of a Reader.
func (f *importFlags) readOptions(name string) (o records.ReadOptions, err error) {
	o = records.ReadOptions{KeyColumn: f.keyColumn, ValueColumn: f.valueColumn, NoHeader: f.noHeader, LineBytesMax: f.lineBytesMax}
	switch {
	case f.onError != "fail" && f.onError != "skip":
		return o, usagef("--on-error is fail or skip, not %q", f.onError)
	case f.batch < 1 || f.concurrency < 1 || f.lineBytesMax < 1 || f.retryFor <= 0 || f.ttl < 0:
		return o, usagef("--batch, --concurrency, --line-bytes-max, --retry-for and --ttl must be positive")
	case f.format != "":
		o.Format, err = records.ParseFormat(f.format)
	default:
		o.Format, err = records.FormatOfFile(name)
	}
	if err != nil {
		return o, err
	}
	switch delimiter := strings.ReplaceAll(f.delimiter, `\t`, "\t"); {
	case len(delimiter) > 1:
		return o, records.ErrDelimiter
	case len(delimiter) == 1:
		o.Delimiter = delimiter[0]
	}
	return o, nil
}

// fingerprint is what must be the same for a state to fit.
func fingerprint(clusterID string, o records.ReadOptions) string {
	return fmt.Sprintf("cluster %s, format %s, key column %q, value column %q, delimiter %q, header %v",
		clusterID, o.Format, o.KeyColumn, o.ValueColumn, string(o.Delimiter), !o.NoHeader)
}

// importing is one run of import.
type importing struct {
	a     *app
	flags *importFlags
	// before is what earlier runs did.
	before ingest.Counts
	// state is nil where none can or shall be kept.
	state    *ingest.StateFile
	progress *progress
}

func (a *app) importFile(ctx context.Context, kv keyValue, name string, f *importFlags, o records.ReadOptions) error {
	in, size, err := a.open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	reader, err := records.NewReader(in, o)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	run := &importing{a: a, flags: f}
	if run.state, err = a.stateFile(name, f, fingerprint(kv.ClusterID(), o)); err != nil {
		return err
	}
	if f.resume {
		if err := run.resume(reader); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	run.progress = a.newProgress("importing", size)
	return run.do(ctx, reader, kv)
}

// open returns a file, or stdin, and its size; -1: unknown.
func (a *app) open(name string) (io.ReadCloser, int64, error) {
	if name == "-" {
		return io.NopCloser(a.in), -1, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	if !info.Mode().IsRegular() {
		return file, -1, nil
	}
	return file, info.Size(), nil
}

func (a *app) stateFile(name string, f *importFlags, options string) (*ingest.StateFile, error) {
	path, input := f.state, name
	if name != "-" {
		absolute, err := filepath.Abs(name)
		if err != nil {
			return nil, err
		}
		input = absolute
		if path == "" {
			path = name + ".import-state"
		}
	}
	if path == "" {
		if f.resume {
			return nil, usagef("an import from stdin goes on only with --state FILE")
		}
		return nil, nil
	}
	return ingest.NewStateFile(path, input, options, stateEvery), nil
}

func (run *importing) resume(reader *records.Reader) error {
	s, err := run.state.Resume()
	if err != nil {
		return err
	}
	if err := reader.SkipTo(s.Position); err != nil {
		return err
	}
	run.before = s.Counts
	run.a.say("going on behind line %d: %d records are there", s.Position.Line, s.Counts.Records)
	return nil
}

func (run *importing) do(ctx context.Context, reader *records.Reader, kv keyValue) error {
	f := run.flags
	o := ingest.Options{Batch: f.batch, Concurrency: f.concurrency, Patience: f.retryFor, TTL: f.ttl, Acknowledged: run.acknowledged}
	if f.onError == "skip" {
		o.Skip = func(bad *records.LineError) { run.a.say("skipped: %v", bad) }
	}
	begun := time.Now()
	counts, err := ingest.Run(ctx, reader, kv, o)
	run.progress.end()
	if err := errors.Join(err, run.keepState(err == nil)); err != nil {
		if run.state != nil && run.before.Records+counts.Records > 0 {
			run.a.say("broken off after %d records; --resume goes on there", run.before.Records+counts.Records)
		}
		return err
	}
	return run.summary(counts, time.Since(begun))
}

// acknowledged is called with everything before p in the cluster.
func (run *importing) acknowledged(p records.Position, c ingest.Counts) error {
	total := ingest.Counts{Records: run.before.Records + c.Records, Skipped: run.before.Skipped + c.Skipped}
	run.progress.at(p.Offset, total.Records)
	if run.state == nil {
		return nil
	}
	err := run.state.Keep(p, total)
	if err != nil && run.flags.state == "" && !run.flags.resume {
		// Nobody asked for a state: a directory that cannot be written to is no reason not to import.
		run.a.say("this import cannot be resumed: %v", err)
		run.state, err = nil, nil
	}
	return err
}

// keepState leaves a broken import's state on disk and takes a finished one's away.
func (run *importing) keepState(finished bool) error {
	switch {
	case run.state == nil:
		return nil
	case finished:
		return run.state.Remove()
	}
	return run.state.Flush()
}

func (run *importing) summary(c ingest.Counts, took time.Duration) error {
	if run.flags.json {
		return run.a.printJSON(struct {
			ingest.Counts
			Seconds float64 `json:"seconds"`
		}{c, took.Seconds()})
	}
	rate := float64(c.Records) / max(took.Seconds(), 1e-3)
	run.a.say("imported %d records in %s (%.0f a second), skipped %d lines", c.Records, took.Round(time.Millisecond), rate, c.Skipped)
	return nil
}
