// Package e2e tests Ostraka from outside: real processes on loopback, killed, stopped and moved, spoken to
// through the client library and the command line.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// binary is the ostraka executable under test, built once; with OSTRAKA_TEST_RACE set it has the race detector,
// which ends a process that races with exit status 66.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "ostraka-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "ostraka")
		args := []string{"build", "-o", binary}
		if os.Getenv("OSTRAKA_TEST_RACE") != "" {
			args = append(args, "-race")
		}
		build := exec.Command("go", append(args, "github.com/ostraka-db/ostraka/cmd/ostraka")...)
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building ostraka: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// patience bounds every wait of a test: far more than anything takes, so that a slow machine fails nothing.
const patience = 90 * time.Second

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	return ctx
}

// startCluster runs a bootstrapped cluster for the test. When the test fails its logs are printed.
// notWithRace skips a test that measures memory or time, or has a build of its own, where the processes have the race detector: it multiplies
// both, and other tests drive the same code.
func notWithRace(t *testing.T) {
	t.Helper()
	if os.Getenv("OSTRAKA_TEST_RACE") != "" {
		t.Skip("not with the race detector in the processes")
	}
}

// startCluster runs a cluster, of three shards unless told otherwise: faults should strike some and spare others.
func startCluster(t *testing.T, opts cluster.Options) *cluster.Cluster {
	t.Helper()
	opts.Binary, opts.Dir, opts.Shards = binary, t.TempDir(), cmp.Or(opts.Shards, 3)
	ctx, cancel := context.WithTimeout(testContext(t), patience)
	defer cancel()
	c, err := cluster.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	cleanUp(t, c)
	return c
}

func cleanUp(t *testing.T, c *cluster.Cluster) {
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(c.Logs(4000))
		}
		if races := c.Logs(1 << 30); bytes.Contains([]byte(races), []byte("WARNING: DATA RACE")) {
			t.Errorf("a node reported a data race:\n%s", races)
		}
	})
}

func connect(t *testing.T, c *cluster.Cluster) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(testContext(t), patience)
	defer cancel()
	cl, err := client.New(ctx, c.Endpoints())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

// await waits for a status, within patience.
func await(t *testing.T, c *cluster.Cluster, wanted func(*client.Status) bool) *client.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(testContext(t), patience)
	defer cancel()
	s, err := c.AwaitStatus(ctx, wanted)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// restart begins a node's process again and waits until it listens.
func restart(t *testing.T, p *cluster.Process) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(testContext(t), patience)
	defer cancel()
	if err := p.AwaitListening(ctx); err != nil {
		t.Fatal(err)
	}
}

func kill(t *testing.T, p *cluster.Process) {
	t.Helper()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
}

// ostraka runs the command line and returns its exit status and outputs.
func ostraka(t *testing.T, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(testContext(t), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdin = bytes.NewReader([]byte(stdin))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode(), out.String(), errs.String()
	case err != nil:
		t.Fatalf("ostraka %v: %v", args, err)
	}
	return 0, out.String(), errs.String()
}
