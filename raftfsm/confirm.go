package raftfsm

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// confirmer runs the confirmation rounds behind linearizable reads (raft.md "Reads"; the Raft dissertation's
// ReadIndex, section 6.4, with terms in place of heartbeats).
//
// A read is answered from a leader's memory only after a majority of the group's voters said, in answer to a
// question sent after the read arrived, that they are still in the leader's term. A voter raises its own
// term before it grants a vote in a newer one, so a majority still in term T means that no later leader had
// been elected when they answered, and the leader's commit index captured before the question covers every
// write acknowledged before the read began.
//
// Reads of one group share a confirmation while it is open; the questions of all groups to one peer node
// share a message:
//
//	reads ─► confirmation of their group (open) ─► pending list of each peer ─► one ReadConfirm per message
//
// A confirmation is sealed when the first peer's worker takes it for sending: from then on no read may join,
// and term and commit index are captured at that moment. Each peer has confirmWorkers workers, so that a
// dead peer delays nobody else, and what arrives meanwhile gathers into the next message.
//
// No more peers are asked than a majority takes, since each question costs four system calls and as many wake-ups: first
// those that follow this node in the order of the voters, so that leaders on different nodes ask different ones, and the
// silent last. The others are asked when one says no or can't be reached, and after confirmPatience. A question that is
// sent late is as good: it, too, was sent after the reads arrived.
type confirmer struct {
	self    shard.NodeID
	ask     func(ctx context.Context, node shard.NodeID, items []transport.ConfirmItem) ([]bool, error)
	timeout time.Duration

	ctx    context.Context
	cancel context.CancelFunc
	// workers are joined by close: those of the peers, and hurry.
	workers sync.WaitGroup
	// waits holds a token when there is something for hurry.
	waits chan struct{}

	mu    sync.Mutex
	open  map[shard.ID]*confirmation
	peers map[shard.NodeID]*peerQuestions
	// begun are the rounds that have peers left to ask, the oldest first.
	begun []*confirmation
}

// confirmPatience is how long a peer is given before the others are asked too. It is long against a round trip and a busy
// peer's pause, and short against what a read may take.
const confirmPatience = 5 * time.Millisecond

// confirmWorkers is how many messages to one peer may be unanswered. With one, a read that just missed a
// message waits for a whole round trip before its own begins; with two it joins a message sent half a round
// trip later. More only makes messages smaller.
const confirmWorkers = 2

// leadership is what a group knows at the moment a confirmation is sealed.
type leadership struct {
	term   uint64
	commit uint64
	voters []voter
}

// voter is one voting replica and where it lives.
type voter struct {
	node    shard.NodeID
	replica shard.ReplicaID
}

// confirmation is one group's open or running round.
type confirmation struct {
	group  shard.ID
	voters []voter
	// lead captures the group's leadership when the round is sealed; an error ends the round.
	lead func() (leadership, error)

	// Guarded by confirmer.mu until done is closed, constant afterwards.
	sealed  bool
	begun   time.Time
	rest    []shard.NodeID // peers not asked yet
	term    uint64
	commit  uint64
	yes, no int
	err     error
	ended   bool
	done    chan struct{}
}

// peerQuestions holds the confirmations that wait to be asked of one peer.
type peerQuestions struct {
	pending []*confirmation
	wake    chan struct{}
	// asked is when each worker sent the question that it waits with; zero: it waits with none.
	asked [confirmWorkers]time.Time
	// failed is when a question could last not be asked or was not answered; zero: the latest was answered.
	failed time.Time
}

// silent holds for a peer that is asked after all others: it owes an answer for too long, or has failed not long ago.
func (p *peerQuestions) silent(now time.Time, failure time.Duration) bool {
	for _, since := range p.asked {
		if !since.IsZero() && now.Sub(since) >= confirmPatience {
			return true
		}
	}
	return !p.failed.IsZero() && now.Sub(p.failed) < failure
}

