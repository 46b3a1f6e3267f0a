package disk

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLocked means that another process holds a lock. The error that wraps it is a *LockedError.
var ErrLocked = errors.New("locked by another process")

// LockedError says who holds a lock.
type LockedError struct {
	Path string
	// PID is the holder's process id as it wrote it down; 0 if it can't be read.
	PID int
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is %s", e.Path, ErrLocked)
	}
	return fmt.Sprintf("%s is %s (pid %d)", e.Path, ErrLocked, e.PID)
}

// Unwrap makes errors.Is(err, ErrLocked) hold.
func (e *LockedError) Unwrap() error { return ErrLocked }

// FileLock is a held lock.
type FileLock struct{ file *os.File }

// Lock takes an exclusive lock on the named file of the real filesystem, making it if it isn't there, and
// writes this process's id into it. It doesn't wait: a lock held elsewhere, in this process too, is a
// *LockedError. The kernel frees a lock when its process ends, however it ends, so the file may stay behind.
func Lock(path string) (*FileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &LockedError{Path: path, PID: readPID(path)}
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if err := writePID(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &FileLock{file: f}, nil
}

// Unlock frees the lock. The file stays: removing it would let two processes lock two files of one name.
func (l *FileLock) Unlock() error { return l.file.Close() }

// HeldBy tells whether a process of this machine holds the lock on a file, and its id if it can be read, without touching
// the lock: trying it would keep a process that starts at that moment from taking it. Where the kernel lists another device
// than a file's (btrfs, overlays), it says no.
func HeldBy(path string) (pid int, held bool) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, false
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, false
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 1234 fd:00:5310069 0 EOF; with "->" behind the number for one who waits
		if fields := strings.Fields(line); len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == file {
			return readPID(path), true
		}
	}
	return 0, false
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// readPID returns 0 for anything but a process id: the holder may be writing it just now.
func readPID(path string) int {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	return pid
}
