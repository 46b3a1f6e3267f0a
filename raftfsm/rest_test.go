package raftfsm

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestFirstWriteAfterRest: what a shard at rest tells its followers waits for what other shards have to say, and a write must
// not wait behind it. Of two voters both are needed, and one in fifteen writes would find such a message waiting.
func TestFirstWriteAfterRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2, 2, 1, nil)
		lead := c.leader(1)
		slow := 0
		for i := range 200 {
			time.Sleep(500*time.Millisecond + time.Duration(i%50)*5*time.Millisecond)
			began := time.Now()
			lead.mustSet(1, fmt.Sprint("k", i), "v")
			if time.Since(began) > 0 { // virtual
				slow++
			}
		}
		if slow > 0 {
			t.Errorf("%d of 200 writes waited", slow)
		}
	})
}
