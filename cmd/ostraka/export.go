package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

func (a *app) exportCommand() *cobra.Command {
	var k keyFlags
	var r readFlags
	var format, after string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "export [PREFIX]",
		Short: "Write keys and values to stdout, as import reads them",
		Long: `Writes the keys that begin with PREFIX, or all, to stdout in the order of their bytes. jsonl adds version and,
where set, ttl_ms; csv and tsv have columns for them. Bytes that are not UTF-8 are in base64, in key_base64 and
value_base64. Pages are read at their own moments, the whole is no snapshot; a key that exists throughout is written
exactly once. An export that was broken off goes on behind the last key it wrote with --after.`,
		Example: `  ostraka export >all.jsonl
  ostraka export user: --format csv >users.csv
  ostraka export --after user:1041 >>all.jsonl`,
		Args: cobra.MaximumNArgs(1),
	}
	k.add(cmd)
	r.add(cmd)
	cmd.Flags().StringVar(&format, "format", string(records.JSONLines), "jsonl, csv or tsv")
	cmd.Flags().StringVar(&after, "after", "", "begin behind this `key`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "the same as --format jsonl")
	cmd.MarkFlagsMutuallyExclusive("format", "json")
	return a.longCommand(cmd, func(args []string) (call, error) {
		f, err := records.ParseFormat(format)
		if err != nil {
			return nil, err
		}
		keys, options, err := scanOf(&k, &r, args, after)
		return func(ctx context.Context, kv keyValue) error { return a.export(ctx, kv, f, keys, options) }, err
	})
}

func (a *app) export(ctx context.Context, kv keyValue, f records.Format, keys client.KeyRange, options []client.ScanOption) error {
	writer, err := records.NewWriter(a.out, f)
	if err != nil {
		return err
	}
	shown := a.newProgress("exporting", -1)
	defer shown.end()
	var bytes, count int64
	for item, err := range kv.Scan(ctx, keys, options...) {
		if err == nil {
			err = writer.Write(records.Record{Key: item.Key, Value: item.Value, Version: item.Version, TTL: item.TTL})
		}
		if err != nil {
			// What was read is written out: whoever goes on with --after finds its last key.
			return errors.Join(err, writer.Flush())
		}
		bytes += int64(len(item.Key) + len(item.Value))
		if count++; count%1000 == 0 {
			shown.at(bytes, count)
		}
	}
	return writer.Flush()
}
