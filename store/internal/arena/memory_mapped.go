//go:build (linux || darwin) && !race

package arena

import (
	"fmt"
	"syscall"
)

// mapChunk returns memory that is not the Go heap's. Without it the process can't go on any more than without heap, so it panics.
func mapChunk(bytes int) []byte {
	chunk, err := syscall.Mmap(-1, 0, bytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		panic(fmt.Sprintf("arena: out of memory: mapping %d bytes: %v", bytes, err))
	}
	return chunk
}

func unmapChunk(chunk []byte) {
	if err := syscall.Munmap(chunk); err != nil {
		panic(fmt.Sprintf("arena: unmapping %d bytes: %v", len(chunk), err))
	}
}
