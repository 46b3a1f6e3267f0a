package raftfsm

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// A node may have a memory limit. It counts what the stores of all its replicas take, exactly, and says so to whoever leads one of
// their groups. A leader refuses growth as long as any voter's node, its own included, is over its limit:
//
//	stores ─► beat (own use, over or not) ─┬─► over ◄── reports of other nodes, with their answers to heartbeats
//	                                       │     │
//	                  own report to others ◄     └─► Group.Write, Submit: a write that may grow is ErrMemory, before it is logged
//
// Nothing of this is decided when an entry is applied: a replica takes whatever is in the log.
//
// A node is over from the moment its use reaches the limit until it has come down to the lower mark, so that a cluster at its limit
// does not go on and off with every key. A report counts for reportLife: a node that was not heard of for longer, or never, does not
// hold growth up. It isn't taking part then, the majority goes on without it, and if it comes back over its limit its first answer says so.
type memory struct {
	limit     int64 // bytes; 0: none
	clock     Clock
	life      time.Duration // of a report
	transport *transport.Transport
	self      shard.NodeID

	used    atomic.Int64 // at the last beat
	refused atomic.Uint64

	mu sync.Mutex
	// over are the reports of nodes that were over when last heard. An immutable map; nil: none was, which costs a write one load.
	over atomic.Pointer[map[shard.NodeID]memoryReport]
}

// memoryReport is a report and when it came, by the host's clock.
type memoryReport struct {
	transport.MemoryReport
	at time.Duration
}

// memoryBeat is how often a node with a limit looks at its use. It bounds, with the way of a report, how far growth overshoots.
const memoryBeat = 50 * time.Millisecond

// lowerMark is where a node that was over takes growth again: 19/20 of its limit.
func lowerMark(limit int64) int64 { return limit - limit/20 }

// reportElections times the election timeout is how long a report counts: answers to heartbeats come three times in each.
const reportElections = 3

// ErrMemory: a voter's node is over its memory limit, and the write would take more. *MemoryError says which.
var ErrMemory = errors.New("over the memory limit")

// MemoryError is ErrMemory with who is over.
type MemoryError struct {
	Node        shard.NodeID
	Used, Limit int64 // bytes
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("node %s is over its memory limit: it uses %d bytes, max-memory is %d", e.Node, e.Used, e.Limit)
}

// Is makes errors.Is(err, ErrMemory) true.
func (e *MemoryError) Is(target error) bool { return target == ErrMemory }

// MemoryUse is how a node stands with its memory.
type MemoryUse struct {
	Used, Limit int64 // bytes; Limit 0: none
	Over        bool
	// Refused counts the writes that this node, as leader, refused for it: of any node's limit.
	Refused uint64
}

func newMemory(cfg *Config) *memory {
	m := &memory{limit: cfg.MaxMemory, clock: cfg.Clock, life: reportElections * cfg.Timing.Election, transport: cfg.Transport, self: cfg.Node}
	cfg.Transport.OnMemory(m.note)
	return m
}

// Memory returns how this node stands.
func (h *Host) Memory() MemoryUse {
	m := h.memory
	u := MemoryUse{Used: h.memoryTaken(), Limit: m.limit, Refused: m.refused.Load()}
	if over := m.over.Load(); over != nil {
		_, u.Over = (*over)[m.self]
	}
	return u
}

// memoryTaken sums up what the stores of all replicas take.
func (h *Host) memoryTaken() (bytes int64) {
	for _, g := range h.Groups() {
		if _, m, err := g.life(); err == nil {
			bytes += m.store.Load().MemoryStats().Taken()
		}
	}
	return bytes
}

// beatMemory is the scheduler's job of a node with a limit.
func (h *Host) beatMemory() {
	m := h.memory
	used := h.memoryTaken()
	m.used.Store(used)
	over := used >= m.limit
	if known := m.over.Load(); known != nil && !over {
		_, was := (*known)[m.self]
		over = was && used > lowerMark(m.limit)
	}
	report := transport.MemoryReport{Used: uint64(used), Limit: uint64(m.limit), Over: over}
	m.note(m.self, report)
	m.transport.ReportMemory(report)
}

// note keeps a node's newest report.
func (m *memory) note(node shard.NodeID, r transport.MemoryReport) {
	if known := m.over.Load(); !r.Over && (known == nil || !has(*known, node)) {
		return // nearly always
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := make(map[shard.NodeID]memoryReport)
	now := m.clock.Monotonic()
	if known := m.over.Load(); known != nil {
		maps.Copy(next, *known)
		maps.DeleteFunc(next, func(_ shard.NodeID, old memoryReport) bool { return now-old.at > m.life })
	}
	delete(next, node)
	if r.Over {
		next[node] = memoryReport{r, now}
	}
	if len(next) == 0 {
		m.over.Store(nil)
		return
	}
	m.over.Store(&next)
}

func has(reports map[shard.NodeID]memoryReport, node shard.NodeID) bool {
	_, ok := reports[node]
	return ok
}

// pressed names a voter's node that is over its limit; nil: none is.
func (m *memory) pressed(voters []voter) *MemoryError {
	over := m.over.Load()
	if over == nil {
		return nil
	}
	now := m.clock.Monotonic()
	for _, v := range voters {
		if r, ok := (*over)[v.node]; ok && now-r.at <= m.life {
			return &MemoryError{Node: v.node, Used: int64(r.Used), Limit: int64(r.Limit)}
		}
	}
	return nil
}

// pressed is why writes that grow are refused by this leader; nil: they aren't.
func (l *life) pressed() *MemoryError {
	m := l.replica.host.memory
	if m.over.Load() == nil {
		return nil
	}
	return m.pressed(l.currentVoters())
}

// grows counts and reports a write that is to be refused while its group is pressed. One that is sent again in a session goes on to the log:
// only there can be told whether it was done before, and a refusal would hide that.
func (l *life) grows(op *store.Op, session *Session) bool {
	if session.Attempt > 1 && !session.none() || !l.fsm.machine.(*shardMachine).store.Load().Grows(uint16(shard.SlotOf(op.Key)), op) {
		return false
	}
	l.replica.host.memory.refused.Add(1)
	return true
}

// refuseGrowth gives back those of the writes that may take more memory, and returns the others.
func (l *life) refuseGrowth(writes []*Write, why *MemoryError) (others []*Write) {
	var refused []*Write
	for _, w := range writes {
		if l.grows(&w.Op, &w.Session) {
			w.Err = why
			refused = append(refused, w)
		} else {
			others = append(others, w)
		}
	}
	giveBack(refused)
	return others
}
