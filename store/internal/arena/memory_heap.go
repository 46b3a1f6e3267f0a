//go:build !(linux || darwin) || race

package arena

// Elsewhere chunks lie on the Go heap, without pointers for the collector to follow. So they do under the race detector, which
// sees no accesses to other memory.

func mapChunk(bytes int) []byte { return make([]byte, bytes) }

func unmapChunk([]byte) {}
