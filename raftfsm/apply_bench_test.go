package raftfsm

import (
	"fmt"
	"testing"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// BenchmarkApply is what one operation costs a replica, decoding included: entries of 64 sets of 128 bytes, of clients that each
// wait for 64 answers.
func BenchmarkApply(b *testing.B) {
	for _, clients := range []int{0, 1, 8, 64} {
		b.Run(fmt.Sprint(clients, " sessions"), func(b *testing.B) {
			m := newShardMachine(1, &manualClock{wall: 5})
			var encoder entryEncoder
			own, err := encoder.encode(&entry{Kind: entryOwn, Time: 1, Ranges: []shard.Range{{From: 0, To: shard.SlotCount}}})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := m.apply(1, own); err != nil {
				b.Fatal(err)
			}
			const entries, each = 1024, 64
			data := make([][]byte, entries)
			fill := func(round int) { // numbers go on from round to round
				for e := range data {
					writes := make([]*Write, each)
					for i := range writes {
						n := (round*entries+e)*each + i
						w := &Write{Op: store.Op{Kind: store.OpSet, Key: fmt.Appendf(nil, "%016d", n*7919%10_000), Value: make([]byte, 128), ValueBytesMax: 8 << 20}}
						if clients > 0 {
							request := uint64(n/clients) + 1
							w.Session = Session{ClientID: [16]byte{1, byte(i % clients)}, Born: 1, Request: request, Lowest: request - min(request-1, 64), Attempt: 1}
						}
						writes[i] = w
					}
					data[e] = encoder.encodeWrites(store.Time(2+round*entries+e), writes)
				}
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if n%entries == 0 {
					b.StopTimer()
					fill(n / entries)
					b.StartTimer()
				}
				r, err := m.apply(1, data[n%entries])
				if err != nil || r.(opResults).refused != nil {
					b.Fatalf("%+v, %v", r, err)
				}
				n++
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*each), "ns/operation")
			b.ReportMetric(float64(len(data[0]))/each, "bytes/operation")
		})
	}
}

// BenchmarkFreezeSessions is how long a snapshot holds up writes for a table that is full.
func BenchmarkFreezeSessions(b *testing.B) {
	t := newSessionTable(formatBounds)
	for i := range formatBounds.sessions {
		s, _ := t.use(sessionName{[16]byte{byte(i), byte(i >> 8), byte(i >> 16), 1}, 1}, 0, 1)
		for request := range uint64(6) {
			t.keep(s, int(request), request+1, 1, &store.Result{Status: store.StatusOK})
		}
	}
	for b.Loop() {
		t.freeze()
	}
}
