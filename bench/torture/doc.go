// Command torture runs a cluster of real processes under load, breaks it again and again, and checks that every promise holds.
//
//	make torture MINUTES=10                                  a line in docs/torture-ledger.md
//	make torture SEED=7 TORTURE='-only kill-leader,isolate'
//	go run ./bench/torture -binary ./ostraka -replay data/torture/script.json
//
// Every node has a network namespace and a disk of its own: see network.go and cluster.Disk. That needs root on Linux, and the
// tools of iproute2, nftables and util-linux; without them the faults that need them are left out, and the run says so.
//
// # A run
//
// A seed makes a script of rounds (script.go): some time of peace, then a fault or two (faults.go), held for a while and healed.
// Rounds without faults are mixed in. All the while clients work (load.go). What was done is kept as script.json and can be
// replayed; the same script doesn't make the same run, since processes, disks and networks are real.
//
// # What is checked
//
//	always             errors that clients see are "not done" or "unknown"; increments return different values; keys live as long
//	                   as their TTL and are never seen again once they were seen gone; registers, counters and appends of each
//	                   period are linearizable (periods.go), with unknown outcomes left open and verdicts "unknown" as failures
//	after each round   every one of 48 keys over all shards takes writes again within 10 s; no node panicked
//	                   watches tell of every change once, those of a key in order, and of every acknowledged unique write
//	at the end         acknowledged unique writes, counters and sets are as they must be; replicas are equal at equal index;
//	                   goroutines and memory are back where they were (checks.go)
//
// # What is not injected
//
// Delay and reordering of packets (the kernel here has no netem), jumps of the wall clock (nothing but a shard's first entry
// reads it), rot anywhere else than in logs and snapshots, changes of
// membership but replacements.
package main
