//go:build !race

package arena

import (
	"syscall"
	"unsafe"
)

// mapHuge returns a mapping and a chunk of bytes in it, where huge pages may lie. All advice here is a wish: on an error nothing is lost.
func mapHuge(bytes int) (mapped, chunk []byte) {
	mapped = mapChunk(bytes + hugeBytes) // addresses alone: what is not touched takes no memory
	chunk = mapped[untilHuge(mapped):][:bytes:bytes]
	_ = syscall.Madvise(chunk, syscall.MADV_HUGEPAGE)
	return mapped, chunk
}

// untilHuge returns how many bytes lie before the first place in b where a huge page may begin.
func untilHuge(b []byte) int {
	return int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % hugeBytes)
}

// giveBack returns a page's memory to the system; its content is zero afterwards. chunk is what the page was cut from. The huge
// page around it is given up for good: the system would otherwise put one there again, with all of its memory, in a quiet hour.
func giveBack(page, chunk []byte) {
	if len(chunk) == chunkBytesMax {
		at := int(uintptr(unsafe.Pointer(unsafe.SliceData(page))) - uintptr(unsafe.Pointer(unsafe.SliceData(chunk))))
		huge := at / hugeBytes * hugeBytes
		_ = syscall.Madvise(chunk[huge:huge+hugeBytes], syscall.MADV_NOHUGEPAGE)
	}
	_ = syscall.Madvise(page, syscall.MADV_DONTNEED)
}
