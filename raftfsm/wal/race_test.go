//go:build race

package wal

func init() { raceDetector = true }
