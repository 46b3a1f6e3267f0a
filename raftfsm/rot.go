//go:build !knownbad

package raftfsm

import "github.com/ostraka-db/ostraka/store"

// rot does nothing: see knownbad.MemoryBit.
func (*shardMachine) rot(*store.Store, []byte) {}
