package raftfsm

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// successionStep is what each voter leaves to those before it in the list of voters, when their leader's process has ended: time
// for an election. The first of them may lack entries that the others have, and loses then.
const successionStep = 150 * time.Millisecond

// nodeGone is told that a node's process has ended. Its shards need not wait for the election timeout: the voters that are
// left stand one after the other.
func (h *Host) nodeGone(ctx context.Context, node shard.NodeID) {
	turns := make(map[int][]*life)
	last := -1
	for _, r := range h.replicas() {
		if l := r.current.Load(); l != nil && l.isHeadless(node, true) {
			if turn := l.turnAfter(node); turn >= 0 {
				turns[turn] = append(turns[turn], l)
				last = max(last, turn)
			}
		}
	}
	for turn := 0; turn <= last; turn++ {
		for _, l := range turns[turn] {
			if !l.isHeadless(node, turn == 0) {
				continue
			}
			if err := l.facade.Stand(); err != nil {
				l.replica.log.Warn("the leader's process has ended, but this replica can't stand for election at once", "leader", node, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(successionStep):
		}
	}
}

// isHeadless tells whether this replica follows one on the node, or nobody, unless it must follow.
func (l *life) isHeadless(node shard.NodeID, follows bool) bool {
	if l.ctx.Err() != nil || l.raft.State() != raft.Follower {
		return false
	}
	leader := l.leaderNode()
	return leader == node || leader == "" && !follows
}

// turnAfter is this replica's place among the voters that are left without the node; -1: it has no vote.
func (l *life) turnAfter(node shard.NodeID) int {
	left := slices.DeleteFunc(slices.Clone(l.currentVoters()), func(v voter) bool { return v.node == node })
	return slices.IndexFunc(left, func(v voter) bool { return v.replica == l.replica.id })
}
