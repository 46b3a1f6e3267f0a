package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

// errRotten: verify found what can't be a crash's doing.
var errRotten = errors.New("the log is damaged")

func (a *app) walCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal",
		Short: "Look at a node's write-ahead log, offline",
		Long: `Reads the write-ahead log in a node's data directory, or in a copy of its wal/ folder, and changes nothing. Beside
a running node it works too, but may take what is just being written for a write that was cut off.`,
		Example: `  ostraka wal verify /var/lib/ostraka
  ostraka wal dump /var/lib/ostraka --shard 2`,
		Args: cobra.NoArgs,
		RunE: help,
	}
	cmd.AddCommand(a.walVerifyCommand(), a.walDumpCommand())
	return cmd
}

func (a *app) walVerifyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Read all of a log and report damage by file and offset",
		Long: `Reads every frame, checks it, and prints what the log holds of each replica and what is wrong with it.

A write that a crash cut off, at the end of a log that was not closed, is no damage: nothing of it was acknowledged.
Anything else that doesn't check is rot; the replicas that may have lost something by it are named, and don't start.
Exit code 1 if there is rot.`,
		Example: `  ostraka wal verify /var/lib/ostraka
  ostraka wal verify ./copy-of-wal --json`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		dir, err := wal.DirOf(nil, args[0])
		if err != nil {
			return err
		}
		a.sayHeld(args[0])
		shown := a.newProgress("verifying", -1)
		report, err := wal.Walk(nil, dir, nil, func(done, _ int64) { shown.at(done, 0) })
		shown.end()
		if err != nil {
			return err
		}
		if asJSON {
			err = a.printJSON(reportJSON(report))
		} else {
			err = a.printReport(report)
		}
		if err == nil && report.Rotten() {
			err = errRotten
		}
		return err
	}
	return cmd
}

// sayHeld warns that a node is using what is about to be read.
func (a *app) sayHeld(dir string) {
	if pid, held := wal.HeldBy(dir); held {
		a.say("a running node (pid %d) holds this directory: what it is just writing may look cut off", pid)
	}
}

func (a *app) printReport(r *wal.Report) error {
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	state := "not closed"
	if r.Closed {
		state = "closed"
	}
	fmt.Fprintf(t, "%d segments, %s, %d frames; %s still needed; %s\n", r.Segments, readableBytes(uint64(r.Bytes)), r.Frames,
		readableBytes(uint64(r.Live)), state)
	if len(r.Replicas) > 0 {
		fmt.Fprintln(t, "\nSHARD\tREPLICA\tFIRST\tLAST\tFRAMES\tSEGMENTS\tLIVE\tDEAD\tSTATE")
	}
	for _, one := range r.Replicas {
		state := "ok"
		if one.Damage != "" {
			state = one.Damage
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", shardName(uint32(one.ID.Shard)), one.ID.Replica, one.First, one.Last, one.Frames,
			one.Segments, readableBytes(uint64(one.Live)), readableBytes(uint64(max(one.Dead, 0))), state)
	}
	for _, p := range r.Problems {
		what := "ROT"
		switch {
		case p.Torn:
			what = "cut off"
		case p.Judged:
			what = "ROT, known to the node"
		}
		fmt.Fprintf(t, "\n%s: %s at offset %d: %s\n", what, p.Path, p.Offset, p.Reason)
	}
	return t.Flush()
}

// shardName names a shard; 0 is the meta group.
func shardName(id uint32) string {
	if id == 0 {
		return "meta"
	}
	return fmt.Sprint(id)
}

// Shapes of the JSON that scripts read.
type (
	walReport struct {
		Segments  int          `json:"segments"`
		Spares    int          `json:"spares"`
		Closed    bool         `json:"closed"`
		Bytes     int64        `json:"bytes"`
		LiveBytes int64        `json:"live_bytes"`
		Frames    int          `json:"frames"`
		Rotten    bool         `json:"rotten"`
		Replicas  []walReplica `json:"replicas"`
		Problems  []walProblem `json:"problems"`
	}
	walReplica struct {
		Shard   uint32 `json:"shard"`
		Replica uint64 `json:"replica"`
		First   uint64 `json:"first"`
		Last    uint64 `json:"last"`
		Frames  uint64 `json:"frames"`
		// Bytes in frames that are still needed, and in others; the former lie in so many segments.
		LiveBytes int64  `json:"live_bytes"`
		DeadBytes int64  `json:"dead_bytes"`
		Segments  int    `json:"segments"`
		Damage    string `json:"damage,omitempty"`
	}
	walProblem struct {
		Path   string `json:"path"`
		Offset int64  `json:"offset"`
		Torn   bool   `json:"torn"`
		Judged bool   `json:"judged"`
		Reason string `json:"reason"`
	}
	walFrame struct {
		Segment    uint64 `json:"segment"`
		Offset     int64  `json:"offset"`
		Bytes      int    `json:"bytes"`
		Kind       string `json:"kind"`
		Shard      uint32 `json:"shard,omitempty"`
		Replica    uint64 `json:"replica,omitempty"`
		Count      uint64 `json:"count,omitempty"`
		Index      uint64 `json:"index,omitempty"`
		Term       uint64 `json:"term,omitempty"`
		Type       uint8  `json:"type"`
		Name       string `json:"name,omitempty"`
		DataBytes  int    `json:"data_bytes"`
		Data       string `json:"data,omitempty"`
		DataBase64 string `json:"data_base64,omitempty"`
	}
)

