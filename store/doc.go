// Package store is the memory of one replica: its keys, values, versions and expiry times, found through
// one table per slot, with one index of all keys in order.
//
// It refuses to know about consensus, the network, shards and how a key hashes: the caller passes the
// slot in. It imports the standard library and leaf data structures only.
//
// # Determinism
//
// Replicas of a shard feed the same operations to their stores and must end up equal, byte for byte.
// So nothing here reads a clock, a random source or the order of a map on the way to a result: time
// arrives by SetTime, out of the log. Two things besides the operations decide results, and must
// therefore be the same on all replicas of a shard: the set of owned slots, and the Limits. Limits taken
// from a node's own configuration would make replicas differ; build stores with MaxLimits, or with limits
// that are themselves replicated, and let a narrower bound travel inside the op (Op.ValueBytesMax).
//
// # The life of a store
//
//	New ──Own──► SetTime, Apply, Reap … ──Freeze──► View ──Slot, Slot, …──► Close
//	                                                          │ items
//	NewBuilder ──Own, Put, Put, …──Finish──► another Store ◄──┘
//
// A store is never emptied or refilled: a restore builds another one aside and the caller swaps
// pointers. Readers of the old one finish undisturbed.
//
// # Time and expiry
//
// A key with an expiry time is expired from the moment the store's time reaches it. It then reads as
// missing and every operation treats it as missing, but its bytes stay, and stay counted, until Reap, a
// logged operation itself, removes it. Whether a key is expired is decided by the store's time alone. A
// caller whose own clock is ahead looks at Meta.ExpiresAt and commits a time before it calls a key expired.
//
// # History
//
// A store may note its changes in a History (KeepHistory), from which others follow it. It is no part of the store's state: two
// stores are equal whatever their histories hold. Own and Disown are no changes of keys, and are not noted.
//
// # Goroutines
//
// One goroutine writes: Own, Disown, SetTime, RaiseVersion, Apply, Reap, Freeze and KeepHistory belong to it, and History.Publish. Any
// number of goroutines read beside it: Get, Peek, Inspect, Scan, Due, NextExpiry, Owns and the
// statistics. A View may be used and closed from any one goroutine. The package starts no goroutine.
//
// The writer works a change out before it takes the lock (nobody else can change what it read), so a value is hashed, and a large
// one copied, while readers go on. Readers copy small values out while they hold the lock, since items move; large values
// are replaced, never modified, and copied after it.
//
// # Memory
//
//	Store
//	 ├ table per slot ──► internal/hashindex ──┐ blocks of references by hash
//	 ├ byKey, deadlines ► internal/order ──────┤ nodes of references in order   ──► items: header, key, value in a cell,
//	 └ View.kept                               ┘                                    in internal/arena; large values beside
//
// An item lies in one place, outside of the Go heap, and everything else holds its 32-bit reference; so a key of 16 bytes and
// a value of 128 take 172 bytes, and the garbage collector walks nothing. An item moves when it is given a value of another
// size, and when its page has become too empty; the store then changes the reference in all indexes. Where things lie depends on a
// replica's own history and on its process's hash seed, and must show in nothing but MemoryStats.
//
// Start reading at op.go (what can be asked), outcome.go (what it does to a key), then write.go (how it is done) and item.go.
package store
