//go:build knownbad

package knownbad

import (
	"os"
	"slices"
	"strings"
)

// See off.go.
var (
	LeaderGate     = on("leader-gate")
	FollowerGate   = on("follower-gate")
	NonVoterGate   = on("non-voter-gate")
	SnapshotSync   = on("snapshot-sync")
	SoleVoterGate  = on("sole-voter-gate")
	IndexWatermark = on("index-watermark")
	Rewrite        = on("rewrite")
	Sync           = on("sync")
	SyncOrder      = on("sync-order")
	Seed           = on("seed")
	PurgeOrder     = on("purge-order")
	PurgeSync      = on("purge-sync")
	Vote           = on("vote")
	Confirmation   = on("confirmation")
	Quorum         = on("quorum")
	ApplyOrder     = on("apply-order")
	SnapshotKey    = on("snapshot-key")
	RetryTable     = on("retry-table")
	MemoryBit      = on("memory-bit")
)

func on(name string) bool {
	return slices.Contains(strings.Split(os.Getenv("OSTRAKA_KNOWN_BAD"), ","), name)
}
