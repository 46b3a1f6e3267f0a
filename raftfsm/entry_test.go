package raftfsm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

func sampleEntries() []entry {
	return []entry{
		{Kind: entryTick, Time: 1700000000000},
		{Kind: entryReap, Time: 5, Slot: 16383, Cutoff: 4, Limit: 256},
		{Kind: entryOwn, Time: 1, Ranges: []shard.Range{{From: 0, To: 5461}, {From: 16000, To: 16384}}},
		{Kind: entryOps, Time: 7, Ops: []sessionOp{
			{Op: store.Op{Kind: store.OpSet, Key: []byte("k"), Value: []byte("v"), TTL: 1000, Condition: store.CondVersion, IfVersion: 9, ReturnPrevious: true},
				Session: Session{ClientID: [16]byte{1, 2, 15: 3}, Request: 8, Lowest: 7, Attempt: 2}},
			{Op: store.Op{Kind: store.OpSet, Key: []byte{0, 255}, KeepTTL: true, Condition: store.CondAbsent}},
			{Op: store.Op{Kind: store.OpIncrement, Key: []byte("n"), Delta: math.MinInt64}},
			{Op: store.Op{Kind: store.OpCompareAndSet, Key: []byte("c"), Old: []byte("a"), Value: []byte("b")}},
			{Op: store.Op{Kind: store.OpAppend, Key: []byte("a"), Value: []byte("tail"), ValueBytesMax: 8 << 20}},
			{Op: store.Op{Kind: store.OpExpire, Key: []byte("e"), TTL: math.MaxInt64}},
			{Op: store.Op{Kind: store.OpTouch, Key: bytes.Repeat([]byte("x"), 300)}},
		}},
		{Kind: entryOps, Time: 1700000000000, Ops: []sessionOp{
			{Op: store.Op{Kind: store.OpIncrement, Key: []byte("n"), Delta: 1, ValueBytesMax: 8 << 20},
				Session: Session{ClientID: [16]byte{1, 15: 3}, Born: 1699999990000, Request: 8, Lowest: 7, Attempt: 1}},
			{Op: store.Op{Kind: store.OpSet, Key: []byte("k"), Value: []byte("v")}},
			{Op: store.Op{Kind: store.OpSet, Key: []byte("k"), Value: []byte("v"), Condition: store.CondAbsent},
				Session: Session{ClientID: [16]byte{1, 15: 4}, Born: 1, Request: math.MaxUint64, Lowest: math.MaxUint64, Attempt: math.MaxUint32}},
			{Op: store.Op{Kind: store.OpIncrement, Key: []byte("n"), Delta: math.MinInt64, TTL: math.MaxInt64, IfVersion: math.MaxUint64, ValueBytesMax: 1 << 40, Condition: 15},
				Session: Session{ClientID: [16]byte{1, 15: 5}, Born: math.MinInt64, Request: math.MaxUint64, Lowest: math.MaxUint64, Attempt: math.MaxUint32}},
		}},
	}
}

