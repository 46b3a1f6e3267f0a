package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// A leader compares its group's replicas, a few slots at a time: it puts a mark into the log, asks every replica for what it counted at that
// index (audit.go), and compares. All sound replicas say the same, and have counted what they had kept.
//
//	replica   kept  counted
//	   4       a      a       ┐ a majority of voters agrees, with themselves and each other
//	   5       a      a       ┘
//	   6       a      b       odd: a bit has flipped in its memory.  (b, b: it has applied something else.)
//
// A replica that is odd twice in a row, at two marks, is fenced: its node stops it, and it is replaced like one that lost its data, if the
// others can do without it. Where no majority of voters agrees nobody can tell who is right, and nothing is done but to say so.

// VerifyPeers is how leaders here reach other replicas' nodes; the own one too. Any goroutine may call it.
type VerifyPeers interface {
	// SlotSums is Host.SlotSums of a replica's node.
	SlotSums(ctx context.Context, group shard.ID, m Member, index uint64, asked bool) ([]SlotSum, error)
	// Fence tells a replica's node to stop it for good, so that it is replaced. The node asks back: Host.Odd.
	Fence(ctx context.Context, group shard.ID, m Member, why string) error
}

// SetVerifyPeers lets the host's leaders compare replicas. Call it once.
func (h *Host) SetVerifyPeers(p VerifyPeers) { h.verifier.peers.Store(&p) }

// Verification is what came of a look at some slots of a shard.
type Verification struct {
	Shard shard.ID
	// Slots [From, To) were looked at, of which the shard owns Slots; More: there are others behind.
	From, To uint16
	Slots    int
	More     bool
	// Index of the log at which they were compared.
	Index uint64
	// Keys and Bytes are the leader's.
	Keys, Bytes int64
	Replicas    []VerifiedReplica
	Differences []Difference
}

// VerifiedReplica is a member of the group, and why it said nothing; nil: it did.
type VerifiedReplica struct {
	Member
	Err error
}

// Difference is a slot in which replicas differ.
type Difference struct {
	Slot uint16
	// Odd are the replicas that differ from what a majority of voters agrees on; empty: there is no such majority.
	Odd []Member
	// Says is what each replica that answered said.
	Says []ReplicaSum
	// Fenced are those of Odd that were told to stop, and NotFenced says why others were not.
	Fenced    []Member
	NotFenced error
}

// ReplicaSum is what a replica said of a slot.
type ReplicaSum struct {
	Member
	Kept, Counted store.Stats
}

// String names slot and replicas.
func (d Difference) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "slot %d differs: ", d.Slot)
	if len(d.Odd) == 0 {
		b.WriteString("no majority agrees")
	}
	for i, m := range d.Odd {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "replica %d on %s is odd", m.Replica, m.Node)
		if slices.Contains(d.Fenced, m) {
			b.WriteString(" and was stopped")
		}
	}
	return b.String()
}

// VerifyStats count what a node's leaders have compared since it started.
type VerifyStats struct {
	// Slots compared; Passes: of whole shards; Differences: slots in which replicas differed; Fenced: replicas told to stop.
	Slots, Passes, Differences, Fenced uint64
	// Keys that this node's replicas have counted.
	Keys uint64
}

// VerifyStats returns the counts.
func (h *Host) VerifyStats() VerifyStats {
	v := h.verifier
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.stats
	s.Keys = h.auditor.keys.Load()
	return s
}

// Verify compares the replicas of a group that is led here in the next slots from from on, waiting for whoever else does, and fences who is odd. It
// costs an entry of the log and a message to each replica, and it counts what it compares at the pace of VerifyConfig; asked: somebody
// waits for it. Errors: ErrNotLeader and the others of Group.Write.
func (h *Host) Verify(ctx context.Context, group shard.ID, from uint16, asked bool) (*Verification, error) {
	g, ok := h.Group(group)
	if !ok {
		return nil, &NotLeaderError{Group: group}
	}
	peers := h.verifier.peers.Load()
	if peers == nil {
		return nil, ErrStopped
	}
	select {
	case g.verifying <- struct{}{}:
		defer func() { <-g.verifying }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrDeadline, ctx.Err())
	}
	l, m, err := g.life()
	if err != nil {
		return nil, err
	}
	if _, err := l.leading(); err != nil {
		return nil, err
	}
	cfg := h.cfg.Verify
	to, slots, sum := m.store.Load().Extent(from, cfg.SlotsMax, cfg.KeysMax, cfg.BytesMax)
	if slots == 0 {
		return &Verification{Shard: group, From: from, To: store.SlotCount}, nil
	}
	r := round{life: l, peers: *peers, asked: asked}
	result, err := r.compare(ctx, from, to)
	if err != nil {
		return nil, err
	}
	result.More, result.Slots, result.Keys, result.Bytes = to < store.SlotCount, slots, sum.Keys, sum.Bytes
	for i := range result.Differences[:min(len(result.Differences), differencesMax)] {
		r.settle(ctx, &result.Differences[i])
	}
	h.verifier.note(g, result)
	return result, nil
}

