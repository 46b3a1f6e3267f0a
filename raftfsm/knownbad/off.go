//go:build !knownbad

package knownbad

const (
	// LeaderGate: the leader counts a follower's answer although its own copy may not be durable.
	LeaderGate = false
	// FollowerGate: a follower answers before its copy is durable.
	FollowerGate = false
	// NonVoterGate: a follower that has no vote, by the last configuration that it knows to be committed, answers before its copy is
	// durable. Only with a log that tells who votes; the transport's tests have one.
	NonVoterGate = false
	// SnapshotSync: a snapshot counts as durable without being synced.
	SnapshotSync = false
	// SoleVoterGate: a group's only voter does not wait for its disk.
	SoleVoterGate = false
	// IndexWatermark: what is durable is told by log index, not by a sequence that counts truncations.
	IndexWatermark = false
	// Rewrite: what an open of the log reads back is taken for durable.
	Rewrite = false
	// Sync: nothing is synced, though it is said to be.
	Sync = false
	// SyncOrder: a segment's last sync ends after the next segment's first, by which all before is taken for durable.
	SyncOrder = false
	// Seed: frames of the log say neither in which life of their file nor where in it they were written.
	Seed = false
	// PurgeOrder: a segment of the log goes once nobody needs it, though an older one is kept.
	PurgeOrder = false
	// PurgeSync: a segment goes before that by which nobody needs it is durable.
	PurgeSync = false
	// Vote: terms and votes are kept in memory only.
	Vote = false
	// Confirmation: a leader answers linearizable reads without asking whether it still leads.
	Confirmation = false
	// Quorum: an append that reached nobody counts as acknowledged.
	Quorum = false
	// ApplyOrder: a replica with an odd id applies an entry's operations in reverse.
	ApplyOrder = false
	// SnapshotKey: a snapshot lacks the first key of each slot.
	SnapshotKey = false
	// RetryTable: a write that is sent again is done again, whatever is known of its first sending.
	RetryTable = false
	// MemoryBit: when a replica applies a write of the key "{TAG}rot/ID" with its own id, a bit of the value flips in its memory. It is not a
	// measure that is taken out, but what the comparison of replicas must find.
	MemoryBit = false
)
