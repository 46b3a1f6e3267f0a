package client

import (
	"context"
	"fmt"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// Verified is what came of comparing a shard's replicas, or some slots of it.
type Verified struct {
	Shard shard.ID `json:"shard"`
	// Slots looked at, and the keys and bytes in them, as the leader has them.
	Slots int   `json:"slots"`
	Keys  int64 `json:"keys"`
	Bytes int64 `json:"bytes"`
	// Replicas that were compared, and those that said nothing, at least at one time, with the reason.
	Compared    []shard.ReplicaID `json:"compared"`
	Silent      []SilentReplica   `json:"silent,omitempty"`
	Differences []SlotDifference  `json:"differences,omitempty"`
}

// SilentReplica is a replica that was not compared.
type SilentReplica struct {
	Replica shard.ReplicaID `json:"replica"`
	Node    string          `json:"node"`
	Reason  string          `json:"reason"`
}

// SlotDifference is a slot in which replicas differ.
type SlotDifference struct {
	Slot uint16 `json:"slot"`
	// Odd replicas differ from what a majority of voters agrees on; none: nobody can tell who is right. Fenced are those of them that were
	// stopped, and are replaced; NotFenced says why others were not.
	Odd       []shard.ReplicaID `json:"odd"`
	Fenced    []shard.ReplicaID `json:"fenced"`
	NotFenced string            `json:"not_fenced,omitempty"`
	Text      string            `json:"text"`
}

// Verify compares the replicas of a shard by checksums of what they have in memory at one index of the log, a few slots at a time. progress,
// where it is not nil, is called after each few slots with what came of the shard so far. A replica that differs from a majority is stopped and
// replaced. Each few slots have the deadline that ctx or the Admin's options give. Errors: ErrInvalid for a shard that isn't there, ErrUnavailable, ErrNoEndpoint.
func (a *Admin) Verify(ctx context.Context, id shard.ID, progress func(Verified)) (Verified, error) {
	sum := Verified{Shard: id, Compared: []shard.ReplicaID{}}
	silent := make(map[shard.ReplicaID]SilentReplica)
	compared := make(map[shard.ReplicaID]bool)
	for from, more := uint32(0), true; more; {
		resp, err := a.verifySome(ctx, id, from)
		if err != nil {
			return sum, fmt.Errorf("verify: %w", err)
		}
		sum.Slots += int(resp.GetSlots())
		sum.Keys += resp.GetKeys()
		sum.Bytes += resp.GetBytes()
		for _, r := range resp.GetReplicas() {
			replica := shard.ReplicaID(r.GetReplica())
			_, was := silent[replica]
			switch {
			case r.GetError() != "" && !was:
				silent[replica] = SilentReplica{replica, r.GetNode(), r.GetError()}
				sum.Silent = append(sum.Silent, silent[replica])
			case r.GetError() == "" && !compared[replica]:
				compared[replica] = true
				sum.Compared = append(sum.Compared, replica)
			}
		}
		for _, d := range resp.GetDifferences() {
			sum.Differences = append(sum.Differences, SlotDifference{Slot: uint16(d.GetSlot()), Odd: replicasOf(d.GetOdd()),
				Fenced: replicasOf(d.GetFenced()), NotFenced: d.GetNotFenced(), Text: d.GetText()})
		}
		if progress != nil {
			progress(sum)
		}
		more = resp.GetMore() && resp.GetTo() > from
		from = resp.GetTo()
	}
	return sum, nil
}

// verifySome has the next few slots of a shard compared.
func (a *Admin) verifySome(ctx context.Context, id shard.ID, from uint32) (resp *ostrakapb.VerifyResponse, err error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	err = a.insist(ctx, func(ctx context.Context, n *node) (err error) {
		resp, err = n.admin.Verify(ctx, &ostrakapb.VerifyRequest{Shard: uint32(id), From: from})
		return err
	})
	return resp, err
}

func replicasOf(ids []uint64) []shard.ReplicaID {
	replicas := make([]shard.ReplicaID, len(ids))
	for i, id := range ids {
		replicas[i] = shard.ReplicaID(id)
	}
	return replicas
}
