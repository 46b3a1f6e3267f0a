package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/dev"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/ingest"
	"github.com/ostraka-db/ostraka/server"
)

func isUsage(err error) bool { return errors.Is(err, errUsage) }

// TestExitCodes spells the contract out: scripts rely on each line.
func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errBroken, 1},
		{client.ErrLimit, 1},
		{&client.LimitError{Limit: "key_bytes_max"}, 1},
		{client.ErrNotInteger, 1},
		{client.ErrOverflow, 1},
		{client.ErrAlreadyMember, 1},
		{client.ErrWrongCluster, 1},
		{client.ErrUnsupported, 1},
		{&client.CompactedError{}, 1},
		{dev.ErrPort, 1},
		{errDiffers, 1},
		{errNotCompared, 5},
		{usagef("no"), 2},
		{&client.InvalidError{Field: "ttl"}, 2},
		{&bench.ConfigError{Field: "clients"}, 2},
		{server.ErrConfig, 2},
		{client.ErrNotFound, 3},
		{&client.ConditionError{}, 4},
		{client.ErrUnavailable, 5},
		{client.ErrNoEndpoint, 5},
		{client.ErrNotBootstrapped, 5},
		{&client.MemoryError{Node: "n1"}, 5},
		{client.ErrOutcomeUnknown, 6},
		// Where several things went wrong, the one that the caller must know first.
		{errors.Join(client.ErrNotFound, client.ErrOutcomeUnknown), 6},
		{errors.Join(client.ErrUnavailable, client.ErrOutcomeUnknown), 6},
		{fmt.Errorf("%w: %w", ingest.ErrPatience, client.ErrOutcomeUnknown), 5},
	} {
		wrapped := test.err
		if wrapped != nil {
			wrapped = fmt.Errorf("doing: %w", test.err)
		}
		if got, _ := exitOf(wrapped); got != test.want {
			t.Errorf("%v: got %d, want %d", test.err, got, test.want)
		}
	}
}

func TestReportIsTwoLines(t *testing.T) {
	var text strings.Builder
	a := &app{err: &text}
	code := a.report(errors.Join(fmt.Errorf("get: %w", client.ErrNoEndpoint), errors.New("127.0.0.1:7400: refused")))
	want := "ostraka: get: no endpoint answered; 127.0.0.1:7400: refused\n  → start a node"
	if code != exitUnavailable || !strings.HasPrefix(text.String(), want) || strings.Count(text.String(), "\n") != 2 {
		t.Errorf("got %d and %q", code, text.String())
	}
	text.Reset()
	if a.report(usagef("--x is y")); !strings.HasPrefix(text.String(), "ostraka: --x is y\n") {
		t.Errorf("got %q", text.String())
	}
}