// differencesMax bounds the differences of one look that are looked at again, and those that are remembered of a group.
const differencesMax = 16

// round is one look at a group.
type round struct {
	life  *life
	peers VerifyPeers
	asked bool
}

// compare puts a mark into the log and compares what the replicas say.
func (r *round) compare(ctx context.Context, from, to uint16) (*Verification, error) {
	members, err := r.life.currentMembers()
	if err != nil {
		return nil, err
	}
	response, err := r.life.proposer.entry(ctx, markEntry(from, to))
	if err != nil {
		return nil, err
	}
	result := &Verification{Shard: r.life.replica.group, From: from, To: to, Index: response.(uint64)}
	if until, ok := ctx.Deadline(); ok { // leaves time to say who was silent
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(until)*3/4)
		defer cancel()
	}
	said := make([][]SlotSum, len(members))
	result.Replicas = make([]VerifiedReplica, len(members))
	var asking sync.WaitGroup
	for i, m := range members {
		asking.Go(func() {
			var err error
			if said[i], err = r.peers.SlotSums(ctx, result.Shard, m, result.Index, r.asked); err != nil {
				said[i] = nil
			}
			result.Replicas[i] = VerifiedReplica{m, err}
		})
	}
	asking.Wait()
	result.Differences = differences(result.Replicas, said)
	return result, nil
}

// differences compares what replicas said of slots.
func differences(replicas []VerifiedReplica, said [][]SlotSum) (all []Difference) {
	bySlot := make(map[uint16][]SlotSum) // with a place for each replica
	for i, sums := range said {
		for _, s := range sums {
			if bySlot[s.Slot] == nil {
				bySlot[s.Slot] = make([]SlotSum, len(replicas))
			}
			bySlot[s.Slot][i] = s
		}
	}
	voters := 0
	for _, r := range replicas {
		if r.Voter {
			voters++
		}
	}
	for slot, sums := range bySlot {
		if d, differs := judge(slot, replicas, sums, voters); differs {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Difference) int { return int(a.Slot) - int(b.Slot) })
	return all
}

// judge finds who is odd in a slot: sums are zero where a replica said nothing, or that it is empty.
func judge(slot uint16, replicas []VerifiedReplica, sums []SlotSum, voters int) (d Difference, differs bool) {
	d.Slot = slot
	agree := make(map[store.Stats]int) // voters whose counts are as they kept them
	for i, r := range replicas {
		if r.Err != nil {
			continue
		}
		d.Says = append(d.Says, ReplicaSum{r.Member, sums[i].Kept, sums[i].Counted})
		if r.Voter && sums[i].Kept == sums[i].Counted {
			agree[sums[i].Kept]++
		}
	}
	first := d.Says[0]
	if first.Kept == first.Counted && !slices.ContainsFunc(d.Says, func(s ReplicaSum) bool { return s.Kept != first.Kept || s.Counted != first.Counted }) {
		return d, false
	}
	for right, n := range agree {
		if n < voters/2+1 {
			continue
		}
		for _, s := range d.Says {
			if s.Kept != right || s.Counted != right {
				d.Odd = append(d.Odd, s.Member)
			}
		}
	}
	return d, true
}

// settle looks at a slot that differs once more, and fences who is odd again.
func (r *round) settle(ctx context.Context, d *Difference) {
	l := r.life
	again, err := r.compare(ctx, d.Slot, d.Slot+1)
	if err != nil {
		d.NotFenced = err
		return
	}
	l.replica.log.Error("replicas differ", "slot", d.Slot, "says", fmt.Sprintf("%+v", d.Says), "odd", fmt.Sprintf("%+v", d.Odd))
	if len(again.Differences) == 0 {
		d.NotFenced = errors.New("at a second look all agreed")
		return
	}
	for _, m := range d.Odd {
		if !slices.Contains(again.Differences[0].Odd, m) {
			d.NotFenced = errors.New("at a second look another answer was given")
			continue
		}
		if err := r.fence(ctx, m, fmt.Sprintf("slot %d differs from that of a majority of the shard's replicas", d.Slot)); err != nil {
			l.replica.log.Error("a replica that is odd can't be stopped", "member", m.Replica, "on", m.Node, "error", err)
			d.NotFenced = err
			continue
		}
		d.Fenced = append(d.Fenced, m)
	}
}

