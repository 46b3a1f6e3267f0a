package arena

import "fmt"

// Classes are the cell sizes of an arena: immutable, and shared by all arenas of a kind.
type Classes struct {
	sizes []int    // bytes, ascending, multiples of granule
	of    []uint16 // by (bytes+granule-1)/granule: the smallest class that fits
}

const granule = 4

// NewClasses returns the classes of the given sizes: ascending multiples of 4, from CellBytesMin to CellBytesMax.
func NewClasses(sizes ...int) *Classes {
	c := &Classes{sizes: sizes}
	last := 0
	for i, size := range sizes {
		if size%granule != 0 || size <= last || size < CellBytesMin || size > CellBytesMax {
			panic(fmt.Sprintf("arena: class of %d bytes after one of %d", size, last))
		}
		for len(c.of) <= size/granule {
			c.of = append(c.of, uint16(i))
		}
		last = size
	}
	return c
}

// SteppedClasses returns classes up to at least max bytes: 4 bytes apart up to 512, then at most 1/64 apart, where pages divide
// into whole cells. So at most 3 bytes of a small cell, and 1/64 of most others, are padding. The largest ones, of which a page
// holds few, are as far apart as one cell more or less on a page makes them.
func SteppedClasses(max int) *Classes {
	var sizes []int
	for size := CellBytesMin; ; {
		sizes = append(sizes, size)
		if size >= max {
			return NewClasses(sizes...)
		}
		least := size + granule
		if size >= 512 {
			least = size + size/64
		}
		size = least / granule * granule
		if size > 512 { // as large as one page's number of such cells allows
			page := pageBytes(size)
			size = page / (page / size) / granule * granule
		}
	}
}

// Max returns the largest size that a cell can have.
func (c *Classes) Max() int { return c.sizes[len(c.sizes)-1] }

// Fit returns the size of the cell that holds bytes, which is at most Max.
func (c *Classes) Fit(bytes int) int { return c.sizes[c.class(bytes)] }

func (c *Classes) class(bytes int) uint16 { return c.of[(bytes+granule-1)/granule] }

// class is the state of one size class in one arena.
type class struct {
	pages   []uint32 // all of the class
	open    []uint32 // those with a free cell, but for the one being vacated
	used    int      // cells
	cells   int      // in all pages: used + free
	vacate  uint32   // the page being vacated, 0: none
	queued  bool     // stands in Arena.fragmented
	stuck   bool     // a move was skipped: no more vacating until Unstick
	perPage int      // cells of a page
}

// slack is how many free cells a class may have before one of its pages is vacated. A page's worth must be among them, since that
// is where its cells go.
func (c *class) slack() int {
	return c.perPage + c.cells/128
}

func (c *class) fragmented() bool {
	return c.vacate != 0 || (!c.stuck && c.cells-c.used > c.slack() && len(c.pages) > 1)
}