func newConfirmer(self shard.NodeID, timeout time.Duration,
	ask func(context.Context, shard.NodeID, []transport.ConfirmItem) ([]bool, error)) *confirmer {
	ctx, cancel := context.WithCancel(context.Background())
	c := &confirmer{self: self, ask: ask, timeout: timeout, ctx: ctx, cancel: cancel, waits: make(chan struct{}, 1),
		open: make(map[shard.ID]*confirmation), peers: make(map[shard.NodeID]*peerQuestions)}
	c.workers.Go(c.hurry)
	return c
}

func (c *confirmer) close() {
	c.mu.Lock()
	c.cancel() // under mu, so that no worker is started after it
	c.mu.Unlock()
	c.workers.Wait()
}

// confirm returns the commit index that a read which began before the call must see, once a majority of the
// voters confirmed the leadership that lead reports. voters is where to ask; lead reports them again at the
// time of sealing, and if they differ by then the round fails rather than count the wrong majority.
func (c *confirmer) confirm(ctx context.Context, group shard.ID, voters []voter, lead func() (leadership, error)) (uint64, error) {
	round, err := c.join(group, voters, lead)
	if err != nil {
		return 0, err
	}
	select {
	case <-round.done:
		return round.commit, round.err
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", ErrNotConfirmed, ctx.Err())
	case <-c.ctx.Done():
		return 0, ErrStopped
	}
}

// join returns the group's open round, or opens one and queues it for as many peers as a majority takes.
func (c *confirmer) join(group shard.ID, voters []voter, lead func() (leadership, error)) (*confirmation, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return nil, ErrStopped
	}
	if round := c.open[group]; round != nil && sameVoters(round.voters, voters) {
		return round, nil
	}
	round := &confirmation{group: group, voters: voters, lead: lead, begun: time.Now(), done: make(chan struct{})}
	c.open[group] = round
	for _, v := range voters {
		if v.node == c.self {
			round.yes++ // checked again by lead: a leader that is no longer in its term fails there
		}
	}
	round.rest = c.inAskingOrder(voters, round.begun)
	if len(round.rest) == 0 {
		c.sealLocked(round)
		c.settleLocked(round)
		return round, nil
	}
	c.askLocked(round, majority(voters)-round.yes)
	if len(round.rest) > 0 {
		c.begun = append(c.begun, round)
		token(c.waits)
	}
	return round, nil
}

// inAskingOrder lists the other voters' nodes: those that come after this one first, silent ones last.
func (c *confirmer) inAskingOrder(voters []voter, now time.Time) []shard.NodeID {
	own := max(0, slices.IndexFunc(voters, func(v voter) bool { return v.node == c.self }))
	nodes := make([]shard.NodeID, 0, len(voters))
	for _, silent := range []bool{false, true} {
		for i := range voters {
			node := voters[(own+i)%len(voters)].node
			if node != c.self && c.peer(node).silent(now, c.timeout) == silent && !slices.Contains(nodes, node) {
				nodes = append(nodes, node)
			}
		}
	}
	return nodes
}

// askLocked queues a round for the next n peers that have not been asked.
func (c *confirmer) askLocked(round *confirmation, n int) {
	for _, node := range round.rest[:min(n, len(round.rest))] {
		c.peer(node).queue(round)
	}
	round.rest = round.rest[min(n, len(round.rest)):]
}

// hurry asks the others where the first have not answered in time. One goroutine looks at all rounds every confirmPatience, so
// that a round needs no timer; it rests while there are none.
func (c *confirmer) hurry() {
	beat := time.NewTicker(confirmPatience)
	defer beat.Stop()
	for {
		beat.Stop()
		select {
		case <-c.waits:
		case <-c.ctx.Done():
			return
		}
		beat.Reset(confirmPatience)
		for busy := true; busy; {
			select {
			case now := <-beat.C:
				busy = c.askOthers(now)
			case <-c.ctx.Done():
				return
			}
		}
	}
}

