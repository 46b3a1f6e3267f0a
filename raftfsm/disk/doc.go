// Package disk is the filesystem as Ostraka uses it: few calls, and durability spelled out.
//
// It owns the interface FS, its implementations and the two idioms built on them: WriteFileAtomic, and
// Lock for a data directory. It knows nothing of logs, snapshots or raft.
//
//	OS        the real filesystem
//	Mem       one in memory for tests and simulation; Crash says what a power cut would have left of it
//	PowerCut  a Mem whose power goes after so many steps
//	Hooked    any of them, with a hook that makes calls fail or wait
//
// The contract follows what POSIX promises and no more. Two things survive a power cut: the contents that a
// file had at its last Sync, and the directory entries (made, renamed, removed) that a directory had at its
// last SyncDir. Both are needed: a synced file in an unsynced directory may be gone.
//
// Everything here may be called from any goroutine; a File belongs to one goroutine at a time, except for
// ReadAt, and except that one goroutine may sync while another writes. Start reading at FS.
package disk
