package ingest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a Sink that keeps what it acknowledged, and fails as it is told.
type cluster struct {
	mu   sync.Mutex
	data map[string]string
	ttl  map[string]time.Duration
	// calls counts those of MultiSet.
	calls int
	// fail returns the error of an item of a call; done: it is written nevertheless. nil: nothing fails.
	fail func(call int, item client.SetItem) (err error, done bool)
}

func newCluster() *cluster {
	return &cluster{data: make(map[string]string), ttl: make(map[string]time.Duration)}
}

func (c *cluster) MultiSet(_ context.Context, items []client.SetItem) []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	seen := make(map[string]bool)
	errs := make([]error, len(items))
	for i, item := range items {
		if seen[string(item.Key)] {
			panic("one call has a key twice: the order would be open")
		}
		seen[string(item.Key)] = true
		done := true
		if c.fail != nil {
			errs[i], done = c.fail(c.calls, item)
		}
		if errs[i] == nil || done {
			c.data[string(item.Key)], c.ttl[string(item.Key)] = string(item.Value), item.TTL
		}
	}
	return errs
}

func reader(t *testing.T, input string) *records.Reader {
	t.Helper()
	r, err := records.NewReader(strings.NewReader(input), records.ReadOptions{Format: records.TSV, NoHeader: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func options() Options {
	return Options{Batch: 3, Concurrency: 2, Patience: time.Minute}
}

// manyLines has n records of keys that come again and again, so that order matters.
func manyLines(n, keys int) (input string, want map[string]string) {
	var b strings.Builder
	want = make(map[string]string)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		key, value := fmt.Sprintf("k%d", rng.IntN(keys)), fmt.Sprint(i)
		fmt.Fprintf(&b, "%s\t%s\n", key, value)
		want[key] = value
	}
	return b.String(), want
}

func TestLastLineOfAKeyWins(t *testing.T) {
	input, want := manyLines(500, 20)
	sink := newCluster()
	counts, err := Run(context.Background(), reader(t, input), sink, options())
	if err != nil || counts != (Counts{Records: 500}) {
		t.Fatalf("%+v, %v", counts, err)
	}
	if fmt.Sprint(sink.data) != fmt.Sprint(want) {
		t.Fatalf("got %v, want %v", sink.data, want)
	}
}

func TestFailedWritesAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		input, want := manyLines(300, 300)
		sink := newCluster()
		rng := rand.New(rand.NewPCG(3, 4))
		sink.fail = func(int, client.SetItem) (error, bool) {
			switch rng.IntN(4) {
			case 0:
				return fmt.Errorf("set: %w", client.ErrUnavailable), false
			case 1:
				return fmt.Errorf("set: %w", client.ErrOutcomeUnknown), rng.IntN(2) == 0
			}
			return nil, true
		}
		counts, err := Run(context.Background(), reader(t, input), sink, options())
		if err != nil || counts.Records != 300 {
			t.Fatalf("%+v, %v", counts, err)
		}
		if fmt.Sprint(sink.data) != fmt.Sprint(want) {
			t.Fatalf("got %v, want %v", sink.data, want)
		}
	})
}

func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newCluster()
		sink.fail = func(_ int, item client.SetItem) (error, bool) {
			if string(item.Key) == "k7" {
				return client.ErrUnavailable, false
			}
			return nil, true
		}
		var input strings.Builder
		for i := range 20 {
			fmt.Fprintf(&input, "k%d\tv\n", i)
		}
		var last records.Position
		o := options()
		o.Acknowledged = func(p records.Position, _ Counts) error { last = p; return nil }
		begun := time.Now()
		_, err := Run(context.Background(), reader(t, input.String()), sink, o)
		if !errors.Is(err, ErrPatience) || !errors.Is(err, client.ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
		if took := time.Since(begun); took < o.Patience || took > o.Patience+2*pauseMax {
			t.Errorf("gave up after %s", took)
		}
		// The first chunk has six records; the second, with k7, was never finished.
		if last.Line != 6 {
			t.Errorf("acknowledged up to line %d, want 6", last.Line)
		}
	})
}

