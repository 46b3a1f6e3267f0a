package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

const ostrakaModule = "github.com/ostraka-db/ostraka"

// ostraka is a cluster of `ostraka server` processes.
type ostraka struct {
	// binary is the executable; empty: one is built in the data directory.
	binary string
	// shards of the bootstrap; 0: the binary's default.
	shards int
	// args are given to every server.
	args []string

	cluster   *cluster.Cluster
	client    *client.Client
	version   string
	shardsMap int // as the cluster says
}

func (o *ostraka) start(ctx context.Context, dir string) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, o.stop())
		}
	}()
	binary, err := o.executable(ctx, dir)
	if err != nil {
		return err
	}
	if o.version, err = ostrakaVersion(ctx, binary); err != nil {
		return err
	}
	o.cluster, err = cluster.Start(ctx, cluster.Options{
		Binary: binary, Dir: dir, Nodes: nodesPerSystem, Shards: o.shards, ServerArgs: o.args})
	if err != nil {
		return err
	}
	status, err := o.cluster.AwaitStatus(ctx, cluster.Led)
	if err != nil {
		return err
	}
	o.shardsMap = len(status.Shards)
	o.client, err = client.New(ctx, o.cluster.Endpoints())
	return err
}

// executable returns the absolute path of the binary, built if none was named.
func (o *ostraka) executable(ctx context.Context, dir string) (string, error) {
	if o.binary != "" {
		return filepath.Abs(o.binary)
	}
	repository, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", ostrakaModule).Output()
	if err != nil {
		return "", fmt.Errorf("where is Ostraka's source? run this in bench/compare, or name the executable with -binary: %w", err)
	}
	binary := filepath.Join(dir, "ostraka")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/ostraka")
	build.Dir = strings.TrimSpace(string(repository))
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/ostraka: %w: %s", err, out)
	}
	return binary, nil
}

// ostrakaVersion asks the binary, which knows its commit where the Go tool stamped it.
func ostrakaVersion(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "version").Output()
	if err != nil {
		return "", fmt.Errorf("%s version: %w", binary, err)
	}
	version := strings.Join(strings.Split(strings.TrimSpace(string(out)), "\n"), ", ")
	return strings.TrimPrefix(version, "ostraka "), nil
}

func (o *ostraka) facts() facts {
	settings := "defaults"
	if len(o.args) > 0 {
		settings = strings.Join(o.args, " ")
	}
	return facts{
		Version:  o.version,
		Writes:   "Set: in the logs of 2 of 3 replicas, synced",
		Reads:    "Get: linearizable, by a confirmation round",
		Client:   "package client, one Client",
		Settings: settings,
		Shards:   o.shardsMap,
	}
}

func (o *ostraka) target() bench.Target { return bench.ForClient(o.client, false) }

func (o *ostraka) pids() []int {
	var pids []int
	for _, p := range o.cluster.Nodes() {
		if pid := p.Pid(); pid != 0 { // it has ended, which alive tells
			pids = append(pids, pid)
		}
	}
	return pids
}

func (o *ostraka) alive() error {
	for _, p := range o.cluster.Nodes() {
		if !p.Running() {
			return fmt.Errorf("ostraka %s has ended: %s", p.ID, o.cluster.Logs(logTailBytes))
		}
	}
	return nil
}

// verify compares index and checksum of every shard's replicas.
func (o *ostraka) verify(ctx context.Context) error {
	_, err := o.cluster.AwaitStatus(ctx, cluster.Converged)
	return err
}

func (o *ostraka) stop() error {
	var failed error
	if o.client != nil {
		failed = o.client.Close()
	}
	if o.cluster != nil {
		failed = errors.Join(failed, o.cluster.Close())
	}
	o.client, o.cluster = nil, nil
	return failed
}
