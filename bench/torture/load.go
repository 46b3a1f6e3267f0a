package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/bench/history"
	"github.com/ostraka-db/ostraka/client"
)

// load is the clients of a run. Each worker has at most one operation under way, and a client of its own.
//
//	registers   a few keys, read, written, deleted, swapped, incremented and appended to at random; each period has keys of its
//	            own, and its history is checked for linearizability while the next ones run
//	pinned      readers of the same registers, one for each node, that ask this one whatever they are told: a leader that was
//	            paused, and doesn't know yet that another one leads, must not answer them with what it has
//	uniques     keys that are written once: acknowledged, they are there at the end
//	counters    incremented all run long: no two increments may return the same value, and the sum at the end is at least what was
//	            acknowledged and at most that and what is unknown
//	sets        values that grow by unique elements: what was acknowledged is there once, in order; the unknown at most once
//	lives       keys with a TTL: never missing before their time, and once missing never there again
//	watches     of the unique keys and the sets: see watching
//	probes      one key in many slots each, written all the time, to measure how long writes stand still
type load struct {
	seed    uint64
	clients []*client.Client
	pinned  []*client.Client
	report  func(format string, args ...any) // of a violation

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	done, unknown, refused atomic.Int64
	// extra is how many more workers write at full speed.
	extra        sync.WaitGroup
	stopOverload context.CancelFunc

	periods  *periods
	uniques  uniques
	watching *watching
	// unwatch ends the watches, which go on for a while after the workers.
	unwatch  context.CancelFunc
	watchers sync.WaitGroup
	counters [countersMax]counter
	sets     []*set
	probes   *probes
}

const (
	registerWorkers = 8
	registerKeys    = 12
	countersMax     = 8
	counterWorkers  = 3
	setWorkers      = 3
	lifeWorkers     = 2
	probeKeys       = 48
	overloadWorkers = 600
	// callTimeout is short, so that clients meet unknown outcomes and go on.
	callTimeout = 3 * time.Second
)

func newLoad(ctx context.Context, endpoints []string, seed uint64, report func(string, ...any), artefacts string) (*load, error) {
	l := &load{seed: seed, report: report, periods: newPeriods(report, artefacts), probes: new(probes),
		watching: newWatching()}
	l.uniques.acknowledged, l.uniques.begun = make(map[string]string), make(map[string]time.Time)
	l.ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	for range registerWorkers + counterWorkers + setWorkers + lifeWorkers + 1 {
		c, err := client.New(ctx, endpoints)
		if err != nil {
			l.close()
			return nil, err
		}
		l.clients = append(l.clients, c)
	}
	for _, endpoint := range endpoints {
		c, err := client.New(ctx, []string{endpoint}, client.WithDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", endpoint)
		}))
		if err != nil {
			l.close()
			return nil, err
		}
		l.pinned = append(l.pinned, c)
	}
	return l, nil
}

// begin starts the workers.
func (l *load) begin() {
	next := 0
	begin := func(id int, c *client.Client, step func(c *client.Client, id, n int, random *rand.Rand)) {
		random := rand.New(rand.NewPCG(l.seed, uint64(id)+1))
		l.running.Go(func() {
			for n := 0; l.ctx.Err() == nil; n++ {
				step(c, id, n, random)
			}
		})
	}
	worker := func(step func(c *client.Client, id, n int, random *rand.Rand)) {
		begin(next, l.clients[next], step)
		next++
	}
	for i, c := range l.pinned {
		begin(len(l.clients)+i, c, l.readPinned)
	}
	for range registerWorkers {
		worker(l.register)
	}
	for range counterWorkers {
		worker(l.count)
	}
	for range setWorkers {
		s := &set{key: fmt.Sprintf("set-%d", len(l.sets))}
		l.sets = append(l.sets, s)
		worker(func(c *client.Client, _, n int, _ *rand.Rand) { l.grow(c, s, n) })
	}
	for range lifeWorkers {
		worker(l.live)
	}
	watching, unwatch := context.WithCancel(context.WithoutCancel(l.ctx))
	l.unwatch = unwatch
	for i, prefix := range watched {
		l.watchers.Go(func() { l.watching.run(watching, l, l.clients[i], prefix) })
	}
	prober := l.prober()
	l.running.Go(func() { l.probes.run(l, prober) })
}

