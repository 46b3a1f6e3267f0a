//go:build unix && !linux

package dev

import "syscall"

// childAttributes give a child a process group of its own, so that a Ctrl-C reaches it only through this process. If
// this process is killed, its children go on: only Linux offers to end them.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
