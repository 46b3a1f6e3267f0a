//go:build race

package store_test

// raceEnabled makes tests of many operations smaller: the race detector slows them down tenfold.
const raceEnabled = true
