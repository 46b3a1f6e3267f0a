package disk

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Mem is a filesystem in memory that remembers what of it is durable. It is stricter than most real ones: nothing
// reaches the disk by itself, and syncing a file says nothing about its name. Relative and absolute paths
// are both taken from its root. As on Unix, an open file outlives its removal.
type Mem struct {
	mu   sync.Mutex
	root *memNode
}

// memNode is a file or a directory, each in two states: as seen by running processes, and as a power cut
// would leave it.
type memNode struct {
	dir bool

	data        []byte
	durableData []byte
	// unsynced are the ranges of data written since the last sync, so that one costs what was written, not the file.
	unsynced []byteRange
	// emptied: the file was made empty since.
	emptied bool

	entries        map[string]*memNode
	durableEntries map[string]*memNode
}

type byteRange struct{ from, to int } // [from, to)

var _ FS = (*Mem)(nil)

// NewMem returns an empty filesystem.
func NewMem() *Mem { return &Mem{root: newMemDir()} }

func newMemDir() *memNode {
	return &memNode{dir: true, entries: map[string]*memNode{}, durableEntries: map[string]*memNode{}}
}

// Crash returns the filesystem that a power cut at this moment leaves. The original stays usable, so that a
// test can cut the power at one point and go on.
func (m *Mem) Crash() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Mem{root: m.root.durable(map[*memNode]*memNode{})}
}

// CrashTorn returns a filesystem that a power cut may leave, too: of what was not synced, any part has reached the disk, by
// sectors of 512 bytes, and so has any change of a directory.
func (m *Mem) CrashTorn(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Mem{root: m.root.torn(rng, map[*memNode]*memNode{})}
}

const sectorBytes = 512

func (n *memNode) torn(rng *rand.Rand, seen map[*memNode]*memNode) *memNode {
	if c, ok := seen[n]; ok {
		return c
	}
	c := &memNode{dir: n.dir}
	seen[n] = c
	if !n.dir {
		c.data = bytes.Clone(n.durableData)
		for _, r := range n.unsynced {
			for from := r.from; from < r.to; {
				to := min(r.to, (from/sectorBytes+1)*sectorBytes)
				if rng.IntN(2) == 0 {
					c.growLocked(to)
					copy(c.data[from:to], n.data[from:to])
				}
				from = to
			}
		}
		c.durableData = bytes.Clone(c.data)
		return c
	}
	c.entries = make(map[string]*memNode)
	names := maps.Clone(n.entries)
	maps.Copy(names, n.durableEntries)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		child := n.durableEntries[name]
		if child != n.entries[name] && rng.IntN(2) == 0 {
			child = n.entries[name]
		}
		if child != nil {
			c.entries[name] = child.torn(rng, seen)
		}
	}
	c.durableEntries = maps.Clone(c.entries)
	return c
}

// SyncFailed does to a file what a failed sync does on Linux: what was written to it is still read, and no later sync writes
// it to the disk.
func (m *Mem) SyncFailed(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked("sync", path)
	if err != nil {
		return err
	}
	n.unsynced = nil
	return nil
}

// Clone returns a copy that a process which is killed now leaves behind: what it wrote is there, synced or not, and what
// it does to the original afterwards is not.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Mem{root: m.root.clone(map[*memNode]*memNode{})}
}

func (n *memNode) clone(seen map[*memNode]*memNode) *memNode {
	if c, ok := seen[n]; ok {
		return c
	}
	c := &memNode{dir: n.dir, data: bytes.Clone(n.data), durableData: bytes.Clone(n.durableData),
		unsynced: slices.Clone(n.unsynced), emptied: n.emptied}
	seen[n] = c
	if n.dir {
		c.entries, c.durableEntries = map[string]*memNode{}, map[string]*memNode{}
		for name, child := range n.entries {
			c.entries[name] = child.clone(seen)
		}
		for name, child := range n.durableEntries {
			c.durableEntries[name] = child.clone(seen)
		}
	}
	return c
}

// durable copies what is durable below a node. A file that two names lead to (a rename whose directories were
// not both synced) stays one file: seen maps originals to copies.
func (n *memNode) durable(seen map[*memNode]*memNode) *memNode {
	if c, ok := seen[n]; ok {
		return c
	}
	c := &memNode{dir: n.dir}
	seen[n] = c
	if !n.dir {
		c.data = bytes.Clone(n.durableData)
		c.durableData = bytes.Clone(n.durableData)
		return c
	}
	c.entries = make(map[string]*memNode, len(n.durableEntries))
	for name, child := range n.durableEntries {
		c.entries[name] = child.durable(seen)
	}
	c.durableEntries = maps.Clone(c.entries)
	return c
}

// Create implements FS.
func (m *Mem) Create(path string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, name, err := m.parentLocked("create", path)
	if err != nil {
		return nil, err
	}
	n := parent.entries[name]
	switch {
	case n == nil:
		n = &memNode{}
		parent.entries[name] = n
	case n.dir:
		return nil, pathError("create", path, errIsDir)
	default:
		n.data, n.unsynced, n.emptied = nil, nil, true
	}
	return &memFile{fs: m, node: n, path: path, writable: true}, nil
}

// Open implements FS.
func (m *Mem) Open(path string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked("open", path)
	if err != nil {
		return nil, err
	}
	if n.dir {
		return nil, pathError("open", path, errIsDir)
	}
	return &memFile{fs: m, node: n, path: path}, nil
}

// OpenWrite implements FS.
func (m *Mem) OpenWrite(path string) (File, error) {
	f, err := m.Open(path)
	if err != nil {
		return nil, err
	}
	f.(*memFile).writable = true
	return f, nil
}

