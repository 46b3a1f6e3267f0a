// Package knownbad holds the switches that take one safety measure out, so that the checks which guard it can be checked
// themselves: a test or a fault harness that passes on such a build is worth nothing.
//
// In a normal build every switch is the constant false, and the compiler removes what hangs on it. With the build tag
// knownbad, the environment variable OSTRAKA_KNOWN_BAD names the switches that are on, separated by commas:
//
//	OSTRAKA_KNOWN_BAD=follower-gate go test -tags knownbad ./raftfsm
//
// The tests named TestKnownBadBuilds, in raftfsm, raftfsm/transport and raftfsm/wal, run those that they can show in
// milliseconds; the others are for clusters of processes, under bench/torture -selftest. There is one sync at a time, so that they
// end out of order is made up: see SyncOrder.
package knownbad
