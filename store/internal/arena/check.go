package arena

import (
	"fmt"
	"math/bits"
)

// Check returns an error where the arena contradicts itself. It looks at every page, and is for tests.
func (a *Arena) Check() error {
	var used, cells, resident int64
	for i, c := range a.classes {
		if c == nil {
			continue
		}
		size := a.sizes.sizes[i]
		classUsed := 0
		for at, number := range c.pages {
			s := &a.state[number-a.base]
			if !s.inUse || int(s.class) != i || int(s.at) != at || int(a.directory[number-a.base].cellBytes) != size {
				return fmt.Errorf("arena: page %d is not page %d of class %d", number, at, i)
			}
			inUse := 0
			for word, bitmap := range s.bitmap {
				if word < int(s.hint) && bitmap != ^uint64(0) {
					return fmt.Errorf("arena: page %d has a free cell before its hint", number)
				}
				inUse += bits.OnesCount64(bitmap)
			}
			inUse -= len(s.bitmap)*64 - c.perPage
			if inUse != int(s.used) || inUse == 0 {
				return fmt.Errorf("arena: page %d: %d cells in use, counted %d", number, inUse, s.used)
			}
			if open := inUse < c.perPage && c.vacate != number; open != (s.openAt >= 0) || (open && c.open[s.openAt] != number) {
				return fmt.Errorf("arena: page %d, %d of %d cells in use, stands at %d of the open ones", number, inUse, c.perPage, s.openAt)
			}
			classUsed += inUse
			resident += int64(len(a.directory[number-a.base].bytes))
		}
		if classUsed != c.used || c.cells != len(c.pages)*c.perPage {
			return fmt.Errorf("arena: class %d: %d of %d cells in use, counted %d of %d", i, classUsed, len(c.pages)*c.perPage, c.used, c.cells)
		}
		if c.fragmented() && !c.queued {
			return fmt.Errorf("arena: class %d has holes and nobody knows", i)
		}
		used += int64(classUsed * size)
		cells += int64(c.cells * size)
	}
	pages := 0
	for i := range a.empty {
		for _, number := range a.empty[i].resident {
			resident += int64(len(a.directory[number-a.base].bytes))
		}
		pages += len(a.empty[i].resident) + len(a.empty[i].returned)
	}
	for _, c := range a.classes {
		if c != nil {
			pages += len(c.pages)
		}
	}
	if pages != len(a.directory) {
		return fmt.Errorf("arena: %d pages, %d are known", len(a.directory), pages)
	}
	if want := (Usage{Used: used, Cells: cells, Resident: resident}); a.Usage() != want {
		return fmt.Errorf("arena: usage %+v, want %+v", a.Usage(), want)
	}
	return nil
}
