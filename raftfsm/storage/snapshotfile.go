package storage

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/shard"
)

// A snapshot file, integers big-endian:
//
//	head   "OSTRSNAP"   format      length of meta   meta   CRC-32C of the head so far
//	       8 bytes      4 bytes     4 bytes          JSON   4 bytes
//	block  length       CRC-32C     state            any number of them
//	       4 bytes      4 bytes     1..blockBytes
//	end    0            state bytes CRC-32C          nothing follows
//	       4 bytes      8 bytes     4 bytes
//
// The checksum of a block covers its offset in the file, its length and its state, that of the end its offset
// and its fields; both go on from the head's. So a block that was moved, left out or taken from another file is
// found like a flipped bit, at its offset, and a reader can trust each block before it has seen the end.
const (
	snapshotMagic   = "OSTRSNAP"
	snapshotFormat  = 1
	headFixedBytes  = 8 + 4 + 4
	sumBytes        = 4
	blockBytes      = 64 << 10
	blockHeadBytes  = 4 + 4
	endBytes        = 4 + 8 + 4
	snapshotMetaMax = 1 << 20
)

var (
	// ErrSnapshotDamaged means a snapshot file that isn't what was written. The error that wraps it is a
	// *SnapshotDamagedError.
	ErrSnapshotDamaged = errors.New("storage: snapshot is damaged")
	// ErrSnapshotFormat means a snapshot file in a format that this build doesn't know.
	ErrSnapshotFormat = errors.New("storage: unknown snapshot format")
)

// SnapshotDamagedError says where a snapshot file is wrong.
type SnapshotDamagedError struct {
	Path string
	// Offset is where the part of the file begins that doesn't check: head, block or end.
	Offset int64
	Reason string
}

func (e *SnapshotDamagedError) Error() string {
	return fmt.Sprintf("%s: %s at offset %d: %s", ErrSnapshotDamaged, e.Path, e.Offset, e.Reason)
}

// Unwrap makes errors.Is(err, ErrSnapshotDamaged) hold.
func (e *SnapshotDamagedError) Unwrap() error { return ErrSnapshotDamaged }

// snapshotMeta is the JSON in a snapshot's head: raft.SnapshotMeta without what the file says otherwise.
type snapshotMeta struct {
	Group   shard.ID        `json:"group"`
	Replica shard.ReplicaID `json:"replica"`
	Version int             `json:"version"`
	Index   uint64          `json:"index"`
	Term    uint64          `json:"term"`
	// Servers is the configuration at ConfigurationIndex.
	Servers            []snapshotServer `json:"servers"`
	ConfigurationIndex uint64           `json:"configuration_index"`
}

// snapshotServer is a raft.Server in words that don't depend on raft's.
type snapshotServer struct {
	Suffrage string `json:"suffrage"`
	ID       string `json:"id"`
	Address  string `json:"address"`
}

func (m *snapshotMeta) raftMeta(id string, stateBytes uint64) (raft.SnapshotMeta, error) {
	meta := raft.SnapshotMeta{Version: raft.SnapshotVersion(m.Version), ID: id, Index: m.Index, Term: m.Term,
		ConfigurationIndex: m.ConfigurationIndex, Size: int64(stateBytes)}
	for _, s := range m.Servers {
		server := raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address)}
		switch s.Suffrage {
		case raft.Voter.String():
			server.Suffrage = raft.Voter
		case raft.Nonvoter.String():
			server.Suffrage = raft.Nonvoter
		default:
			return meta, fmt.Errorf("server %s has suffrage %q", s.ID, s.Suffrage)
		}
		meta.Configuration.Servers = append(meta.Configuration.Servers, server)
	}
	return meta, nil
}

// snapshotWriter writes a snapshot's state in blocks.
type snapshotWriter struct {
	file   disk.File
	seed   uint32 // the head's checksum
	offset int64  // where the next block begins
	block  []byte // what isn't written yet, after room for a block's head
	state  uint64 // bytes of state so far
}

