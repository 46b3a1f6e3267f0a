package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
)

// changes is a running watch: a *client.Watch, or a test's stand-in.
type changes interface {
	Changes(context.Context) iter.Seq2[client.Change, error]
	Token() client.Token
	Close() error
}

// clusterClient is a client whose watches a test can stand in for.
type clusterClient struct{ *client.Client }

func (c clusterClient) Watch(ctx context.Context, keys client.KeyRange, opts ...client.WatchOption) (changes, error) {
	w, err := c.Client.Watch(ctx, keys, opts...)
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (a *app) watchCommand() *cobra.Command {
	var k keyFlags
	var asJSON, exact, previous bool
	var from string
	var limit int
	cmd := &cobra.Command{
		Use:   "watch [PREFIX]",
		Short: "Print changes of keys as they are made",
		Long: `Prints the changes of the keys that begin with PREFIX, or of all, from now on: each once, those of a key in order. A line is
"set<TAB>key<TAB>value", "delete<TAB>key" or "expire<TAB>key", or a JSON line with --json. What a line of text could not hold is
printed as a quoted string. It goes on over failures of nodes, until Ctrl-C or SIGTERM ends it, with exit code 0.

The token on stderr, at the beginning and at the end, and in every JSON line, says where to go on: --from TOKEN prints what came
after it. Nodes hold the latest changes only. If those asked for are not held any more, the exit code is 1, and the token on
stderr says from where on they are.`,
		Example: `  ostraka watch user:
  ostraka watch --key config --previous --json
  ostraka watch user: --from AWVx…`,
		Args: cobra.MaximumNArgs(1),
	}
	k.add(cmd)
	addJSON(cmd, &asJSON)
	flags := cmd.Flags()
	flags.BoolVar(&exact, "key", false, "the argument is a key, not a prefix")
	flags.BoolVar(&previous, "previous", false, "print the value before, too")
	flags.StringVar(&from, "from", "", "go on behind this `token` of an earlier watch")
	flags.IntVar(&limit, "limit", 0, "end after `n` changes; 0: no limit")
	return a.longCommand(cmd, func(args []string) (call, error) {
		keys, err := watchedKeys(&k, args, exact)
		switch {
		case err != nil:
			return nil, err
		case limit < 0:
			return nil, usagef("--limit must not be negative")
		}
		var options []client.WatchOption
		if previous {
			options = append(options, client.WithPrevious())
		}
		if cmd.Flags().Changed("from") {
			options = append(options, client.From(client.Token(from)))
		}
		return func(ctx context.Context, kv keyValue) error {
			w, err := kv.Watch(ctx, keys, options...)
			if err != nil {
				return err
			}
			defer w.Close()
			return a.watch(ctx, w, changePrinter{out: a.out, asJSON: asJSON, previous: previous}, limit)
		}, nil
	})
}

func watchedKeys(k *keyFlags, args []string, exact bool) (client.KeyRange, error) {
	if len(args) == 0 {
		if exact {
			return client.KeyRange{}, usagef("--key needs a key")
		}
		return client.All(), nil
	}
	key, err := k.key(args[0])
	switch {
	case err != nil:
		return client.KeyRange{}, err
	case !exact:
		return client.Prefix(key), nil
	case len(key) == 0:
		return client.KeyRange{}, usagef("a key is not empty")
	}
	return client.Key(key), nil
}

// watch prints changes until limit of them are, or the context ends, which is how people end it.
func (a *app) watch(ctx context.Context, w changes, p changePrinter, limit int) error {
	a.say("watching from %s", w.Token())
	printed := 0
	for c, err := range w.Changes(ctx) {
		var compacted *client.CompactedError
		switch {
		case err != nil && ctx.Err() != nil:
			a.say("go on with --from %s", w.Token())
			return nil
		case errors.As(err, &compacted):
			a.say("go on with --from %s", compacted.Restart)
			return err
		case err != nil:
			return err
		}
		if err := p.print(c, w.Token); err != nil {
			return err
		}
		if printed++; printed == limit {
			break
		}
	}
	a.say("go on with --from %s", w.Token())
	return nil
}

type changePrinter struct {
	out              io.Writer
	asJSON, previous bool
}

// changeLine is a change as JSON. Bytes that are not UTF-8 are in the members with _base64.
type changeLine struct {
	Change         string       `json:"change"`
	Key            *string      `json:"key,omitempty"`
	KeyBase64      string       `json:"key_base64,omitempty"`
	Value          *string      `json:"value,omitempty"`
	ValueBase64    string       `json:"value_base64,omitempty"`
	Version        uint64       `json:"version"`
	TimeMillis     int64        `json:"time_ms"`
	TTLMillis      int64        `json:"ttl_ms,omitempty"`
	Previous       *string      `json:"previous,omitempty"`
	PreviousBase64 string       `json:"previous_base64,omitempty"`
	PreviousAt     uint64       `json:"previous_version,omitempty"`
	Token          client.Token `json:"token"`
}

// textOr64 puts bytes into one of two members.
func textOr64(b []byte, text **string, coded *string) {
	if s := string(b); utf8.ValidString(s) {
		*text = &s
	} else {
		*coded = base64.StdEncoding.EncodeToString(b)
	}
}

func (p changePrinter) print(c client.Change, token func() client.Token) error {
	if !p.asJSON {
		return p.printText(c)
	}
	line := changeLine{Change: c.Kind.String(), Version: c.Version, TimeMillis: c.Time.UnixMilli(), TTLMillis: c.TTL.Milliseconds(), Token: token()}
	textOr64(c.Key, &line.Key, &line.KeyBase64)
	if c.Kind == client.ChangeSet {
		textOr64(c.Value, &line.Value, &line.ValueBase64)
	}
	if c.Previous != nil {
		line.PreviousAt = c.Previous.Version
		if p.previous {
			textOr64(c.Previous.Value, &line.Previous, &line.PreviousBase64)
		}
	}
	return encodeJSON(p.out, line)
}

// printText prints a line of "kind<TAB>key", the value of a set, and with previous the value before, or "-" for none.
func (p changePrinter) printText(c client.Change) error {
	line := c.Kind.String() + "\t" + printable(c.Key)
	if c.Kind == client.ChangeSet {
		line += "\t" + printable(c.Value)
	}
	if p.previous {
		before := "-"
		if c.Previous != nil {
			before = printable(c.Previous.Value)
		}
		line += "\t" + before
	}
	_, err := fmt.Fprintln(p.out, line)
	return err
}
