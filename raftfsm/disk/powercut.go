package disk

import (
	"errors"
	"sync"
)

// ErrPowerCut is what every call answers after a PowerCut struck.
var ErrPowerCut = errors.New("disk: the power was cut")

// PowerCut is a Mem whose power goes after a number of steps, for tests that stop a procedure at each of its points in
// turn: run it with 0, 1, 2… steps until it succeeds, and look each time at what Left says.
type PowerCut struct {
	mem *Mem

	mu    sync.Mutex
	steps int // left; the step after the last fails
}

var _ FS = (*PowerCut)(nil)

// NewPowerCut lets steps changes happen to mem: files made, written, synced, renamed or removed, directories made
// or synced. All calls after them fail, reads too.
func NewPowerCut(mem *Mem, steps int) *PowerCut { return &PowerCut{mem: mem, steps: steps} }

// Cut cuts the power now.
func (c *PowerCut) Cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps = -1
}

// Left returns the filesystem that is there when the power is back.
func (c *PowerCut) Left() *Mem { return c.mem.Crash() }

func (c *PowerCut) step() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.steps <= 0 {
		c.steps = -1
		return ErrPowerCut
	}
	c.steps--
	return nil
}

func (c *PowerCut) alive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.steps < 0 {
		return ErrPowerCut
	}
	return nil
}

// Create implements FS.
func (c *PowerCut) Create(path string) (File, error) {
	if err := c.step(); err != nil {
		return nil, err
	}
	f, err := c.mem.Create(path)
	if err != nil {
		return nil, err
	}
	return &cutFile{f, c}, nil
}

// Open implements FS.
func (c *PowerCut) Open(path string) (File, error) {
	if err := c.alive(); err != nil {
		return nil, err
	}
	f, err := c.mem.Open(path)
	if err != nil {
		return nil, err
	}
	return &cutFile{f, c}, nil
}

// OpenWrite implements FS.
func (c *PowerCut) OpenWrite(path string) (File, error) {
	if err := c.alive(); err != nil {
		return nil, err
	}
	f, err := c.mem.OpenWrite(path)
	if err != nil {
		return nil, err
	}
	return &cutFile{f, c}, nil
}

// Rename implements FS.
func (c *PowerCut) Rename(from, to string) error {
	if err := c.step(); err != nil {
		return err
	}
	return c.mem.Rename(from, to)
}

// Remove implements FS.
func (c *PowerCut) Remove(path string) error {
	if err := c.step(); err != nil {
		return err
	}
	return c.mem.Remove(path)
}

// RemoveAll implements FS.
func (c *PowerCut) RemoveAll(path string) error {
	if err := c.step(); err != nil {
		return err
	}
	return c.mem.RemoveAll(path)
}

// Mkdir implements FS.
func (c *PowerCut) Mkdir(path string) error {
	if err := c.step(); err != nil {
		return err
	}
	return c.mem.Mkdir(path)
}

// ReadDir implements FS.
func (c *PowerCut) ReadDir(path string) ([]Info, error) {
	if err := c.alive(); err != nil {
		return nil, err
	}
	return c.mem.ReadDir(path)
}

// Stat implements FS.
func (c *PowerCut) Stat(path string) (Info, error) {
	if err := c.alive(); err != nil {
		return Info{}, err
	}
	return c.mem.Stat(path)
}

// SyncDir implements FS.
func (c *PowerCut) SyncDir(path string) error {
	if err := c.step(); err != nil {
		return err
	}
	return c.mem.SyncDir(path)
}

// cutFile is an open file of a PowerCut.
type cutFile struct {
	File
	cut *PowerCut
}

func (f *cutFile) Read(p []byte) (int, error) {
	if err := f.cut.alive(); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *cutFile) ReadAt(p []byte, at int64) (int, error) {
	if err := f.cut.alive(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, at)
}

func (f *cutFile) Write(p []byte) (int, error) {
	if err := f.cut.step(); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *cutFile) Sync() error {
	if err := f.cut.step(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *cutFile) WriteAt(p []byte, at int64) (int, error) {
	if err := f.cut.step(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, at)
}

func (f *cutFile) Datasync() error {
	if err := f.cut.step(); err != nil {
		return err
	}
	return f.File.Datasync()
}

func (f *cutFile) Preallocate(size int64) error {
	if err := f.cut.step(); err != nil {
		return err
	}
	return f.File.Preallocate(size)
}
