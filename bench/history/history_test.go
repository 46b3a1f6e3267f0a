package history

import (
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// op is an operation of a written-out history: client, call, return, what, and what came of it.
func op(client int, call, end int64, in Input, out Output) porcupine.Operation {
	return porcupine.Operation{ClientId: client, Call: call, Return: end, Input: in, Output: out}
}

const never = int64(1) << 62

func TestCheckerKnowsGoodFromBad(t *testing.T) {
	write := func(v string) Input { return Input{Kind: Write, Key: "k", Value: v} }
	read := Input{Kind: Read, Key: "k"}
	saw := func(v string) Output { return Output{Found: true, Value: v} }
	cas := Input{Kind: CompareAndSet, Key: "k", Old: "a", Value: "b"}
	add := Input{Kind: Increment, Key: "k", Value: "1"}
	more := Input{Kind: Append, Key: "k", Value: ",b"}
	cases := []struct {
		name string
		ops  []porcupine.Operation
		good bool
	}{
		{"write, then read", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(1, 2, 3, read, saw("a"))}, true},
		{"acknowledged write lost", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(1, 2, 3, read, Output{})}, false},
		{"stale read", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(0, 2, 3, write("b"), Output{}), op(1, 4, 5, read, saw("a"))}, false},
		{"concurrent read may see either", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(0, 2, 9, write("b"), Output{}), op(1, 4, 5, read, saw("a"))}, true},
		{"a read that goes back", []porcupine.Operation{op(0, 0, 9, write("a"), Output{}), op(1, 1, 2, read, saw("a")), op(1, 3, 4, read, Output{})}, false},
		{"unknown write seen later", []porcupine.Operation{op(0, 0, never, write("a"), Output{Unknown: true}), op(1, 2, 3, read, Output{}), op(1, 4, 5, read, saw("a"))}, true},
		{"unknown write never seen", []porcupine.Operation{op(0, 0, never, write("a"), Output{Unknown: true}), op(1, 2, 3, read, Output{})}, true},
		{"unknown write seen and gone", []porcupine.Operation{op(0, 0, never, write("a"), Output{Unknown: true}), op(1, 2, 3, read, saw("a")), op(1, 4, 5, read, Output{})}, false},
		{"both swap the same value", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(0, 2, 9, cas, Output{Swapped: true}), op(1, 2, 9, cas, Output{Swapped: true})}, false},
		{"one swaps, one loses", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(0, 2, 9, cas, Output{Swapped: true}), op(1, 2, 9, cas, Output{})}, true},
		{"a lost swap that must have won", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(0, 2, 3, cas, Output{})}, false},
		{"delete of nothing", []porcupine.Operation{op(0, 0, 1, Input{Kind: Delete, Key: "k"}, Output{Found: true})}, false},
		{"two increments", []porcupine.Operation{op(0, 0, 9, add, Output{Value: "2"}), op(1, 0, 9, add, Output{Value: "1"})}, true},
		{"two increments that return the same", []porcupine.Operation{op(0, 0, 9, add, Output{Value: "1"}), op(1, 0, 9, add, Output{Value: "1"})}, false},
		{"an unknown increment that counts", []porcupine.Operation{op(0, 0, never, add, Output{Unknown: true}), op(1, 2, 3, add, Output{Value: "2"})}, true},
		{"an unknown increment that counts twice", []porcupine.Operation{op(0, 0, never, add, Output{Unknown: true}), op(1, 2, 3, add, Output{Value: "3"})}, false},
		{"an append, then read", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(0, 2, 3, more, Output{Length: 3}), op(1, 4, 5, read, saw("a,b"))}, true},
		{"an append done twice", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(0, 2, 3, more, Output{Length: 3}), op(1, 4, 5, read, saw("a,b,b"))}, false},
		{"other keys don't matter", []porcupine.Operation{op(0, 0, 1, write("a"), Output{}), op(1, 2, 3, Input{Kind: Read, Key: "other"}, Output{})}, true},
	}
	for _, tc := range cases {
		r := &Recorder{ops: tc.ops}
		if err := r.Check(time.Minute, ""); (err == nil) != tc.good {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestRecorder(t *testing.T) {
	r := NewRecorder()
	call := r.Now()
	r.Add(1, call, Input{Kind: Write, Key: "k", Value: "a"}, Output{})
	call = r.Now()
	r.Add(1, call, Input{Kind: Read, Key: "k"}, Output{Found: true, Value: "a"})
	if r.Len() != 2 {
		t.Errorf("%d operations", r.Len())
	}
	if err := r.Check(time.Minute, ""); err != nil {
		t.Error(err)
	}
}
