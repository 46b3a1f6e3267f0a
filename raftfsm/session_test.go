package raftfsm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// sessionModel is what sessions promise, without any care for speed.
type sessionModel struct {
	bounds   sessionBounds
	horizon  store.Time
	sessions map[sessionName]*modelSession
	turn     int
	keys     map[string]int64
}

type modelSession struct {
	used              store.Time
	turn              int
	lowest, forgotten uint64
	results           map[uint64]int64
}

func (m *sessionModel) oldest(except *modelSession) (oldest sessionName, found bool) {
	for name, s := range m.sessions {
		if s != except && (!found || s.turn < m.sessions[oldest].turn) {
			oldest, found = name, true
		}
	}
	return oldest, found
}

func (m *sessionModel) evict(name sessionName) {
	m.horizon = max(m.horizon, m.sessions[name].used)
	delete(m.sessions, name)
}

func (m *sessionModel) bytes() (bytes int) {
	for _, s := range m.sessions {
		bytes += recordBytes * len(s.results)
	}
	return bytes
}

// apply applies an entry of increments by 1, and returns each one's number or why it was refused. Whatever a session's ops in
// the entry say, the highest of their lowest numbers counts for all.
func (m *sessionModel) apply(ent *entry) (numbers []int64, refused []refusal) {
	lowest := make(map[sessionName]uint64)
	for _, op := range ent.Ops {
		name := sessionName{op.Session.ClientID, op.Session.Born}
		lowest[name] = max(lowest[name], op.Session.Lowest)
	}
	used := make(map[sessionName]bool)
	for _, op := range ent.Ops {
		number, why := m.one(ent.Time, op, lowest, used)
		numbers, refused = append(numbers, number), append(refused, why)
	}
	for range agedAtOnce {
		if oldest, ok := m.oldest(nil); ok && m.sessions[oldest].used < ent.Time-m.bounds.idle {
			m.evict(oldest)
		}
	}
	return numbers, refused
}

func (m *sessionModel) one(now store.Time, op sessionOp, lowest map[sessionName]uint64, used map[sessionName]bool) (int64, refusal) {
	key := string(op.Op.Key)
	if op.Session.none() {
		m.keys[key]++
		return m.keys[key], refusedNot
	}
	name := sessionName{op.Session.ClientID, op.Session.Born}
	s := m.sessions[name]
	switch {
	case s != nil:
	case name.born <= m.horizon, name.born > now:
		return 0, refusedUnknown
	default:
		if len(m.sessions) == m.bounds.sessions {
			oldest, _ := m.oldest(nil)
			m.evict(oldest)
		}
		s = &modelSession{results: make(map[uint64]int64)}
		m.sessions[name] = s
		delete(used, name)
	}
	if !used[name] {
		used[name] = true
		m.turn++
		s.used, s.turn = now, m.turn
		s.lowest = max(s.lowest, lowest[name])
		for request := range s.results {
			if request < s.lowest {
				delete(s.results, request)
			}
		}
	}
	request := op.Session.Request
	if number, done := s.results[request]; done {
		return number, refusedNot
	}
	if request < s.lowest || request <= s.forgotten {
		return 0, refusedForgotten
	}
	m.keys[key]++
	s.results[request] = m.keys[key]
	number := m.keys[key]
	forget := func() {
		first := uint64(1<<64 - 1)
		for r := range s.results {
			first = min(first, r)
		}
		s.forgotten = max(s.forgotten, first)
		delete(s.results, first)
	}
	if len(s.results) > m.bounds.records {
		forget()
	}
	for m.bytes() > m.bounds.bytes {
		if oldest, ok := m.oldest(nil); ok && m.sessions[oldest] != s {
			m.evict(oldest)
			used[oldest] = false
		} else {
			forget()
		}
	}
	return number, refusedNot
}

