package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoLoopDisks means that this machine or user can't mount a filesystem from a file.
var ErrNoLoopDisks = errors.New("loop-mounted disks need root, mkfs.ext4 and loop devices")

// Disk is an ext4 filesystem of its own in a file, whose power can be cut: what was not synced is gone then. Linux only.
type Disk struct {
	// Dir is where it is mounted.
	Dir string

	image string
}

// NewDisk makes a filesystem of a size and mounts it at dir/name. Errors: ErrNoLoopDisks.
func NewDisk(dir, name string, bytes int64) (*Disk, error) {
	d := &Disk{Dir: filepath.Join(dir, name), image: filepath.Join(dir, name+".img")}
	if os.Geteuid() != 0 {
		return nil, ErrNoLoopDisks
	}
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return nil, err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: mkfs.ext4: %w: %s", ErrNoLoopDisks, err, out)
	}
	return d, d.mount()
}

func (d *Disk) mount() error {
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: mount: %w: %s", ErrNoLoopDisks, err, out)
	}
	return nil
}

// ext4Shutdown is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32); noLogFlush leaves the journal as it is on the disk.
const (
	ext4Shutdown = 0x8004587d
	noLogFlush   = 2
)

// CutPower stops the filesystem as a power cut does: every later call fails, and what is not on the disk is lost. End the
// processes that use it, and then Restore.
func (d *Disk) CutPower() error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, noLogFlush)
}

// Fail makes every later write and sync of the filesystem fail, as a disk does that is about to die; reads go on. End the
// processes that use it, and then Restore.
func (d *Disk) Fail() error {
	out, err := exec.Command("findmnt", "-n", "-o", "SOURCE", d.Dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("findmnt %s: %w: %s", d.Dir, err, out)
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(strings.TrimSpace(string(out))), "trigger_fs_error")
	// "errors=" decides what the filesystem does on one.
	if out, err := exec.Command("mount", "-o", "remount,errors=remount-ro", d.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("remount %s: %w: %s", d.Dir, err, out)
	}
	return os.WriteFile(trigger, []byte("1"), 0)
}

// Freeze makes every later write and sync of the filesystem hang until Thaw; reads go on. A process that hangs in one can't be ended
// before.
func (d *Disk) Freeze() error { return d.ioctl(fiFreeze) }

// Thaw undoes Freeze; a filesystem that isn't frozen is fine.
func (d *Disk) Thaw() error {
	if err := d.ioctl(fiThaw); !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// FIFREEZE and FITHAW of linux/fs.h, _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

func (d *Disk) ioctl(request uint) error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, 0)
}

// Fill takes all the room that the filesystem has; Free gives it back.
func (d *Disk) Fill() error {
	f, err := os.Create(d.filler())
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for {
		if _, err := f.Write(block); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return f.Sync()
			}
			return err
		}
	}
}

// Free undoes Fill.
func (d *Disk) Free() error { return os.Remove(d.filler()) }

func (d *Disk) filler() string { return filepath.Join(d.Dir, "filler") }

// Restore mounts what a power cut has left. No process may have files open there.
func (d *Disk) Restore() error {
	if err := d.Close(); err != nil {
		return err
	}
	return d.mount()
}

// Close unmounts the filesystem.
func (d *Disk) Close() error {
	if out, err := exec.Command("umount", d.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("umount %s: %w: %s", d.Dir, err, out)
	}
	return nil
}

// Remove unmounts the filesystem and removes its file.
func (d *Disk) Remove() error {
	return errors.Join(d.Close(), os.Remove(d.image))
}
