package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/client"
)

// keys are few, since a build's own client writes them all before it reads, in the time that is measured: some 20 ms.
const keys = 1000

// driver puts a cluster under load, and tells what processor time the client used for it.
type driver interface {
	run(context.Context, bench.Config, load) (bench.Result, time.Duration, error)
}

// linkedClient is the client in this program.
type linkedClient struct{ client *client.Client }

func (d linkedClient) run(ctx context.Context, cfg bench.Config, l load) (bench.Result, time.Duration, error) {
	before := ownTime()
	result, err := bench.Run(ctx, cfg, bench.ForClient(d.client, l.stale))
	return result, ownTime() - before, err
}

func ownTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err) // it can only be the arguments
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// ownClient is a build's `ostraka bench`.
type ownClient struct {
	binary    string
	endpoints []string
}

func (d ownClient) run(ctx context.Context, cfg bench.Config, l load) (bench.Result, time.Duration, error) {
	args := []string{"bench", "--json", "--endpoints", strings.Join(d.endpoints, ","), "--clients", strconv.Itoa(cfg.Clients),
		"--duration", cfg.Duration.String(), "--warm-up", "0s", "--keys", strconv.Itoa(cfg.Keys), "--writes", fmt.Sprint(l.writes)}
	if l.stale {
		args = append(args, "--read-level", "stale")
	}
	cmd := exec.CommandContext(ctx, d.binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return bench.Result{}, 0, fmt.Errorf("%s bench: %w: %s", d.binary, err, stderr.String())
	}
	var result bench.Result
	if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
		return bench.Result{}, 0, fmt.Errorf("%s bench: %w", d.binary, err)
	}
	return result, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}
