// Command compare measures etcd, Redis and Ostraka side by side on this machine: three nodes of each as processes of
// their own, one client process, one harness (package bench), the same keys, values and callers for all.
//
//	make bench-compare
//	go run . -systems etcd,ostraka -workloads writes -callers 256 -rounds 3 -duration 3s
//
// # What is compared
//
// A write counts once it is replicated and synced as far as the system can promise it, so that all pay for the same:
//
//	etcd     Put, on the write-ahead logs of two of three members
//	Redis    SET, then WAITAOF 1 1 in the same round trip: on the append-only files of the primary and one replica.
//	         Servers before 7.2 have only WAIT 1: the replica has the write, and no promise about its disk
//	Ostraka  Set, on the logs of two of three replicas
//
// A read is linearizable in etcd and Ostraka. Redis has no such read: GET asks the primary, which may have been replaced.
//
// # The clients
//
// etcd's and Ostraka's clients carry all callers over few connections; Ostraka's also joins calls that wait at the same time
// into one message. Redis gets a connection for each caller, as pools of its common clients do. With -redis-client joined its
// calls are joined too: then it does two to three times the writes and many times the reads, and a claim about the servers
// alone must be made against that.
//
// # How
//
// A cell is a workload and a number of callers. In each round every cell is measured once for each system, one system
// after the other and in an order that changes, so that a machine that drifts drifts for all alike. Only one system is
// under load; the others idle, and what that costs is measured and told. Before each measurement the harness waits until
// the machine has become quiet, and then loads the one for a while that is not counted. What everything else on the machine
// used meanwhile is told too, and a measurement that was disturbed is made again. Each figure is the median over the
// rounds; a ratio is one of medians, with the range of the rounds' own ratios beside it.
//
// Callers are closed loops: each sends its next call when the last was answered. That finds the most a system can do,
// and says nothing of how it behaves at less.
//
// # Failover
//
// With -failovers N there is no load; the leaders of etcd and Ostraka are killed N times in turn, and what is measured is how long
// a client that writes all the time has no write acknowledged (package bench/failover).
//
//	go run . -failovers 50
//
// # Reading the code
//
// run.go has the plan; system.go what a system must be able to do, with etcd.go, redis.go and ostraka.go as the three.
// statistics.go turns measurements into medians and ratios, table.go and plot.go show them. It is a module of its own, so
// that etcd's dependencies stay out of Ostraka's.
package main
