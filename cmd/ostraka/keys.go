package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
)

// keyFlags are those of commands that name keys.
type keyFlags struct{ base64 bool }

func (k *keyFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&k.base64, "key-base64", false, "keys on the command line are base64, for keys that a shell cannot hold")
}

func (k *keyFlags) key(arg string) ([]byte, error) {
	if !k.base64 {
		return []byte(arg), nil
	}
	key, err := base64.StdEncoding.DecodeString(arg)
	if err != nil {
		return nil, usagef("key %q: %w", arg, err)
	}
	return key, nil
}

func (k *keyFlags) keys(args []string) ([][]byte, error) {
	keys := make([][]byte, len(args))
	for i, arg := range args {
		var err error
		if keys[i], err = k.key(arg); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// about names the key that an error is about.
func about(key []byte, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", printable(key), err)
}

// value is an argument's bytes; "-" is all of stdin.
func (a *app) value(arg string) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	value, err := io.ReadAll(a.in)
	if err != nil {
		return nil, fmt.Errorf("reading the value from stdin: %w", err)
	}
	return value, nil
}

func addJSON(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON")
}

// readFlags are those of commands that read.
type readFlags struct{ stale bool }

func (r *readFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.stale, "stale", false, "read from any replica, perhaps an older state")
}

func (r *readFlags) options() []client.ReadOption {
	if r.stale {
		return []client.ReadOption{client.Stale()}
	}
	return nil
}

func (a *app) getCommand() *cobra.Command {
	var k keyFlags
	var r readFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print a key's value",
		Long: `Prints the raw value and nothing else, not even a line end. A key that does not exist prints nothing and exits
with 3.`,
		Example: "  ostraka get greeting\n  ostraka get photo >photo.jpg\n  ostraka get greeting --json",
		Args:    cobra.ExactArgs(1),
	}
	k.add(cmd)
	r.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		key, err := k.key(args[0])
		return func(ctx context.Context, kv keyValue) error {
			v, err := kv.Get(ctx, key, r.options()...)
			if err != nil {
				return about(key, err)
			}
			if asJSON {
				return printItem(a.out, true, key, v)
			}
			_, err = a.out.Write(v.Value)
			return err
		}, err
	})
}

// setFlags are those of set.
type setFlags struct {
	ttl                         time.Duration
	keepTTL, ifAbsent, ifExists bool
	ifVersion                   uint64
	returnPrevious              bool
}

func (s *setFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.DurationVar(&s.ttl, "ttl", 0, "life of the key, as 10s or 24h; without it a key loses the TTL it had")
	flags.BoolVar(&s.keepTTL, "keep-ttl", false, "leave the key the TTL that it has")
	flags.BoolVar(&s.ifAbsent, "if-absent", false, "only if the key does not exist")
	flags.BoolVar(&s.ifExists, "if-exists", false, "only if the key exists")
	flags.Uint64Var(&s.ifVersion, "if-version", 0, "only if the key has this `version`")
	flags.BoolVar(&s.returnPrevious, "return-previous", false, "print the value that was replaced instead of OK")
	cmd.MarkFlagsMutuallyExclusive("ttl", "keep-ttl")
	cmd.MarkFlagsMutuallyExclusive("if-absent", "if-exists", "if-version")
}

func (s *setFlags) options(cmd *cobra.Command) []client.SetOption {
	var o []client.SetOption
	if cmd.Flags().Changed("ttl") {
		o = append(o, client.WithTTL(s.ttl))
	}
	if s.keepTTL {
		o = append(o, client.KeepTTL())
	}
	if s.ifAbsent {
		o = append(o, client.IfAbsent())
	}
	if s.ifExists {
		o = append(o, client.IfExists())
	}
	if cmd.Flags().Changed("if-version") {
		o = append(o, client.IfVersion(s.ifVersion))
	}
	if s.returnPrevious {
		o = append(o, client.ReturnPrevious())
	}
	return o
}

