package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

// machine is where the figures come from.
type machine struct {
	Cores    int    `json:"cores"`
	CPU      string `json:"cpu"`
	Kernel   string `json:"kernel"`
	MemoryMB uint64 `json:"memory_mb"`
	Go       string `json:"go"`
	// FileSystem under the data, and how long one fdatasync of 4 KiB takes there, alone.
	FileSystem string  `json:"file_system"`
	SyncP50    float64 `json:"sync_p50_us"`
	SyncP99    float64 `json:"sync_p99_us"`
	// Commit of the harness's repository; empty: not known.
	Commit string `json:"commit,omitempty"`
}

// File systems by the number that statfs(2) gives.
var fileSystems = map[int64]string{
	0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x2fc12fc1: "zfs", 0x794c7630: "overlay",
	0xf2f52010: "f2fs", tmpfsMagic: "tmpfs", ramfsMagic: "ramfs",
}

const (
	tmpfsMagic = 0x01021994
	ramfsMagic = 0x858458f6
)

// describeMachine refuses a directory in memory, where a sync costs nothing and every figure would lie.
func describeMachine(ctx context.Context, dir string) (machine, error) {
	m := machine{Cores: runtime.NumCPU(), CPU: cpuModel(), Go: runtime.Version(), Commit: commit(ctx)}
	var memory syscall.Sysinfo_t
	if err := syscall.Sysinfo(&memory); err != nil {
		return m, err
	}
	m.MemoryMB = memory.Totalram * uint64(memory.Unit) >> 20
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return m, err
	}
	m.Kernel = strings.TrimSpace(string(kernel))
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return m, err
	}
	m.FileSystem = fileSystems[int64(fs.Type)]
	switch int64(fs.Type) {
	case tmpfsMagic, ramfsMagic:
		return m, usagef("%s is in memory (%s): a sync costs nothing there; name a directory on a disk with -dir", dir, m.FileSystem)
	}
	if m.FileSystem == "" {
		m.FileSystem = fmt.Sprintf("of type %#x", fs.Type)
	}
	m.SyncP50, m.SyncP99, err = syncTime(dir)
	return m, err
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.SplitSeq(string(info), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// commit names what is checked out in the current directory.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// moduleVersion is that of a module built into this binary.
func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return strings.TrimPrefix(m.Version, "v")
			}
		}
	}
	return "unknown"
}

const (
	syncTries = 200
	syncBytes = 4 << 10
)

// syncTime measures writes of a block, each followed by a sync, over space that is there already: what a write-ahead log
// does at its best. In microseconds.
func syncTime(dir string) (p50, p99 float64, err error) {
	f, err := os.Create(filepath.Join(dir, "synctime"))
	if err != nil {
		return 0, 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(make([]byte, syncTries*syncBytes)); err != nil {
		return 0, 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, 0, err
	}
	block := slices.Repeat([]byte{0xa5}, syncBytes)
	times := make([]float64, syncTries)
	for i := range times {
		begin := time.Now()
		if _, err := f.WriteAt(block, int64(i*syncBytes)); err != nil {
			return 0, 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, 0, err
		}
		times[i] = float64(time.Since(begin)) / float64(time.Microsecond)
	}
	slices.Sort(times)
	return times[syncTries/2], times[syncTries*99/100], nil
}
