package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// uncleanName is the file that says, with SyncInterval, since which start of the machine there may be something in the
// kernel's memory that is not on the disk. A clean close removes it.
const uncleanName = "unsynced"

// uncleanBoot tells whether the machine was started again since a log with SyncInterval was open, without its being closed:
// then what was acknowledged may be lost.
func (l *Log) uncleanBoot() (bool, error) {
	boot, err := disk.ReadFile(l.cfg.FS, filepath.Join(l.cfg.Dir, uncleanName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, err := l.cfg.BootID()
	if err != nil {
		return false, fmt.Errorf("which start of the machine this is can't be told: %w", err)
	}
	return string(boot) != now, nil
}

// settleBoot leaves the mark for this life, once what an unclean boot means is recorded durably, and before anything is
// acknowledged.
func (l *Log) settleBoot() error {
	path := filepath.Join(l.cfg.Dir, uncleanName)
	if l.cfg.Sync != SyncInterval {
		return removeDurably(l.cfg.FS, path)
	}
	now, err := l.cfg.BootID()
	if err != nil {
		return err
	}
	return disk.WriteFileAtomic(l.cfg.FS, path, []byte(now))
}

// cleanClose takes the mark away: everything is synced.
func (l *Log) cleanClose() error {
	if l.cfg.Sync != SyncInterval {
		return nil
	}
	return removeDurably(l.cfg.FS, filepath.Join(l.cfg.Dir, uncleanName))
}

func removeDurably(fsys disk.FS, path string) error {
	if _, err := fsys.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := disk.RemoveIfThere(fsys, path); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

func kernelBootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