// askOthers reports whether there are rounds left to look at.
func (c *confirmer) askOthers(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = slices.DeleteFunc(c.begun, func(round *confirmation) bool {
		if !round.ended && now.Sub(round.begun) >= confirmPatience {
			c.askLocked(round, len(round.rest))
		}
		return round.ended || len(round.rest) == 0
	})
	return len(c.begun) > 0
}

// peer returns a node's queue and starts its workers at first use.
func (c *confirmer) peer(node shard.NodeID) *peerQuestions {
	p := c.peers[node]
	if p == nil {
		p = &peerQuestions{wake: make(chan struct{}, 1)}
		c.peers[node] = p
		for i := range confirmWorkers {
			c.workers.Go(func() { c.work(i, node, p) })
		}
	}
	return p
}

func (p *peerQuestions) queue(round *confirmation) {
	p.pending = append(p.pending, round)
	token(p.wake)
}

// token leaves one in a channel that holds one.
func token(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// work sends one peer its questions, message by message.
func (c *confirmer) work(worker int, node shard.NodeID, p *peerQuestions) {
	for {
		select {
		case <-p.wake:
		case <-c.ctx.Done():
			return
		}
		rounds, items := c.take(worker, node, p)
		if len(rounds) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
		answers, err := c.ask(ctx, node, items)
		cancel()
		if err == nil && len(answers) != len(items) {
			err = fmt.Errorf("%d answers to %d questions", len(answers), len(items))
		}
		c.count(worker, p, rounds, answers, err)
	}
}

// take seals and removes all that waits for a peer.
func (c *confirmer) take(worker int, node shard.NodeID, p *peerQuestions) ([]*confirmation, []transport.ConfirmItem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rounds := p.pending[:0:0]
	var items []transport.ConfirmItem
	for _, round := range p.pending {
		if round.ended {
			continue
		}
		c.sealLocked(round)
		if round.ended {
			continue
		}
		for _, v := range round.voters {
			if v.node == node {
				rounds = append(rounds, round)
				items = append(items, transport.ConfirmItem{Group: round.group, Replica: v.replica, Term: round.term})
			}
		}
	}
	clear(p.pending)
	p.pending = p.pending[:0]
	if len(rounds) > 0 {
		p.asked[worker] = time.Now()
	}
	return rounds, items
}

// sealLocked closes a round to further reads and captures the leadership they rely on.
func (c *confirmer) sealLocked(round *confirmation) {
	if round.sealed {
		return
	}
	round.sealed = true
	if c.open[round.group] == round {
		delete(c.open, round.group)
	}
	led, err := round.lead()
	round.term, round.commit = led.term, led.commit
	switch {
	case err != nil:
		c.endLocked(round, err)
	case !sameVoters(led.voters, round.voters):
		c.endLocked(round, fmt.Errorf("%w: the voters changed meanwhile", ErrNotConfirmed))
	}
}

// count credits one peer's answers.
func (c *confirmer) count(worker int, p *peerQuestions, rounds []*confirmation, answers []bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.asked[worker], p.failed = time.Time{}, time.Time{}
	if err != nil {
		p.failed = time.Now()
	}
	for i, round := range rounds {
		if err == nil && answers[i] {
			round.yes++
		} else {
			round.no++
		}
		c.settleLocked(round)
		if !round.ended && (err != nil || !answers[i]) {
			c.askLocked(round, 1)
		}
	}
}

// settleLocked ends a round that is decided either way.
func (c *confirmer) settleLocked(round *confirmation) {
	switch needed := majority(round.voters); {
	case round.ended:
	case round.yes >= needed:
		c.endLocked(round, nil)
	case len(round.voters)-round.no < needed:
		c.endLocked(round, ErrNotConfirmed)
	}
}

func (c *confirmer) endLocked(round *confirmation, err error) {
	round.ended = true
	round.err = err
	close(round.done)
}

func majority(voters []voter) int { return len(voters)/2 + 1 }

func sameVoters(a, b []voter) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
