// Package shard is the arithmetic of where keys live: key → slot → shard → replicas on nodes.
//
// It owns the slot function ([SlotOf]), the routing value that client and server both compute from ([Map]), and
// the three calculations by which a new map follows from an old one:
//
//	slot space cut into shards     ring.go       [Ring.Resize]    few slots move, shares stay even, ranges stay few
//	replicas put on nodes          placement.go  [Place]          bounded load, zones apart, few replicas move
//	preferred leaders spread       leaders.go    [PreferLeaders]  even wherever the placement allows
//
// It refuses to know raft, the network, clocks and disks: it imports the standard library only, draws no random
// numbers and ranges over no Go map where the order could show, so equal arguments give equal results on every
// machine. What it computes is recorded in the meta group and read from there; no two nodes ever have to agree
// by computing it separately, so the ring's and the placement's rules may change between releases. The slot
// function may not: it is bit for bit Redis Cluster's, and golden vectors pin it.
//
// A [Map] is made once by [NewMap] or [Initial], checked there, and never changed afterwards. Every change makes
// a new map at a higher [Epoch]; whoever routes by a map keeps it behind an atomic pointer and swaps it. All functions
// and methods here may be called from any goroutine.
//
// Start reading at Map in map.go; ring.go holds the one hard algorithm, level.go the one that placement and
// leaders share.
package shard