func TestEntryRoundTrip(t *testing.T) {
	encoder := new(entryEncoder)
	for _, want := range sampleEntries() {
		data, err := encoder.encode(&want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeEntry(data)
		if err != nil {
			t.Fatalf("kind %d: %v", want.Kind, err)
		}
		got.Sessions = nil
		for i := range got.Ops {
			got.Ops[i].row = 0 // neither is said in what was encoded
		}
		if !reflect.DeepEqual(*got, want) {
			t.Errorf("got  %+v\nwant %+v", *got, want)
		}
	}
}

// Sessions stand in an entry once, however many ops they have and in whatever order.
func TestEntrySessions(t *testing.T) {
	for _, clients := range []int{1, 3, sessionsFew, sessionsFew + 1, 40} {
		ent := &entry{Kind: entryOps, Time: 1000}
		for i := range 3 * clients {
			op := sessionOp{Op: store.Op{Kind: store.OpTouch, Key: []byte("k")}}
			if i%7 != 0 {
				c := i * i % clients
				op.Session = Session{ClientID: [16]byte{1, byte(c)}, Born: store.Time(900 + c%2), Request: uint64(i + 1), Lowest: uint64(i / 2), Attempt: 1}
			}
			ent.Ops = append(ent.Ops, op)
		}
		data, err := new(entryEncoder).encode(ent)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeEntry(data)
		if err != nil {
			t.Fatal(err)
		}
		lowest := make(map[sessionName]uint64)
		for _, op := range ent.Ops {
			if name := (sessionName{op.Session.ClientID, op.Session.Born}); !op.Session.none() {
				lowest[name] = max(lowest[name], op.Session.Lowest)
			}
		}
		if len(got.Sessions) != len(lowest) {
			t.Errorf("%d clients: %d sessions, want %d", clients, len(got.Sessions), len(lowest))
		}
		for i, op := range ent.Ops {
			if want := op.Session; !want.none() {
				want.Lowest = lowest[sessionName{want.ClientID, want.Born}]
				if got := got.Ops[i]; got.Session != want {
					t.Errorf("%d clients, op %d: %+v, want %+v", clients, i, got.Session, want)
				}
			} else if got.Ops[i].row != noRow {
				t.Errorf("%d clients, op %d has a session", clients, i)
			}
		}
	}
}

// The bytes of formats stand in logs: they may be read for ever, so they are pinned here.
func TestEntryGolden(t *testing.T) {
	golden := map[entryKind]string{
		entryTick: "930103cf0000018bcfe56800",
		entryReap: "96010405cd3fff04cd0100",
		entryOwn:  "940102019292" + "00cd1555" + "92cd3e80cd4000",
	}
	encoder := new(entryEncoder)
	for _, ent := range sampleEntries() {
		want, ok := golden[ent.Kind]
		if !ok {
			continue
		}
		data, err := encoder.encode(&ent)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(data); got != want {
			t.Errorf("kind %d: %s, want %s", ent.Kind, got, want)
		}
	}
	op := entry{Kind: entryOps, Time: 1, Ops: []sessionOp{{
		Op:      store.Op{Kind: store.OpSet, Key: []byte("key"), Value: []byte("value"), TTL: 9},
		Session: Session{ClientID: [16]byte{0xaa}, Request: 3, Lowest: 2, Attempt: 1},
	}}}
	data, err := encoder.encode(&op)
	if err != nil {
		t.Fatal(err)
	}
	const want = "94010101919d0100c410aa000000000000000000000000000000030201c4036b6579c40576616c7565c000090000"
	if got := hex.EncodeToString(data); got != want {
		t.Errorf("ops: %s, want %s", got, want)
	}
	op.Ops[0].Session.Born = 1
	op.Ops = append(op.Ops, sessionOp{Op: store.Op{Kind: store.OpTouch, Key: []byte("k")}})
	op.Time = 9
	if data, err = encoder.encode(&op); err != nil {
		t.Fatal(err)
	}
	const want2 = "9502010991" + "93c410aa0000000000000000000000000000000802" + "92" +
		"9c0100010301c4036b6579c40576616c7565c000090000" + "9c0800000000c4016bc0c000000000"
	if got := hex.EncodeToString(data); got != want2 {
		t.Errorf("ops of a session: %s, want %s", got, want2)
	}
}

func TestDecodeEntryRefuses(t *testing.T) {
	encoder := new(entryEncoder)
	tick, err := encoder.encode(&entry{Kind: entryTick, Time: 1})
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"nothing":            nil,
		"not an array":       {0x01},
		"a later format":     {0x93, 0x03, 0x03, 0x01},
		"a tick of format 2": {0x93, 0x02, 0x03, 0x01},
		"no such session":    {0x95, 0x02, 0x01, 0x01, 0x90, 0x91, 0x9c, 0x08, 0x00, 0x01, 0x00, 0x00, 0xc4, 0x01, 'k', 0xc0, 0xc0, 0, 0, 0, 0},
		"an unknown kind":    {0x93, 0x01, 0x7f, 0x01},
		"bytes after":        append(bytes.Clone(tick), 0),
		"missing field":      {0x92, 0x01, 0x03},
		"huge array":         {0x94, 0x01, 0x01, 0x01, 0xdd, 0xff, 0xff, 0xff, 0xff},
		"slot out of range":  {0x96, 0x01, 0x04, 0x05, 0xcd, 0x40, 0x00, 0x04, 0x01},
		"empty range":        {0x94, 0x01, 0x02, 0x01, 0x91, 0x92, 0x05, 0x05},
	}
	for name, data := range cases {
		if _, err := decodeEntry(data); !errors.Is(err, ErrUnknownEntry) {
			t.Errorf("%s: %v, want ErrUnknownEntry", name, err)
		}
	}
	for n := range len(tick) {
		if _, err := decodeEntry(tick[:n]); !errors.Is(err, ErrUnknownEntry) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// A claimed length is refused before memory is taken for it.
func TestDecodeEntryBoundsAllocation(t *testing.T) {
	// An op whose key claims 4 GiB.
	data := []byte{0x94, 0x01, 0x01, 0x01, 0x91, 0x9d, 0x01, 0x00, 0xc0, 0x00, 0x00, 0x00, 0xc6, 0xff, 0xff, 0xff, 0xff}
	allocated := testing.AllocsPerRun(10, func() {
		if _, err := decodeEntry(data); err == nil {
			t.Fatal("no error")
		}
	})
	if allocated > 100 {
		t.Errorf("%v allocations", allocated)
	}
}

func TestEncodedSizeIsABound(t *testing.T) {
	encoder := new(entryEncoder)
	for _, ent := range sampleEntries() {
		for _, so := range ent.Ops {
			data, err := encoder.encode(&entry{Kind: entryOps, Time: math.MaxInt64, Ops: []sessionOp{so}})
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > encodedSize(&so.Op)+16 {
				t.Errorf("%+v takes %d bytes, bound %d", so, len(data), encodedSize(&so.Op))
			}
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	encoder := new(entryEncoder)
	for _, ent := range sampleEntries() {
		data, err := encoder.encode(&ent)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ent, err := decodeEntry(data)
		if err != nil {
			if !errors.Is(err, ErrUnknownEntry) {
				t.Fatalf("untyped error: %v", err)
			}
			return
		}
		again, err := new(entryEncoder).encode(ent)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := decodeEntry(again)
		if err != nil {
			t.Fatalf("decoded %+v, encoded and decoded again: %v", ent, err)
		}
		if len(ent.Sessions) == 0 && !reflect.DeepEqual(ent, twice) {
			t.Fatalf("decoded %+v, encoded and decoded again %+v", ent, twice)
		}
		// Sessions may have stood twice, or without ops, or with a lowest number that none of them has.
		if thrice, err := new(entryEncoder).encode(twice); err != nil || !bytes.Equal(thrice, again) {
			t.Fatalf("decoded %+v, encoded %x, again %x, %v", ent, again, thrice, err)
		}
	})
}

// A list of writes makes the same entry as a list of operations.
func TestEncodeWrites(t *testing.T) {
	for _, ent := range sampleEntries() {
		if ent.Kind != entryOps {
			continue
		}
		var writes []*Write
		for _, so := range ent.Ops {
			writes = append(writes, &Write{Op: so.Op, Session: so.Session})
		}
		want, err := new(entryEncoder).encode(&ent)
		if err != nil {
			t.Fatal(err)
		}
		if got := new(entryEncoder).encodeWrites(ent.Time, writes); !bytes.Equal(got, want) {
			t.Errorf("% x, want % x", got, want)
		}
	}
}