// prober is the client of the probes.
func (l *load) prober() *client.Client { return l.clients[len(l.clients)-1] }

// end stops the workers.
func (l *load) end() {
	l.stop()
	l.running.Wait()
	l.periods.end()
}

func (l *load) close() {
	l.stop()
	l.running.Wait()
	if l.unwatch != nil {
		l.unwatch()
		l.watchers.Wait()
	}
	for _, c := range append(l.clients, l.pinned...) {
		c.Close()
	}
}

// call runs one operation; it goes on when the load is stopped, so that its outcome is seen.
func (l *load) call(do func(ctx context.Context) error) (outcome outcome) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), callTimeout)
	defer cancel()
	err := do(ctx)
	l.done.Add(1)
	switch {
	case err == nil, errors.Is(err, client.ErrNotFound), errors.Is(err, client.ErrConditionNotMet), errors.Is(err, client.ErrNotInteger):
		return acknowledged
	case errors.Is(err, client.ErrOutcomeUnknown):
		l.unknown.Add(1)
		return unknown
	case errors.Is(err, client.ErrUnavailable): // certainly not done, or a read that found nobody
		l.refused.Add(1)
		return notDone
	}
	l.report("a client saw an error that is neither \"not done\" nor \"unknown\": %v", err)
	return notDone
}

type outcome uint8

const (
	acknowledged outcome = iota
	unknown
	notDone
)

// register does one random operation on a key of the current period, or writes a unique key.
func (l *load) register(c *client.Client, id, n int, random *rand.Rand) {
	p := l.periods.enter()
	defer l.periods.leave(p)
	key := fmt.Sprintf("register-%d-%d", p.number, random.IntN(registerKeys))
	value := fmt.Sprintf("%d.%d", id, n)
	in := history.Input{Key: key}
	var out history.Output
	var do func(ctx context.Context) error
	switch random.IntN(12) {
	case 0, 1, 2, 3:
		in.Kind = history.Read
		do = func(ctx context.Context) error {
			got, err := c.Get(ctx, []byte(key))
			out.Found, out.Value = err == nil, string(got.Value)
			return err
		}
	case 4, 5, 6:
		in.Kind, in.Value = history.Write, value
		do = func(ctx context.Context) error {
			_, err := c.Set(ctx, []byte(key), []byte(value))
			return err
		}
	case 7:
		in.Kind = history.Delete
		do = func(ctx context.Context) error {
			got, err := c.Delete(ctx, []byte(key))
			out.Found = got.Deleted
			return err
		}
	case 8:
		in.Kind, in.Value, in.Old = history.CompareAndSet, value, p.lastOf(key)
		do = func(ctx context.Context) error {
			_, err := c.CompareAndSet(ctx, []byte(key), []byte(in.Old), []byte(value))
			out.Swapped = err == nil
			return err
		}
	case 9:
		in.Kind, in.Key, in.Value = history.Increment, fmt.Sprintf("counter-%d-%d", p.number, random.IntN(2)), "1"
		do = func(ctx context.Context) error {
			got, err := c.Increment(ctx, []byte(in.Key), 1)
			out.Value = strconv.FormatInt(got.Value, 10)
			return err
		}
	case 10:
		in.Kind, in.Value = history.Append, ","+value
		do = func(ctx context.Context) error {
			got, err := c.Append(ctx, []byte(key), []byte(in.Value))
			out.Length = int(got.Length)
			return err
		}
	default:
		l.unique(c, id, n)
		return
	}
	call := p.recorder.Now()
	switch l.call(do) {
	case acknowledged:
	case unknown:
		out = history.Output{Unknown: true}
	case notDone:
		return
	}
	if in.Kind == history.Write && !out.Unknown {
		p.wrote(key, value)
	}
	p.recorder.Add(id, call, in, out)
}

