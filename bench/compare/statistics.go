package main

import (
	"slices"

	"github.com/ostraka-db/ostraka/bench"
)

// cell is a combination that is measured for every system.
type cell struct {
	Workload string `json:"workload"`
	Callers  int    `json:"callers"`
}

// measurement is one system in one cell in one round.
type measurement struct {
	cell
	System string `json:"system"`
	Round  int    `json:"round"` // from 1
	bench.Result
	// Error is an example of what failed.
	Error string `json:"error,omitempty"`
	CPU   cpuUse `json:"cpu_cores"`
	// Quiet: the machine was, before the load began.
	Quiet bool `json:"quiet_before"`
}

// spread is the median of some numbers, and the least and most of them.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf is for at least one number. The median of an even number of them is the mean of the middle two.
func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1]}
}

// summary is a system in a cell over all rounds. Latencies are in milliseconds.
type summary struct {
	cell
	System       string `json:"system"`
	Rounds       int    `json:"rounds"`
	OpsPerSecond spread `json:"ops_per_second"`
	P50          spread `json:"p50_ms"`
	P99          spread `json:"p99_ms"`
	P999         spread `json:"p999_ms"`
	Errors       int64  `json:"errors"`
	// Error is an example.
	Error string `json:"error,omitempty"`
	// ServerMicros and ClientMicros are CPU time for each operation: of all three nodes together, and of the harness.
	// Nothing was done: 0.
	ServerMicros spread `json:"server_cpu_us_per_op"`
	ClientMicros spread `json:"client_cpu_us_per_op"`
	// Noise is what idle systems and everything else on the machine used, in cores.
	Noise spread `json:"noise_cores"`
}

// summarize makes a summary for each cell and system that was measured, in the order given.
func summarize(cells []cell, systems []string, all []measurement) []summary {
	var summaries []summary
	for _, at := range cells {
		for _, system := range systems {
			if of := only(all, at, system); len(of) > 0 {
				summaries = append(summaries, summaryOf(of))
			}
		}
	}
	return summaries
}

func only(all []measurement, at cell, system string) []measurement {
	var some []measurement
	for _, m := range all {
		if m.cell == at && m.System == system {
			some = append(some, m)
		}
	}
	return some
}

// summaryOf is for the rounds of one system in one cell, at least one.
func summaryOf(of []measurement) summary {
	over := func(value func(measurement) float64) spread {
		values := make([]float64, len(of))
		for i, m := range of {
			values[i] = value(m)
		}
		return spreadOf(values)
	}
	s := summary{
		cell: of[0].cell, System: of[0].System, Rounds: len(of),
		OpsPerSecond: over(func(m measurement) float64 { return m.OpsPerSecond }),
		P50:          over(func(m measurement) float64 { return float64(m.Latency.P50) / 1000 }),
		P99:          over(func(m measurement) float64 { return float64(m.Latency.P99) / 1000 }),
		P999:         over(func(m measurement) float64 { return float64(m.Latency.P999) / 1000 }),
		ServerMicros: over(func(m measurement) float64 { return perOp(m.CPU.Server, m.OpsPerSecond) }),
		ClientMicros: over(func(m measurement) float64 { return perOp(m.CPU.Client, m.OpsPerSecond) }),
		Noise:        over(func(m measurement) float64 { return m.CPU.Idle + m.CPU.Others }),
	}
	for _, m := range of {
		s.Errors += m.Errors
		if s.Error == "" {
			s.Error = m.Error
		}
	}
	return s
}

// perOp turns cores in use and operations a second into microseconds of CPU for each.
func perOp(cores, opsPerSecond float64) float64 {
	if opsPerSecond == 0 {
		return 0
	}
	return cores * 1e6 / opsPerSecond
}

// ratio is Ostraka's figures by a peer's.
type ratio struct {
	cell
	Peer         string   `json:"peer"`
	OpsPerSecond quotient `json:"ops_per_second"`
	P99          quotient `json:"p99"`
}

// quotient is one of two medians, and the least and most of the quotients within each round, where both were measured
// shortly after each other. A division by nothing leaves it not Valid.
type quotient struct {
	OfMedians float64 `json:"of_medians"`
	Min       float64 `json:"min"`
	Max       float64 `json:"max"`
	Valid     bool    `json:"valid"`
}

// ratios compares Ostraka with every other system in every cell where both were measured.
func ratios(cells []cell, systems []string, all []measurement) []ratio {
	var list []ratio
	for _, at := range cells {
		ours := only(all, at, nameOstraka)
		for _, peer := range systems {
			theirs := only(all, at, peer)
			if peer == nameOstraka || len(ours) == 0 || len(theirs) == 0 {
				continue
			}
			list = append(list, ratio{
				cell: at, Peer: peer,
				OpsPerSecond: divide(ours, theirs, func(m measurement) float64 { return m.OpsPerSecond }),
				P99:          divide(ours, theirs, func(m measurement) float64 { return float64(m.Latency.P99) }),
			})
		}
	}
	return list
}

func divide(ours, theirs []measurement, value func(measurement) float64) quotient {
	var above, below, within []float64
	byRound := make(map[int]float64)
	for _, m := range theirs {
		byRound[m.Round] = value(m)
		below = append(below, value(m))
	}
	for _, m := range ours {
		above = append(above, value(m))
		if peer, ok := byRound[m.Round]; ok {
			within = append(within, value(m)/peer)
		}
	}
	if len(within) == 0 || slices.Min(below) <= 0 {
		return quotient{}
	}
	return quotient{OfMedians: spreadOf(above).Median / spreadOf(below).Median, Min: slices.Min(within), Max: slices.Max(within), Valid: true}
}