func (a *app) setCommand() *cobra.Command {
	var k keyFlags
	var s setFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "set KEY VALUE",
		Short: "Write a key",
		Long: `Writes a key and prints OK, or the key's new version with --json. The value - is read from stdin, so a file of
any bytes can be stored. A condition that is not met writes nothing and exits with 4. A value that begins with a dash
comes after --.`,
		Example: `  ostraka set greeting hello --ttl 10m
  ostraka set photo - <photo.jpg
  ostraka set lock me --if-absent --ttl 30s
  ostraka set --if-version 7 greeting goodbye
  ostraka set temperature -- -5`,
		Args: cobra.ExactArgs(2),
	}
	k.add(cmd)
	s.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		key, err := k.key(args[0])
		if err != nil {
			return nil, err
		}
		value, err := a.value(args[1])
		return func(ctx context.Context, kv keyValue) error {
			result, err := kv.Set(ctx, key, value, s.options(cmd)...)
			if err != nil {
				return about(key, err)
			}
			return a.printSet(asJSON, s.returnPrevious, result)
		}, err
	})
}

func (a *app) printSet(asJSON, returnPrevious bool, r client.SetResult) error {
	switch {
	case asJSON:
		return a.printJSON(struct {
			written
			Previous *valueLine `json:"previous,omitempty"`
		}{written{r.Version}, newValueLine(r.Previous)})
	case !returnPrevious:
		return a.print("OK")
	case r.Previous == nil:
		return nil
	}
	_, err := a.out.Write(r.Previous.Value)
	return err
}

func (a *app) delCommand() *cobra.Command {
	var k keyFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "del KEY…",
		Short: "Delete keys",
		Long: `Deletes keys and prints how many existed. Where none did, it exits with 3. Several keys are deleted each on
its own, not as one atomic step.`,
		Example: "  ostraka del greeting\n  ostraka del a b c --json",
		Args:    cobra.MinimumNArgs(1),
	}
	k.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		keys, err := k.keys(args)
		return func(ctx context.Context, kv keyValue) error { return a.del(ctx, kv, keys, asJSON) }, err
	})
}

func (a *app) del(ctx context.Context, kv keyValue, keys [][]byte, asJSON bool) error {
	deleted, errs := kv.MultiDelete(ctx, keys)
	count := 0
	for i := range keys {
		errs[i] = about(keys[i], errs[i])
		if deleted[i] {
			count++
		}
	}
	var err error
	if asJSON {
		err = a.printJSON(struct {
			Deleted int `json:"deleted"`
		}{count})
	} else {
		err = a.print(strconv.Itoa(count))
	}
	err = errors.Join(append(errs, err)...)
	if err == nil && count == 0 {
		return client.ErrNotFound
	}
	return err
}

func (a *app) ttlCommand() *cobra.Command {
	var k keyFlags
	var r readFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ttl KEY",
		Short:   "Print a key's remaining life",
		Long:    `Prints the time that is left, or "none" for a key that does not expire. With --json also version and size.`,
		Example: "  ostraka ttl session\n  ostraka ttl session --json",
		Args:    cobra.ExactArgs(1),
	}
	k.add(cmd)
	r.add(cmd)
	addJSON(cmd, &asJSON)
	return a.keyCommand(cmd, func(args []string) (call, error) {
		key, err := k.key(args[0])
		return func(ctx context.Context, kv keyValue) error {
			info, err := kv.TTL(ctx, key, r.options()...)
			if err != nil {
				return about(key, err)
			}
			if asJSON {
				return a.printJSON(struct {
					TTLMillis  int64  `json:"ttl_ms,omitempty"`
					Version    uint64 `json:"version"`
					ValueBytes int64  `json:"value_bytes"`
				}{info.TTL.Milliseconds(), info.Version, info.Size})
			}
			return a.print(readableTTL(info.TTL))
		}, err
	})
}
