//go:build race

package raftfsm

func init() { raceDetector = true }