// readPinned reads a key of the current period.
func (l *load) readPinned(c *client.Client, id, _ int, random *rand.Rand) {
	p := l.periods.enter()
	defer l.periods.leave(p)
	in := history.Input{Kind: history.Read, Key: fmt.Sprintf("register-%d-%d", p.number, random.IntN(registerKeys))}
	var out history.Output
	call := p.recorder.Now()
	if l.call(func(ctx context.Context) error {
		got, err := c.Get(ctx, []byte(in.Key))
		out.Found, out.Value = err == nil, string(got.Value)
		return err
	}) == acknowledged {
		p.recorder.Add(id, call, in, out)
	}
}

// uniques are keys that only one operation writes.
type uniques struct {
	mu           sync.Mutex
	acknowledged map[string]string
	begun        map[string]time.Time // of those
}

func (l *load) unique(c *client.Client, id, n int) {
	key, value := fmt.Sprintf("unique-%d-%d", id, n), strconv.Itoa(n)
	begun := time.Now()
	if l.call(func(ctx context.Context) error {
		_, err := c.Set(ctx, []byte(key), []byte(value))
		return err
	}) == acknowledged {
		l.uniques.mu.Lock()
		defer l.uniques.mu.Unlock()
		l.uniques.acknowledged[key], l.uniques.begun[key] = value, begun
	}
}

// check reads all of them back.
func (u *uniques) check(ctx context.Context, c *client.Client, report func(string, ...any)) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var keys [][]byte
	for key := range u.acknowledged {
		keys = append(keys, []byte(key))
	}
	lost := 0
	for ; len(keys) > 0; keys = keys[min(500, len(keys)):] {
		batch := keys[:min(500, len(keys))]
		for i, got := range c.MultiGet(ctx, batch) {
			switch {
			case got.Err != nil && !errors.Is(got.Err, client.ErrNotFound):
				return got.Err
			case got.Err != nil || string(got.Value.Value) != u.acknowledged[string(batch[i])]:
				if lost++; lost <= 5 {
					report("the acknowledged write of %s is lost: %q, %v", batch[i], got.Value.Value, got.Err)
				}
			}
		}
	}
	if lost > 5 {
		report("%d of %d acknowledged writes are lost", lost, len(u.acknowledged))
	}
	return nil
}

// counter is a key that is incremented by 1.
type counter struct {
	mu                    sync.Mutex
	acknowledged, unknown int64
	// seen are the values that increments returned.
	seen map[int64]bool
}

func counterKey(i int) []byte { return fmt.Appendf(nil, "sum-%d", i) }

func (l *load) count(c *client.Client, _, _ int, random *rand.Rand) {
	i := random.IntN(countersMax)
	var got client.IncrementResult
	how := l.call(func(ctx context.Context) (err error) {
		got, err = c.Increment(ctx, counterKey(i), 1)
		return err
	})
	l.counters[i].note(how, got.Value, func(format string, args ...any) {
		l.report("counter %d: %s", i, fmt.Sprintf(format, args...))
	})
}