func TestBadLines(t *testing.T) {
	const input = "a\t1\nbad\nb\t2\nbig\t3\n\nc\t4\n"
	tooLarge := &client.LimitError{Limit: "value_bytes_max"}
	refuseBig := func(_ int, item client.SetItem) (error, bool) {
		if string(item.Key) == "big" {
			return tooLarge, false
		}
		return nil, true
	}
	t.Run("skip", func(t *testing.T) {
		sink := newCluster()
		sink.fail = refuseBig
		var skipped []string
		o := options()
		o.Skip = func(bad *records.LineError) { skipped = append(skipped, bad.Error()) }
		counts, err := Run(context.Background(), reader(t, input), sink, o)
		if err != nil || counts != (Counts{Records: 3, Skipped: 2}) {
			t.Fatalf("%+v, %v", counts, err)
		}
		want := "[line 4: over the limit value_bytes_max line 2: value: missing: column 2 of a row of 1]"
		if fmt.Sprint(skipped) != want {
			t.Errorf("skipped %v, want %v", skipped, want)
		}
		if fmt.Sprint(sink.data) != "map[a:1 b:2 c:4]" {
			t.Errorf("got %v", sink.data)
		}
	})
	t.Run("fail in the file", func(t *testing.T) {
		sink := newCluster()
		var last records.Position
		o := options()
		o.Acknowledged = func(p records.Position, _ Counts) error { last = p; return nil }
		_, err := Run(context.Background(), reader(t, input), sink, o)
		bad, ok := errors.AsType[*records.LineError](err)
		if !ok || bad.First != 2 {
			t.Fatalf("got %v", err)
		}
		if last.Line != 1 || fmt.Sprint(sink.data) != "map[a:1]" {
			t.Errorf("up to line %d, %v: what stands before the bad line is imported", last.Line, sink.data)
		}
	})
	t.Run("fail in the cluster", func(t *testing.T) {
		sink := newCluster()
		sink.fail = refuseBig
		acknowledged := false
		o := options()
		o.Acknowledged = func(records.Position, Counts) error { acknowledged = true; return nil }
		_, err := Run(context.Background(), reader(t, "big\t3\nc\t4\n"), sink, o)
		bad, ok := errors.AsType[*records.LineError](err)
		if !ok || bad.First != 1 || !errors.Is(err, client.ErrLimit) {
			t.Fatalf("got %v", err)
		}
		if acknowledged {
			t.Error("acknowledged a chunk with a refused record")
		}
	})
	t.Run("skip only what is about the record", func(t *testing.T) {
		sink := newCluster()
		sink.fail = func(int, client.SetItem) (error, bool) { return client.ErrWrongCluster, false }
		o := options()
		o.Skip = func(bad *records.LineError) { t.Errorf("skipped %v", bad) }
		if _, err := Run(context.Background(), reader(t, input), sink, o); !errors.Is(err, client.ErrWrongCluster) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestTTL(t *testing.T) {
	r, err := records.NewReader(strings.NewReader("key,value,ttl_ms\na,1,500\nb,2,\n"), records.ReadOptions{Format: records.CSV})
	if err != nil {
		t.Fatal(err)
	}
	sink := newCluster()
	o := options()
	o.TTL = time.Hour
	if _, err := Run(context.Background(), r, sink, o); err != nil {
		t.Fatal(err)
	}
	if sink.ttl["a"] != 500*time.Millisecond || sink.ttl["b"] != time.Hour {
		t.Errorf("got %v", sink.ttl)
	}
}

func TestCancelledRunEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	input, _ := manyLines(100, 100)
	o := options()
	o.Acknowledged = func(records.Position, Counts) error { cancel(); return nil }
	if _, err := Run(ctx, reader(t, input), newCluster(), o); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// TestInterruptedAnywhere breaks an import off after each of its acknowledgements in turn, and goes on from the state
// on disk: nothing may be missing, and an earlier value must not come back over a later one.
func TestInterruptedAnywhere(t *testing.T) {
	input, want := manyLines(60, 9)
	broken := errors.New("broken off")
	stopAfter := 0
	for ; ; stopAfter++ {
		path := t.TempDir() + "/state"
		sink := newCluster()
		state := NewStateFile(path, "input", "options", 0)
		left := stopAfter
		o := options()
		o.Acknowledged = func(p records.Position, c Counts) error {
			if left--; left < 0 {
				return broken
			}
			return state.Keep(p, c)
		}
		_, err := Run(context.Background(), reader(t, input), sink, o)
		if err == nil {
			break // there were not so many
		}
		if !errors.Is(err, broken) {
			t.Fatalf("after %d: got %v", stopAfter, err)
		}

		second := reader(t, input)
		resumed := NewStateFile(path, "input", "options", 0)
		s, err := resumed.Resume()
		switch {
		case stopAfter == 0 && !errors.Is(err, ErrNoState):
			t.Fatalf("no state was written, got %v", err)
		case stopAfter > 0 && err != nil:
			t.Fatal(err)
		case stopAfter > 0:
			if err := second.SkipTo(s.Position); err != nil {
				t.Fatal(err)
			}
		}
		counts, err := Run(context.Background(), second, sink, options())
		if err != nil || s.Counts.Records+counts.Records != 60 {
			t.Fatalf("after %d: %+v and %+v, %v", stopAfter, s.Counts, counts, err)
		}
		if fmt.Sprint(sink.data) != fmt.Sprint(want) {
			t.Fatalf("after %d: got %v, want %v", stopAfter, sink.data, want)
		}
	}
	if stopAfter < 5 {
		t.Errorf("only %d acknowledgements, the test shows little", stopAfter)
	}
}

func TestChunksAreBoundedInBytes(t *testing.T) {
	big := strings.Repeat("x", chunkBytesMax/4)
	var input strings.Builder
	for i := range 8 {
		fmt.Fprintf(&input, "k%d\t%s\n", i, big)
	}
	sink := newCluster()
	var ends []int64
	o := options()
	o.Acknowledged = func(p records.Position, _ Counts) error { ends = append(ends, p.Line); return nil }
	if _, err := Run(context.Background(), reader(t, input.String()), sink, o); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(ends) != "[4 8 8]" {
		t.Errorf("chunks end at lines %v", ends)
	}
}
