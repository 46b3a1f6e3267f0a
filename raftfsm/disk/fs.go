package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"
)

// FS is a filesystem. Errors about missing and existing names satisfy errors.Is with fs.ErrNotExist and
// fs.ErrExist.
type FS interface {
	// Create makes the named file, or empties it, and opens it for reading and writing.
	Create(path string) (File, error)
	// Open opens the named file for reading.
	Open(path string) (File, error)
	// OpenWrite opens the named file, which must exist, for reading and writing, as it is.
	OpenWrite(path string) (File, error)
	// Rename moves a file, over an existing one too. It is atomic for whoever looks, and durable once the
	// directories of both names were synced.
	Rename(from, to string) error
	// Remove removes a file or an empty directory.
	Remove(path string) error
	// RemoveAll removes a tree. A missing one is no error.
	RemoveAll(path string) error
	// Mkdir makes one directory.
	Mkdir(path string) error
	// ReadDir returns what a directory holds, sorted by name.
	ReadDir(path string) ([]Info, error)
	Stat(path string) (Info, error)
	// SyncDir makes the entries of a directory durable.
	SyncDir(path string) error
}

// File is an open file. Read and Write go through one offset, which starts at 0; ReadAt and WriteAt leave it alone.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	// Sync makes the contents durable, not the name.
	Sync() error
	// Datasync does that too, but may leave out what isn't needed to read them, such as times. It is the cheaper one where
	// a file's length and its place on the disk don't change.
	Datasync() error
	// Preallocate makes the file at least so many bytes long and takes their place on the disk, where the filesystem can
	// do that. What is added reads as zeros.
	Preallocate(size int64) error
	// Size returns the length in bytes.
	Size() (int64, error)
}

// Info describes a file or a directory.
type Info struct {
	// Name is the last element of the path.
	Name string
	// Size is in bytes; 0 for a directory.
	Size int64
	Dir  bool
}

// MkdirAll makes a directory and its missing parents, durably: the directory above each new one is synced.
func MkdirAll(fsys FS, path string) error {
	path = filepath.Clean(path)
	info, err := fsys.Stat(path)
	if err == nil {
		if !info.Dir {
			return fmt.Errorf("disk: %s is a file, not a directory", path)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return fsys.SyncDir(parent)
}

// ReadFile returns the contents of a file.
func ReadFile(fsys FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(f)
	return data, errors.Join(err, f.Close())
}

// asideSuffix marks a file that is not yet, or will never be, what its name says.
const asideSuffix = ".aside"

// WriteFileAtomic replaces the contents of a file, durably: after a crash at any point the file holds either
// the old contents or data, and once WriteFileAtomic has returned nil it holds data.
// One writer at a time per path.
func WriteFileAtomic(fsys FS, path string, data []byte) error {
	aside := path + asideSuffix
	if err := writeSynced(fsys, aside, data); err != nil {
		return errors.Join(err, RemoveIfThere(fsys, aside))
	}
	if err := fsys.Rename(aside, path); err != nil {
		return errors.Join(err, RemoveIfThere(fsys, aside))
	}
	return fsys.SyncDir(filepath.Dir(path))
}

func writeSynced(fsys FS, path string, data []byte) error {
	f, err := fsys.Create(path)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// IsNoSpace tells whether a call failed for want of room on the disk.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// RemoveIfThere removes a file that may be missing. The directory is not synced.
func RemoveIfThere(fsys FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
