//go:build race || invariants

package arena

// poison overwrites a freed cell, so that whoever still reads it is found out: by what it reads, or by the race detector.
func poison(cell []byte) {
	for i := range cell {
		cell[i] = 0xdb
	}
}
