package main

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

// valueLine is a value in JSON.
type valueLine struct {
	Value       *string `json:"value,omitempty"`
	ValueBase64 *string `json:"value_base64,omitempty"`
	Version     uint64  `json:"version"`
}

func newValueLine(v *client.Value) *valueLine {
	if v == nil {
		return nil
	}
	l := records.NewLine(records.Record{Value: v.Value})
	return &valueLine{Value: l.Value, ValueBase64: l.ValueBase64, Version: v.Version}
}

func (a *app) incrCommand() *cobra.Command {
	var k keyFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "incr KEY [N]",
		Short: "Add to a counter",
		Long: `Adds N, 1 by default, to a key's decimal number and prints the sum. A missing key counts as 0, and the key keeps
its TTL. If the outcome is unknown (exit code 6), the addition may have been done: do not simply repeat it.`,
		Example: "  ostraka incr visits\n  ostraka incr stock -5",
		Args:    cobra.RangeArgs(1, 2),
	}
	k.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		key, err := k.key(args[0])
		delta := int64(1)
		if err == nil && len(args) == 2 {
			delta, err = parseDelta(args[1])
		}
		return func(ctx context.Context, kv keyValue) error {
			result, err := kv.Increment(ctx, key, delta)
			if err != nil {
				return about(key, err)
			}
			if asJSON {
				return a.printJSON(struct {
					Value int64 `json:"value"`
					written
				}{result.Value, written{result.Version}})
			}
			return a.print(strconv.FormatInt(result.Value, 10))
		}, err
	})
}

func parseDelta(text string) (int64, error) {
	delta, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, usagef("N is a whole number: %w", err)
	}
	return delta, nil
}

func (a *app) casCommand() *cobra.Command {
	var k keyFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "cas KEY OLD NEW",
		Short: "Write a key if it has the value that you expect",
		Long: `Compares and sets: writes NEW if the key's value is OLD, and keeps its TTL. Otherwise, and where the key does not
exist, nothing is written and the exit code is 4. For a key that must not exist, use set --if-absent.`,
		Example: "  ostraka cas state open closed\n  ostraka cas temperature -- -5 -6",
		Args:    cobra.ExactArgs(3),
	}
	k.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		key, err := k.key(args[0])
		return func(ctx context.Context, kv keyValue) error {
			version, err := kv.CompareAndSet(ctx, key, []byte(args[1]), []byte(args[2]))
			if err != nil {
				return about(key, err)
			}
			return a.printWritten(asJSON, version)
		}, err
	})
}

func (a *app) appendCommand() *cobra.Command {
	var k keyFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "append KEY VALUE",
		Short: "Add bytes to the end of a value",
		Long: `Appends to a key's value and prints its length in bytes. A missing key counts as empty, and the key keeps its TTL.
The value - is read from stdin.`,
		Example: "  ostraka append log 'one more line'\n  ostraka append log - <more.txt",
		Args:    cobra.ExactArgs(2),
	}
	k.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		key, err := k.key(args[0])
		if err != nil {
			return nil, err
		}
		value, err := a.value(args[1])
		return func(ctx context.Context, kv keyValue) error {
			result, err := kv.Append(ctx, key, value)
			if err != nil {
				return about(key, err)
			}
			if asJSON {
				return a.printJSON(struct {
					ValueBytes int64 `json:"value_bytes"`
					written
				}{result.Length, written{result.Version}})
			}
			return a.print(strconv.FormatInt(result.Length, 10))
		}, err
	})
}

func (a *app) expireCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "expire KEY TTL",
		Short:   "Give a key a limited life",
		Long:    "The key is gone when TTL has passed, counted from now. A key that does not exist: exit code 3.",
		Example: "  ostraka expire session 30m",
		Args:    cobra.ExactArgs(2),
	}
	return a.changeCommand(cmd, func(args []string) (change, error) {
		ttl, err := time.ParseDuration(args[1])
		if err != nil {
			return nil, usagef("TTL is a duration as 10s or 24h: %w", err)
		}
		return func(ctx context.Context, kv keyValue, key []byte) (uint64, error) { return kv.Expire(ctx, key, ttl) }, nil
	})
}

func (a *app) persistCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "persist KEY",
		Short:   "Let a key live without limit again",
		Long:    "Takes away the key's TTL. A key that does not exist: exit code 3.",
		Example: "  ostraka persist session",
		Args:    cobra.ExactArgs(1),
	}
	return a.changeCommand(cmd, func([]string) (change, error) {
		return func(ctx context.Context, kv keyValue, key []byte) (uint64, error) { return kv.Persist(ctx, key) }, nil
	})
}

func (a *app) touchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "touch KEY",
		Short: "Step a key's version",
		Long: `Gives the key a new version and leaves value and TTL as they are, so that writers who compare the version they
read must read again. A key that does not exist: exit code 3.`,
		Example: "  ostraka touch config",
		Args:    cobra.ExactArgs(1),
	}
	return a.changeCommand(cmd, func([]string) (change, error) {
		return func(ctx context.Context, kv keyValue, key []byte) (uint64, error) { return kv.Touch(ctx, key) }, nil
	})
}

// change changes a key and returns its new version.
type change func(ctx context.Context, kv keyValue, key []byte) (uint64, error)

// changeCommand completes a command whose first argument is the key to change.
func (a *app) changeCommand(cmd *cobra.Command, understand func(args []string) (change, error)) *cobra.Command {
	var k keyFlags
	var asJSON bool
	k.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		key, err := k.key(args[0])
		if err != nil {
			return nil, err
		}
		change, err := understand(args)
		return func(ctx context.Context, kv keyValue) error {
			version, err := change(ctx, kv, key)
			if err != nil {
				return about(key, err)
			}
			return a.printWritten(asJSON, version)
		}, err
	})
}
