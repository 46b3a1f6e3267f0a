// Package wal is the write-ahead log of one node: one sequence of segment files for all its replicas, written by one
// goroutine, so that one sync serves whoever waits.
//
// It owns the files in its directory, their format (frame.go), and the index in memory that says where each entry lies. It
// knows replicas by their id, entries by index and term, and records by name. It has never heard of raft's rules, of
// snapshots or of keys: storage builds raft's stores on it.
//
// # The path of an entry
//
//	Replica.Append ─► frame, encoded into the open chunk ─► queue ─► writer: one write, one sync ─► durable
//	      │                    (memory, under Log.mu)                 (its goroutine)                    │
//	      └─► index: replica, index → segment, offset                        Notify, WaitDurable  ◄──────┘
//
// Append does not wait for the disk. Each change of a replica has a Sequence, and who answers for it asks Notify when
// that is durable. While the writer is at the disk, whatever is appended gathers in the next chunk; nothing else is needed
// for a group commit. Reads find what isn't written yet in the chunks.
//
// # Segments
//
//	0000…01.wal          0000…02.wal                     0000…03.wal
//	head│mark summary    head│mark summary ...│seal      head, zeros
//	    │mark entry         sealed                       the spare
//	    │entry mark ...
//	     seal
//
// Only the last segment that holds a frame is written to. It ends with a seal, once all of it is durable, and only then is
// the first frame of the next one written. The keeper's goroutine makes the next segment before it is needed, by giving a
// purged one another life if there is one; two are kept for that. What a full disk means, and which room is kept for it,
// stands in space.go.
//
// A frame is needed (live) while it is the place of an entry or the latest value of a record. The oldest segment without a
// live frame is removed, always the oldest: frames that delete something may lie in a later segment than what they
// delete, and must not go first. What holds up the oldest segment for long is copied to the end of the log.
//
// Beside the segments lie two notes (note.go): where the log was closed, and which damage has been judged; and with
// SyncInterval a third, see boot.go.
//
// # What holds after a crash
//
//   - What Notify or WaitDurable called durable is there, or is found to be damaged.
//   - What is there is a prefix of what was appended, of all replicas together.
//   - A tear, which is what a crash may leave at the end, is told from rot. Each write begins with a mark that says how far
//     its writer knew the log to be durable. What doesn't check below such a mark, in a sealed segment or in a log that was
//     closed, was once whole: rot. At the end of a log that was not closed, behind the last mark that is left, the two can't
//     be told apart: there rot passes for a tear, and takes the last write with it; and if the disk forgot its last blocks,
//     marks and all, the writes in them.
//   - Rot costs only the replicas that may have lost something by it: frames are numbered per replica, and each segment
//     begins with all numbers, as the log ends with them when it is closed. They are marked as damaged, for good: see
//     Replica.Damage. Nothing that bears witness of the damage goes before the marks are durable, and what was judged once
//     is not judged again when less is left to tell by.
//   - A frame of a file's former life is never taken for one of this: see frame.go.
//
// # Why answers may be given by the watermark
//
// A sequence is durable when a sync has ended that was begun after all bytes before it had been written, in order, all
// segments before were sealed and all directory entries synced. There is one writer and one sync at a time, so no later
// sync can overtake an earlier one that fails. Any failed write or sync is the end (Config.Fatal): the kernel may call the
// next sync a success and have dropped the data.
//
// A sequence counts bytes of the log, not indexes: appending up to 100, truncating to 50 and appending up to 60 gives a
// higher sequence than the first 100 had, so no old watermark vouches for the new entries.
//
// What an open reads back is not taken for durable (recover.go): it is copied, synced and renamed first.
//
// What the disk must do for all this: keep what it has synced, and write a sector of 512 bytes whole or not at all, since a
// write begins in the sector in which the one before ended.
//
// # Goroutines
//
// Any goroutine may call anything, except that changes of one replica come one at a time. Open starts three goroutines, the
// writer, the keeper and the watchdog; Close joins them. While it reads, another one reads ahead, and is joined before Open
// returns. Log.mu is taken before Replica.mu.
//
// Start reading at frame.go, then Replica.Append, Log.put and recover.go.
package wal
