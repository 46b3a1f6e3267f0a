package raftfsm

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// manualClock is a Clock that only tests move.
type manualClock struct {
	mono time.Duration
	wall int64
}

func (c *manualClock) Monotonic() time.Duration { return c.mono }
func (c *manualClock) WallMilli() int64         { return c.wall }

// machineHarness drives a shardMachine by hand, without raft, from transcripts.
type machineHarness struct {
	t       *testing.T
	clock   *manualClock
	m       *shardMachine
	index   uint64
	frozen  frozen
	written []byte
}

// TestShardMachineTranscripts runs testdata/machine: commands in, state out. Run with -rewrite to accept what
// the machine answers, after reading the difference.
func TestShardMachineTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/machine", func(t *testing.T, path string) {
		clock := &manualClock{wall: 1_000_000}
		h := &machineHarness{t: t, clock: clock, m: newShardMachine(1, clock)}
		datadriven.RunTest(t, path, h.run)
	})
}

func (h *machineHarness) run(t *testing.T, d *datadriven.TestData) string {
	arg := func(name string) string {
		var v string
		if d.HasArg(name) {
			d.ScanArgs(t, name, &v)
		}
		return v
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(arg(name), 10, 64)
		if err != nil && d.HasArg(name) {
			d.Fatalf(t, "%s: %v", name, err)
		}
		return n
	}
	switch d.Cmd {
	case "own":
		return h.apply(&entry{Kind: entryOwn, Time: store.Time(number("time")), Ranges: []shard.Range{{From: 0, To: shard.SlotCount}}})
	case "tick":
		return h.apply(&entry{Kind: entryTick, Time: store.Time(number("time"))})
	case "reap":
		return h.apply(&entry{Kind: entryReap, Time: store.Time(number("time")), Slot: uint16(shard.SlotOf([]byte(arg("key")))),
			Cutoff: store.Time(number("cutoff")), Limit: int(number("limit"))})
	case "ops":
		return h.ops(d, store.Time(number("time")))
	case "state":
		return h.state()
	case "sessions":
		return h.sessions()
	case "clock":
		h.clock.mono += time.Duration(number("mono")) * time.Millisecond
		h.clock.wall += number("wall")
		return fmt.Sprintf("now %d", h.m.now())
	case "freeze":
		var err error
		if h.frozen, err = h.m.freeze(h.index); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("frozen at %d", h.index)
	case "persist":
		var out bytes.Buffer
		if err := h.frozen.persist(&out); err != nil {
			return err.Error()
		}
		h.frozen.release()
		h.written = out.Bytes()
		return ""
	case "restore":
		index, err := h.m.restore(bytes.NewReader(h.written))
		if err != nil {
			return err.Error()
		}
		h.index = index
		return fmt.Sprintf("restored at %d", index)
	}
	d.Fatalf(t, "unknown command %s", d.Cmd)
	return ""
}

func (h *machineHarness) apply(ent *entry) string {
	data, err := new(entryEncoder).encode(ent)
	if err != nil {
		h.t.Fatal(err)
	}
	h.index++
	response, err := h.m.apply(h.index, data)
	switch r := response.(type) {
	case nil:
		if err != nil {
			return err.Error()
		}
		return "ok"
	case opResults:
		var b strings.Builder
		for i, one := range r.results {
			if err := r.err(i, 1); err != nil {
				fmt.Fprintf(&b, "refused: %v\n", err)
				continue
			}
			fmt.Fprintf(&b, "%s version=%d", one.Status, one.Version)
			if one.Number != 0 {
				fmt.Fprintf(&b, " number=%d", one.Number)
			}
			if one.HasPrevious {
				fmt.Fprintf(&b, " previous=%q@%d", one.Previous, one.PreviousVersion)
			}
			b.WriteByte('\n')
		}
		return b.String()
	default:
		return fmt.Sprint(r)
	}
}

