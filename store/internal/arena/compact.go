package arena

import "math/bits"

// NextMove returns a cell that should move for compaction, if there is one. The caller moves or skips it before it asks again; it
// may free it for another reason, too.
func (a *Arena) NextMove() (Ref, bool) {
	for len(a.fragmented) > 0 {
		class := a.fragmented[len(a.fragmented)-1]
		c := a.classes[class]
		if !c.fragmented() {
			a.fragmented = a.fragmented[:len(a.fragmented)-1]
			c.queued = false
			continue
		}
		if c.vacate == 0 {
			a.beginVacating(c)
		}
		if c.cells-c.used < c.perPage { // the holes were filled meanwhile: moving on would take a page to empty one
			a.endVacating(c)
			continue
		}
		if cell, ok := a.state[c.vacate-a.base].nextUsed(c.perPage); ok {
			return Ref(c.vacate<<cellBits | cell), true
		}
		panic("arena: a page without cells in use was kept")
	}
	return 0, false
}

// beginVacating chooses the page with the fewest cells in use.
func (a *Arena) beginVacating(c *class) {
	emptiest := c.pages[0]
	for _, number := range c.pages {
		if a.state[number-a.base].used < a.state[emptiest-a.base].used {
			emptiest = number
		}
	}
	s := &a.state[emptiest-a.base]
	if s.openAt >= 0 {
		a.closePage(c, s)
	}
	s.scanned = 0
	c.vacate = emptiest
}

// nextUsed returns the first cell in use of a page being vacated.
func (s *pageState) nextUsed(perPage int) (uint32, bool) {
	for word := s.scanned / 64; int(word) < len(s.bitmap); word++ {
		if used := s.bitmap[word]; used != 0 {
			cell := word*64 + uint32(bits.TrailingZeros64(used))
			if int(cell) >= perPage {
				return 0, false
			}
			s.scanned = cell
			return cell, true
		}
	}
	return 0, false
}

// SkipMove says that the cell NextMove named can't move now. Its class is left as it is until Unstick.
func (a *Arena) SkipMove(ref Ref) {
	number := uint32(ref) >> cellBits
	s := &a.state[number-a.base]
	c := a.classes[s.class]
	if c.vacate == number {
		c.stuck = true
		a.endVacating(c)
	}
}

// endVacating gives a page that was not emptied back to its class.
func (a *Arena) endVacating(c *class) {
	number := c.vacate
	c.vacate = 0
	if int(a.state[number-a.base].used) < c.perPage {
		a.openPage(c, number)
	}
}

// Unstick lets classes in which moves were skipped be compacted again.
func (a *Arena) Unstick() {
	for i, c := range a.classes {
		if c == nil {
			continue
		}
		c.stuck = false
		if !c.queued && c.fragmented() {
			c.queued = true
			a.fragmented = append(a.fragmented, uint16(i))
		}
	}
}