// A table answers as the model does, whatever clients send, in whatever order and however often; so does a second one, which is
// taken from a snapshot of the first from time to time, and the first goes on while that is written.
func TestSessionsAgainstAModel(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 1))
		bounds := sessionBounds{sessions: 2 + random.IntN(6), idle: store.Time(20 + random.IntN(100)), records: 1 + random.IntN(8),
			bytes: recordBytes * (2 + random.IntN(20)), previous: 10}
		model := &sessionModel{bounds: bounds, sessions: make(map[sessionName]*modelSession), keys: make(map[string]int64)}
		machines := [2]*shardMachine{newShardMachine(1, &manualClock{wall: 5}), newShardMachine(1, &manualClock{wall: 99})}
		index := uint64(0)
		encoder := new(entryEncoder)
		apply := func(ent *entry) (all [2]opResults) {
			t.Helper()
			data, err := encoder.encode(ent)
			if err != nil {
				t.Fatal(err)
			}
			index++
			for i, m := range machines {
				got, err := m.apply(index, data)
				if err != nil {
					t.Fatal(err)
				}
				all[i], _ = got.(opResults)
			}
			return all
		}
		for _, m := range machines {
			m.sessions = newSessionTable(bounds)
		}
		now := store.Time(100)
		apply(&entry{Kind: entryOwn, Time: now, Ranges: []shard.Range{{From: 0, To: shard.SlotCount}}})
		var frozen frozen
		frozenAt, since := uint64(0), []*entry(nil)
		for step := range 600 {
			now += store.Time(random.IntN(4))
			ent := &entry{Kind: entryOps, Time: now}
			for range 1 + random.IntN(5) {
				op := sessionOp{Op: store.Op{Kind: store.OpIncrement, Key: fmt.Append(nil, random.IntN(3)), Delta: 1}}
				if random.IntN(10) > 0 {
					request := uint64(1 + step/20 + random.IntN(12))
					op.Session = Session{ClientID: [16]byte{1, byte(random.IntN(4))}, Born: max(1, now+2-store.Time(random.IntN(60))), Request: request,
						Lowest: request - min(request, uint64(random.IntN(12))), Attempt: 1}
					op.Session.Born -= op.Session.Born % 16 // often one that is known
					if op.Session.Born == 0 {
						op.Session.Born = 1
					}
				}
				ent.Ops = append(ent.Ops, op)
			}
			if frozen != nil {
				since = append(since, ent)
			}
			numbers, refused := model.apply(ent)
			for which, got := range apply(ent) {
				for i := range ent.Ops {
					why := refusedNot
					if got.refused != nil {
						why = got.refused[i]
					}
					if why != refused[i] {
						t.Fatalf("seed %d, step %d, machine %d: %+v: %v, want %v", seed, step, which, ent.Ops[i].Session, why.err(now, 1), refused[i].err(now, 1))
					}
					if refused[i] == refusedNot && got.results[i].Number != numbers[i] {
						t.Fatalf("seed %d, step %d, machine %d: %+v: %d, want %d", seed, step, which, ent.Ops[i].Session, got.results[i].Number, numbers[i])
					}
				}
			}
			for which, m := range machines {
				checkTable(t, m.sessions)
				if t.Failed() {
					t.Fatalf("seed %d, step %d, machine %d", seed, step, which)
				}
			}
			switch {
			case frozen == nil && random.IntN(30) == 0:
				var err error
				if frozen, err = machines[0].freeze(index); err != nil {
					t.Fatal(err)
				}
				frozenAt, since = index, nil
			case frozen != nil && random.IntN(10) == 0: // the first has gone on since
				var out bytes.Buffer
				if err := frozen.persist(&out); err != nil {
					t.Fatal(err)
				}
				frozen.release()
				frozen = nil
				if got, err := machines[1].restore(&out); err != nil || got != frozenAt {
					t.Fatalf("restored at %d: %v, want %d", got, err, frozenAt)
				}
				for _, ent := range since {
					data, err := encoder.encode(ent)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := machines[1].apply(0, data); err != nil {
						t.Fatal(err)
					}
				}
				if a, b := tableOf(t, machines[0]), tableOf(t, machines[1]); !bytes.Equal(a, b) {
					t.Fatalf("seed %d, step %d: the restored machine's sessions differ", seed, step)
				}
			}
		}
		for key, want := range model.keys {
			got, _, ok := machines[1].store.Load().Get(uint16(shard.SlotOf([]byte(key))), []byte(key), nil)
			if !ok || string(got) != fmt.Sprint(want) {
				t.Errorf("seed %d: %s is %s, want %d", seed, key, got, want)
			}
		}
	}
}

