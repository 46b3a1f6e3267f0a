package arena

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
)

// Ref addresses a cell; 0 is none.
type Ref uint32

const (
	cellBits      = 12
	cellMask      = 1<<cellBits - 1
	pagesHardMax  = 1<<(32-cellBits) - 1 // page 0 is no page
	smallCellMax  = 2 << 10              // cells above lie on large pages
	smallPage     = 64 << 10
	largePage     = 256 << 10
	residentSpare = 2 // pages that are kept in memory although they are empty, beside 1/256 of all
)

// Bounds of a cell in bytes. The lower one keeps a page's cells within 12 bits.
const (
	CellBytesMin = smallPage >> cellBits
	CellBytesMax = largePage / 4
)

const defaultHugeFrom = 32 << 20

// ErrFull is an arena out of references: 2^20 pages, which is at least 64 GiB.
var ErrFull = errors.New("arena: full")

func pageBytes(cellBytes int) int {
	if cellBytes > smallCellMax {
		return largePage
	}
	return smallPage
}

// Config is how an arena uses memory. The zero value is for everybody but tests and who knows its share.
type Config struct {
	HugeFrom  int    // bytes of memory from which huge pages are asked for, of which up to 2 MiB are in vain; 0 means 32 MiB
	FirstPage uint32 // page numbers begin here, to reach the end of references with little memory; 0 means 1
	PagesMax  uint32 // page numbers end here, inclusively; 0 means all there are
}

// Arena is the memory of one kind of cells. See the package comment.
type Arena struct {
	directory  []page      // by page number less base: what Bytes needs, and no more
	state      []pageState // by page number less base: what Alloc and Free need
	base       uint32      // number of the directory's first page
	pagesMax   uint32
	sizes      *Classes
	classes    []*class // nil: nothing of that size was there yet
	fragmented []uint16 // classes that may have a page to vacate
	empty      [2]emptyPages
	memory     *memory
	resident   int64 // bytes of pages in use and of empty ones not given back
	usedBytes  int64 // bytes of cells in use
	cellsBytes int64 // bytes of all cells of pages in use
}

// page is one directory entry.
type page struct {
	bytes     []byte
	cellBytes uint32
	chunk     uint32 // number of the chunk it was cut from
}

// pageState is the bookkeeping of a page.
type pageState struct {
	bitmap  []uint64 // of cells in use; bits past the last cell are set
	used    uint32   // cells
	hint    uint32   // no free cell lies in a word before this one
	class   uint16
	at      uint32 // place in class.pages
	openAt  int32  // place in class.open, -1: not there
	inUse   bool   // belongs to a class
	scanned uint32 // while it is vacated: cells before this one are done
}

// emptyPages are pages of one size without a class.
type emptyPages struct {
	resident []uint32
	returned []uint32 // their memory was given back to the system
}

// New returns an empty arena, which takes no memory yet. Its memory goes back when it is collected; whoever reads cells keeps it
// reachable meanwhile.
func New(sizes *Classes, config Config) *Arena {
	a := &Arena{
		sizes:    sizes,
		classes:  make([]*class, len(sizes.sizes)),
		base:     max(config.FirstPage, 1),
		pagesMax: pagesHardMax,
		memory:   &memory{hugeFrom: cmp.Or(config.HugeFrom, defaultHugeFrom)},
	}
	if config.PagesMax != 0 {
		a.pagesMax = min(a.pagesMax, config.PagesMax)
	}
	runtime.AddCleanup(a, func(m *memory) { m.release() }, a.memory)
	return a
}

// Sizes returns the arena's classes.
func (a *Arena) Sizes() *Classes { return a.sizes }

// Bytes returns a cell that is in use, with all of its capacity. It is valid until the cell is freed.
func (a *Arena) Bytes(ref Ref) []byte {
	p := &a.directory[uint32(ref)>>cellBits-a.base]
	at := uint32(ref) & cellMask * p.cellBytes
	return p.bytes[at : at+p.cellBytes : at+p.cellBytes]
}

// Reader reads cells beside whoever changes the arena. See the package comment.
type Reader struct {
	directory []page
	base      uint32
}

// Reader returns one for the cells in use by now.
func (a *Arena) Reader() Reader { return Reader{a.directory, a.base} }

// Bytes is Arena.Bytes.
func (r Reader) Bytes(ref Ref) []byte {
	p := &r.directory[uint32(ref)>>cellBits-r.base]
	at := uint32(ref) & cellMask * p.cellBytes
	return p.bytes[at : at+p.cellBytes : at+p.cellBytes]
}

// Alloc returns a cell for bytes, at most Sizes().Max(). What it contains is left over. The only error is ErrFull.
func (a *Arena) Alloc(bytes int) (Ref, error) {
	at := a.sizes.class(bytes)
	c := a.classes[at]
	if c == nil {
		size := a.sizes.sizes[at]
		c = &class{perPage: pageBytes(size) / size}
		a.classes[at] = c
	}
	if len(c.open) == 0 {
		if err := a.addPage(at); err != nil {
			return 0, err
		}
	}
	number := c.open[len(c.open)-1]
	s := &a.state[number-a.base]
	for s.bitmap[s.hint] == ^uint64(0) {
		s.hint++
	}
	bit := uint32(bits.TrailingZeros64(^s.bitmap[s.hint]))
	s.bitmap[s.hint] |= 1 << bit
	s.used++
	c.used++
	a.usedBytes += int64(a.sizes.sizes[at])
	if int(s.used) == c.perPage {
		a.closePage(c, s)
	}
	return Ref(number<<cellBits | (s.hint*64 + bit)), nil
}

