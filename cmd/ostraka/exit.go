package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/dev"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/ingest"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
	"github.com/ostraka-db/ostraka/server"
)

// Exit codes. Scripts rely on them: they never change their meaning.
const (
	exitDone           = 0
	exitError          = 1
	exitUsage          = 2
	exitNotFound       = 3
	exitConditionUnmet = 4
	exitUnavailable    = 5
	exitOutcomeUnknown = 6
)

// errUsage: the command line, the environment or a configuration file says something that cannot be.
var errUsage = errors.New("usage")

// exits is walked from the top: the first row that the error is decides. next is the line that says what to do.
var exits = []struct {
	err  error
	code int
	next string
}{
	{errUsage, exitUsage, "run with --help for usage and examples"},
	{ingest.ErrPatience, exitUnavailable, "nothing imported is lost: look at `ostraka cluster status`, then run the same command with --resume"},
	{client.ErrOutcomeUnknown, exitOutcomeUnknown, "the write may have been done: read the key before sending it again"},
	{client.ErrConditionNotMet, exitConditionUnmet, ""},
	{client.ErrNotFound, exitNotFound, ""},
	{client.ErrNotBootstrapped, exitUnavailable, "`ostraka cluster bootstrap --help` has examples"},
	{client.ErrNoEndpoint, exitUnavailable, "start a node (`ostraka dev` starts a whole cluster), or name a reachable one with --endpoints"},
	{client.ErrMemory, exitUnavailable, "nothing was changed: delete keys, wait for keys to expire, or give the node a higher --max-memory; `ostraka cluster status` shows what nodes use"},
	{client.ErrUnavailable, exitUnavailable, "nothing was changed, trying again is safe; `ostraka cluster status` shows which nodes are up"},
	{client.ErrAlreadyMember, exitError, "bootstrap takes blank nodes: `ostraka cluster status --endpoints HOST:PORT` tells what a node belongs to"},
	{client.ErrCompacted, exitError, "begin from the token above, and read the keys as they are now: `ostraka scan`"},
	{client.ErrLimit, exitError, "limits are set at the nodes, as --value-bytes-max of `ostraka server`"},
	{client.ErrNotInteger, exitError, "incr needs a value that is a decimal number; `ostraka get` shows it"},
	{client.ErrOverflow, exitError, "counters go from -9223372036854775808 to 9223372036854775807"},
	{client.ErrInvalid, exitUsage, "run with --help for usage and examples"},
	{server.ErrConfig, exitUsage, "`ostraka server --help` lists the settings"},
	{records.ErrFormat, exitUsage, "say it with --format jsonl, csv or tsv"},
	{records.ErrColumn, exitUsage, "choose with --key-column and --value-column, or say --no-header if the first line is data"},
	{records.ErrDelimiter, exitUsage, "as in --delimiter ';'"},
	{records.ErrChanged, exitError, "import it from the beginning, without --resume"},
	{ingest.ErrNoState, exitUsage, "import from the beginning, without --resume, or name the file with --state"},
	{ingest.ErrState, exitUsage, "repeat the import as it was begun, or begin anew without --resume"},
	{errRotten, exitError, "the replicas named don't start; their peers have what they had: see docs/operations.md"},
	{errDiffers, exitError, "replicas that differ from a majority are replaced by themselves: `ostraka cluster status` shows it; see docs/operations.md for the others"},
	{dev.ErrPort, exitError, "choose other ports with --base-port, or stop what uses them"},
	{dev.ErrLayout, exitUsage, "start it as it was made, choose another --data-dir, or remove that one"},
	{context.Canceled, exitError, "interrupted by a signal"},
}

// exitOf returns the code of an error and what to do next; empty: nothing that would help.
func exitOf(err error) (code int, next string) {
	if err == nil {
		return exitDone, ""
	}
	if _, ok := errors.AsType[*bench.ConfigError](err); ok {
		return exitUsage, "`ostraka bench --help` lists the flags"
	}
	for _, row := range exits {
		if errors.Is(err, row.err) {
			return row.code, row.next
		}
	}
	return exitError, ""
}

// report prints an error as one line on what happened and one on what to do next, and returns the exit code.
func (a *app) report(err error) int {
	code, next := exitOf(err)
	if err == nil {
		return code
	}
	a.say("ostraka: %s", oneLine(err))
	if next != "" {
		a.say("  → %s", next)
	}
	return code
}

// oneLine joins the parts of an error. The mark of a usage error is for the table only.
func oneLine(err error) string {
	text := strings.TrimPrefix(err.Error(), errUsage.Error()+"\n")
	return strings.ReplaceAll(text, "\n", "; ")
}

// usagef makes an error of usage.
func usagef(format string, args ...any) error {
	return errors.Join(errUsage, fmt.Errorf(format, args...))
}
