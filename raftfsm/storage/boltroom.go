package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

// bolt lengthens its file without taking the room for that, and finds out that there is none in the middle of a commit,
// which would be the end of the process. So each file's room is taken beforehand. A record, which can't be refused, finds its
// file larger than all records need; an entry is refused while the file lacks room for it that the disk does not give.
const (
	recordsRoomBytes = 1 << 20
	entriesRoomBytes = 4 << 20
	// roomMargin is what a commit may take beside its entries, and raft's own entries, which nobody can refuse.
	roomMargin = 512 << 10
	// entryPages is how often an entry's bytes count: bolt copies the pages that it changes.
	entryPages = 4
)

// boltRoom is the room that a bolt file has on the disk.
type boltRoom struct {
	path string

	mu    sync.Mutex
	taken int64
}

// has takes room for so many bytes more than bolt uses. Errors: wal.ErrNoSpace.
func (r *boltRoom) has(more int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	used, err := boltUsed(r.path)
	if err != nil {
		return err
	}
	if used+more <= r.taken {
		return nil
	}
	file, err := disk.OS{}.OpenWrite(r.path)
	if err != nil {
		return err
	}
	defer file.Close()
	taken := max(2*used, used+more)
	err = file.Preallocate(taken)
	switch {
	case disk.IsNoSpace(err), errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("%w: %w", wal.ErrNoSpace, err)
	case err != nil:
		return err
	}
	r.taken = taken
	return nil
}

// boltUsed returns how much of its file bolt has ever used: up to there lie its pages. Its two first pages say so:
//
//	id flags count overflow │ magic version pageSize flags   root  freelist  pages ...
//	8  2     2     4        │ 4     4       4        4       16    8         8         bytes, in the machine's order
func boltUsed(path string) (int64, error) {
	file, err := disk.OS{}.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	const header, magic, pages = 16, 0xED0CDAED, 16 + 40
	var used, pageSize int64
	for page := range int64(2) {
		b := make([]byte, pages+8)
		if _, err := file.ReadAt(b, page*pageSize); err != nil {
			return 0, err
		}
		if binary.NativeEndian.Uint32(b[header:]) != magic {
			return 0, fmt.Errorf("%w: %s: page %d is none that bolt begins with", ErrLogDamaged, path, page)
		}
		pageSize = int64(binary.NativeEndian.Uint32(b[header+8:]))
		used = max(used, int64(binary.NativeEndian.Uint64(b[pages:]))*pageSize)
	}
	return used, nil
}