// tableOf is all that a snapshot says of a machine.
func tableOf(t *testing.T, m *shardMachine) []byte {
	t.Helper()
	f, err := m.freeze(1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.release()
	var out bytes.Buffer
	if err := f.persist(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// checkTable holds a table to what its fields say of each other.
func checkTable(t *testing.T, table *sessionTable) {
	t.Helper()
	sessions, records, size := 0, 0, 0
	last := uint64(0)
	before := int32(nobody)
	for p := table.oldest; p != nobody; p = table.newer[p] {
		s := table.all[p]
		if s == nil || table.places[s.sessionName] != p || table.older[p] != before {
			t.Fatalf("place %d is not linked as it should be", p)
		}
		before = p
		if s.turn <= last || s.born > s.used {
			t.Errorf("%+v stands after turn %d", s, last)
		}
		last = s.turn
		sessions++
		kept := s.kept()
		records += len(kept)
		values := 0
		for i := range kept {
			r := &kept[i]
			size += s.bytesOf(r)
			if r.flags&recordHasPrevious != 0 {
				values++
			}
			if r.request < s.lowest || r.request <= s.forgotten || i > 0 && r.request <= kept[i-1].request {
				t.Errorf("result %d in a session of [%d, ∞) that has forgotten those up to %d", r.request, s.lowest, s.forgotten)
			}
		}
		if values != len(s.previous) {
			t.Errorf("%d previous values are kept for %d results", len(s.previous), values)
		}
		if len(kept) > table.bounds.records {
			t.Errorf("%d results of one session", len(kept))
		}
	}
	if before != table.newest || sessions != len(table.places) || sessions > table.bounds.sessions {
		t.Errorf("%d sessions are linked, %d known", sessions, len(table.places))
	}
	if records != table.records || size != table.bytes || size > table.bounds.bytes {
		t.Errorf("%d results of %d bytes, counted as %d of %d", records, size, table.records, table.bytes)
	}
	free := 0
	for _, s := range table.all {
		if s == nil {
			free++
		}
	}
	if free != len(table.free) || free+sessions != len(table.all) {
		t.Errorf("%d places are free, %d are known to be", free, len(table.free))
	}
}

// filler applies writes of sessions at the bounds that are in use.
type filler struct {
	t       *testing.T
	m       *shardMachine
	encoder entryEncoder
	now     store.Time
}

func newFiller(t *testing.T) *filler {
	f := &filler{t: t, m: newShardMachine(1, &manualClock{wall: 5}), now: 1000}
	f.apply(&entry{Kind: entryOwn, Ranges: []shard.Range{{From: 0, To: shard.SlotCount}}})
	return f
}

func (f *filler) apply(ent *entry) opResults {
	f.t.Helper()
	f.now++
	ent.Time = f.now
	data, err := f.encoder.encode(ent)
	if err != nil {
		f.t.Fatal(err)
	}
	got, err := f.m.apply(1, data)
	if err != nil {
		f.t.Fatal(err)
	}
	r, _ := got.(opResults)
	return r
}

func sessionOfNumber(client int, request uint64) Session {
	return Session{ClientID: [16]byte{1, byte(client), byte(client >> 8), byte(client >> 16)}, Born: 1000, Request: request, Attempt: 1}
}

func (f *filler) increment(client int, requests ...uint64) opResults {
	f.t.Helper()
	ent := &entry{Kind: entryOps}
	for _, request := range requests {
		ent.Ops = append(ent.Ops, sessionOp{Op: store.Op{Kind: store.OpIncrement, Key: []byte("n"), Delta: 1}, Session: sessionOfNumber(client, request)})
	}
	return f.apply(ent)
}

func TestSessionKeepsAsManyResultsAsItMay(t *testing.T) {
	f := newFiller(t)
	var requests []uint64
	for i := range formatBounds.records + 10 {
		requests = append(requests, uint64(i+1))
	}
	f.increment(1, requests...)
	checkTable(t, f.m.sessions)
	r := f.increment(1, 10, 11, uint64(len(requests)))
	if err := r.err(0, 1); !errors.Is(err, ErrResultForgotten) {
		t.Errorf("the tenth: %v", err)
	}
	for i, want := range []int64{11, int64(len(requests))} {
		if err := r.err(i+1, 1); err != nil || r.results[i+1].Number != want {
			t.Errorf("%d: %d, %v", want, r.results[i+1].Number, err)
		}
	}
	// In descending order the newest is the one without room.
	slices.Reverse(requests)
	f.increment(2, requests...)
	checkTable(t, f.m.sessions)
	if r := f.increment(2, 10, 11); !errors.Is(r.err(0, 1), ErrResultForgotten) || r.err(1, 1) != nil {
		t.Errorf("the tenth: %v, the eleventh: %v", r.err(0, 1), r.err(1, 1))
	}
}

func TestAsManySessionsAsMayBe(t *testing.T) {
	f := newFiller(t)
	for first := 0; first < formatBounds.sessions; first += 1 << 10 {
		ent := &entry{Kind: entryOps}
		for i := range 1 << 10 {
			ent.Ops = append(ent.Ops, sessionOp{Op: store.Op{Kind: store.OpIncrement, Key: []byte("n"), Delta: 1}, Session: sessionOfNumber(first+i, 1)})
		}
		f.apply(ent)
	}
	f.increment(0, 2) // it is not the oldest any more
	checkTable(t, f.m.sessions)
	if r := f.increment(1<<20, 1); r.err(0, 1) != nil || len(f.m.sessions.places) != formatBounds.sessions {
		t.Fatalf("one more: %v, %d sessions", r.err(0, 1), len(f.m.sessions.places))
	}
	if r := f.increment(1, 1); !errors.Is(r.err(0, 1), ErrSessionUnknown) {
		t.Errorf("the one that had to go: %v", r.err(0, 1))
	}
	if r := f.increment(0, 1); r.err(0, 1) != nil || r.results[0].Number != 1 {
		t.Errorf("one that was used again: %v", r.err(0, 1))
	}
	// Whoever is new must be younger than those that went.
	if r := f.increment(1<<20+1, 1); !errors.Is(r.err(0, 1), ErrSessionUnknown) {
		t.Errorf("a new one of the same age: %v", r.err(0, 1))
	}
	checkTable(t, f.m.sessions)
	if whole := tableOf(t, f.m); len(whole) > 8<<20 {
		t.Errorf("the snapshot has %d bytes", len(whole))
	}
}

func TestPreviousValuesAreBounded(t *testing.T) {
	f := newFiller(t)
	swap := func(client int, request uint64, size int) opResults {
		return f.apply(&entry{Kind: entryOps, Ops: []sessionOp{{Op: store.Op{Kind: store.OpSet, Key: []byte("k"), Value: make([]byte, size),
			ReturnPrevious: true}, Session: sessionOfNumber(client, request)}}})
	}
	f.increment(9, 1)
	swap(1, 1, formatBounds.previous)
	swap(1, 2, formatBounds.previous+1)
	swap(1, 3, formatBounds.previous)
	if r := swap(1, 2, 1); r.err(0, 1) != nil || len(r.results[0].Previous) != formatBounds.previous {
		t.Errorf("a previous value that has room: %d bytes, %v", len(r.results[0].Previous), r.err(0, 1))
	}
	before := f.m.store.Load().Version()
	if r := swap(1, 3, 1); !errors.Is(r.err(0, 1), ErrResultForgotten) || f.m.store.Load().Version() != before {
		t.Errorf("a previous value that has none: %v", r.err(0, 1))
	}
	for i := range uint64(2 * formatBounds.bytes / formatBounds.previous) {
		swap(1, 4+i, formatBounds.previous)
		checkTable(t, f.m.sessions)
	}
	if r := f.increment(9, 1); !errors.Is(r.err(0, 1), ErrSessionUnknown) {
		t.Errorf("a session that was not used: %v", r.err(0, 1))
	}
	if r := swap(1, 4, 1); !errors.Is(r.err(0, 1), ErrResultForgotten) {
		t.Errorf("the session's own first: %v", r.err(0, 1))
	}
	whole := tableOf(t, f.m)
	other := newShardMachine(1, &manualClock{})
	if _, err := other.restore(bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	checkTable(t, other.sessions)
	if !bytes.Equal(tableOf(t, other), whole) {
		t.Error("the restored machine's snapshot is another")
	}
}

// Steady writes take no memory: what is answered makes room for what comes.
func TestSessionsAllocateNothing(t *testing.T) {
	table := newSessionTable(formatBounds)
	name := sessionName{client: [16]byte{1}, born: 1}
	result := store.Result{Status: store.StatusOK, Version: 1}
	request := uint64(0)
	write := func() {
		request++
		s, why := table.use(name, request-min(request, 200), store.Time(request))
		if why != refusedNot {
			t.Fatal(why.err(0, 1))
		}
		_, done, at, why := table.lookUp(s, request)
		if done || why != refusedNot {
			t.Fatal("known already")
		}
		table.keep(s, at, request, 1, &result)
	}
	for range 10_000 {
		write()
	}
	if allocated := testing.AllocsPerRun(10_000, write); allocated != 0 {
		t.Errorf("%v allocations a write", allocated)
	}
	if n := cap(table.all[0].records); n > 1024 {
		t.Errorf("room for %d results where 200 are waited for", n)
	}
}

// A session gives back what room it doesn't need once it is quiet.
func TestQuietSessionsAreTrimmed(t *testing.T) {
	f := newFiller(t)
	var requests []uint64
	for i := range 1000 {
		requests = append(requests, uint64(i+1))
	}
	f.increment(1, requests...)
	last := sessionOfNumber(1, 1001)
	last.Lowest = 1001
	f.apply(&entry{Kind: entryOps, Ops: []sessionOp{{Op: store.Op{Kind: store.OpTouch, Key: []byte("n")}, Session: last}}})
	if n := cap(f.m.sessions.all[0].records); n < 1000 {
		t.Fatalf("room for %d: the test proves nothing", n)
	}
	f.now += trimAfter
	f.apply(&entry{Kind: entryTick})
	if n := cap(f.m.sessions.all[0].records); n > 10 {
		t.Errorf("room for %d results", n)
	}
	if r := f.increment(1, 1001); r.err(0, 1) != nil || r.results[0].Status != store.StatusOK {
		t.Errorf("its result: %+v, %v", r.results[0], r.err(0, 1))
	}
}

// A shard without sessions is written as every level can read it.
func TestSnapshotWithoutSessionsIsPlain(t *testing.T) {
	f := newFiller(t)
	plain := tableOf(t, f.m)
	if plain[1] != snapshotPlain {
		t.Errorf("format %d", plain[1])
	}
	f.increment(1, 1)
	if once := tableOf(t, f.m); once[1] != snapshotFormat {
		t.Errorf("format %d with a session", once[1])
	}
	if _, err := f.m.restore(bytes.NewReader(plain)); err != nil || len(f.m.sessions.places) != 0 {
		t.Errorf("after the plain snapshot: %d sessions, %v", len(f.m.sessions.places), err)
	}
}

// What no table could have held is refused.
func TestSnapshotRefusesSessions(t *testing.T) {
	f := newFiller(t)
	f.increment(1, 1, 2)
	f.increment(2, 1)
	good := func() *sessionTable { return newRestored(t, tableOf(t, f.m)).sessions }
	of := func(t *sessionTable, n int) *session {
		return t.all[t.places[sessionName{sessionOfNumber(n, 0).ClientID, 1000}]]
	}
	for name, spoil := range map[string]func(*sessionTable){
		"order of use":       func(t *sessionTable) { of(t, 1).turn, of(t, 2).turn = 2, 1 },
		"used in the future": func(t *sessionTable) { of(t, 2).used += 1000 },
		"used before birth":  func(t *sessionTable) { of(t, 1).used = 999 },
		"order of results":   func(t *sessionTable) { slices.Reverse(of(t, 1).records) },
		"below lowest":       func(t *sessionTable) { of(t, 1).lowest = 2 },
		"forgotten":          func(t *sessionTable) { of(t, 1).forgotten = 1 },
		"request 0":          func(t *sessionTable) { of(t, 1).records[0].request = 0 },
		"slot":               func(t *sessionTable) { of(t, 1).records[0].slot = store.SlotCount },
		"horizon":            func(t *sessionTable) { t.horizon = -1 },
		"sessions counted":   func(t *sessionTable) { t.places[sessionName{}] = 0 },
		"results counted":    func(t *sessionTable) { t.records++ },
		"twice":              func(t *sessionTable) { of(t, 2).client = of(t, 1).client },
		"too many results": func(t *sessionTable) {
			s := of(t, 2)
			for i := range formatBounds.records {
				s.records = append(s.records, record{request: uint64(i + 2)})
				t.records++
			}
		},
		"too large a value": func(t *sessionTable) {
			s := of(t, 2)
			s.records[0].flags |= recordHasPrevious
			s.previous = map[uint64][]byte{1: make([]byte, formatBounds.previous+1)}
		},
	} {
		m := newRestored(t, tableOf(t, f.m))
		m.sessions = good()
		spoil(m.sessions)
		if _, err := newShardMachine(1, &manualClock{}).restore(bytes.NewReader(tableOf(t, m))); !errors.Is(err, ErrBadSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	newRestored(t, tableOf(t, f.m)) // unspoilt it is taken
}

func newRestored(t *testing.T, snapshot []byte) *shardMachine {
	t.Helper()
	m := newShardMachine(1, &manualClock{})
	if _, err := m.restore(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	return m
}
