package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ostraka-db/ostraka/bench"
)

// system is one of the databases compared, as three nodes. Its methods are called by one goroutine; the target by many.
type system interface {
	// start runs the nodes with their data in dir, waits until they serve, and connects to them. On an error nothing
	// is left running. errMissing: the machine has no such database.
	start(ctx context.Context, dir string) error
	// The following are for the time between start and stop.

	// facts tells what was started.
	facts() facts
	// target is what the harness drives.
	target() bench.Target
	// pids are the nodes' processes. Each leads a process group of its own.
	pids() []int
	// alive returns an error that names a node which has ended, with the end of its log.
	alive() error
	// verify waits until all nodes hold the same.
	verify(ctx context.Context) error
	// stop ends all that start began.
	stop() error
}

// errMissing: a database is not installed. The error that wraps it says what to do.
var errMissing = errors.New("not installed")

// nodesPerSystem, and how many of them have a write on disk before it is acknowledged.
const (
	nodesPerSystem = 3
	majority       = nodesPerSystem/2 + 1
)

// facts are what a reader must know of a system to believe its figures.
type facts struct {
	Version string `json:"version"`
	// Writes and Reads say what an answer promises.
	Writes string `json:"writes"`
	Reads  string `json:"reads"`
	// Client says how the callers share connections.
	Client string `json:"client"`
	// Settings that differ from the system's defaults, and those that matter.
	Settings string `json:"settings"`
	Shards   int    `json:"shards,omitempty"`
	// Caveat is where the system promises less than the others, in few words, for the picture; empty: nowhere.
	Caveat string `json:"caveat,omitempty"`
}

// The names of the systems, as --systems takes them.
const (
	nameEtcd    = "etcd"
	nameRedis   = "redis"
	nameOstraka = "ostraka"
)

// systemNames in the order in which they are shown.
var systemNames = []string{nameEtcd, nameRedis, nameOstraka}

// title is a system's name in print.
func title(name string) string {
	switch name {
	case nameRedis:
		return "Redis"
	case nameOstraka:
		return "Ostraka"
	}
	return name
}

func newSystem(name string, opts *options) system {
	switch name {
	case nameEtcd:
		return &etcd{connections: opts.etcdConnections, endpointsOf: opts.etcdEndpoints}
	case nameRedis:
		return &redis{server: opts.redisServer, client: opts.redisClient, connectionsMax: slices.Max(opts.callers)}
	case nameOstraka:
		return &ostraka{binary: opts.binary, shards: opts.shards, args: opts.ostrakaArgs}
	}
	panic(fmt.Sprintf("no system %q", name)) // options has checked it
}
