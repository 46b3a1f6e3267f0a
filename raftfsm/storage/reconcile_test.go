package storage

import (
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// How a test damages a snapshot.
const (
	sound      = ""
	badState   = "state" // its head still reads
	badHead    = "head"
	badMissing = "missing"
)

func (g *rig) damage(id, how string) {
	g.t.Helper()
	path := g.snapPath(id)
	if how == badMissing {
		must(g.t, g.cfg.FS.Remove(path))
		return
	}
	data, err := disk.ReadFile(g.cfg.FS, path)
	must(g.t, err)
	switch how {
	case badState:
		data[len(data)-endBytes-1] ^= 1
	case badHead:
		data[9] ^= 1
	}
	must(g.t, disk.WriteFileAtomic(g.cfg.FS, path, data))
}

// TestReconcile walks through the table of Replica.Reconcile. Snapshots are at 20 in term 2 and at 40 in term 3; the log
// is put beneath them as a crash may have left it, in term 2 up to 20.
func TestReconcile(t *testing.T) {
	type logState struct{ from, to, term uint64 }
	for _, c := range []struct {
		name         string
		older, newer string // what is wrong with the snapshots
		log          logState
		want         error
		wantBounds   string
		wantListed   string
	}{
		{name: "fits", log: logState{10, 50, 3}, wantBounds: "[10, 50]", wantListed: "40@3 20@2 "},
		{name: "ends at the snapshot", log: logState{10, 40, 3}, wantBounds: "[10, 40]", wantListed: "40@3 20@2 "},
		{name: "goes on from the snapshot", log: logState{41, 50, 3}, wantBounds: "[41, 50]", wantListed: "40@3 "},
		{name: "no log", wantBounds: "[0, 0]", wantListed: "40@3 "},
		{name: "log ends before", log: logState{10, 39, 3}, wantBounds: "[0, 0]", wantListed: "40@3 "},
		{name: "another term there", log: logState{10, 50, 2}, wantBounds: "[0, 0]", wantListed: "40@3 "},
		{name: "gap", log: logState{42, 50, 3}, want: ErrLogGap},

		{name: "damaged, log makes up", newer: badState, log: logState{20, 50, 3}, wantBounds: "[20, 50]", wantListed: "20@2 "},
		{name: "head damaged, log makes up", newer: badHead, log: logState{21, 50, 3}, wantBounds: "[21, 50]", wantListed: "20@2 "},
		{name: "missing, log makes up", newer: badMissing, log: logState{10, 40, 3}, wantBounds: "[10, 40]", wantListed: "20@2 "},
		{name: "both damaged, whole log", older: badState, newer: badState, log: logState{1, 50, 3}, wantBounds: "[1, 50]", wantListed: ""},
		{name: "older damaged", older: badState, log: logState{10, 50, 3}, wantBounds: "[10, 50]", wantListed: "40@3 20@2 "},
		{name: "older's head damaged", older: badHead, log: logState{10, 50, 3}, wantBounds: "[10, 50]", wantListed: "40@3 "},

		{name: "damaged, no log", newer: badState, want: ErrReplicaBehind},
		{name: "head damaged, no log", newer: badHead, want: ErrReplicaBehind},
		{name: "missing, no log", newer: badMissing, want: ErrReplicaBehind},
		{name: "damaged, log too short", newer: badState, log: logState{10, 39, 3}, want: ErrReplicaBehind},
		{name: "missing, log too short", newer: badMissing, log: logState{10, 39, 3}, want: ErrReplicaBehind},
		{name: "damaged, log diverges", newer: badState, log: logState{10, 50, 2}, want: ErrReplicaBehind},
		{name: "damaged, log starts too late", newer: badState, log: logState{22, 50, 3}, want: ErrLogGap},
		{name: "damaged, log goes on from it", newer: badState, log: logState{41, 50, 3}, want: ErrLogGap},
		{name: "both damaged, log not whole", older: badHead, newer: badState, log: logState{10, 50, 3}, want: ErrLogGap},
		{name: "missing, log diverges from the older", newer: badMissing, log: logState{10, 19, 2}, want: ErrReplicaBehind},
		{name: "all gone", older: badMissing, newer: badMissing, want: ErrReplicaBehind},
		{name: "all gone but the log's end", older: badMissing, newer: badMissing, log: logState{10, 50, 3}, want: ErrLogGap},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newMemoryRig(t)
			r := g.open()
			setTerm(t, r, 3)
			must(t, vote(r, 3, "n1/7"))
			// A log from 1 on, so that both snapshots are kept; the one to be tested goes in below.
			must(t, r.Log.StoreLogs(entries(1, 40, 3)))
			older, newer := takeSnapshot(t, r, 20, 2), takeSnapshot(t, r, 40, 3)
			must(t, r.Log.entries.clear(1, 40))
			for i := c.log.from; i <= c.log.to && i > 0; i++ {
				term := c.log.term
				if i <= 20 {
					term = 2
				}
				must(t, r.Log.entries.StoreLogs(entries(i, i, term)))
			}
			must(t, r.Close())
			g.damage(older, c.older)
			g.damage(newer, c.newer)

			r = g.open()
			before := bounds(t, r)
			err := r.Reconcile()
			wantErr(t, err, c.want)
			if c.want != nil {
				wantBounds(t, r, before) // what is left is left to look at
				if damaged := c.newer == badState || c.newer == badHead; damaged {
					wantErr(t, err, ErrSnapshotDamaged) // and so the file is named
				}
				r = g.restart()
				wantErr(t, r.Reconcile(), c.want) // a refusal stays one
				return
			}
			for range 2 {
				wantBounds(t, r, c.wantBounds)
				wantListed(t, r, c.wantListed)
				wantTerm(t, r, 3)
				wantVote(t, r, 3, "n1/7")
				r = g.restart()
				must(t, r.Reconcile())
			}
			if got := g.fatalErrors(); got != nil {
				t.Fatal(got)
			}
		})
	}
}

func TestReconcileNewReplica(t *testing.T) {
	onBothBackends(t, func(t *testing.T, g *rig) {
		must(t, g.open().Reconcile())
	})
}

// raft records a term before it writes anything of it. A log of a later term means that the record was lost, in both
// copies at once, and with it perhaps a vote.
func TestReconcileMissesATerm(t *testing.T) {
	r := newMemoryRig(t).open()
	setTerm(t, r, 4)
	must(t, r.Log.StoreLogs(entries(1, 3, 5)))
	wantErr(t, r.Reconcile(), ErrVoteRecordDamaged)
	setTerm(t, r, 5)
	must(t, r.Reconcile())
	install(t, r, 9, 6)
	wantErr(t, r.Reconcile(), ErrVoteRecordDamaged)
}