// newSnapshotWriter writes the head.
func newSnapshotWriter(file disk.File, meta *snapshotMeta) (*snapshotWriter, error) {
	encoded, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	if len(encoded) > snapshotMetaMax {
		return nil, fmt.Errorf("storage: snapshot meta of %d bytes, at most %d", len(encoded), snapshotMetaMax)
	}
	head := append([]byte(nil), snapshotMagic...)
	head = binary.BigEndian.AppendUint32(head, snapshotFormat)
	head = binary.BigEndian.AppendUint32(head, uint32(len(encoded)))
	head = append(head, encoded...)
	seed := crc32.Checksum(head, castagnoli)
	head = binary.BigEndian.AppendUint32(head, seed)
	if _, err := file.Write(head); err != nil {
		return nil, err
	}
	w := &snapshotWriter{file: file, seed: seed, offset: int64(len(head)), block: make([]byte, blockHeadBytes, blockHeadBytes+blockBytes)}
	return w, nil
}

func (w *snapshotWriter) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n := min(len(p)-written, cap(w.block)-len(w.block))
		w.block = append(w.block, p[written:written+n]...)
		written += n
		if len(w.block) == cap(w.block) {
			if err := w.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (w *snapshotWriter) flush() error {
	state := w.block[blockHeadBytes:]
	if len(state) == 0 {
		return nil
	}
	binary.BigEndian.PutUint32(w.block, uint32(len(state)))
	binary.BigEndian.PutUint32(w.block[4:], blockSum(w.seed, w.offset, state))
	if _, err := w.file.Write(w.block); err != nil {
		return err
	}
	w.offset += int64(len(w.block))
	w.state += uint64(len(state))
	w.block = w.block[:blockHeadBytes]
	return nil
}

// finish writes what is left and the end, and syncs the file.
func (w *snapshotWriter) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
	end := make([]byte, 0, endBytes)
	end = binary.BigEndian.AppendUint32(end, 0)
	end = binary.BigEndian.AppendUint64(end, w.state)
	end = binary.BigEndian.AppendUint32(end, endSum(w.seed, w.offset, w.state))
	if _, err := w.file.Write(end); err != nil {
		return err
	}
	if knownbad.SnapshotSync {
		return nil
	}
	return w.file.Sync()
}

func blockSum(seed uint32, offset int64, state []byte) uint32 {
	var place [12]byte
	binary.BigEndian.PutUint64(place[:], uint64(offset))
	binary.BigEndian.PutUint32(place[8:], uint32(len(state)))
	return crc32.Update(crc32.Update(seed, castagnoli, place[:]), castagnoli, state)
}

func endSum(seed uint32, offset int64, state uint64) uint32 {
	var place [20]byte
	binary.BigEndian.PutUint64(place[:], uint64(offset))
	binary.BigEndian.PutUint64(place[12:], state)
	return crc32.Update(seed, castagnoli, place[:])
}

// snapshotReader reads a snapshot's state and checks each block before it gives it out. It answers io.EOF only
// after it has checked the end; until then a consumer must not take the state for whole.
type snapshotReader struct {
	path string
	file disk.File
	size int64 // of the file
	in   *bufio.Reader
	meta snapshotMeta
	// stateBytes is what the end says; state what was read.
	stateBytes, state uint64

	seed   uint32
	offset int64  // where the next block begins
	block  []byte // the current block's state, not yet given out
	buffer []byte
	err    error // sticky
}

