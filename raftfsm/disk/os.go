package disk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Modes of what OS makes: the data of a database is its owner's alone.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// OS is the real filesystem.
type OS struct{}

var _ FS = OS{}

// Create implements FS.
func (OS) Create(path string) (File, error) {
	return opened(os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode))
}

// Open implements FS.
func (OS) Open(path string) (File, error) { return opened(os.Open(path)) }

// OpenWrite implements FS.
func (OS) OpenWrite(path string) (File, error) { return opened(os.OpenFile(path, os.O_RDWR, 0)) }

// opened avoids an interface that holds a nil *os.File.
func opened(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements FS.
func (OS) Remove(path string) error { return os.Remove(path) }

// RemoveAll implements FS.
func (OS) RemoveAll(path string) error { return os.RemoveAll(path) }

// Mkdir implements FS.
func (OS) Mkdir(path string) error { return os.Mkdir(path, dirMode) }

// ReadDir implements FS.
func (OS) ReadDir(path string) ([]Info, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, 0, len(entries))
	for _, e := range entries {
		stat, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, infoOf(stat))
	}
	return infos, nil
}

// Stat implements FS.
func (OS) Stat(path string) (Info, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return Info{}, err
	}
	return infoOf(stat), nil
}

func infoOf(stat os.FileInfo) Info {
	info := Info{Name: stat.Name(), Size: stat.Size(), Dir: stat.IsDir()}
	if info.Dir {
		info.Size = 0
	}
	return info
}

// SyncDir implements FS.
func (OS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// osFile adds Size to *os.File.
type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	stat, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return stat.Size(), nil
}

// Datasync implements File.
func (f osFile) Datasync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err != unix.EINTR {
			return f.failed("fdatasync", err)
		}
	}
}

// Preallocate implements File. A filesystem that can't reserve room only gets the length.
func (f osFile) Preallocate(size int64) error {
	for {
		switch err := unix.Fallocate(int(f.Fd()), 0, 0, size); err {
		case unix.EINTR:
		case unix.EOPNOTSUPP:
			return f.lengthen(size)
		default:
			return f.failed("fallocate", err)
		}
	}
}

func (f osFile) lengthen(size int64) error {
	now, err := f.Size()
	if err != nil || now >= size {
		return err
	}
	return f.Truncate(size)
}

func (f osFile) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, f.Name(), err)
}
