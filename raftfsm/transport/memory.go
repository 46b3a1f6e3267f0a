package transport

import (
	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// MemoryReport is how a node stands with its memory, in bytes. It travels with the answers to heartbeats, so to every node that
// leads a group with a replica here: some twenty bytes in a frame. A node of an older build neither sends nor reads it.
type MemoryReport struct {
	Used, Limit uint64
	// Over: the node takes no growth.
	Over bool
}

// ReportMemory sets what this node tells of its memory from now on. Peers hear it with the next answers to heartbeats, and at
// once if Over has changed.
func (t *Transport) ReportMemory(r MemoryReport) {
	before := t.memory.Swap(&r)
	if before != nil && before.Over == r.Over || before == nil && !r.Over {
		return
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.peers {
		p.mu.Lock()
		accepted := p.accepted
		p.mu.Unlock()
		if accepted != nil {
			accepted.outbox.join(false)
		}
	}
}

// OnMemory sets who hears other nodes' reports. It is called on a stream's receiving goroutine, and must not block.
func (t *Transport) OnMemory(heard func(shard.NodeID, MemoryReport)) { t.heardMemory.Store(&heard) }

// boardMemory puts this node's report into a frame of answers.
func (t *Transport) boardMemory(frame *ostrakapb.Frame) {
	if r := t.memory.Load(); r != nil {
		frame.Memory = &ostrakapb.NodeMemory{Used: r.Used, Limit: r.Limit, Over: r.Over}
	}
}

// hearMemory passes a peer's report on.
func (p *pipe) hearMemory(frame *ostrakapb.Frame) {
	heard := p.t.heardMemory.Load()
	if m := frame.GetMemory(); m != nil && heard != nil {
		(*heard)(p.peer.node, MemoryReport{Used: m.GetUsed(), Limit: m.GetLimit(), Over: m.GetOver()})
	}
}
