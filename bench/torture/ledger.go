package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

func (r *result) faults() int {
	n := 0
	for _, count := range r.struck {
		n += count
	}
	return n
}

func (r *result) verdict(failed error) string {
	switch {
	case len(r.violations) > 0:
		return fmt.Sprintf("%d violations: %s", len(r.violations), r.violations[0])
	case failed != nil:
		return "cut off: " + failed.Error()
	}
	return "good"
}

func (r *result) print(out io.Writer) {
	var kinds []string
	for name, count := range r.struck {
		kinds = append(kinds, fmt.Sprintf("%s %d", name, count))
	}
	slices.Sort(kinds)
	fmt.Fprintf(out, "seed %d: %.1f minutes, %d operations (%d in checked histories, %d of unknown outcome), %d faults (%s)\n",
		r.seed, r.length.Minutes(), r.operations, r.checked, r.unknown, r.faults(), strings.Join(kinds, ", "))
	if len(r.gaps) > 0 {
		gaps := slices.Sorted(slices.Values(r.gaps))
		fmt.Fprintf(out, "longest time that a shard's writes stood still, by round: median %.2fs, longest %.2fs\n",
			gaps[len(gaps)/2].Seconds(), gaps[len(gaps)-1].Seconds())
	}
	for _, v := range r.violations {
		fmt.Fprintln(out, "violation:", v)
	}
}

const ledgerHead = `# Ledger of torture

Every run of ` + "`make torture`" + ` adds a line. Operations are those of clients; checked ones are part of a history that was found
linearizable, the others are held against what is there at the end.

| day | commit | seed | minutes | operations | checked | faults | verdict |
| --- | --- | --- | --- | --- | --- | --- | --- |
`

// append adds a line to the ledger, and its head where there is none yet.
func (r *result) append(path string, failed error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("| %s | %s | %d | %.1f | %d | %d | %d | %s |\n", time.Now().Format(time.DateOnly), commit(), r.seed, r.length.Minutes(),
		r.operations, r.checked, r.faults(), strings.ReplaceAll(strings.ReplaceAll(r.verdict(failed), "\n", " "), "|", "\\|"))
	if info, err := f.Stat(); err == nil && info.Size() == 0 {
		line = ledgerHead + line
	}
	_, err = io.WriteString(f, line)
	return errors.Join(err, f.Close())
}

// commit names what is checked out, with a + where it was changed.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty=+", "--abbrev=10").Output()
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(out))
}
