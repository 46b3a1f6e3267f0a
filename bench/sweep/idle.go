package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

const (
	// A fresh cluster counts as idle once each shard is led from where the map wants it, which takes a node two seconds a shard,
	// and some time after.
	settleMax  = 3 * time.Minute
	settleRest = 5 * time.Second
)

// cost is what one node has used and sent since its start.
type cost struct {
	cpu       time.Duration
	frames    float64 // messages on the streams between nodes
	envelopes float64 // raft's messages inside them
	memory    float64 // resident bytes
}

// idleCosts prints what the nodes of an idle cluster use, on average.
func idleCosts(ctx context.Context, opts options) error {
	fmt.Printf("idle for %s, averages of three nodes\n\n", opts.idle)
	fmt.Println("| shards | % of a core | frames/s sent | raft messages/s sent | MiB resident |")
	fmt.Println("| --- | --- | --- | --- | --- |")
	for _, s := range opts.subjects() {
		log.Print(opts.name(s))
		err := withCluster(ctx, opts, s, func(c *cluster.Cluster) error {
			if err := settle(ctx, c); err != nil {
				return err
			}
			profiled := profile(ctx, opts, c, "idle-"+fileName(s), opts.idle)
			before, err := costs(ctx, c)
			if err != nil {
				return err
			}
			if err := rest(ctx, opts.idle); err != nil {
				return err
			}
			after, err := costs(ctx, c)
			if err := errors.Join(err, profiled()); err != nil {
				return err
			}
			n, seconds := float64(len(c.Nodes())), opts.idle.Seconds()
			fmt.Printf("| %s | %.1f | %.0f | %.0f | %.0f |\n", strings.Replace(opts.name(s), " shards", "", 1), 100*(after.cpu-before.cpu).Seconds()/n/seconds,
				(after.frames-before.frames)/n/seconds, (after.envelopes-before.envelopes)/n/seconds, after.memory/n/(1<<20))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func settle(ctx context.Context, c *cluster.Cluster) error {
	settled, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	_, err := c.AwaitStatus(settled, func(s *client.Status) bool {
		return !slices.ContainsFunc(s.Shards, func(sh client.ShardStatus) bool { return sh.Leader != sh.Preferred })
	})
	if err != nil {
		return err
	}
	return rest(ctx, settleRest)
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// costs adds up all nodes.
func costs(ctx context.Context, c *cluster.Cluster) (cost, error) {
	var sum cost
	var err error
	if sum.cpu, err = nodesTime(c); err != nil {
		return cost{}, err
	}
	for _, p := range c.Nodes() {
		err := p.Metrics(ctx, func(name, labels string, value float64) {
			switch {
			case name == "ostraka_peer_frames_total" && strings.Contains(labels, `"sent"`):
				sum.frames += value
			case name == "ostraka_peer_envelopes_total" && strings.Contains(labels, `"sent"`):
				sum.envelopes += value
			case name == "process_resident_memory_bytes":
				sum.memory += value
			}
		})
		if err != nil {
			return cost{}, err
		}
	}
	return sum, nil
}

// nodesTime is the processor time that all nodes have used.
func nodesTime(c *cluster.Cluster) (time.Duration, error) {
	var sum time.Duration
	for _, p := range c.Nodes() {
		cpu, err := cpuTime(p.Pid())
		if err != nil {
			return 0, err
		}
		sum += cpu
	}
	return sum, nil
}

// cpuTime reads a process's user and system time from /proc (proc(5): fields 14 and 15, in ticks of 10 ms).
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	const user, system = 14 - 3, 15 - 3 // counted from the field after the name
	ticks := 0
	for _, i := range []int{user, system} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
