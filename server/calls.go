package server

import (
	"context"
	"fmt"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// calls checks the operations of a message, sorts them by shard, and sets them going: each shard's writes together, and
// its reads of one level together. Batch and Pipeline stand on it; they differ in what they do with the answers.
//
//	add ─► check ─► route ─┬─► lane of the shard: writes ──flush──► replica.Submit ──► answers.wrote
//	                       └─► shard and level: reads ──flush──► answers.read
//
// add and flush are one goroutine's. An operation is a number to it, by which it is answered.
type calls struct {
	kv      *kvService
	answers answers

	// routes is the map of the message being added; nil: none is.
	routes *shard.Map
	// round counts messages: a lane looks its replica up once in each.
	round uint64
	lanes map[shard.ID]*lane
	// busy are the lanes that have writes to flush, reads the groups that have been begun.
	busy  []*lane
	reads []*readGroup
	// spare holds writes that were made but not used yet.
	spare []raftfsm.Write
}

// answers takes what became of operations. Each is answered once, by one of these.
type answers interface {
	// refuse answers an operation that was not sorted in. From any goroutine.
	refuse(number uint64, err error)
	// wrote answers writes of a shard. It is called from the shard's goroutines, as raftfsm.Receiver is.
	wrote(id shard.ID, writes []*raftfsm.Write)
	// read carries a group of reads out and answers them; it is the callee's from then on. On flush's goroutine, and must
	// not wait there for other nodes.
	read(group *readGroup)
}

// lane is a shard's way to its replica.
type lane struct {
	shard   shard.ID
	answers answers
	replica replica
	round   uint64
	writes  []*raftfsm.Write
}

// Written implements raftfsm.Receiver.
func (l *lane) Written(writes []*raftfsm.Write) { l.answers.wrote(l.shard, writes) }

// readGroup is a shard's reads of one level: one confirmation of leadership serves them all.
type readGroup struct {
	shard   shard.ID
	level   raftfsm.ReadLevel
	replica replica
	reads   []keyRead
}

// keyRead reads a key, or all about it but the value.
type keyRead struct {
	number    uint64
	key       []byte
	valueless bool
	deadline  time.Time
}

// latest is when the last of a group's callers gives up.
func (g *readGroup) latest() time.Time {
	latest := g.reads[0].deadline
	for _, r := range g.reads[1:] {
		if r.deadline.After(latest) {
			latest = r.deadline
		}
	}
	return latest
}

func newCalls(kv *kvService, answers answers) *calls {
	return &calls{kv: kv, answers: answers, lanes: make(map[shard.ID]*lane)}
}

// begin opens a message.
func (c *calls) begin(ctx context.Context) (err error) {
	c.round++
	c.routes, err = c.kv.admit(ctx)
	return err
}

// add sorts one operation in, and says what it takes of a stream's room. An error means that it was not, and that
// nothing of it was done. left is how many operations the message still has, this one included. client is the
// message's header.
func (c *calls) add(number uint64, client *ostrakapb.Header, op *ostrakapb.Op, deadline time.Time, left int) (room int, err error) {
	switch o := op.GetOp().(type) {
	case *ostrakapb.Op_Get:
		return readRoom(o.Get.GetKey()), c.addRead(keyRead{number: number, key: o.Get.GetKey(), deadline: deadline}, o.Get.GetLevel())
	case *ostrakapb.Op_Ttl:
		return readRoom(o.Ttl.GetKey()), c.addRead(keyRead{number: number, key: o.Ttl.GetKey(), valueless: true, deadline: deadline}, o.Ttl.GetLevel())
	}
	if len(c.spare) == 0 {
		c.spare = make([]raftfsm.Write, min(max(left, 1), writesAtOnce))
	}
	w := &c.spare[0]
	if err := c.addWrite(w, client, op); err != nil {
		w.Op, w.Session = store.Op{}, raftfsm.Session{}
		return 0, err
	}
	w.Number, w.Deadline = number, deadline
	c.spare = c.spare[1:]
	return writeRoom(&w.Op), nil
}

// writesAtOnce is how many writes are made with one allocation, which stays until all of them are answered.
const writesAtOnce = 64

func (c *calls) addWrite(w *raftfsm.Write, client *ostrakapb.Header, op *ostrakapb.Op) error {
	header, err := mutationOf(op, &w.Op)
	if err != nil {
		return err
	}
	var open bool
	if w.Session, open, err = sessionOf(client, header); err != nil {
		return err
	}
	if err := c.kv.check(&w.Op); err != nil {
		return err
	}
	l, err := c.lane(w.Op.Key)
	if err != nil {
		return err
	}
	if err := c.kv.admitSession(l.replica, &w.Session, open); err != nil {
		return &shardError{shard: l.shard, err: err}
	}
	if len(l.writes) == 0 {
		c.busy = append(c.busy, l)
	}
	w.To = l
	l.writes = append(l.writes, w)
	return nil
}

func (c *calls) addRead(r keyRead, asked ostrakapb.ReadLevel) error {
	level, err := readLevel(asked)
	if err != nil {
		return err
	}
	if err := c.kv.node.Limits().store().CheckKey(r.key); err != nil {
		return err
	}
	l, err := c.lane(r.key)
	if err != nil {
		return err
	}
	for _, g := range c.reads {
		if g.shard == l.shard && g.level == level {
			g.reads = append(g.reads, r)
			return nil
		}
	}
	c.reads = append(c.reads, &readGroup{shard: l.shard, level: level, replica: l.replica, reads: []keyRead{r}})
	return nil
}

// lane is the way to a key's shard.
func (c *calls) lane(key []byte) (*lane, error) {
	id := c.routes.ShardOf(shard.SlotOf(key))
	l := c.lanes[id]
	if l == nil {
		l = &lane{shard: id, answers: c.answers}
		c.lanes[id] = l
	}
	if l.round != c.round {
		found, err := c.kv.find(c.routes, id)
		if err != nil {
			return nil, err
		}
		l.replica, l.round = found, c.round
	}
	return l, nil
}

// pending lists the writes that flush will set going.
func (c *calls) pending() []*raftfsm.Write {
	var all []*raftfsm.Write
	for _, l := range c.busy {
		all = append(all, l.writes...)
	}
	return all
}

// flush sets going what was added.
func (c *calls) flush() {
	for _, l := range c.busy {
		accepted, err := l.replica.Submit(l.writes)
		if refused := l.writes[accepted:]; len(refused) > 0 {
			for _, w := range refused {
				w.Err = err
			}
			l.Written(refused)
		}
		clear(l.writes)
		l.writes = l.writes[:0]
	}
	c.busy = c.busy[:0]
	for i, g := range c.reads {
		c.reads[i] = nil
		c.answers.read(g)
	}
	c.reads = c.reads[:0]
}

// check refuses a mutation that is over a limit, and stamps it with the node's limit on values: an append must end the
// same on every replica.
func (s *kvService) check(op *store.Op) error {
	limits := s.node.Limits()
	if err := checkOp(op, limits.store()); err != nil {
		return err
	}
	op.ValueBytesMax = limits.ValueBytesMax
	return nil
}

// ended places the error of a mutation at its shard; nil: it was carried out, its result says what it came to.
func ended(id shard.ID, w *raftfsm.Write) error { return settled(id, &w.Op, w.Result, w.Err) }

func settled(id shard.ID, op *store.Op, result store.Result, err error) error {
	if err == nil {
		err = refusal(op, result)
	}
	if err != nil {
		return &shardError{shard: id, err: err}
	}
	return nil
}

// mutationOf fills in what a message asks to be written, and returns the message's own header.
func mutationOf(op *ostrakapb.Op, into *store.Op) (*ostrakapb.Header, error) {
	switch o := op.GetOp().(type) {
	case *ostrakapb.Op_Set:
		return o.Set.GetHeader(), setOp(into, o.Set)
	case *ostrakapb.Op_Delete:
		return o.Delete.GetHeader(), deleteOp(into, o.Delete)
	case *ostrakapb.Op_CompareAndSet:
		return o.CompareAndSet.GetHeader(), compareAndSetOp(into, o.CompareAndSet)
	case *ostrakapb.Op_Increment:
		return o.Increment.GetHeader(), incrementOp(into, o.Increment)
	case *ostrakapb.Op_Append:
		return o.Append.GetHeader(), appendOp(into, o.Append)
	case *ostrakapb.Op_Expire:
		return o.Expire.GetHeader(), expireOp(into, o.Expire)
	case *ostrakapb.Op_Persist:
		return o.Persist.GetHeader(), persistOp(into, o.Persist)
	case *ostrakapb.Op_Touch:
		return o.Touch.GetHeader(), touchOp(into, o.Touch)
	case nil:
		return nil, &fieldError{"ops", "an operation is empty, or of a kind this node does not know"}
	default:
		return nil, fmt.Errorf("%w: operation %T", errUnsupported, o)
	}
}

// resultOf is the answer to a mutation that was carried out.
func resultOf(op *store.Op, r store.Result) *ostrakapb.OpResult {
	switch op.Kind {
	case store.OpSet:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Set{Set: setResponse(op, r)}}
	case store.OpDelete:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Delete{Delete: deleteResponse(op, r)}}
	case store.OpCompareAndSet:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_CompareAndSet{CompareAndSet: compareAndSetResponse(op, r)}}
	case store.OpIncrement:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Increment{Increment: incrementResponse(op, r)}}
	case store.OpAppend:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Append{Append: appendResponse(op, r)}}
	case store.OpExpire:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Expire{Expire: expireResponse(op, r)}}
	case store.OpPersist:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Persist{Persist: persistResponse(op, r)}}
	case store.OpTouch:
		return &ostrakapb.OpResult{Result: &ostrakapb.OpResult_Touch{Touch: touchResponse(op, r)}}
	}
	panic(fmt.Sprintf("server: a mutation of kind %d was carried out", op.Kind))
}