func (c *counter) note(how outcome, value int64, report func(string, ...any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch how {
	case unknown:
		c.unknown++
	case acknowledged:
		if c.seen == nil {
			c.seen = make(map[int64]bool)
		}
		c.acknowledged++
		if c.seen[value] {
			report("two increments returned %d", value)
		}
		c.seen[value] = true
	}
}

// check holds the counter's value at the end against what was seen.
func (c *counter) check(value int64, report func(string, ...any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if value < c.acknowledged || value > c.acknowledged+c.unknown {
		report("it is %d after %d acknowledged increments and %d of unknown outcome", value, c.acknowledged, c.unknown)
	}
	for seen := range c.seen {
		if seen > value {
			report("an increment returned %d, and at the end it is %d", seen, value)
			return
		}
	}
}

// set is a value that one worker appends elements to.
type set struct {
	key string
	mu  sync.Mutex
	// elements in order, and whether each was acknowledged; those that were certainly not done are left out.
	elements []element
}

type element struct {
	name         string
	acknowledged bool
}

// setElementsMax keeps values small; then the key gets a successor.
const setElementsMax = 2000

func (l *load) grow(c *client.Client, s *set, n int) {
	name := strconv.Itoa(n)
	how := l.call(func(ctx context.Context) error {
		_, err := c.Append(ctx, s.keyOf(n), []byte(name+","))
		return err
	})
	if how == notDone {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.elements = append(s.elements, element{name, how == acknowledged})
}

func (s *set) keyOf(n int) []byte { return fmt.Appendf(nil, "%s-%d", s.key, n/setElementsMax) }

// keys are all keys that may have elements.
func (s *set) keys() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.elements) == 0 {
		return nil
	}
	last, err := strconv.Atoi(s.elements[len(s.elements)-1].name)
	if err != nil {
		panic(err)
	}
	var keys [][]byte
	for n := 0; n <= last; n += setElementsMax {
		keys = append(keys, s.keyOf(n))
	}
	return keys
}

// check holds the joined values of keys against what was seen. One worker appends, one at a time, but an append of unknown
// outcome may be carried out later than those after it.
func (s *set) check(value string, report func(string, ...any)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	times := make(map[string]int)
	place := make(map[string]int)
	for i, name := range strings.Split(strings.TrimSuffix(value, ","), ",") {
		times[name]++
		place[name] = i
	}
	last, missing := -1, 0
	for _, e := range s.elements {
		switch n := times[e.name]; {
		case n > 1:
			report("element %s is there %d times", e.name, n)
		case n == 0 && e.acknowledged:
			if missing++; missing <= 5 {
				report("the acknowledged element %s is missing", e.name)
			}
		case n == 1 && e.acknowledged:
			if place[e.name] < last {
				report("element %s stands before one that was acknowledged before it was sent", e.name)
			}
			last = place[e.name]
		}
		delete(times, e.name)
	}
	delete(times, "") // of an empty value
	for name := range times {
		report("element %s is there, but was never appended", name)
	}
}

// live writes a key with a TTL and watches it go.
func (l *load) live(c *client.Client, id, n int, random *rand.Rand) {
	key := fmt.Appendf(nil, "life-%d-%d", id, n)
	ttl := time.Duration(200+random.IntN(1800)) * time.Millisecond
	written := time.Now()
	if l.call(func(ctx context.Context) error {
		_, err := c.Set(ctx, key, []byte("v"), client.WithTTL(ttl))
		return err
	}) != acknowledged {
		return
	}
	gone := false
	for after := 0; after < 5 && l.ctx.Err() == nil; {
		var err error
		from := l.clients[random.IntN(len(l.clients))]
		if how := l.call(func(ctx context.Context) error {
			_, err = from.Get(ctx, key)
			return err
		}); how != acknowledged {
			continue
		}
		missing := errors.Is(err, client.ErrNotFound)
		switch {
		case missing && time.Since(written) < ttl:
			l.report("%s with a TTL of %s was gone after %s", key, ttl, time.Since(written))
		case gone && !missing:
			l.report("%s was seen expired, and then it was there again", key)
		}
		if gone = gone || missing; gone {
			after++
		}
		pauseFor(l.ctx, time.Duration(20+random.IntN(100))*time.Millisecond)
	}
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// overload adds writers at full speed, many more than are served.
func (l *load) overload() {
	ctx, stop := context.WithCancel(l.ctx)
	l.stopOverload = stop
	for i := range overloadWorkers {
		c := l.clients[i%len(l.clients)]
		l.extra.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.call(func(ctx context.Context) error {
					_, err := c.Set(ctx, fmt.Appendf(nil, "overload-%d-%d", i, n%50), make([]byte, 1000))
					return err
				})
			}
		})
	}
}

func (l *load) endOverload() {
	l.stopOverload()
	l.extra.Wait()
}
