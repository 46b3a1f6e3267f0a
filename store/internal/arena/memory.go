package arena

// Chunks double from one small page on, up to chunkBytesMax.
const chunkBytesMax = 4 << 20

// memory cuts pages from chunks. It is an object of its own so that it outlives its Arena, whose end releases it.
type memory struct {
	chunks [][]byte
	left   []byte // of the last chunk
	next   int    // bytes of the next chunk
}

// take returns bytes of memory, a whole number of the system's pages, zero.
func (m *memory) take(bytes int) []byte {
	if len(m.left) < bytes {
		// What is left of a chunk is at most three small pages, and was never touched.
		m.next = min(max(m.next*2, bytes), chunkBytesMax)
		m.left = mapChunk(m.next)
		m.chunks = append(m.chunks, m.left)
	}
	taken := m.left[:bytes:bytes]
	m.left = m.left[bytes:]
	return taken
}

func (m *memory) release() {
	for _, chunk := range m.chunks {
		unmapChunk(chunk)
	}
	m.chunks, m.left = nil, nil
}
