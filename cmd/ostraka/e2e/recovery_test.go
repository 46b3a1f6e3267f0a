package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

// A node that is killed with a long log and snapshots says NOT_SERVING until it serves, and then has all of it. How long that
// takes is logged; OSTRAKA_RECOVERY_BYTES says how much is written, over and over in a sixth of it, by default 48 MiB.
func TestRecoveryTime(t *testing.T) {
	bytesTotal := 48 << 20
	if s := os.Getenv("OSTRAKA_RECOVERY_BYTES"); s != "" {
		var err error
		if bytesTotal, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	const valueBytes, rounds, shards = 16 << 10, 6, 3
	keys := bytesTotal / rounds / valueBytes
	// A shard's log is kept back to the snapshot before the last: one to two times this.
	c := startCluster(t, cluster.Options{Nodes: 1, Shards: shards, Replicas: 1,
		ServerArgs: []string{"--snapshot-log-bytes", strconv.Itoa(bytesTotal / shards / 5 * 2)}})
	value := func(key, round int) []byte {
		return append(fmt.Appendf(nil, "%d/%d:", key, round), bytes.Repeat([]byte{byte(key)}, valueBytes)...)
	}
	cl := connect(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	for round := range rounds {
		var writers sync.WaitGroup
		var next atomic.Int64
		for range 32 {
			writers.Go(func() {
				for key := int(next.Add(1) - 1); key < keys && !t.Failed(); key = int(next.Add(1) - 1) {
					if _, err := cl.Set(ctx, fmt.Append(nil, "key-", key), value(key, round)); err != nil {
						t.Errorf("set: %v", err)
					}
				}
			})
		}
		writers.Wait()
		if t.Failed() {
			return
		}
	}
	await(t, c, func(s *client.Status) bool {
		for _, sh := range s.Shards {
			if len(sh.Replicas) == 0 || sh.Replicas[0].SnapshotIndex == 0 {
				return false
			}
		}
		return len(s.Shards) > 0
	})
	node := c.Nodes()[0]
	kill(t, node)
	report, err := wal.Walk(nil, filepath.Join(node.DataDir, "wal"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	logBytes, snapBytes := report.Bytes, sizeOf(t, filepath.Join(node.DataDir, "snap"))

	began := time.Now()
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(node.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	refused, notServing := 0, 0
	for {
		got, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil && got.Status == grpc_health_v1.HealthCheckResponse_SERVING {
			break
		}
		switch {
		case err == nil:
			notServing++
		case ctx.Err() != nil || !node.Running():
			t.Fatalf("it never serves: %v", err)
		default:
			refused++
		}
		time.Sleep(2 * time.Millisecond) // between two looks at a condition
	}
	took := time.Since(began)
	for { // its shards have no leader yet, since there is nobody else: another second or two
		call, cancel := context.WithTimeout(ctx, time.Second)
		got, err := cl.Get(call, []byte("key-0"))
		cancel()
		if err == nil {
			if !bytes.Equal(got.Value, value(0, rounds-1)) {
				t.Errorf("the first read gives %d bytes", len(got.Value))
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d MiB of log and %d MiB of snapshots: SERVING %s after the start, %.2f s a GB, the first read answered after %s; %d checks without a port, %d NOT_SERVING",
		logBytes>>20, snapBytes>>20, took.Round(time.Millisecond), took.Seconds()*float64(1<<30)/float64(logBytes+snapBytes),
		time.Since(began).Round(time.Millisecond), refused, notServing)
	if said := strings.Contains(c.Logs(1<<20), "reading the log"); took > 6*time.Second && !said {
		t.Error("no progress was shown")
	}
	for key := range keys {
		if got, err := cl.Get(ctx, fmt.Append(nil, "key-", key)); err != nil || !bytes.Equal(got.Value, value(key, rounds-1)) {
			t.Fatalf("key %d: %d bytes, %v", key, len(got.Value), err)
		}
	}
}

// sizeOf adds up the files in a directory.
func sizeOf(t *testing.T, dir string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}
