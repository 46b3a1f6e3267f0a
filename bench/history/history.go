// Package history records what concurrent clients saw and checks that it is linearizable, key by key, with
// porcupine (Horn and Kroening, "Faster linearizability checking via P-compositionality", 2015).
//
// A failed read proves nothing and is dropped. A failed write that was certainly not done is dropped too. A
// write whose outcome is unknown stays open: it may take effect at any later moment, or never, and the
// checker must try both. A verdict of "unknown", when the checker ran out of time, counts as a failure.
package history

import (
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what an operation did to its key.
type Kind uint8

// The kinds of operations on a register.
const (
	Read Kind = iota
	Write
	Delete
	CompareAndSet
	// Increment adds Value, in decimals, to a key that holds decimals; a missing one counts as 0.
	Increment
	// Append adds Value to the end; a missing key counts as empty.
	Append
)

// Input is an operation as called.
type Input struct {
	Kind Kind
	Key  string
	// Value is what is written; Old what CompareAndSet expects.
	Value, Old string
}

// Output is what came back.
type Output struct {
	// Unknown: the operation may have been done, or may yet be.
	Unknown bool
	// Found: a read found the key, or a delete removed it. Value is what was read, or what an increment made.
	Found bool
	Value string
	// Length is the value's after an append.
	Length int
	// Swapped: CompareAndSet wrote.
	Swapped bool
}

// Recorder collects the operations of many clients. Its methods may be called from any goroutine.
type Recorder struct {
	began time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
}

// NewRecorder starts an empty history.
func NewRecorder() *Recorder { return &Recorder{began: time.Now()} }

// Now is the time to give as an operation's call; taken before it is sent.
func (r *Recorder) Now() int64 { return int64(time.Since(r.began)) }

// Add records an operation that a client began at call and that has just ended. A client has at most one
// operation at a time, except for those whose outcome is unknown.
func (r *Recorder) Add(client int, call int64, in Input, out Output) {
	end := r.Now()
	if out.Unknown {
		end = math.MaxInt64
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
}

// Len returns how many operations are recorded.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}

// register is a key's state: its value, or nothing.
type register struct {
	exists bool
	value  string
}

var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := make(map[string]int)
		var parts [][]porcupine.Operation
		for _, op := range history {
			key := op.Input.(Input).Key
			i, ok := byKey[key]
			if !ok {
				i = len(parts)
				byKey[key] = i
				parts = append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() any { return register{} },
	Step: func(state, input, output any) (bool, any) {
		return step(state.(register), input.(Input), output.(Output))
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

// step tells whether an operation may have had that outcome in a state, and the state after it.
func step(s register, in Input, out Output) (bool, register) {
	switch in.Kind {
	case Read:
		return out.Found == s.exists && out.Value == s.value, s
	case Write:
		return true, register{exists: true, value: in.Value}
	case Delete:
		return out.Unknown || out.Found == s.exists, register{}
	case CompareAndSet:
		matches := s.exists && s.value == in.Old
		if !out.Unknown && out.Swapped != matches {
			return false, s
		}
		if matches {
			return true, register{exists: true, value: in.Value}
		}
		return true, s
	case Increment:
		sum := decimal(s.value) + decimal(in.Value)
		after := register{exists: true, value: strconv.Itoa(sum)}
		return out.Unknown || out.Value == after.value, after
	case Append:
		after := register{exists: true, value: s.value + in.Value}
		return out.Unknown || out.Length == len(after.value), after
	}
	return false, s
}

// decimal reads a counter's value. Only counters are incremented, by whoever records the history.
func decimal(s string) int {
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(fmt.Sprintf("history: %q was incremented", s))
	}
	return n
}

// Check returns nil if the history is linearizable. picture is where an HTML view of a bad history is
// written; empty: nowhere.
func (r *Recorder) Check(patience time.Duration, picture string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	verdict, info := porcupine.CheckOperationsVerbose(model, r.ops, patience)
	if verdict == porcupine.Ok {
		return nil
	}
	where := ""
	if picture != "" {
		if err := porcupine.VisualizePath(model, info, picture); err != nil {
			where = fmt.Sprintf(" (no picture: %v)", err)
		} else {
			where = ", see " + picture
		}
	}
	return fmt.Errorf("%d operations: the verdict is %s%s", len(r.ops), verdict, where)
}