// fence stops a replica of this group.
func (r *round) fence(ctx context.Context, m Member, why string) error {
	l := r.life
	if m.Voter {
		if err := l.spare(m.Replica); err != nil {
			return err
		}
	}
	l.odd.Store(m.Replica, why)
	if m.Replica == l.replica.id {
		if err := l.replica.handOver(); err != nil { // it is stopped all the same: what it holds is wrong
			l.replica.log.Warn("an odd leader could not hand over", "error", err)
		}
	}
	return r.peers.Fence(ctx, l.replica.group, m, why)
}

// Odd tells whether this node, as a group's leader, has found a replica to be odd: whoever is told to stop one asks.
func (h *Host) Odd(group shard.ID, id shard.ReplicaID) (why string, odd bool) {
	g, ok := h.Group(group)
	if !ok {
		return "", false
	}
	l, err := g.replica.leading()
	if err != nil {
		return "", false
	}
	found, ok := l.odd.Load(id)
	if !ok {
		return "", false
	}
	return found.(string), true
}

// currentMembers are the members of raft's latest configuration.
func (l *life) currentMembers() ([]Member, error) {
	var step memberStep
	err := step.read(l.raft.GetConfiguration().Configuration().Servers, ^shard.ReplicaID(0))
	return step.configured, err
}

// verifier is what a node remembers of what its leaders compared, and where they go on.
type verifier struct {
	peers atomic.Pointer[VerifyPeers]

	mu    sync.Mutex
	stats VerifyStats
	// known are differences that were not settled, by group and slot.
	known map[*Group]map[uint16]Difference

	// The verify job's goroutine only.
	next  map[*Group]uint16
	begun map[*Group]time.Time // of the latest pass
}

func newVerifier() *verifier {
	return &verifier{known: make(map[*Group]map[uint16]Difference), next: make(map[*Group]uint16), begun: make(map[*Group]time.Time)}
}

// note counts a verification, and remembers what differed.
func (v *verifier) note(g *Group, result *Verification) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats.Slots += uint64(result.Slots)
	if !result.More {
		v.stats.Passes++
	}
	known := v.known[g]
	for slot := range known {
		if slot >= result.From && slot < result.To {
			delete(known, slot)
		}
	}
	for _, d := range result.Differences {
		v.stats.Differences++
		v.stats.Fenced += uint64(len(d.Fenced))
		if known == nil {
			known = make(map[uint16]Difference)
			v.known[g] = known
		}
		if len(known) < differencesMax {
			known[d.Slot] = d
		}
	}
	if len(known) == 0 {
		delete(v.known, g)
	}
}

// Alarm says in which slots the replicas of this group differed when last looked at, if it is led here; empty: in none.
func (g *Group) Alarm() string {
	v := g.replica.host.verifier
	v.mu.Lock()
	var all []string
	for _, d := range v.known[g] {
		all = append(all, d.String())
	}
	v.mu.Unlock()
	if len(all) == 0 || !g.IsLeader() {
		return ""
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// verifyTimeout bounds one look.
const verifyTimeout = 30 * time.Second

// verify is the scheduler's job: it takes the next few slots of the shard led here whose turn it is.
func (s *scheduler) verify() {
	s.host.forgetCaptures()
	v := s.host.verifier
	if v.peers.Load() == nil {
		return
	}
	groups := s.host.Groups()
	for g := range v.begun {
		if !slices.Contains(groups, g) {
			v.forget(g)
		}
	}
	var turn *Group
	for _, g := range groups {
		switch {
		case !g.IsLeader():
			delete(v.next, g)
		case v.next[g] == 0 && !v.begun[g].IsZero() && time.Since(v.begun[g]) < s.host.cfg.Verify.PassEvery:
		case v.next[g] > 0: // a pass is under way
			turn = g
		case turn == nil || v.next[turn] == 0 && v.begun[g].Before(v.begun[turn]):
			turn = g
		}
	}
	if turn == nil {
		return
	}
	from := v.next[turn]
	if from == 0 {
		v.begun[turn] = time.Now()
	}
	ctx, cancel := context.WithTimeout(s.ctx, verifyTimeout)
	defer cancel()
	result, err := s.host.Verify(ctx, turn.spec.Shard, from, false)
	switch {
	case err != nil:
		turn.replica.log.Debug("replicas not compared", "error", err)
		delete(v.next, turn)
	case result.More:
		v.next[turn] = result.To
	default:
		delete(v.next, turn)
	}
}

// forget drops what is known of a group that is not here any more. The verify job's goroutine.
func (v *verifier) forget(g *Group) {
	delete(v.next, g)
	delete(v.begun, g)
	v.mu.Lock()
	delete(v.known, g)
	v.mu.Unlock()
}
