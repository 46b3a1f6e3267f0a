package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// What an open found counts as durable, although a killed process may have left it in the kernel's memory only: a power cut
// right after the open leaves all of it. So it does where a sync had failed, after which the kernel calls clean what the disk
// doesn't have.
func TestRecoveredIsDurable(t *testing.T) {
	for _, failed := range []bool{false, true} {
		t.Run(fmt.Sprint("after a failed sync ", failed), func(t *testing.T) {
			more := 0
			for seed := range uint64(40) {
				rng := rand.New(rand.NewPCG(seed, 3))
				m := newMem(t)
				cfg := testConfig(t, m)
				cfg.Fatal = func(error) {}
				eio := errors.New("input/output error")
				var stop atomic.Bool
				held := make(chan struct{})
				cfg.FS = disk.NewHooked(m, func(op disk.Op, path string) error {
					switch {
					case op != disk.OpDatasync || !stop.Load():
						return nil
					case failed:
						must(t, m.SyncFailed(path))
						return eio
					}
					<-held
					return nil
				})
				l := open(t, cfg)
				w := newWorkload(seed, l, model{})
				w.keepStates()
				for range rng.IntN(100) {
					must(t, w.step())
				}
				must(t, w.settle(t.Context()))
				stop.Store(true)
				w.noWaiting = true
				for range 1 + rng.IntN(20) {
					if err := w.step(); errors.Is(err, eio) {
						break
					} else if err != nil {
						t.Fatal(err)
					}
				}
				waitFor(t, "the disk to be asked", func() bool { return l.busySince.Load() != 0 || failed && l.ctx.Err() != nil })
				left := m.Clone()
				close(held)
				_ = l.Close()

				cfg = testConfig(t, left)
				l = open(t, cfg)
				at, why := like(w.states, w.durable, l)
				if at < 0 {
					t.Fatalf("seed %d: %s", seed, why)
				}
				if at > w.durable {
					more++
				}
				cut := []*disk.Mem{left.Crash(), left.CrashTorn(rng)}
				must(t, l.Close())
				for _, left := range cut {
					l := open(t, testConfig(t, left))
					if why := w.states[at].differs(l); why != "" {
						t.Fatalf("seed %d: what an open had found is gone after a power cut: %s", seed, why)
					}
					must(t, l.Close())
				}
			}
			if more < 20 {
				t.Errorf("only %d of the opens found more than had been synced: the test proves nothing", more)
			}
		})
	}
}

// A log that is opened by many a start grows by nothing that stays.
func TestRestartsLeaveNothingBehind(t *testing.T) {
	m := newMem(t)
	cfg := testConfig(t, m)
	w := newWorkload(1, nil, model{})
	for range 50 {
		w.log = open(t, cfg)
		for range 3 {
			must(t, w.step())
		}
		must(t, w.log.Close())
	}
	l := open(t, cfg)
	if why := w.now.differs(l); why != "" {
		t.Fatal(why)
	}
	for id := range w.now {
		must(t, l.Replica(id).Forget())
	}
	must(t, l.WaitDurable(t.Context(), l.Replica(workloadIDs[0]).Appended()))
	waitFor(t, "all but the tail to be purged", func() bool { return l.Stats().Segments == 1 && l.Stats().Live == 0 })
	must(t, l.Close())
	infos, err := m.ReadDir("/wal")
	must(t, err)
	for _, info := range infos {
		if !strings.HasSuffix(info.Name, segmentSuffix) && info.Name != closedNote && info.Name != reserveName {
			t.Errorf("%s is left", info.Name)
		}
	}
	if len(infos) > 4 {
		t.Errorf("%d files are left: %v", len(infos), infos)
	}
}