func reportJSON(r *wal.Report) walReport {
	out := walReport{Segments: r.Segments, Spares: r.Spares, Closed: r.Closed, Bytes: r.Bytes, LiveBytes: r.Live, Frames: r.Frames, Rotten: r.Rotten(),
		Replicas: []walReplica{}, Problems: []walProblem{}}
	for _, one := range r.Replicas {
		out.Replicas = append(out.Replicas, walReplica{Shard: uint32(one.ID.Shard), Replica: uint64(one.ID.Replica), First: one.First,
			Last: one.Last, Frames: one.Frames, LiveBytes: one.Live, DeadBytes: one.Dead, Segments: one.Segments, Damage: one.Damage})
	}
	for _, p := range r.Problems {
		out.Problems = append(out.Problems, walProblem(p))
	}
	return out
}

func (a *app) walDumpCommand() *cobra.Command {
	var f dumpFilter
	var asJSON, withData bool
	cmd := &cobra.Command{
		Use:   "dump DIR",
		Short: "Print a log's frames in order",
		Long: `Prints one line for each frame: the segment's number and the offset in it, the kind, the replica, index and term.
Marks name the segment (as term) and offset (as index) up to which their writer knew the log to be durable.`,
		Example: `  ostraka wal dump /var/lib/ostraka --shard 2 --from 1000 --to 1010
  ostraka wal dump /var/lib/ostraka --kind record
  ostraka wal dump /var/lib/ostraka --json --data | jq .`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	flags.Int64Var(&f.shard, "shard", -1, "only frames of this shard; 0 is the meta group; -1: all")
	flags.Uint64Var(&f.replica, "replica", 0, "only frames of this replica id; 0: all")
	flags.StringSliceVar(&f.kinds, "kind", nil, "only frames of these `kinds`: entry, moved, truncate, compact, clear, record, forget, mark, seal, summary")
	flags.Uint64Var(&f.from, "from", 0, "only indexes from this on")
	flags.Uint64Var(&f.to, "to", 0, "only indexes up to this; 0: no bound")
	flags.BoolVar(&withData, "data", false, "print what entries and records hold")
	flags.BoolVar(&asJSON, "json", false, "print a JSON object for each frame")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		dir, err := wal.DirOf(nil, args[0])
		if err != nil {
			return err
		}
		a.sayHeld(args[0])
		encoder := json.NewEncoder(a.out)
		_, err = wal.Walk(nil, dir, func(fr wal.Frame) error {
			switch {
			case !f.wants(&fr):
				return nil
			case asJSON:
				return encoder.Encode(frameJSON(&fr, withData))
			}
			return a.printFrame(&fr, withData)
		}, nil)
		return err
	}
	return cmd
}

// dumpFilter says which frames dump shows.
type dumpFilter struct {
	shard    int64
	replica  uint64
	kinds    []string
	from, to uint64
}

func (f *dumpFilter) wants(fr *wal.Frame) bool {
	return (f.shard < 0 || uint64(f.shard) == uint64(fr.ID.Shard) && fr.ID.Replica != 0) &&
		(f.replica == 0 || f.replica == uint64(fr.ID.Replica)) &&
		(len(f.kinds) == 0 || slices.Contains(f.kinds, fr.Kind)) &&
		fr.Index >= f.from && (f.to == 0 || fr.Index <= f.to)
}

func (a *app) printFrame(f *wal.Frame, withData bool) error {
	who := ""
	if f.ID.Replica != 0 {
		who = fmt.Sprintf("%s/%d #%d", shardName(uint32(f.ID.Shard)), f.ID.Replica, f.Count)
	}
	line := fmt.Sprintf("%d:%d\t%s\t%s\tindex %d term %d", f.Segment, f.Offset, f.Kind, who, f.Index, f.Term)
	if f.Name != "" {
		line += " " + f.Name
	}
	if len(f.Data) > 0 {
		line += fmt.Sprintf("\t%d bytes", len(f.Data))
	}
	if withData && len(f.Data) > 0 {
		line += fmt.Sprintf("\t%q", f.Data)
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}

func frameJSON(f *wal.Frame, withData bool) walFrame {
	out := walFrame{Segment: f.Segment, Offset: f.Offset, Bytes: f.Bytes, Kind: f.Kind, Shard: uint32(f.ID.Shard), Replica: uint64(f.ID.Replica),
		Count: f.Count, Index: f.Index, Term: f.Term, Type: f.Type, Name: f.Name, DataBytes: len(f.Data)}
	switch {
	case !withData:
	case utf8.Valid(f.Data):
		out.Data = string(f.Data)
	default:
		out.DataBase64 = base64.StdEncoding.EncodeToString(f.Data)
	}
	return out
}
