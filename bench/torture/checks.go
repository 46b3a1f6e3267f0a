package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

const (
	// convergeMax bounds how long replicas may take to be equal once nothing is written any more.
	convergeMax = time.Minute
	// goroutinesMore and memoryMore are what a node may have more than before the load: connections of the status, pools, and
	// the data itself.
	goroutinesMore  = 60
	memoryMoreBytes = 512 << 20
)

// checkAtEnd holds the quiet cluster against what the clients saw (shared/faults.md, checks b, c, e; a runs beside the load).
func (t *torture) checkAtEnd(before map[string]usage) error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*convergeMax)
	defer cancel()
	converging, stop := context.WithTimeout(ctx, convergeMax)
	defer stop()
	if _, err := t.cluster.AwaitStatus(converging, cluster.Converged); err != nil {
		t.violation("replicas do not become equal within %s: %v", convergeMax, err)
	} else {
		t.say("replicas are equal")
	}
	if err := t.checkContents(ctx); err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	t.load.close() // whose connections cost the nodes something
	for _, p := range t.cluster.Nodes() {
		if text := panicIn(p.LogPath); text != "" {
			t.violation("%s panicked: %s", p.ID, text)
		}
	}
	return t.checkUsage(ctx, before)
}

func (t *torture) checkContents(ctx context.Context) error {
	c, err := client.New(ctx, t.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := t.load.uniques.check(ctx, c, t.violation); err != nil {
		return err
	}
	told, stop := context.WithTimeout(ctx, recoveryMax)
	defer stop()
	t.load.watching.check(told, t.load)
	for i := range t.load.counters {
		value, err := get(ctx, c, counterKey(i))
		if err != nil {
			return err
		}
		sum := int64(0)
		if value != "" {
			if sum, err = strconv.ParseInt(value, 10, 64); err != nil {
				t.violation("counter %d holds %q", i, value)
				continue
			}
		}
		t.load.counters[i].check(sum, func(format string, args ...any) {
			t.violation("counter %d: %s", i, fmt.Sprintf(format, args...))
		})
	}
	for _, s := range t.load.sets {
		var joined strings.Builder
		for _, key := range s.keys() {
			value, err := get(ctx, c, key)
			if err != nil {
				return err
			}
			joined.WriteString(value)
		}
		s.check(joined.String(), func(format string, args ...any) {
			t.violation("%s: %s", s.key, fmt.Sprintf(format, args...))
		})
	}
	t.say("%d acknowledged unique writes, %d counters and %d sets read back; %d changes watched, begun anew %d times", len(t.load.uniques.acknowledged),
		len(t.load.counters), len(t.load.sets), t.load.watching.changes, t.load.watching.gaps-len(watched))
	return nil
}

// get returns a value; empty: there is none.
func get(ctx context.Context, c *client.Client, key []byte) (string, error) {
	got, err := c.Get(ctx, key)
	if errors.Is(err, client.ErrNotFound) {
		return "", nil
	}
	return string(got.Value), err
}

// usage is what a node's process takes.
type usage struct {
	goroutines int
	bytes      int64 // resident
}

func (t *torture) usage(ctx context.Context) (map[string]usage, error) {
	all := make(map[string]usage)
	for _, p := range t.cluster.Nodes() {
		u, err := usageOf(ctx, p)
		if err != nil {
			return nil, err
		}
		all[p.ID] = u
	}
	return all, nil
}

func usageOf(ctx context.Context, p *cluster.Process) (u usage, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = p.Metrics(ctx, func(name, _ string, value float64) {
		switch name {
		case "go_goroutines":
			u.goroutines = int(value)
		case "process_resident_memory_bytes":
			u.bytes = int64(value)
		}
	})
	if err == nil && (u.goroutines == 0 || u.bytes == 0) {
		err = fmt.Errorf("%s does not say how many goroutines run and how much memory is used", p.ID)
	}
	return u, err
}

// checkUsage waits until goroutines and memory are back.
func (t *torture) checkUsage(ctx context.Context, before map[string]usage) error {
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(30 * time.Second)
	for {
		now, err := t.usage(ctx)
		if err != nil {
			return err
		}
		var over []string
		for node, u := range now {
			b := before[node]
			if u.goroutines > b.goroutines+goroutinesMore || u.bytes > b.bytes+memoryMoreBytes {
				over = append(over, fmt.Sprintf("%s has %d goroutines and %d MiB, at the start %d and %d", node, u.goroutines, u.bytes>>20,
					b.goroutines, b.bytes>>20))
			}
		}
		if len(over) == 0 {
			t.say("goroutines and memory are back")
			return nil
		}
		if time.Now().After(deadline) {
			t.violation("goroutines or memory don't come back: %s", strings.Join(over, "; "))
			return nil
		}
		pauseFor(ctx, 200*time.Millisecond)
	}
}
