//go:build knownbad

package raftfsm

import (
	"fmt"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// rot flips a bit in memory after the write that asks for it: see knownbad.MemoryBit.
func (m *shardMachine) rot(s *store.Store, key []byte) {
	if knownbad.MemoryBit && string(key) == fmt.Sprintf("{%s}rot/%d", rotTag(key), m.replica) {
		s.FlipBit(uint16(shard.SlotOf(key)), key)
	}
}

// rotTag is what stands in braces before the name, so that a test can choose the shard.
func rotTag(key []byte) string {
	for i, c := range key {
		if c == '}' {
			return string(key[1:i])
		}
	}
	return ""
}
