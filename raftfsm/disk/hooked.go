package disk

import "sync"

// Op names a call of an FS or a File.
type Op string

// The calls that Hooked asks about. OpenWrite is an OpOpen, ReadAt an OpRead, WriteAt an OpWrite.
const (
	OpCreate      Op = "create"
	OpOpen        Op = "open"
	OpRename      Op = "rename"
	OpRemove      Op = "remove"
	OpMkdir       Op = "mkdir"
	OpReadDir     Op = "readdir"
	OpStat        Op = "stat"
	OpSyncDir     Op = "syncdir"
	OpRead        Op = "read"
	OpWrite       Op = "write"
	OpSync        Op = "sync"
	OpDatasync    Op = "datasync"
	OpPreallocate Op = "preallocate"
)

// Hooked is a filesystem for tests that asks before each call. What the hook returns is the call's error, and then nothing
// was done; a hook that waits holds the call up. It may be called from any goroutine. A rename is asked about by its old
// name; an open file goes by the name that it has now, also when it was renamed since.
type Hooked struct {
	FS
	Hook func(op Op, path string) error

	mu sync.Mutex
	// names are those of open files, by what they are called now.
	names map[string]*hookedName
}

// hookedName is the present name of a file that is open.
type hookedName struct{ path string }

var _ FS = (*Hooked)(nil)

// NewHooked puts a hook before a filesystem.
func NewHooked(fsys FS, hook func(op Op, path string) error) *Hooked {
	return &Hooked{FS: fsys, Hook: hook, names: make(map[string]*hookedName)}
}

// Create implements FS.
func (h *Hooked) Create(path string) (File, error) { return h.open(OpCreate, path, h.FS.Create) }

// Open implements FS.
func (h *Hooked) Open(path string) (File, error) { return h.open(OpOpen, path, h.FS.Open) }

// OpenWrite implements FS.
func (h *Hooked) OpenWrite(path string) (File, error) { return h.open(OpOpen, path, h.FS.OpenWrite) }

func (h *Hooked) open(op Op, path string, open func(string) (File, error)) (File, error) {
	if err := h.Hook(op, path); err != nil {
		return nil, err
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	name := h.names[path]
	if name == nil {
		name = &hookedName{path}
		h.names[path] = name
	}
	return &hookedFile{File: f, fs: h, name: name}, nil
}

// Rename implements FS.
func (h *Hooked) Rename(from, to string) error {
	if err := h.Hook(OpRename, from); err != nil {
		return err
	}
	if err := h.FS.Rename(from, to); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.names, to) // a file that is open still keeps that name
	if name := h.names[from]; name != nil {
		name.path = to
		h.names[to] = name
		delete(h.names, from)
	}
	return nil
}

// Remove implements FS.
func (h *Hooked) Remove(path string) error {
	if err := h.Hook(OpRemove, path); err != nil {
		return err
	}
	return h.FS.Remove(path)
}

// Mkdir implements FS.
func (h *Hooked) Mkdir(path string) error {
	if err := h.Hook(OpMkdir, path); err != nil {
		return err
	}
	return h.FS.Mkdir(path)
}

// ReadDir implements FS.
func (h *Hooked) ReadDir(path string) ([]Info, error) {
	if err := h.Hook(OpReadDir, path); err != nil {
		return nil, err
	}
	return h.FS.ReadDir(path)
}

// Stat implements FS.
func (h *Hooked) Stat(path string) (Info, error) {
	if err := h.Hook(OpStat, path); err != nil {
		return Info{}, err
	}
	return h.FS.Stat(path)
}

// SyncDir implements FS.
func (h *Hooked) SyncDir(path string) error {
	if err := h.Hook(OpSyncDir, path); err != nil {
		return err
	}
	return h.FS.SyncDir(path)
}

// hookedFile is an open file of a Hooked.
type hookedFile struct {
	File
	fs   *Hooked
	name *hookedName
}

func (f *hookedFile) ask(op Op) error {
	f.fs.mu.Lock()
	path := f.name.path
	f.fs.mu.Unlock()
	return f.fs.Hook(op, path)
}

func (f *hookedFile) Read(p []byte) (int, error) {
	if err := f.ask(OpRead); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *hookedFile) ReadAt(p []byte, at int64) (int, error) {
	if err := f.ask(OpRead); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, at)
}

func (f *hookedFile) Write(p []byte) (int, error) {
	if err := f.ask(OpWrite); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *hookedFile) WriteAt(p []byte, at int64) (int, error) {
	if err := f.ask(OpWrite); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, at)
}

func (f *hookedFile) Sync() error {
	if err := f.ask(OpSync); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *hookedFile) Datasync() error {
	if err := f.ask(OpDatasync); err != nil {
		return err
	}
	return f.File.Datasync()
}

func (f *hookedFile) Preallocate(size int64) error {
	if err := f.ask(OpPreallocate); err != nil {
		return err
	}
	return f.File.Preallocate(size)
}
