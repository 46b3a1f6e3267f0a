package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Both clients against a real primary with replicas: what they write can be read, and a dead server is an error.
func TestRedisClients(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes")
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server on this machine")
	}
	for _, client := range []string{redisPerCaller, redisJoined} {
		t.Run(client, func(t *testing.T) {
			r := &redis{server: "redis-server", client: client, connectionsMax: 4}
			ctx, cancel := context.WithTimeout(t.Context(), startMax)
			defer cancel()
			if err := r.start(ctx, t.TempDir()); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := r.stop(); err != nil {
					t.Error(err)
				}
			}()
			const callers, calls = 16, 20 // more callers than connections are kept
			var all sync.WaitGroup
			for i := range callers {
				all.Go(func() {
					for j := range calls {
						keys := [][]byte{fmt.Appendf(nil, "a%d-%d", i, j), fmt.Appendf(nil, "b%d-%d", i, j)}
						if failed, err := r.target().Write(ctx, keys, [][]byte{[]byte("1"), []byte("2")}); failed > 0 || err != nil {
							t.Errorf("write: %d failed, %v", failed, err)
						}
						if failed, err := r.target().Read(ctx, keys); failed > 0 || err != nil {
							t.Errorf("read: %d failed, %v", failed, err)
						}
					}
				})
			}
			all.Wait()
			if err := r.verify(ctx); err != nil {
				t.Error(err)
			}
			if size, err := r.control[2].do("DBSIZE"); err != nil || size.number != 2*callers*calls {
				t.Errorf("a replica has %d keys, %v", size.number, err)
			}
			if failed, err := r.target().Write(ctx, [][]byte{[]byte("list")}, [][]byte{nil}); failed != 0 || err != nil {
				t.Errorf("an empty value: %d failed, %v", failed, err)
			}

			if err := syscall.Kill(r.pids()[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-r.nodes[0].exited
			began := time.Now()
			for range 2 { // the second call meets no connection
				if failed, err := r.target().Write(ctx, [][]byte{[]byte("k"), []byte("l")}, [][]byte{nil, nil}); failed != 2 || err == nil {
					t.Errorf("to a dead server: %d failed, %v", failed, err)
				}
			}
			if took := time.Since(began); took > respTimeout {
				t.Errorf("a dead server was waited for: %v", took)
			}
			if err := r.alive(); err == nil || !strings.Contains(err.Error(), "redis n1 has ended") {
				t.Errorf("alive: %v", err)
			}
		})
	}
}
