package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// cutOpens opens a log again and again, each time with the power cut one step of the disk later, until an open gets through.
// check looks at every filesystem that may be left.
func cutOpens(t *testing.T, base *disk.Mem, cfg Config, check func(what string, left *disk.Mem)) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	for steps, done := 0, false; !done; steps++ {
		mem := base.Clone()
		cut := cfg
		cut.FS = disk.NewPowerCut(mem, steps)
		cut.Fatal = func(error) {}
		l, err := Open(cut)
		done = err == nil
		for variant := range 3 {
			left := mem.Crash()
			if variant > 0 {
				left = mem.CrashTorn(rng)
			}
			check(fmt.Sprintf("cut after %d steps, variant %d", steps, variant), left)
		}
		if done {
			_ = l.Close() // the cut may strike in it
		} else if !errors.Is(err, disk.ErrPowerCut) {
			t.Fatal(err)
		}
	}
}

// killed fills a log in which nothing is purged, and returns what a kill leaves.
func killed(t *testing.T, cfg Config, fill func(l *Log, stopPurging func())) *disk.Mem {
	t.Helper()
	m := newMem(t)
	var held holder
	cfg.FS = disk.NewHooked(m, held.hook)
	l := open(t, cfg)
	fill(l, func() { held.hold(purging("")) })
	left := m.Clone()
	held.release()
	must(t, l.Close())
	return left
}

// frameOf finds a frame in the files of a log.
func frameOf(t *testing.T, fsys disk.FS, what string, want func(f *frame) bool) (segmentFile, placed) {
	t.Helper()
	for _, file := range segmentsOf(t, fsys) {
		b, head, err := readSegment(fsys, file.path, file.sequence, nil)
		must(t, err)
		c := scan(b, head, nil)
		for _, f := range c.frames {
			if want(&f.frame) {
				return file, f
			}
		}
	}
	t.Fatalf("no frame: %s", what)
	return segmentFile{}, placed{}
}

func flip(t *testing.T, fsys disk.FS, path string, at int64) {
	t.Helper()
	b, err := disk.ReadFile(fsys, path)
	must(t, err)
	b[at] ^= 4
	rewriteFile(t, fsys, path, b)
}

var victim, bystander, worker = ID{1, 1}, ID{2, 2}, ID{3, 3}

// someLog writes a little of everybody, and then much of the worker, who compacts it away.
func someLog(t *testing.T, l *Log, stopPurging func(), victimLast bool) {
	t.Helper()
	must(t, l.Replica(bystander).SetRecord("vote", []byte("b")))
	must(t, l.Replica(victim).SetRecord("vote", []byte("a")))
	must(t, l.Replica(victim).SetRecord("term", []byte("7")))
	must(t, appendTo(l.Replica(bystander), one(1, 1, 100)))
	w := l.Replica(worker)
	for i := uint64(1); i <= 90; i++ {
		must(t, appendTo(w, one(i, 1, 200)))
		must(t, l.WaitDurable(t.Context(), w.Appended()))
	}
	must(t, l.Replica(bystander).SetRecord("vote", []byte("b2")))
	must(t, l.Replica(bystander).Compact(1))
	if victimLast {
		must(t, l.Replica(victim).SetRecord("vote", []byte("a2")))
		must(t, l.Replica(victim).SetRecord("term", []byte("8")))
	}
	stopPurging()
	must(t, w.Compact(89))
	must(t, appendTo(w, one(91, 1, 10)))
	must(t, l.WaitDurable(t.Context(), w.Appended()))
	must(t, appendTo(w, one(92, 1, 10))) // so that a mark says that the one before is durable
	must(t, l.Replica(bystander).SetRecord("vote", []byte("b3")))
	must(t, appendTo(l.Replica(bystander), one(2, 1, 100)))
	must(t, l.WaitDurable(t.Context(), l.Replica(bystander).Appended()))
}

