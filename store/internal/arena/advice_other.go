//go:build !linux || race

package arena

// mapHuge is mapChunk where a program can't ask for huge pages.
func mapHuge(bytes int) (mapped, chunk []byte) {
	mapped = mapChunk(bytes)
	return mapped, mapped
}

// giveBack does nothing where the system has no call that takes effect at once: the page stays, for the next class in need.
func giveBack(_, _ []byte) {}
