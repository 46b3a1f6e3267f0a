package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

// orders are what slots can be listed by.
var orders = map[string]func(a, b client.SlotUsage) int{
	"use": func(a, b client.SlotUsage) int {
		return cmp.Compare(b.ReadsPerSecond+b.WritesPerSecond, a.ReadsPerSecond+a.WritesPerSecond)
	},
	"keys":  func(a, b client.SlotUsage) int { return cmp.Compare(b.Keys, a.Keys) },
	"bytes": func(a, b client.SlotUsage) int { return cmp.Compare(b.Bytes, a.Bytes) },
}

func (a *app) slotsCommand() *cobra.Command {
	var c connection
	var top int
	var by string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "slots",
		Short: "Show what shards and slots hold, and how often they are read and written",
		Long: `Shows each shard, and the slots that are used most. Reads and writes are those a second, counted over five seconds; reads are
estimated from samples of one in 64.`,
		Example: `  ostraka cluster slots
  ostraka cluster slots --top 20 --by bytes
  ostraka cluster slots --json | jq '.slots | max_by(.writes_per_second)'`,
		Args: cobra.NoArgs,
	}
	c.flags(cmd, "the answer")
	cmd.Flags().IntVar(&top, "top", 10, "slots to list")
	cmd.Flags().StringVar(&by, "by", "use", "what to list them by: use, keys or bytes")
	addJSON(cmd, &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		order, ok := orders[by]
		if !ok || top < 0 {
			return usagef("--by is use, keys or bytes, and --top at least 0")
		}
		return a.withUsage(cmd.Context(), c, true, 0, func(u *client.Usage) error {
			if asJSON {
				if cmd.Flags().Changed("top") {
					slices.SortStableFunc(u.Slots, order)
					u.Slots = u.Slots[:min(top, len(u.Slots))]
				}
				return a.printJSON(u)
			}
			return a.printSlots(u, order, top)
		})
	}
	return cmd
}

// withUsage asks the cluster how it is used.
func (a *app) withUsage(ctx context.Context, c connection, slots bool, keys int, show func(*client.Usage) error) error {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	admin, err := client.NewAdmin(c.endpoints)
	if err != nil {
		return err
	}
	defer admin.Close()
	u, err := admin.Usage(ctx, slots, keys)
	if err != nil {
		return err
	}
	if len(u.Silent) > 0 {
		a.say("no answer from %s: what they know is missing", strings.Join(u.Silent, ", "))
	}
	return show(u)
}

func (a *app) printSlots(u *client.Usage, order func(a, b client.SlotUsage) int, top int) error {
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	var shards []client.SlotUsage
	slots := make(map[int]int) // in use, by place in shards
	for _, s := range u.Slots {
		at := slices.IndexFunc(shards, func(sum client.SlotUsage) bool { return sum.Shard == s.Shard })
		if at < 0 {
			at = len(shards)
			shards = append(shards, client.SlotUsage{Shard: s.Shard})
		}
		sum := &shards[at]
		slots[at]++
		sum.Keys += s.Keys
		sum.Bytes += s.Bytes
		sum.Expiring += s.Expiring
		sum.ReadsPerSecond += s.ReadsPerSecond
		sum.WritesPerSecond += s.WritesPerSecond
	}
	fmt.Fprintln(t, "SHARD\tSLOTS IN USE\tKEYS\tBYTES\tEXPIRING\tREADS/S\tWRITES/S")
	for at, s := range shards {
		fmt.Fprintf(t, "%d\t%d\t%s\n", s.Shard, slots[at], figuresOf(s))
	}
	slices.SortStableFunc(u.Slots, order)
	if top = min(top, len(u.Slots)); top > 0 {
		fmt.Fprintln(t, "\nSLOT\tSHARD\tKEYS\tBYTES\tEXPIRING\tREADS/S\tWRITES/S")
	}
	for _, s := range u.Slots[:top] {
		fmt.Fprintf(t, "%d\t%d\t%s\n", s.Slot, s.Shard, figuresOf(s))
	}
	return t.Flush()
}

func figuresOf(s client.SlotUsage) string {
	return fmt.Sprintf("%d\t%s\t%d\t%.0f\t%.0f", s.Keys, readableBytes(uint64(max(s.Bytes, 0))), s.Expiring, s.ReadsPerSecond, s.WritesPerSecond)
}

func (a *app) hotkeysCommand() *cobra.Command {
	var c connection
	var top int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "hotkeys",
		Short: "Show the keys that are used most, and the largest ones",
		Long: `The hottest keys are those of the last five seconds, found in samples of one use in 64: a key that gets more than a hundredth of its shard's
uses is among them. ± is by how much reads and writes together may be too high. The largest keys are known from writes, and made
complete as nodes compare their replicas (every ten minutes).`,
		Example: "  ostraka hotkeys\n  ostraka hotkeys --top 3 --json",
		Args:    cobra.NoArgs,
	}
	c.flags(cmd, "the answer")
	cmd.Flags().IntVar(&top, "top", 10, "keys to list of each kind, up to 128")
	addJSON(cmd, &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if top < 1 {
			return usagef("--top is at least 1")
		}
		return a.withUsage(cmd.Context(), c, false, top, func(u *client.Usage) error { return a.printHotKeys(u, asJSON) })
	}
	return cmd
}

// keyName is a key in JSON: as elsewhere, key_base64 where it isn't UTF-8.
type keyName struct {
	Key       *string `json:"key,omitempty"`
	KeyBase64 *string `json:"key_base64,omitempty"`
}

func nameOf(key []byte) keyName {
	line := records.NewLine(records.Record{Key: key})
	return keyName{line.Key, line.KeyBase64}
}

// brief is a key as a table has room for it.
func brief(key []byte) string {
	const most = 60
	if len(key) <= most {
		return printable(key)
	}
	return fmt.Sprintf("%s… (%d bytes)", printable(key[:most]), len(key))
}

func (a *app) printHotKeys(u *client.Usage, asJSON bool) error {
	if asJSON {
		type hot struct {
			keyName
			client.HotKey
		}
		type large struct {
			keyName
			client.LargeKey
		}
		told := struct {
			Hottest []hot    `json:"hottest"`
			Largest []large  `json:"largest"`
			Silent  []string `json:"silent,omitempty"`
		}{Hottest: []hot{}, Largest: []large{}, Silent: u.Silent}
		for _, h := range u.Hottest {
			told.Hottest = append(told.Hottest, hot{nameOf(h.Key), h})
		}
		for _, l := range u.Largest {
			told.Largest = append(told.Largest, large{nameOf(l.Key), l})
		}
		return a.printJSON(told)
	}
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "HOTTEST\tSHARD\tSLOT\tREADS/S\tWRITES/S\t±")
	for _, h := range u.Hottest {
		fmt.Fprintf(t, "%s\t%d\t%d\t%.0f\t%.0f\t%.0f\n", brief(h.Key), h.Shard, h.Slot, h.ReadsPerSecond, h.WritesPerSecond, h.ErrorPerSecond)
	}
	fmt.Fprintln(t, "\nLARGEST\tSHARD\tSLOT\tBYTES")
	for _, l := range u.Largest {
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", brief(l.Key), l.Shard, l.Slot, readableBytes(uint64(l.Bytes)))
	}
	return t.Flush()
}
