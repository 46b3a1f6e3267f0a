package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
)

func (a *app) mgetCommand() *cobra.Command {
	var k keyFlags
	var r readFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "mget KEY…",
		Short: "Print several keys with their values",
		Long: `Prints a line "key<TAB>value" for each key that exists, in the order given, or a JSON line with --json. What a line
of text could not hold is printed as a quoted string. Keys that do not exist are named on stderr, and the exit code
is 3. Each key is read at its own moment.`,
		Example: "  ostraka mget a b c\n  ostraka mget a b c --json",
		Args:    cobra.MinimumNArgs(1),
	}
	k.add(cmd)
	r.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		keys, err := k.keys(args)
		return func(ctx context.Context, kv keyValue) error {
			return a.printResults(asJSON, keys, kv.MultiGet(ctx, keys, r.options()...))
		}, err
	})
}

func (a *app) printResults(asJSON bool, keys [][]byte, results []client.GetResult) error {
	out := bufio.NewWriter(a.out)
	var errs []error
	for i, result := range results {
		if result.Err != nil {
			errs = append(errs, about(keys[i], result.Err))
			continue
		}
		if err := printItem(out, asJSON, keys[i], result.Value); err != nil {
			return err
		}
	}
	return mostTelling(append(errs, out.Flush()))
}

// mostTelling joins errors so that a failure decides the exit code, and a missing key only where nothing failed.
func mostTelling(errs []error) error {
	var missing, failed error
	for _, err := range errs {
		if errors.Is(err, client.ErrNotFound) {
			missing = errors.Join(missing, err)
		} else {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return failed
	}
	return missing
}

func (a *app) scanCommand() *cobra.Command {
	var k keyFlags
	var r readFlags
	var asJSON, keysOnly bool
	var limit int
	var after string
	cmd := &cobra.Command{
		Use:   "scan [PREFIX]",
		Short: "Print keys in order, with their values",
		Long: `Prints the keys that begin with PREFIX, or all, in the order of their bytes: a line "key<TAB>value" each, or a JSON
line with --json. What a line of text could not hold is printed as a quoted string. Pages are read at their own
moments, the whole is no snapshot; a key that exists throughout is printed exactly once.`,
		Example: `  ostraka scan user: --limit 10
  ostraka scan user: --limit 10 --after user:1041
  ostraka scan --keys-only`,
		Args: cobra.MaximumNArgs(1),
	}
	k.add(cmd)
	r.add(cmd)
	addJSON(cmd, &asJSON)
	cmd.Flags().IntVar(&limit, "limit", 0, "end after `n` keys; 0: no limit")
	cmd.Flags().StringVar(&after, "after", "", "begin behind this `key`")
	cmd.Flags().BoolVar(&keysOnly, "keys-only", false, "print no values")
	return a.longCommand(cmd, func(args []string) (call, error) {
		if limit < 0 {
			return nil, usagef("--limit must not be negative")
		}
		keys, options, err := scanOf(&k, &r, args, after)
		options = append(options, client.Limit(limit))
		if keysOnly {
			options = append(options, client.KeysOnly())
		}
		return func(ctx context.Context, kv keyValue) error {
			out := bufio.NewWriter(a.out)
			for item, err := range kv.Scan(ctx, keys, options...) {
				if err == nil {
					err = printScanned(out, asJSON, keysOnly, item)
				}
				if err != nil {
					return errors.Join(err, out.Flush())
				}
			}
			return out.Flush()
		}, err
	})
}

// scanOf is what a scan's or export's arguments ask for.
func scanOf(k *keyFlags, r *readFlags, args []string, after string) (client.KeyRange, []client.ScanOption, error) {
	keys := client.All()
	if len(args) == 1 {
		prefix, err := k.key(args[0])
		if err != nil {
			return keys, nil, err
		}
		keys = client.Prefix(prefix)
	}
	var options []client.ScanOption
	for _, o := range r.options() {
		options = append(options, o)
	}
	if after != "" {
		key, err := k.key(after)
		if err != nil {
			return keys, nil, err
		}
		options = append(options, client.After(key))
	}
	return keys, options, nil
}

func printScanned(out *bufio.Writer, asJSON, keysOnly bool, item client.Item) error {
	switch {
	case !keysOnly:
		return printItem(out, asJSON, item.Key, client.Value{Value: item.Value, Version: item.Version, TTL: item.TTL})
	case !asJSON:
		_, err := fmt.Fprintln(out, printable(item.Key))
		return err
	}
	return printKey(out, item)
}