// Damage that an open has found is not forgotten, wherever the power is cut on the way: neither by rewriting the last
// segment without what does not check, nor by purging the segment, nor by setting it aside.
func TestDamageOutlivesCrashesWhileOpening(t *testing.T) {
	cfg := testConfig(t, nil)
	for name, rot := range map[string]func(m *disk.Mem) (path string){
		"in a sealed segment that nobody needs": func(m *disk.Mem) string {
			file, f := frameOf(t, m, "the victim's vote", func(f *frame) bool { return f.id == victim && string(f.data) == "a" })
			flip(t, m, file.path, f.offset+frameBytes)
			return file.path
		},
		"in the last segment": func(m *disk.Mem) string {
			file, f := frameOf(t, m, "the victim's newer vote", func(f *frame) bool { return f.id == victim && string(f.data) == "a2" })
			flip(t, m, file.path, f.offset+frameBytes)
			_, f = frameOf(t, m, "the victim's newer term", func(f *frame) bool { return f.id == victim && string(f.data) == "8" })
			flip(t, m, file.path, f.offset+9)
			return file.path
		},
		"in the head of the last segment": func(m *disk.Mem) string {
			file, _ := frameOf(t, m, "the victim's newer vote", func(f *frame) bool { return f.id == victim && string(f.data) == "a2" })
			flip(t, m, file.path, 20)
			return file.path
		},
	} {
		t.Run(name, func(t *testing.T) {
			last := name != "in a sealed segment that nobody needs"
			m := killed(t, cfg, func(l *Log, stopPurging func()) { someLog(t, l, stopPurging, last) })
			path := rot(m)
			cutOpens(t, m, cfg, func(what string, left *disk.Mem) {
				again := cfg
				again.FS = left
				for range 3 {
					l := open(t, again)
					defer l.Close()
					if err := l.Replica(victim).Damage(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
						t.Fatalf("%s: the damage is forgotten: %v", what, err)
					}
					if err := l.Replica(bystander).Damage(); err != nil && !strings.Contains(name, "head") {
						t.Fatalf("%s: the bystander is damaged: %v", what, err)
					}
					must(t, l.Close())
				}
			})
		})
	}
}

// What was judged is not judged again when less is left to tell by: as the oldest segment, one without its summary, or with
// a head that doesn't check, would put all replicas in doubt.
func TestOldDamageConcernsNobodyNew(t *testing.T) {
	cfg := testConfig(t, nil)
	for _, name := range []string{"summary", "head", "missing"} {
		t.Run(name, func(t *testing.T) {
			m := killed(t, cfg, func(l *Log, stopPurging func()) { someLog(t, l, stopPurging, true) })
			files := segmentsOf(t, m)
			if len(files) < 4 {
				t.Fatalf("only %d segments", len(files))
			}
			second := files[1].path
			switch name {
			case "summary":
				flip(t, m, second, headBytes+2*frameBytes)
			case "head":
				flip(t, m, second, 3)
			case "missing":
				must(t, m.Remove(second))
			}
			var held holder
			held.hold(purging(files[0].path))
			cfg := cfg
			cfg.FS = disk.NewHooked(m, held.hook)
			l := open(t, cfg)
			wantWhole := func(when string, ids ...ID) {
				t.Helper()
				for _, id := range ids {
					if err := l.Replica(id).Damage(); err != nil {
						t.Fatalf("%s, %s: %v", when, id, err)
					}
				}
			}
			wantWhole("at first", victim, bystander)
			if name == "summary" {
				wantWhole("at first", worker)
			} else {
				wantDamaged(t, l, worker)
			}
			must(t, l.Replica(victim).SetRecord("vote", []byte("a9")))
			must(t, l.Replica(victim).SetRecord("term", []byte("9")))
			if name != "summary" {
				must(t, l.Replica(worker).Forget())
				must(t, l.WaitDurable(t.Context(), l.Replica(worker).Appended()))
			}
			// A crash after the first segment is purged, so that the second is the oldest.
			left := m.Clone()
			held.release()
			must(t, l.Close())
			m = left
			must(t, m.Remove(files[0].path))
			cfg.FS = m
			for range 3 {
				var held holder
				held.hold(purging(second))
				cfg.FS = disk.NewHooked(m, held.hook)
				l = open(t, cfg)
				wantWhole("later", victim, bystander, worker)
				left := m.Clone()
				held.release()
				must(t, l.Close())
				m = left
				cfg.FS = m
			}
			// New damage in an old place is no old damage.
			_, f := frameOf(t, m, "the victim's newest vote", func(f *frame) bool { return f.id == victim && string(f.data) == "a9" })
			file, _ := frameOf(t, m, "the victim's newest vote", func(f *frame) bool { return f.id == victim && string(f.data) == "a9" })
			flip(t, m, file.path, f.offset+frameBytes)
			l = open(t, cfg)
			wantDamaged(t, l, victim)
			wantWhole("after new damage", bystander)
			must(t, l.Close())
		})
	}
}

// A spare has nothing in it: when it rots, nothing is lost.
func TestDamagedSpare(t *testing.T) {
	for _, clean := range []bool{true, false} {
		left, states := smallLog(t, clean)
		files := segmentsOf(t, left)
		spare := files[len(files)-1]
		b, head, err := readSegment(left, spare.path, spare.sequence, nil)
		must(t, err)
		if c := scan(b, head, nil); len(c.frames) > 0 {
			// The spare was not made yet.
			spare.path = strings.Replace(spare.path, segmentName(spare.sequence), segmentName(spare.sequence+1), 1)
			rewriteFile(t, left, spare.path, make([]byte, 4096))
		} else {
			flip(t, left, spare.path, 17)
		}
		if damaged := judge(t, "a spare", left, states, -1); len(damaged) > 0 {
			t.Errorf("clean %v: %v are damaged", clean, damaged)
		}
	}
}