// Rename implements FS, for files.
func (m *Mem) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	source, fromName, err := m.parentLocked("rename", from)
	if err != nil {
		return err
	}
	target, toName, err := m.parentLocked("rename", to)
	if err != nil {
		return err
	}
	n := source.entries[fromName]
	if n == nil {
		return pathError("rename", from, fs.ErrNotExist)
	}
	if old := target.entries[toName]; n.dir || (old != nil && old.dir) {
		return pathError("rename", to, errIsDir)
	}
	delete(source.entries, fromName)
	target.entries[toName] = n
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, name, err := m.parentLocked("remove", path)
	if err != nil {
		return err
	}
	n := parent.entries[name]
	if n == nil {
		return pathError("remove", path, fs.ErrNotExist)
	}
	if len(n.entries) > 0 {
		return pathError("remove", path, errNotEmpty)
	}
	delete(parent.entries, name)
	return nil
}

// RemoveAll implements FS.
func (m *Mem) RemoveAll(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, name, err := m.parentLocked("remove", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	delete(parent.entries, name)
	return nil
}

// Mkdir implements FS.
func (m *Mem) Mkdir(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, name, err := m.parentLocked("mkdir", path)
	if err != nil {
		return err
	}
	if parent.entries[name] != nil {
		return pathError("mkdir", path, fs.ErrExist)
	}
	parent.entries[name] = newMemDir()
	return nil
}

// ReadDir implements FS.
func (m *Mem) ReadDir(path string) ([]Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked("readdir", path)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, pathError("readdir", path, errNotDir)
	}
	infos := make([]Info, 0, len(n.entries))
	for _, name := range slices.Sorted(maps.Keys(n.entries)) {
		infos = append(infos, n.entries[name].info(name))
	}
	return infos, nil
}

// Stat implements FS.
func (m *Mem) Stat(path string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked("stat", path)
	if err != nil {
		return Info{}, err
	}
	return n.info(filepath.Base(path)), nil
}

func (n *memNode) info(name string) Info {
	return Info{Name: name, Size: int64(len(n.data)), Dir: n.dir}
}

// SyncDir implements FS.
func (m *Mem) SyncDir(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.findLocked("sync", path)
	if err != nil {
		return err
	}
	if !n.dir {
		return pathError("sync", path, errNotDir)
	}
	n.durableEntries = maps.Clone(n.entries)
	return nil
}

var (
	errIsDir    = errors.New("is a directory")
	errNotDir   = errors.New("not a directory")
	errNotEmpty = errors.New("directory not empty")
)

func pathError(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }

func (m *Mem) findLocked(op, path string) (*memNode, error) {
	n := m.root
	for _, name := range strings.Split(filepath.ToSlash(filepath.Clean(path)), "/") {
		if name == "" || name == "." {
			continue
		}
		if !n.dir {
			return nil, pathError(op, path, errNotDir)
		}
		if n = n.entries[name]; n == nil {
			return nil, pathError(op, path, fs.ErrNotExist)
		}
	}
	return n, nil
}

// parentLocked returns the directory that holds, or would hold, path, and its name there.
func (m *Mem) parentLocked(op, path string) (*memNode, string, error) {
	clean := filepath.Clean(path)
	parent, err := m.findLocked(op, filepath.Dir(clean))
	if err != nil {
		return nil, "", err
	}
	if !parent.dir {
		return nil, "", pathError(op, path, errNotDir)
	}
	return parent, filepath.Base(clean), nil
}

// memFile is an open file of a Mem.
type memFile struct {
	fs       *Mem
	node     *memNode
	path     string
	writable bool

	offset int64
	closed bool
}

func (f *memFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.offset)
	f.offset += int64(n)
	if n > 0 {
		return n, nil // the end is told by the next call
	}
	return n, err
}

func (f *memFile) ReadAt(p []byte, at int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, pathError("read", f.path, fs.ErrClosed)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if at >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.offset)
	f.offset += int64(n)
	return n, err
}

func (f *memFile) WriteAt(p []byte, at int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.mayWriteLocked(); err != nil {
		return 0, err
	}
	from, to := int(at), int(at)+len(p)
	f.node.growLocked(to)
	copy(f.node.data[from:], p)
	f.node.unsynced = append(f.node.unsynced, byteRange{from, to})
	return len(p), nil
}

func (f *memFile) Preallocate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.mayWriteLocked(); err != nil {
		return err
	}
	if from := len(f.node.data); from < int(size) {
		f.node.growLocked(int(size))
		f.node.unsynced = append(f.node.unsynced, byteRange{from, int(size)})
	}
	return nil
}

func (f *memFile) mayWriteLocked() error {
	switch {
	case f.closed:
		return pathError("write", f.path, fs.ErrClosed)
	case !f.writable:
		return pathError("write", f.path, fs.ErrPermission)
	}
	return nil
}

func (n *memNode) growLocked(size int) {
	if grow := size - len(n.data); grow > 0 {
		n.data = append(n.data, make([]byte, grow)...)
	}
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return pathError("sync", f.path, fs.ErrClosed)
	}
	n := f.node
	if n.emptied {
		n.durableData, n.emptied = nil, false
	}
	if grow := len(n.data) - len(n.durableData); grow > 0 {
		n.durableData = append(n.durableData, make([]byte, grow)...)
	}
	for _, r := range n.unsynced {
		copy(n.durableData[r.from:r.to], n.data[r.from:])
	}
	n.unsynced = n.unsynced[:0]
	return nil
}

func (f *memFile) Datasync() error { return f.Sync() }

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, pathError("stat", f.path, fs.ErrClosed)
	}
	return int64(len(f.node.data)), nil
}

func (f *memFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return pathError("close", f.path, fs.ErrClosed)
	}
	f.closed = true
	return nil
}
