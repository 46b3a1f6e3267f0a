package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// writeTables prints a report as text that is Markdown too.
func writeTables(w io.Writer, r *report) error {
	var b strings.Builder
	writeConditions(&b, r)
	for _, workload := range r.Settings.Workloads {
		writeFigures(&b, r, workload)
	}
	if len(r.Ratios) > 0 {
		writeRatios(&b, r)
	}
	for _, s := range r.Summaries {
		if s.Errors > 0 {
			fmt.Fprintf(&b, "\n%s, %s at %d callers%s\n", title(s.System), s.Workload, s.Callers, failures(s.Errors, s.Error))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeConditions says what a reader must know to believe the figures.
func writeConditions(b *strings.Builder, r *report) {
	m, s := r.Machine, r.Settings
	fmt.Fprintf(b, "%s: %d cores (%s), %d MiB, Linux %s, %s; %s, fdatasync of 4 KiB alone p50 %.0f µs, p99 %.0f µs", r.Began.Format("2006-01-02 15:04 UTC"),
		m.Cores, m.CPU, m.MemoryMB, m.Kernel, m.Go, m.FileSystem, m.SyncP50, m.SyncP99)
	if m.Commit != "" {
		fmt.Fprintf(b, "; harness at %s", m.Commit)
	}
	fmt.Fprintf(b, "\n%d nodes of each and one client process share the machine; keys of %d bytes out of %d, values of %d bytes, seed %d; closed loop\n"+
		"%d rounds of %gs after %gs not counted, alternating, one system under load at a time, the others idle\n",
		s.Nodes, s.KeySize, s.Keys, s.ValueSize, s.Seed, s.Rounds, s.DurationSeconds, s.WarmUpSeconds)
	for _, sys := range r.Systems {
		fmt.Fprintf(b, "\n%s %s\n", title(sys.Name), sys.Version)
		for _, line := range [][2]string{{"writes", sys.Writes}, {"reads", sys.Reads}, {"client", sys.Client}, {"settings", sys.Settings}} {
			fmt.Fprintf(b, "  %-9s %s\n", line[0], line[1])
		}
		if sys.Shards > 0 {
			fmt.Fprintf(b, "  %-9s %d\n", "shards", sys.Shards)
		}
		fmt.Fprintf(b, "  %-9s %s\n  %-9s %.1f %% of a core for all nodes\n", "syncs", sys.Syncs, "idle", 100*sys.IdleCores)
	}
	for _, gone := range r.Missing {
		fmt.Fprintf(b, "\nWITHOUT %s: %s\n", title(gone.Name), gone.Why)
	}
	if r.Repeated > 0 {
		fmt.Fprintf(b, "\n%d measurements were made again because others on the machine used more than %g cores meanwhile; the least disturbed counts.\n",
			r.Repeated, s.NoiseMaxCores)
	}
	switch {
	case !r.Complete:
		fmt.Fprintf(b, "\nINCOMPLETE: the run ended early, after %d measurements\n", len(r.Measurements))
	case r.Verified:
		fmt.Fprint(b, "\nAfter the load all nodes of each system held the same: etcd and Ostraka by checksum, Redis by offset and number of keys.\n")
	}
}

// writeFigures prints the table of a workload.
func writeFigures(b *strings.Builder, r *report, workload string) {
	rows := [][]string{{"callers", "system", "ops/s", "range", "p50 ms", "p99 ms", "range", "p99.9 ms", "errors", "server CPU µs/op", "client CPU µs/op", "noise cores"}}
	for _, s := range r.Summaries {
		if s.Workload != workload {
			continue
		}
		rows = append(rows, []string{
			fmt.Sprint(s.Callers), title(s.System),
			fmt.Sprintf("%.0f", s.OpsPerSecond.Median), fmt.Sprintf("%.0f–%.0f", s.OpsPerSecond.Min, s.OpsPerSecond.Max),
			millis(s.P50.Median), millis(s.P99.Median), millis(s.P99.Min) + "–" + millis(s.P99.Max), millis(s.P999.Median),
			fmt.Sprint(s.Errors), fmt.Sprintf("%.0f", s.ServerMicros.Median), fmt.Sprintf("%.0f", s.ClientMicros.Median),
			fmt.Sprintf("%.2f", s.Noise.Median),
		})
	}
	if len(rows) == 1 {
		return
	}
	fmt.Fprintf(b, "\n%s, medians over the rounds (range: least–most)\n\n", workload)
	writeTable(b, rows)
}

func writeRatios(b *strings.Builder, r *report) {
	rows := [][]string{{"workload", "callers", "Ostraka ÷", "ops/s", "in rounds", "p99", "in rounds"}}
	for _, q := range r.Ratios {
		rows = append(rows, []string{q.Workload, fmt.Sprint(q.Callers), title(q.Peer),
			q.OpsPerSecond.String(), q.OpsPerSecond.within(), q.P99.String(), q.P99.within()})
	}
	fmt.Fprint(b, "\nratios of the medians (in rounds: least–most within a round); more ops/s and less p99 are better\n\n")
	writeTable(b, rows)
}

func (q quotient) String() string {
	if !q.Valid {
		return "–"
	}
	return factor(q.OfMedians)
}

func (q quotient) within() string {
	if !q.Valid {
		return "–"
	}
	return factor(q.Min) + "–" + factor(q.Max)
}

// factor prints a ratio with what precision it may have.
func factor(f float64) string {
	if f < 10 {
		return fmt.Sprintf("%.2f", f)
	}
	return fmt.Sprintf("%.1f", f)
}

// millis prints milliseconds with three digits.
func millis(ms float64) string {
	switch {
	case ms >= 100:
		return fmt.Sprintf("%.0f", ms)
	case ms >= 10:
		return fmt.Sprintf("%.1f", ms)
	}
	return fmt.Sprintf("%.2f", ms)
}

// writeTable prints rows, the first of which is the head, with columns of equal width: words to the left, numbers to the
// right.
func writeTable(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	rightward := make([]bool, len(rows[0]))
	for i := range rows[0] {
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
		rightward[i] = len(rows) > 1 && strings.ContainsAny(rows[1][i], "0123456789–")
	}
	line := func(row []string) {
		for i, text := range row {
			fill := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if rightward[i] {
				b.WriteString("| " + fill + text + " ")
			} else {
				b.WriteString("| " + text + fill + " ")
			}
		}
		b.WriteString("|\n")
	}
	line(rows[0])
	for i, w := range widths {
		if rightward[i] {
			b.WriteString("| " + strings.Repeat("-", max(w-1, 2)) + ": ")
		} else {
			b.WriteString("| " + strings.Repeat("-", max(w, 3)) + " ")
		}
	}
	b.WriteString("|\n")
	for _, row := range rows[1:] {
		line(row)
	}
}
