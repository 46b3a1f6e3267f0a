package dev

import "syscall"

// childAttributes give a child a process group of its own, so that a Ctrl-C reaches it only through this process, and
// let it die with this process, however that ends. SIGKILL, because a node may be killed at any time without losing
// what it acknowledged, and because nobody would be left to end one that hangs in its draining.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