// openSnapshot opens a file, and checks its head and end.
func openSnapshot(fsys disk.FS, path string) (*snapshotReader, error) {
	file, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	r := &snapshotReader{path: path, file: file, in: bufio.NewReaderSize(file, blockBytes)}
	if r.size, err = file.Size(); err == nil {
		err = r.readHead()
	}
	if err == nil {
		err = r.checkEnd()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

func (r *snapshotReader) readHead() error {
	fixed := make([]byte, headFixedBytes)
	if err := r.readFull(fixed, 0); err != nil {
		return err
	}
	if string(fixed[:8]) != snapshotMagic {
		return r.damaged(0, "no snapshot")
	}
	length := binary.BigEndian.Uint32(fixed[12:])
	if length > snapshotMetaMax {
		return r.damaged(0, fmt.Sprintf("meta of %d bytes", length))
	}
	rest := make([]byte, int(length)+sumBytes)
	if err := r.readFull(rest, 0); err != nil {
		return err
	}
	head := append(fixed, rest[:length]...)
	r.seed = crc32.Checksum(head, castagnoli)
	if stored := binary.BigEndian.Uint32(rest[length:]); stored != r.seed {
		return r.damaged(0, fmt.Sprintf("checksum of the head %08x, stored %08x", r.seed, stored))
	}
	// Only now, so that a flipped bit is not taken for a format from the future.
	if format := binary.BigEndian.Uint32(fixed[8:]); format != snapshotFormat {
		return fmt.Errorf("%w: %s: format %d, this build reads %d", ErrSnapshotFormat, r.path, format, snapshotFormat)
	}
	if err := json.Unmarshal(rest[:length], &r.meta); err != nil {
		return r.damaged(headFixedBytes, err.Error())
	}
	r.offset = int64(len(head) + sumBytes)
	return nil
}

func (r *snapshotReader) checkEnd() error {
	at := r.size - endBytes
	if at < r.offset {
		return r.damaged(r.size, "cut off")
	}
	end := make([]byte, endBytes)
	if n, err := r.file.ReadAt(end, at); n < len(end) {
		return r.readError(err, at)
	}
	r.stateBytes = binary.BigEndian.Uint64(end[4:])
	got, stored := endSum(r.seed, at, r.stateBytes), binary.BigEndian.Uint32(end[12:])
	if binary.BigEndian.Uint32(end) != 0 || got != stored {
		return r.damaged(at, "cut off, or the end is damaged")
	}
	return nil
}

func (r *snapshotReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.err == nil && len(r.block) == 0 {
		r.err = r.nextBlock()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.block)
	r.block = r.block[n:]
	return n, nil
}

func (r *snapshotReader) nextBlock() error {
	if r.offset == r.size-endBytes {
		if r.state != r.stateBytes {
			return r.damaged(r.offset, fmt.Sprintf("%d bytes of state, %d expected", r.state, r.stateBytes))
		}
		return io.EOF
	}
	var head [blockHeadBytes]byte
	if err := r.readFull(head[:], r.offset); err != nil {
		return err
	}
	length := int(binary.BigEndian.Uint32(head[:]))
	if length == 0 || length > blockBytes || r.offset+int64(blockHeadBytes+length) > r.size-endBytes {
		return r.damaged(r.offset, fmt.Sprintf("block of %d bytes", length))
	}
	if r.buffer == nil {
		r.buffer = make([]byte, blockBytes)
	}
	state := r.buffer[:length]
	if err := r.readFull(state, r.offset); err != nil {
		return err
	}
	if got, stored := blockSum(r.seed, r.offset, state), binary.BigEndian.Uint32(head[4:]); got != stored {
		return r.damaged(r.offset, fmt.Sprintf("checksum of the block %08x, stored %08x", got, stored))
	}
	r.block = state
	r.state += uint64(length)
	r.offset += int64(blockHeadBytes + length)
	return nil
}

// readFull fills p; at is where the part begins that p belongs to.
func (r *snapshotReader) readFull(p []byte, at int64) error {
	if _, err := io.ReadFull(r.in, p); err != nil {
		return r.readError(err, at)
	}
	return nil
}

// readError tells a file that ends too early from a disk that can't read it.
func (r *snapshotReader) readError(err error, at int64) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return r.damaged(at, "cut off")
	}
	return fmt.Errorf("reading snapshot %s at offset %d: %w", r.path, at, err)
}

func (r *snapshotReader) damaged(offset int64, reason string) error {
	return &SnapshotDamagedError{Path: r.path, Offset: offset, Reason: reason}
}

func (r *snapshotReader) Close() error { return r.file.Close() }

// verifySnapshot reads a whole file.
func verifySnapshot(fsys disk.FS, path string) error {
	r, err := openSnapshot(fsys, path)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}
