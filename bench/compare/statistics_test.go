package main

import (
	"math"
	"reflect"
	"testing"

	"github.com/ostraka-db/ostraka/bench"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{9, 1, 4}, spread{4, 1, 9}},
		{[]float64{8, 2, 100, 4}, spread{6, 2, 100}}, // the mean of the middle two
	} {
		before := append([]float64{}, c.values...)
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("%v: %v, want %v", c.values, got, c.want)
		}
		if !reflect.DeepEqual(before, c.values) {
			t.Errorf("%v was put in order", before)
		}
	}
}

// measured makes a measurement of one round.
func measured(system, workload string, callers, round int, ops float64, p99Micros int64) measurement {
	return measurement{
		cell: cell{workload, callers}, System: system, Round: round, Quiet: true,
		Result: bench.Result{Ops: int64(ops), Seconds: 1, OpsPerSecond: ops, Latency: bench.Latency{P50: p99Micros / 2, P99: p99Micros, P999: 2 * p99Micros}},
		CPU:    cpuUse{Server: 1, Client: 0.5, Idle: 0.02, Others: 0.01},
	}
}

func TestSummaries(t *testing.T) {
	bad := measured(nameEtcd, writes, 64, 3, 1000, 30_000)
	bad.Errors, bad.Error = 3, "no"
	cells := []cell{{writes, 64}, {reads, 64}}
	got := summarize(cells, []string{nameEtcd, nameRedis}, []measurement{
		measured(nameRedis, writes, 64, 1, 50, 1000),
		measured(nameEtcd, writes, 64, 1, 4000, 10_000), measured(nameEtcd, writes, 64, 2, 2000, 20_000), bad,
		measured(nameEtcd, writes, 256, 1, 1, 1), // of a cell that was not asked for
		measured(nameEtcd, reads, 64, 1, 7, 7),
	})
	if len(got) != 3 || got[0].System != nameEtcd || got[1].System != nameRedis || got[2].Workload != reads {
		t.Fatalf("%+v", got)
	}
	s := got[0]
	if s.Rounds != 3 || s.OpsPerSecond != (spread{2000, 1000, 4000}) || s.P99 != (spread{20, 10, 30}) || s.P50 != (spread{10, 5, 15}) || s.P999 != (spread{40, 20, 60}) {
		t.Errorf("figures %+v", s)
	}
	if s.Errors != 3 || s.Error != "no" {
		t.Errorf("errors %d, %q", s.Errors, s.Error)
	}
	// One core for 2000 operations in a second is 500 µs for each.
	if s.ServerMicros != (spread{500, 250, 1000}) || s.ClientMicros.Median != 250 || math.Abs(s.Noise.Median-0.03) > 1e-9 {
		t.Errorf("CPU %+v, %+v, noise %+v", s.ServerMicros, s.ClientMicros, s.Noise)
	}
	if perOp(1, 0) != 0 {
		t.Error("nothing done costs something")
	}
}

func TestRatios(t *testing.T) {
	cells := []cell{{writes, 64}, {reads, 64}}
	systems := []string{nameEtcd, nameRedis, nameOstraka}
	all := []measurement{
		measured(nameOstraka, writes, 64, 1, 10_000, 1000), measured(nameOstraka, writes, 64, 2, 30_000, 3000), measured(nameOstraka, writes, 64, 3, 20_000, 2000),
		measured(nameEtcd, writes, 64, 1, 1000, 4000), measured(nameEtcd, writes, 64, 2, 1000, 4000), measured(nameEtcd, writes, 64, 3, 5000, 4000),
		// Redis has not had its third round; in the second it did nothing at all.
		measured(nameRedis, writes, 64, 1, 10_000, 1000), measured(nameRedis, writes, 64, 2, 0, 0),
		measured(nameOstraka, reads, 64, 1, 10, 10), // with nobody to compare to
	}
	got := ratios(cells, systems, all)
	want := []ratio{
		{cell{writes, 64}, nameEtcd, quotient{OfMedians: 20, Min: 4, Max: 30, Valid: true}, quotient{OfMedians: 0.5, Min: 0.25, Max: 0.75, Valid: true}},
		{cell{writes, 64}, nameRedis, quotient{}, quotient{}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestThePlanAlternates(t *testing.T) {
	cells := []cell{{writes, 64}, {writes, 256}, {reads, 64}}
	systems := []string{nameEtcd, nameRedis, nameOstraka}
	turns := plan(cells, systems, 3)
	if len(turns) != len(cells)*len(systems)*3 {
		t.Fatalf("%d turns", len(turns))
	}
	seen := make(map[turn]bool)
	first := make(map[string]int)
	for i, turn := range turns {
		if seen[turn] {
			t.Errorf("%+v comes twice", turn)
		}
		seen[turn] = true
		if i%len(systems) == 0 {
			first[turn.system]++
		} else if before := turns[i-1]; before.cell != turn.cell || before.round != turn.round {
			t.Errorf("%+v is not measured next to the others of its cell and round", turn)
		}
	}
	for _, s := range systems {
		if first[s] != 3 {
			t.Errorf("%s begins %d times of 9", s, first[s])
		}
	}
}
