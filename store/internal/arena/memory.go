package arena

// Chunks double from one small page on, up to chunkBytesMax.
const chunkBytesMax = 4 << 20

// hugeBytes is the size of the large pages that some systems map at a time.
const hugeBytes = 2 << 20

// Map returns memory that is not the Go heap's, zero, until Unmap is called with what it returned.
func Map(bytes int) []byte { return mapChunk(bytes) }

// Unmap gives memory from Map back. Nobody may use it any more.
func Unmap(mapped []byte) { unmapChunk(mapped) }

// memory cuts pages from chunks. It is an object of its own so that it outlives its Arena, whose end releases it.
//
// Random reads of hundreds of megabytes miss the processor's table of page addresses each time, and in a virtual machine that costs
// as much as the read itself. So from hugeFrom on the system is asked for huge pages. It then gives 2 MiB at the first touch, which must
// be little beside what there is.
type memory struct {
	mapped [][]byte // what unmapping wants
	chunks [][]byte // in them, in order
	left   []byte   // of the last chunk
	next   int      // bytes of the last chunk
	total  int      // bytes of all chunks

	hugeFrom int
}

// take returns bytes of memory, a whole number of the system's pages, zero.
func (m *memory) take(bytes int) []byte {
	if len(m.left) < bytes {
		// What is left of a chunk is at most three small pages, and was never touched.
		m.next = min(max(m.next*2, bytes), chunkBytesMax)
		m.total += m.next
		var mapped []byte
		if m.next == chunkBytesMax && m.total > m.hugeFrom {
			mapped, m.left = mapHuge(m.next)
		} else {
			mapped = mapChunk(m.next)
			m.left = mapped
		}
		m.mapped, m.chunks = append(m.mapped, mapped), append(m.chunks, m.left)
	}
	taken := m.left[:bytes:bytes]
	m.left = m.left[bytes:]
	return taken
}

func (m *memory) release() {
	for _, chunk := range m.mapped {
		unmapChunk(chunk)
	}
	m.mapped, m.chunks, m.left = nil, nil, nil
}
