package raftfsm

import (
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/store"
)

// Write is one mutation on its way to its result. From Group.Submit on until it is given to its Receiver it is the
// group's: nobody else may touch it.
type Write struct {
	Op      store.Op
	Session Session
	// Deadline is when nobody waits any more: what could not be handed to the log by then ends as ErrDeadline. Zero: none.
	Deadline time.Time
	// To takes the write when it has ended.
	To Receiver
	// Number is the submitter's own, to tell its writes apart.
	Number uint64

	// Result or Err is how it ended; errors are those of Group.Write.
	Result store.Result
	Err    error

	// life is where the write was submitted.
	life *life
	// taken settles who may end a write whose submitter can give up (Group.Write): pack takes it into an entry, or the
	// submitter takes it away; the later of the two finds it taken.
	taken atomic.Bool
}

// Withdraw takes back a write that waits to be handed to the log: true means that it is not done, never will be, and that
// its receiver won't see it. False: it is on its way, or has ended. From any goroutine.
func (w *Write) Withdraw() bool { return w.taken.CompareAndSwap(false, true) }

// Receiver takes writes that have ended.
type Receiver interface {
	// Written is called from goroutines of a group's, with writes of that group that were submitted with this
	// receiver. Each write comes exactly once. It must not block: all writes of the group wait behind it. The slice is
	// the caller's again when it returns, the writes are the receiver's.
	Written(writes []*Write)
}

// giveBack gives writes that have ended to their receivers, those of one receiver that stand side by side together.
func giveBack(writes []*Write) {
	for len(writes) > 0 {
		to, n := writes[0].To, 1
		for n < len(writes) && writes[n].To == to {
			n++
		}
		to.Written(writes[:n])
		writes = writes[n:]
	}
}

// waiter is the Receiver of a single write whose submitter waits for it.
type waiter chan struct{}

func (w waiter) Written([]*Write) { w <- struct{}{} }
