package storage

import "github.com/hashicorp/raft"

// entryOverheadBytes is what an entry costs in memory beside its data.
const entryOverheadBytes = 128

func entryBytes(e *raft.Log) int {
	return entryOverheadBytes + len(e.Data) + len(e.Extensions)
}

// tailCache holds the newest entries of a log without a gap, up to a number of bytes. raft's own LogCache
// counts entries instead, and keeps the futures they are part of alive. It is not safe for concurrent use.
type tailCache struct {
	bytesMax int
	bytes    int // of entries[head:]; <= bytesMax

	// entries[head:] are cached, in order of index; what lies before head is evicted and zeroed.
	entries []raft.Log
	head    int
}

// append adds the next entry. Its data is shared with the caller and must not be changed by anybody.
func (c *tailCache) append(e *raft.Log) {
	c.entries = append(c.entries, *e)
	c.bytes += entryBytes(e)
	for c.bytes > c.bytesMax {
		c.evict()
	}
}

func (c *tailCache) evict() {
	c.bytes -= entryBytes(&c.entries[c.head])
	c.entries[c.head] = raft.Log{}
	c.head++
	if c.head*2 > len(c.entries) {
		kept := copy(c.entries, c.entries[c.head:])
		clear(c.entries[kept:])
		c.entries, c.head = c.entries[:kept], 0
	}
}

func (c *tailCache) get(index uint64) (raft.Log, bool) {
	if c.head == len(c.entries) || index < c.entries[c.head].Index {
		return raft.Log{}, false
	}
	at := c.head + int(index-c.entries[c.head].Index)
	if at >= len(c.entries) {
		return raft.Log{}, false
	}
	return c.entries[at], true
}

// truncate drops the entries from index on.
func (c *tailCache) truncate(index uint64) {
	for n := len(c.entries); n > c.head && c.entries[n-1].Index >= index; n-- {
		c.bytes -= entryBytes(&c.entries[n-1])
		c.entries[n-1] = raft.Log{}
		c.entries = c.entries[:n-1]
	}
}

// dropBefore drops the entries below index.
func (c *tailCache) dropBefore(index uint64) {
	for c.head < len(c.entries) && c.entries[c.head].Index < index {
		c.evict()
	}
}