// Free gives a cell back. Freeing one that is not in use panics.
func (a *Arena) Free(ref Ref) {
	number, cell := uint32(ref)>>cellBits, uint32(ref)&cellMask
	s := &a.state[number-a.base]
	word, mask := cell/64, uint64(1)<<(cell%64)
	c := a.classes[s.class]
	if !s.inUse || int(cell) >= c.perPage || s.bitmap[word]&mask == 0 {
		panic(fmt.Sprintf("arena: cell %#x freed and not in use", uint32(ref)))
	}
	poison(a.Bytes(ref))
	s.bitmap[word] &^= mask
	s.used--
	s.hint = min(s.hint, word)
	c.used--
	a.usedBytes -= int64(a.sizes.sizes[s.class])
	switch {
	case s.used == 0:
		a.dropPage(number)
	case s.openAt < 0 && c.vacate != number:
		a.openPage(c, number)
	}
	if !c.queued && c.fragmented() {
		c.queued = true
		a.fragmented = append(a.fragmented, s.class)
	}
}

// InUse reports whether ref is a cell in use.
func (a *Arena) InUse(ref Ref) bool {
	at := uint32(ref)>>cellBits - a.base
	if at >= uint32(len(a.state)) || !a.state[at].inUse {
		return false
	}
	s, cell := &a.state[at], uint32(ref)&cellMask
	return int(cell) < a.classes[s.class].perPage && s.bitmap[cell/64]&(1<<(cell%64)) != 0
}

// addPage gives a class one more page, which is then open.
func (a *Arena) addPage(class uint16) error {
	cellBytes := a.sizes.sizes[class]
	c := a.classes[class]
	number, err := a.takePage(pageBytes(cellBytes))
	if err != nil {
		return err
	}
	words := (c.perPage + 63) / 64
	s := &a.state[number-a.base]
	bitmap := s.bitmap[:0]
	if cap(bitmap) < words {
		bitmap = make([]uint64, 0, words)
	}
	bitmap = bitmap[:words]
	clear(bitmap)
	if tail := c.perPage % 64; tail != 0 {
		bitmap[words-1] = ^uint64(0) << tail
	}
	*s = pageState{bitmap: bitmap, class: class, at: uint32(len(c.pages)), openAt: -1, inUse: true}
	a.directory[number-a.base].cellBytes = uint32(cellBytes)
	c.pages = append(c.pages, number)
	c.cells += c.perPage
	a.cellsBytes += int64(c.perPage * cellBytes)
	a.openPage(c, number)
	return nil
}

// takePage returns an empty page of the given size.
func (a *Arena) takePage(bytes int) (uint32, error) {
	e := &a.empty[sizeOfPage(bytes)]
	if n := len(e.resident); n > 0 {
		number := e.resident[n-1]
		e.resident = e.resident[:n-1]
		return number, nil
	}
	if n := len(e.returned); n > 0 {
		number := e.returned[n-1]
		e.returned = e.returned[:n-1]
		a.resident += int64(bytes)
		return number, nil
	}
	number := a.base + uint32(len(a.directory))
	if number > a.pagesMax {
		return 0, ErrFull
	}
	memory := a.memory.take(bytes)
	a.directory = append(a.directory, page{bytes: memory, chunk: uint32(len(a.memory.chunks) - 1)})
	a.state = append(a.state, pageState{})
	a.resident += int64(bytes)
	return number, nil
}

func sizeOfPage(bytes int) int {
	if bytes == largePage {
		return 1
	}
	return 0
}

// dropPage takes an empty page from its class.
func (a *Arena) dropPage(number uint32) {
	s := &a.state[number-a.base]
	c := a.classes[s.class]
	if s.openAt >= 0 {
		a.closePage(c, s)
	}
	if c.vacate == number {
		c.vacate = 0
	}
	last := c.pages[len(c.pages)-1]
	c.pages[s.at] = last
	a.state[last-a.base].at = s.at
	c.pages = c.pages[:len(c.pages)-1]
	c.cells -= c.perPage
	a.cellsBytes -= int64(c.perPage * a.sizes.sizes[s.class])
	s.inUse = false
	p := &a.directory[number-a.base]
	e := &a.empty[sizeOfPage(len(p.bytes))]
	if len(e.resident) < residentSpare+len(a.directory)/256 {
		e.resident = append(e.resident, number)
		return
	}
	giveBack(p.bytes, a.memory.chunks[p.chunk])
	a.resident -= int64(len(p.bytes))
	e.returned = append(e.returned, number)
}

func (a *Arena) openPage(c *class, number uint32) {
	a.state[number-a.base].openAt = int32(len(c.open))
	c.open = append(c.open, number)
}

func (a *Arena) closePage(c *class, s *pageState) {
	last := c.open[len(c.open)-1]
	c.open[s.openAt] = last
	a.state[last-a.base].openAt = s.openAt
	c.open = c.open[:len(c.open)-1]
	s.openAt = -1
}

// Usage are an arena's figures in bytes.
type Usage struct {
	Used     int64 // of cells in use, whole cells
	Cells    int64 // of pages in use
	Resident int64 // of pages in use and of the spare; what lies behind the last touched cell of a page is in no memory yet
}

// Usage returns the figures as they are now.
func (a *Arena) Usage() Usage {
	return Usage{Used: a.usedBytes, Cells: a.cellsBytes, Resident: a.resident}
}