// ops reads one op a line: KIND KEY [VALUE] [ttl=N] [if=absent|exists|N] [old=V] [keep] [previous]
// [of=CLIENT@BORN #REQUEST [low=N]]
func (h *machineHarness) ops(d *datadriven.TestData, at store.Time) string {
	ent := &entry{Kind: entryOps, Time: at}
	kinds := map[string]store.OpKind{"set": store.OpSet, "del": store.OpDelete, "cas": store.OpCompareAndSet,
		"incr": store.OpIncrement, "append": store.OpAppend, "expire": store.OpExpire, "persist": store.OpPersist, "touch": store.OpTouch}
	for line := range strings.Lines(d.Input) {
		fields := strings.Fields(line)
		op := store.Op{Kind: kinds[fields[0]], Key: []byte(fields[1])}
		var session Session
		for _, f := range fields[2:] {
			name, value, has := strings.Cut(f, "=")
			n, _ := strconv.ParseInt(value, 10, 64)
			switch {
			case name == "of":
				client, born, _ := strings.Cut(value, "@")
				copy(session.ClientID[:], client)
				n, _ = strconv.ParseInt(born, 10, 64)
				session.Born = store.Time(n)
			case name[0] == '#':
				session.Request, _ = strconv.ParseUint(name[1:], 10, 64)
			case name == "low":
				session.Lowest = uint64(n)
			case name == "ttl":
				op.TTL = n
			case name == "old":
				op.Old = []byte(value)
			case name == "by":
				op.Delta = n
			case name == "max":
				op.ValueBytesMax = int(n)
			case name == "keep":
				op.KeepTTL = true
			case name == "previous":
				op.ReturnPrevious = true
			case name == "if" && value == "absent":
				op.Condition = store.CondAbsent
			case name == "if" && value == "exists":
				op.Condition = store.CondExists
			case name == "if":
				op.Condition, op.IfVersion = store.CondVersion, store.Version(n)
			case !has:
				op.Value = []byte(f)
			default:
				d.Fatalf(h.t, "what is %q?", f)
			}
		}
		ent.Ops = append(ent.Ops, sessionOp{Op: op, Session: session})
	}
	return h.apply(ent)
}

func (h *machineHarness) state() string {
	s := h.m.store.Load()
	var b strings.Builder
	fmt.Fprintf(&b, "time=%d version=%d keys=%d bytes=%d expiring=%d\n", s.Time(), s.Version(), s.Stats().Keys, s.Stats().Bytes, s.Stats().Expiring)
	s.Scan(nil, nil, 1000, 1<<20, func(key, value []byte, m store.Meta) bool {
		fmt.Fprintf(&b, "%s=%s version=%d", key, value, m.Version)
		if m.ExpiresAt != 0 {
			fmt.Fprintf(&b, " expires=%d", m.ExpiresAt)
		}
		b.WriteByte('\n')
		return true
	})
	return b.String()
}