// The end of a log that was closed, lost with its seal: a block put back, a file cut short, or gone. It does not pass for a
// log that was not closed.
func TestLostEndOfAClosedLog(t *testing.T) {
	for _, name := range []string{"old block", "truncated", "gone"} {
		t.Run(name, func(t *testing.T) {
			m := newMem(t)
			cfg := testConfig(t, m)
			l := open(t, cfg)
			r := l.Replica(victim)
			var before []byte
			for i := uint64(1); i <= 12; i++ {
				must(t, appendTo(r, one(i, 1, 50)))
				must(t, l.WaitDurable(t.Context(), r.Appended()))
				if i == 6 {
					var err error
					before, err = disk.ReadFile(m, segmentsOf(t, m)[0].path)
					must(t, err)
				}
			}
			must(t, l.Close())
			path := segmentsOf(t, m)[0].path
			switch name {
			case "old block":
				rewriteFile(t, m, path, before)
			case "truncated":
				rewriteFile(t, m, path, before[:2000])
			case "gone":
				must(t, m.Remove(path))
			}
			l = open(t, cfg)
			if name == "gone" { // nobody is left to be damaged; but the sequence is not used again
				if got := l.segments[0].sequence; got != 2 {
					t.Errorf("the log goes on in segment %d", got)
				}
			} else {
				wantDamaged(t, l, victim)
			}
			must(t, l.Close())
		})
	}
}

// A segment of a newer build is left alone.
func TestNewerFormat(t *testing.T) {
	left, _ := smallLog(t, true)
	files := segmentsOf(t, left)
	b, head, err := readSegment(left, files[0].path, files[0].sequence, nil)
	must(t, err)
	newer := head.encode()
	newer[11]++
	sum := headSum(newer)
	newer[12], newer[13], newer[14], newer[15] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	copy(b, newer)
	rewriteFile(t, left, files[0].path, b)
	if _, err := Open(testConfig(t, left)); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), files[0].path) {
		t.Fatalf("%v", err)
	}
	now, err := disk.ReadFile(left, files[0].path)
	must(t, err)
	if string(now) != string(b) {
		t.Error("the file was changed")
	}
}

// A power cut within the first write of a segment can leave a file whose summary is gone. When the segments before it are
// gone too, it is the first, and the next one's summary the first that is met.
func TestSegmentWithoutASummaryComesFirst(t *testing.T) {
	m := newMem(t)
	cfg := testConfig(t, m)
	l := open(t, cfg)
	r := l.Replica(victim)
	for i := uint64(1); i <= 5; i++ {
		must(t, appendTo(r, one(i, 1, 50)))
	}
	must(t, r.Compact(4))
	must(t, l.WaitDurable(t.Context(), r.Appended()))
	left := m.Clone()
	must(t, l.Close())
	files := segmentsOf(t, left)
	// Torn: the first frame is not there, one behind it is.
	path := files[0].path
	b, head, err := readSegment(left, path, files[0].sequence, nil)
	must(t, err)
	second := segmentFile{sequence: head.sequence + 1, path: strings.Replace(path, segmentName(head.sequence), segmentName(head.sequence+1), 1)}
	torn := make([]byte, len(b))
	copy(torn, segmentHead{seed: seed{second.sequence, 5}, bytes: int64(len(b))}.encode())
	late := frame{kind: kindEntry, id: victim, index: 6, term: 1, count: 7}
	copy(torn[2048:], appendFrame(nil, seed{second.sequence, 5}, 2048, &late))
	rewriteFile(t, left, second.path, torn)
	c := scan(b, head, nil) // the first is sealed, else the second had not been begun
	copy(b[c.end:], appendFrame(nil, head.seed, c.end, &frame{kind: kindSeal, term: head.sequence, index: uint64(c.end)}))
	rewriteFile(t, left, path, b)

	cfg.FS = left
	l = open(t, cfg)
	must(t, l.Replica(victim).Damage())
	must(t, appendTo(l.Replica(victim), one(6, 1, 50)))
	must(t, l.Replica(victim).Compact(5))
	must(t, l.WaitDurable(t.Context(), l.Replica(victim).Appended()))
	left = left.Clone()
	must(t, l.Close())
	if _, err := left.Stat(path); err == nil {
		must(t, left.Remove(path)) // purged; and then the power is cut
	}
	cfg.FS = left
	l = open(t, cfg)
	must(t, l.Replica(victim).Damage())
	must(t, l.Close())
}
