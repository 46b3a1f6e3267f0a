package store

import (
	"errors"
	"math"
	"runtime"
	"slices"
	"sort"
	"sync/atomic"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// ChangeKind says what a change did to its key. The numbers stand in nothing that lasts.
type ChangeKind uint8

const (
	ChangeSet    ChangeKind = 1 // the key has Value and ExpiresAt from now on
	ChangeDelete ChangeKind = 2
	ChangeExpire ChangeKind = 3 // Reap removed it
)

// Position is a place in the order of a store's changes: behind the change that has it. One mutation may change several keys at one
// version, as Reap does: Index counts those from 0, and the last one's is LastIndex, so that a version that is complete has one
// position. Replicas that applied the same log give a change the same position: one replica's positions are good at all others.
type Position struct {
	Version Version
	Index   uint32
}

// LastIndex is the Index of a version's last change.
const LastIndex = math.MaxUint32

// After reports whether p lies behind q.
func (p Position) After(q Position) bool {
	return p.Version > q.Version || p.Version == q.Version && p.Index > q.Index
}

// behindVersion is the position behind all changes of a version. Behind version 0, which has none, it is the zero one.
func behindVersion(v Version) Position {
	if v == 0 {
		return Position{}
	}
	return Position{v, LastIndex}
}

// Change is one change of one key.
type Change struct {
	Kind     ChangeKind
	Position Position
	Time     Time // the store's, when it was made
	Key      []byte
	Value    []byte // ChangeSet
	// ExpiresAt is ChangeSet's; 0: the key does not expire.
	ExpiresAt Time

	// The key's state before. One that had expired and was not reaped did not exist.
	Existed         bool
	PreviousVersion Version
	Previous        []byte
}

// ErrCompacted: the history does not reach back that far.
var ErrCompacted = errors.New("store: the changes asked for are not held any more")

// History is the latest changes of a store, a bounded number of bytes of them, for those who follow the store.
//
//	         dropped │ oldest                                           published │ staged
//	─────────────────┼──────────┬──────────┬──────────┬──────────┬──────────┬─────┼────►
//	 offset          │ chunk    │ chunk    │ chunk    │ chunk    │ chunk    │ chunk      │
//	─────────────────┴──────────┴──────────┴──────────┴──────────┴──────────┴────────────┘
//	base: the position up to which everything was dropped
//
// A change is staged by the store's writer before the store changes, and published once all of a log entry is applied. It has an
// offset, which only grows and means nothing outside of this History. Chunks lie outside of the Go heap and are used again.
//
// Readers and writer never wait for each other. A chunk's published bytes stay as they are until the chunk is taken for something
// else, which a reader that has pinned it prevents; the writer then takes another.
//
// A change is never left out because it is large: memory is bounded by the limit or by the largest change, whichever is more,
// and a chunk. Stage, Publish and Reset belong to the writer; everything else may be called from any goroutine.
type History struct {
	bytesMax   int
	chunkBytes int
	// changed holds a token while there are changes that nobody was told of.
	changed chan struct{}

	// The writer's own.
	last    Position // of the latest change staged
	staged  uint64   // the offset behind it
	into    *historyChunk
	used    int // bytes of into
	held    int // bytes of all chunks in shown
	spare   []*historyChunk
	mapping *historyMemory

	shown atomic.Pointer[historyChunks]
	end   atomic.Pointer[historyEnd]
}

// historyEnd is how far the history is published.
type historyEnd struct {
	offset   uint64
	position Position
}

// historyChunks are the chunks that hold something, in order. Immutable.
type historyChunks struct {
	base Position
	// from is the offset of the oldest change; where there are no chunks, that of the next.
	from   uint64
	chunks []placedChunk
}

// placedChunk is a chunk in one of its uses.
type placedChunk struct {
	*historyChunk
	use   uint32
	start uint64 // offset of its first byte
	// before is the position of the change before its first one.
	before Position
}

// historyChunk is memory for changes.
type historyChunk struct {
	bytes []byte
	// use counts what the chunk was taken for. A reader that has pinned it and then finds the use that it looks for may read: the
	// writer counts before it looks at the pins.
	use  atomic.Uint32
	pins atomic.Int32
	// single: it was made for one large change, on the Go heap, and is not used again.
	single bool
}

func (c *placedChunk) pin() bool {
	c.pins.Add(1)
	if c.historyChunk.use.Load() == c.use {
		return true
	}
	c.unpin()
	return false
}

func (c *placedChunk) unpin() { c.pins.Add(-1) }

// historyMemory outlives its History, whose end releases it.
type historyMemory struct{ mapped [][]byte }

func (m *historyMemory) release() {
	for _, b := range m.mapped {
		arena.Unmap(b)
	}
}

const (
	historyChunkBytesMax = 256 << 10
	historyChunkBytesMin = 512
	// historyChunksMin is how many chunks a history consists of when it is full: each time, one of them is dropped.
	historyChunksMin = 32
)

// NewHistory returns an empty history that holds up to bytesMax bytes, at least 16 KiB, behind position 0.
func NewHistory(bytesMax int) *History {
	bytesMax = max(bytesMax, historyChunksMin*historyChunkBytesMin)
	h := &History{bytesMax: bytesMax, chunkBytes: min(bytesMax/historyChunksMin, historyChunkBytesMax),
		changed: make(chan struct{}, 1), mapping: new(historyMemory)}
	runtime.AddCleanup(h, (*historyMemory).release, h.mapping)
	h.Reset(Position{})
	return h
}

// Reset drops everything: the history goes on behind at.
func (h *History) Reset(at Position) {
	if shown := h.shown.Load(); shown != nil {
		for _, c := range shown.chunks {
			h.retire(c)
		}
	}
	h.into, h.used, h.held, h.last = nil, 0, 0, at
	h.staged++ // so that who stands at the old end can tell
	h.shown.Store(&historyChunks{base: at, from: h.staged})
	h.end.Store(&historyEnd{h.staged, at})
	h.tell()
}

// stage adds a change, the value of which is followed by tail.
func (h *History) stage(c *Change, tail []byte) {
	size := c.encodedBytes(len(tail))
	if h.into == nil || len(h.into.bytes)-h.used < size {
		h.next(size)
	}
	c.encode(h.into.bytes[h.used:h.used:h.used+size], size, tail)
	h.used += size
	h.staged += uint64(size)
	h.last = c.Position
}

// next begins another chunk with room for size bytes, and drops the oldest ones where that is too much.
func (h *History) next(size int) {
	old := h.shown.Load()
	bytes := max(size, h.chunkBytes)
	drop := 0
	for ; drop < len(old.chunks) && h.held+bytes > h.bytesMax; drop++ {
		h.held -= len(old.chunks[drop].bytes)
		h.retire(old.chunks[drop])
	}
	fresh := &historyChunks{base: old.base, from: old.from, chunks: slices.Clone(old.chunks[drop:])}
	h.into, h.used = h.take(bytes), 0
	fresh.chunks = append(fresh.chunks, placedChunk{h.into, h.into.use.Load(), h.staged, h.last})
	if drop > 0 {
		fresh.from, fresh.base = fresh.chunks[0].start, fresh.chunks[0].before
	}
	h.held += bytes
	h.shown.Store(fresh)
}

// retire takes a chunk out of use.
func (h *History) retire(c placedChunk) {
	c.historyChunk.use.Add(1)
	if !c.single {
		h.spare = append(h.spare, c.historyChunk)
	}
}

// take returns a chunk that nobody reads.
func (h *History) take(bytes int) *historyChunk {
	if bytes > h.chunkBytes {
		return &historyChunk{bytes: make([]byte, bytes), single: true}
	}
	for i, c := range h.spare {
		if c.pins.Load() == 0 {
			h.spare = slices.Delete(h.spare, i, i+1)
			return c
		}
	}
	mapped := arena.Map(bytes)
	h.mapping.mapped = append(h.mapping.mapped, mapped)
	return &historyChunk{bytes: mapped}
}

// Publish shows what was staged.
func (h *History) Publish() {
	if h.end.Load().offset == h.staged {
		return
	}
	h.end.Store(&historyEnd{h.staged, h.last})
	h.tell()
}

func (h *History) tell() {
	select {
	case h.changed <- struct{}{}:
	default: // whoever takes the token that is there sees this too
	}
}

// Changed has a token whenever something was published, or the history was reset, since the last one was taken. There can be one
// taker only.
func (h *History) Changed() <-chan struct{} { return h.changed }

// End returns the offset behind the last published change, and that change's position; where there was none, that behind which
// the history begins.
func (h *History) End() (uint64, Position) {
	end := h.end.Load()
	return end.offset, end.position
}

// Base returns the position behind which the history begins: everything up to it was dropped, or was before its time.
func (h *History) Base() Position { return h.shown.Load().base }

// Bytes returns the memory that the history takes.
func (h *History) Bytes() int {
	sum := 0
	for _, c := range h.shown.Load().chunks {
		sum += len(c.bytes)
	}
	return sum
}

// Seek returns the offset of the first change behind a position; if there is none yet, that of the next. Errors: ErrCompacted.
func (h *History) Seek(behind Position) (uint64, error) {
	end := h.end.Load() // before the chunks, which may hold more
	shown := h.shown.Load()
	switch {
	case shown.base.After(behind):
		return 0, ErrCompacted
	case !end.position.After(behind) || len(shown.chunks) == 0:
		return max(end.offset, shown.from), nil
	}
	// The last chunk that begins with a change up to the position, or with the one right behind it.
	i := sort.Search(len(shown.chunks), func(i int) bool { return shown.chunks[i].before.After(behind) }) - 1
	return h.Read(shown.chunks[max(i, 0)].start, math.MaxInt, func(_ uint64, c *Change) bool { return !c.Position.After(behind) })
}

// Read calls fn for the published changes from an offset on, up to the end of a chunk, as long as fn returns true and they come to
// less than bytesMax, and returns the offset of the first one that fn was not called for or did not want. The change and its
// slices are valid during the call only. Errors: ErrCompacted, before fn was called at all.
func (h *History) Read(from uint64, bytesMax int, fn func(offset uint64, c *Change) bool) (next uint64, err error) {
	end := h.end.Load().offset
	shown := h.shown.Load()
	switch {
	case from < shown.from:
		return 0, ErrCompacted
	case from >= end:
		return from, nil
	}
	i := sort.Search(len(shown.chunks), func(i int) bool { return shown.chunks[i].start > from }) - 1
	if i < 0 {
		return from, nil
	}
	c := &shown.chunks[i]
	until := end
	if i+1 < len(shown.chunks) {
		until = min(until, shown.chunks[i+1].start)
	}
	if !c.pin() {
		return 0, ErrCompacted
	}
	defer runtime.KeepAlive(h)
	defer c.unpin()
	var change Change
	for from < until && bytesMax > 0 {
		size := change.decode(c.bytes[from-c.start:])
		if !fn(from, &change) {
			break
		}
		from += uint64(size)
		bytesMax -= size
	}
	return from, nil
}