// sessions lists the sessions, the one used last at the end, with what they keep.
func (h *machineHarness) sessions() string {
	t := h.m.sessions
	var b strings.Builder
	fmt.Fprintf(&b, "horizon=%d records=%d bytes=%d\n", t.horizon, t.records, t.bytes)
	for p := t.oldest; p != nobody; p = t.newer[p] {
		s := t.all[p]
		fmt.Fprintf(&b, "%s@%d used=%d lowest=%d forgotten=%d:", bytes.TrimRight(s.client[:], "\x00"), s.born, s.used, s.lowest, s.forgotten)
		for _, r := range s.kept() {
			fmt.Fprintf(&b, " #%d", r.request)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Two replicas that apply the same entries are equal, whatever their clocks say, and so is one that was
// restored from a snapshot of the other midway.
func TestShardMachinesAgree(t *testing.T) {
	a := newShardMachine(1, &manualClock{wall: 5})
	b := newShardMachine(1, &manualClock{wall: 999_999_999_999, mono: time.Hour})
	encoder := new(entryEncoder)
	index := uint64(0)
	both := func(ent *entry) {
		data, err := encoder.encode(ent)
		if err != nil {
			t.Fatal(err)
		}
		index++
		for _, m := range []*shardMachine{a, b} {
			if _, err := m.apply(index, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	both(&entry{Kind: entryOwn, Time: 10, Ranges: []shard.Range{{From: 0, To: shard.SlotCount}}})
	for i := range 2000 {
		key := []byte(fmt.Sprint("key", i%300))
		ops := []sessionOp{
			{Op: store.Op{Kind: store.OpSet, Key: key, Value: []byte(fmt.Sprint(i)), TTL: int64(i % 7 * 10)}},
			{Op: store.Op{Kind: store.OpAppend, Key: key, Value: []byte("x")}},
			{Op: store.Op{Kind: store.OpDelete, Key: []byte(fmt.Sprint("key", i%11))}},
		}
		both(&entry{Kind: entryOps, Time: store.Time(10 + i), Ops: ops})
		if i%50 == 0 {
			both(&entry{Kind: entryReap, Time: store.Time(10 + i), Slot: uint16(shard.SlotOf(key)), Cutoff: store.Time(10 + i), Limit: 3})
		}
		if i == 1000 {
			f, err := a.freeze(index)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := f.persist(&out); err != nil {
				t.Fatal(err)
			}
			f.release()
			if got, err := b.restore(&out); err != nil || got != index {
				t.Fatalf("restored at %d: %v, want %d", got, err, index)
			}
		}
		if x, y := a.store.Load(), b.store.Load(); x.Checksum() != y.Checksum() || x.Version() != y.Version() || x.Stats() != y.Stats() {
			t.Fatalf("after entry %d: checksums %x and %x, versions %d and %d", index, x.Checksum(), y.Checksum(), x.Version(), y.Version())
		}
	}
}

// A kind of op that this build does not know must not be answered with a status: a newer build would have
// applied it.
func TestUnknownOpStopsTheReplica(t *testing.T) {
	m := newShardMachine(1, &manualClock{wall: 5})
	data, err := new(entryEncoder).encode(&entry{Kind: entryOps, Time: 1, Ops: []sessionOp{{Op: store.Op{Kind: 200, Key: []byte("k")}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.apply(1, data); !errors.Is(err, ErrUnknownEntry) {
		t.Errorf("got %v", err)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	m := newShardMachine(1, &manualClock{wall: 5})
	for _, ent := range []*entry{
		{Kind: entryOwn, Time: 10, Ranges: []shard.Range{{From: 0, To: shard.SlotCount}}},
		{Kind: entryOps, Time: 11, Ops: []sessionOp{{Op: store.Op{Kind: store.OpSet, Key: []byte("k"), Value: []byte("v")}}}},
	} {
		data, err := new(entryEncoder).encode(ent)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.apply(1, data); err != nil {
			t.Fatal(err)
		}
	}
	f, err := m.freeze(2)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := f.persist(&out); err != nil {
		t.Fatal(err)
	}
	f.release()
	whole := out.Bytes()
	before := m.store.Load()
	refused := func(name string, data []byte) {
		t.Helper()
		if _, err := m.restore(bytes.NewReader(data)); !errors.Is(err, ErrBadSnapshot) {
			t.Errorf("%s: %v, want ErrBadSnapshot", name, err)
		}
		if m.store.Load() != before {
			t.Fatalf("%s: the store was swapped", name)
		}
	}
	for _, n := range []int{0, 1, 5, 100, len(whole) / 2, len(whole) - 1} {
		refused(fmt.Sprintf("cut at %d", n), whole[:n])
	}
	refused("bytes after the end", append(bytes.Clone(whole), 0))
	other := newShardMachine(2, &manualClock{})
	if _, err := other.restore(bytes.NewReader(whole)); !errors.Is(err, ErrBadSnapshot) {
		t.Errorf("another shard's snapshot: %v", err)
	}
	if _, err := m.restore(bytes.NewReader(whole)); err != nil {
		t.Errorf("the whole snapshot: %v", err)
	}
}

func FuzzReadSnapshot(f *testing.F) {
	m := newShardMachine(1, &manualClock{wall: 5})
	m.store.Load().Own(uint16(shard.SlotOf([]byte("k"))))
	seed := func() {
		frozen, err := m.freeze(2)
		if err != nil {
			f.Fatal(err)
		}
		defer frozen.release()
		var out bytes.Buffer
		if err := frozen.persist(&out); err != nil {
			f.Fatal(err)
		}
		f.Add(out.Bytes())
	}
	write := func(op store.Op, session Session) {
		data := new(entryEncoder).encodeWrites(9, []*Write{{Op: op, Session: session}})
		if _, err := m.apply(1, data); err != nil {
			f.Fatal(err)
		}
	}
	write(store.Op{Kind: store.OpSet, Key: []byte("k"), Value: []byte("v"), TTL: 3}, Session{})
	seed()
	write(store.Op{Kind: store.OpSet, Key: []byte("k"), Value: []byte("w"), ReturnPrevious: true}, Session{ClientID: [16]byte{1}, Born: 8, Request: 3, Lowest: 2})
	write(store.Op{Kind: store.OpIncrement, Key: []byte("k"), Delta: 1}, Session{ClientID: [16]byte{1}, Born: 8, Request: 4, Lowest: 2})
	write(store.Op{Kind: store.OpTouch, Key: []byte("k")}, Session{ClientID: [16]byte{2}, Born: 9, Request: 1})
	seed()
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newShardMachine(1, &manualClock{})
		err := error(nil)
		if _, err = m.restore(bytes.NewReader(data)); err != nil && !errors.Is(err, ErrBadSnapshot) {
			t.Fatalf("untyped error: %v", err)
		}
		if err != nil {
			return
		}
		// What was taken can be lived with: writes go on, and another snapshot can be read.
		checkTable(t, m.sessions)
		for request := range uint64(3) {
			data := new(entryEncoder).encodeWrites(m.store.Load().Time(), []*Write{{Op: store.Op{Kind: store.OpTouch, Key: []byte("k")},
				Session: Session{ClientID: [16]byte{1}, Born: 8, Request: request + 3, Lowest: 3}}})
			if _, err := m.apply(1, data); err != nil {
				t.Fatal(err)
			}
		}
		checkTable(t, m.sessions)
		newRestored(t, tableOf(t, m))
	})
}
