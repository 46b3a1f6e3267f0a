package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/shard"
)

// Under a known load the command line shows what each slot gets, and finds the key that gets most and the one that is largest.
func TestUsage(t *testing.T) {
	c := startCluster(t, cluster.Options{})
	await(t, c, cluster.Healthy)
	cl := connect(t, c)
	ctx := testContext(t)
	if _, err := cl.Set(ctx, []byte("large"), make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Set(ctx, []byte("hot"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	var reads, writes atomic.Int64
	stop := make(chan struct{})
	done := make(chan error, 8)
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				var err error
				if w%2 == 0 {
					_, err = cl.Set(ctx, []byte("hot"), []byte("v"))
					writes.Add(1)
				} else {
					_, err = cl.Get(ctx, []byte("hot"))
					reads.Add(1)
				}
				if err == nil {
					_, err = cl.Set(ctx, fmt.Appendf(nil, "cold%d-%d", w, i), []byte("v"), client.WithTTL(time.Hour))
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
	}
	began := time.Now()
	endpoints := strings.Join(c.Endpoints(), ",")
	var hot struct {
		Hottest []struct {
			Key string `json:"key"`
			client.HotKey
		} `json:"hottest"`
		Largest []struct {
			Key   string `json:"key"`
			Bytes int64  `json:"bytes"`
		} `json:"largest"`
	}
	for len(hot.Hottest) == 0 || hot.Hottest[0].ReadsPerSecond == 0 || time.Since(began) < 11*time.Second {
		if time.Since(began) > patience {
			t.Fatalf("%+v", hot)
		}
		time.Sleep(500 * time.Millisecond) // nothing to wait for but a window's end
		status, stdout, stderr := ostraka(t, "", "hotkeys", "--json", "--endpoints", endpoints)
		if status != 0 {
			t.Fatalf("status %d, %s", status, stderr)
		}
		if err := json.Unmarshal([]byte(stdout), &hot); err != nil {
			t.Fatal(err)
		}
	}
	status, stdout, stderr := ostraka(t, "", "cluster", "slots", "--json", "--endpoints", endpoints)
	took := time.Since(began).Seconds()
	if status != 0 {
		t.Fatalf("status %d, %s", status, stderr)
	}
	var u client.Usage
	if err := json.Unmarshal([]byte(stdout), &u); err != nil {
		t.Fatal(err)
	}
	readRate, writeRate := float64(reads.Load())/took, float64(writes.Load())/took
	_, table, _ := ostraka(t, "", "hotkeys", "--top", "2", "--endpoints", endpoints)
	close(stop)
	for range 8 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%.0f reads and %.0f writes a second of hot; shown:\n%s", readRate, writeRate, table)
	// The load swings, and so do samples: half and double are told apart from nothing and everything.
	near := func(got, want float64) bool { return got > want/2 && got < want*2 }
	if h := hot.Hottest[0]; h.Key != "hot" || !near(h.ReadsPerSecond, readRate) || !near(h.WritesPerSecond, writeRate) || h.Slot != shard.SlotOf([]byte("hot")) {
		t.Errorf("hottest: %+v, want %.0f reads and %.0f writes", h, readRate, writeRate)
	}
	if l := hot.Largest; len(l) == 0 || l[0].Key != "large" || l[0].Bytes != 100_005 {
		t.Errorf("largest: %+v", l)
	}
	keys, expiring := int64(0), int64(0)
	for _, s := range u.Slots {
		keys, expiring = keys+s.Keys, expiring+s.Expiring
		if s.Slot == shard.SlotOf([]byte("hot")) && (!near(s.WritesPerSecond, writeRate) || !near(s.ReadsPerSecond, readRate)) {
			t.Errorf("the hot slot: %+v", s)
		}
	}
	if keys < 100 || expiring < keys-10 || expiring >= keys {
		t.Errorf("%d keys, %d expiring", keys, expiring)
	}
	if status, stdout, _ := ostraka(t, "", "cluster", "slots", "--top", "3", "--by", "bytes", "--endpoints", endpoints); status != 0 ||
		strings.Count(stdout, "\n") != 1+3+1+1+3 || !strings.Contains(stdout, fmt.Sprint(shard.SlotOf([]byte("large")))) {
		t.Errorf("status %d\n%s", status, stdout)
	}
}
