package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// replica runs one replica of one group: raft over its stores and transport, and what it replicates. Group and
// Meta are built on it.
//
// Its raft instance can be ended and begun again inside the process (the measure for raft#696 and #697); each
// such stretch is a life. Everything that belongs to one life hangs below it, the machine too, since raft
// replays its log into an empty one.
type replica struct {
	host  *Host
	group shard.ID
	id    shard.ReplicaID
	log   *slog.Logger
	// newMachine makes an empty machine for a life.
	newMachine func() machine
	// stamp returns shard time for an entry; ready prepares a new leader before it serves, after its barrier.
	stamp func(machine) store.Time
	ready func(ctx context.Context, l *life) error

	// joining: it was started without data, and may be again, for it has vouched for nothing that counts. settled makes
	// durable that this is over; see Host.StartJoiner.
	joining atomic.Bool
	settled func() error

	// mu serialises begin, end and restart.
	mu      sync.Mutex
	current atomic.Pointer[life]
	// restarts counts lives after the first; for metrics and tests.
	restarts atomic.Uint32
}

// life is one raft instance and what belongs to it.
//
//	begin: stores opened and checked ─► facade opened ─► raft started ─► proposer and leadership goroutine
//	end:   proposer closed (all answered) ─► leadership goroutine joined ─► raft shut down ─► facade, stores closed
type life struct {
	replica  *replica
	raft     *raft.Raft
	fsm      *fsm
	stores   *storage.Replica
	facade   *transport.Facade
	proposer *proposer

	ctx        context.Context // ended first of all
	cancel     context.CancelFunc
	goroutines sync.WaitGroup

	// leads is set while this replica leads and has applied all that earlier leaders committed.
	leads atomic.Pointer[leadTerm]
	// refusing is when a leader's entries began to be refused for a leadership transfer, in nanoseconds of the
	// host's clock; 0: they are taken.
	refusing atomic.Int64
	voters   atomic.Pointer[voterList]
	agreed   agreement
	odd      sync.Map // ReplicaID → string: replicas that this leader found to be odd, and why
}

// leadTerm is one term of leadership, ready to serve.
type leadTerm struct {
	term uint64
	// floor is a log index up to which everything had been applied when the term became ready.
	floor uint64
}

// voterList caches the voters of a raft configuration, which is immutable once published.
type voterList struct {
	servers []raft.Server
	voters  []voter
}

func (r *replica) raftConfig() *raft.Config {
	t := r.host.cfg.Timing
	c := raft.DefaultConfig()
	c.LocalID = transport.ServerID(r.id)
	c.HeartbeatTimeout, c.ElectionTimeout = t.Election, t.Election
	c.LeaderLeaseTimeout = t.LeaderLease
	c.CommitTimeout = t.Commit
	// It also sizes a slice per append, even an idle one; entries are packed, so few are enough.
	c.MaxAppendEntries = 64
	c.BatchApplyCh = true
	c.TrailingLogs = r.host.cfg.Snapshots.TrailingEntries
	// Snapshots are taken by the host's scheduler, by bytes of log.
	c.SnapshotThreshold, c.SnapshotInterval = 1<<62, 24*time.Hour
	c.NoLegacyTelemetry = true
	c.Logger = raftLogger(r.log)
	return c
}

// bootstrap writes the group's first configuration. raft is not started; a replica that has it is left alone,
// so that it may be repeated after a crash.
//
// raft.BootstrapCluster refuses a replica with any state, and writes the term before the configuration: a crash in
// between would leave a replica that neither it nor raft can use. So the two writes are made here.
func (r *replica) bootstrap(members []Member) error {
	stores, err := r.host.cfg.Storage.Open(r.group, r.id)
	if err != nil {
		return err
	}
	return errors.Join(bootstrapStores(stores, members), stores.Close())
}

// bootstrapStores writes a group's first configuration to stores that hold nothing.
func bootstrapStores(stores *storage.Replica, members []Member) error {
	last, err := stores.Log.LastIndex()
	if err != nil {
		return err
	}
	snapshots, err := stores.Snapshots.List()
	if err != nil || last > 0 || len(snapshots) > 0 {
		return err
	}
	var c raft.Configuration
	for _, m := range members {
		suffrage := raft.Voter
		if !m.Voter {
			suffrage = raft.Nonvoter
		}
		c.Servers = append(c.Servers, raft.Server{Suffrage: suffrage, ID: transport.ServerID(m.Replica),
			Address: transport.Address(m.Node, m.Replica)})
	}
	const firstTerm = 1
	if err := stores.Stable.SetUint64([]byte("CurrentTerm"), firstTerm); err != nil {
		return err
	}
	return stores.Log.StoreLog(&raft.Log{Index: 1, Term: firstTerm, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)})
}

// join makes it one that may start without data; before start.
func (r *replica) join(settled func() error) {
	r.settled = settled
	r.joining.Store(true)
}

// start begins the first life.
func (r *replica) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.begin()
}

// begin starts a life. mu is held.
func (r *replica) begin() error {
	stores, err := r.host.cfg.Storage.Open(r.group, r.id)
	if err != nil {
		return err
	}
	l, err := r.run(stores)
	if err != nil {
		return errors.Join(fmt.Errorf("starting replica %d of shard %d: %w", r.id, r.group, err), stores.Close())
	}
	r.current.Store(l)
	return nil
}

func (r *replica) run(stores *storage.Replica) (*life, error) {
	if err := stores.Reconcile(); err != nil {
		return nil, err
	}
	if !r.joining.Load() {
		if err := refuseEmpty(stores); err != nil {
			return nil, err
		}
	}
	facade, err := r.host.cfg.Transport.Open(r.group, r.id, stores.Log)
	if err != nil {
		return nil, err
	}
	l := &life{replica: r, stores: stores, facade: facade}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.fsm = &fsm{machine: r.newMachine(), halt: r.halted, throttle: r.host.snapshotThrottle}
	l.raft, err = raft.NewRaft(r.raftConfig(), l.fsm, stores.Log, stores.Stable, stores.Snapshots, facade)
	if err != nil {
		l.cancel()
		return nil, errors.Join(err, facade.Close())
	}
	facade.CommitFrom(l.raft.CommitIndex)
	l.fsm.running.Store(true)
	l.proposer = newProposer(r.host.cfg.Proposer, l.apply, l.raft.CurrentTerm,
		func() store.Time { return r.stamp(l.fsm.machine) }, l.noteRefusal)
	l.goroutines.Go(l.followLeadership)
	for _, v := range l.currentVoters() {
		if v.node != r.host.cfg.Node {
			r.host.cfg.Transport.Reach(v.node)
		}
	}
	return l, nil
}

// refuseEmpty refuses a replica that holds nothing. Every replica is born with its group's first configuration, or settled
// only once it had one, so one without it has lost its data, and with that what it vouched for; raft would let it vote, and
// grant every vote.
func refuseEmpty(stores *storage.Replica) error {
	last, err := stores.Log.LastIndex()
	if err != nil {
		return err
	}
	snapshots, err := stores.Snapshots.List()
	if err != nil {
		return err
	}
	if last == 0 && len(snapshots) == 0 {
		return fmt.Errorf("%w: its log is empty, and it has no snapshot", storage.ErrReplicaBehind)
	}
	return nil
}

// apply hands an entry to raft if this node's disk has room for it: once the log is asked, it can only wait.
func (l *life) apply(data []byte, timeout time.Duration) raft.ApplyFuture {
	if err := l.stores.Log.Room(len(data)); err != nil {
		return refused{fmt.Errorf("%w: %w", ErrNoSpace, err)}
	}
	l.facade.Hurry()
	return l.raft.Apply(data, timeout)
}

// refused is the future of an entry that was not handed to raft.
type refused struct{ err error }

func (r refused) Error() error  { return r.err }
func (r refused) Response() any { return nil }
func (r refused) Index() uint64 { return 0 }

// settle ends the joining of a replica that has its group's configuration: what it applied is committed, and the first that
// a group commits is a configuration. It must be durable here before that may be said: a crash could otherwise leave it
// empty and settled, which is how lost data looks.
func (l *life) settle() error {
	r := l.replica
	if !r.joining.Load() || l.fsm.applied.load() == 0 {
		return nil
	}
	durable := make(chan error, 1)
	if !l.stores.Log.Notify(l.stores.Log.Appended(), func(err error) { durable <- err }) {
		select {
		case err := <-durable:
			if err != nil {
				return err
			}
		case <-l.ctx.Done():
			return nil
		}
	}
	if err := r.settled(); err != nil {
		return err
	}
	r.joining.Store(false)
	return nil
}

// halted is called by a machine that met what it can't apply.
func (r *replica) halted(err error) {
	r.host.cfg.Fatal(fmt.Errorf("replica %d of shard %d stops: %w", r.id, r.group, err))
}

// stop ends the current life for good.
func (r *replica) stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.current.Load()
	if l == nil {
		return nil
	}
	r.current.Store(nil)
	return l.end()
}

// restart ends the current life and begins another over the same stores.
func (r *replica) restart(reason string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.current.Load()
	if l == nil {
		return nil
	}
	r.log.Warn("restarting the group", "reason", reason)
	r.restarts.Add(1)
	// Nobody may ask a life that is over: its term stands still while the next one votes.
	r.current.Store(nil)
	if err := l.end(); err != nil {
		return err
	}
	return r.begin()
}

func (l *life) end() error {
	l.cancel()
	l.proposer.close()
	l.goroutines.Wait()
	ended := l.raft.Shutdown()
	// Before waiting: raft's goroutines may be in calls to peers, which end with the facade.
	err := l.facade.Close()
	return errors.Join(ended.Error(), err, l.stores.Close())
}

// followLeadership makes each new term of leadership ready and withdraws it when it is lost. raft overrides
// what is unread in its channel, so two changes may look like one: the term tells.
func (l *life) followLeadership() {
	retry := time.NewTimer(0)
	<-retry.C
	defer retry.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case leads := <-l.raft.LeaderCh():
			l.leads.Store(nil)
			l.paceHeartbeats(leads)
			if !leads {
				continue
			}
		case <-retry.C:
		}
		if err := l.becomeReady(); err != nil && l.ctx.Err() == nil {
			l.replica.log.Debug("not ready to lead", "error", err)
			retry.Reset(l.replica.host.cfg.Timing.Election / 10)
		}
	}
}

// paceHeartbeats halves how often a leader beats. raft does so at a tenth to a fifth of the leader's own HeartbeatTimeout, which is
// a follower's patience otherwise, and takes a change of it at any time: so a leader has twice the timeout, and beats each
// follower three times in one Election rather than six. raft wants ElectionTimeout not to be less; for a leader that bounds
// transfers of leadership alone.
func (l *life) paceHeartbeats(leads bool) {
	election := l.replica.host.cfg.Timing.Election
	if leads {
		election *= 2
	}
	c := l.raft.ReloadableConfig()
	c.HeartbeatTimeout, c.ElectionTimeout = election, election
	if err := l.raft.ReloadConfig(c); err != nil {
		l.replica.log.Error("the pace of heartbeats can't be changed", "error", err)
	}
}

// becomeReady waits until everything that earlier leaders committed is applied here, lets the group prepare,
// and publishes the term.
func (l *life) becomeReady() error {
	if l.raft.State() != raft.Leader {
		return nil
	}
	term := l.raft.CurrentTerm()
	floor := l.raft.LastIndex()
	err := l.raft.Barrier(l.replica.host.cfg.Timing.Election).Error()
	l.noteRefusal(err) // the flag of raft#696 outlives a term: a leader elected with it never gets past here
	if err != nil {
		return err
	}
	if l.replica.ready != nil {
		if err := l.replica.ready(l.ctx, l); err != nil {
			return err
		}
	}
	if l.raft.State() != raft.Leader || l.raft.CurrentTerm() != term {
		return nil // LeaderCh tells of what came after
	}
	l.leads.Store(&leadTerm{term: term, floor: floor})
	return nil
}

// leading returns the term this replica leads and is ready in.
func (l *life) leading() (*leadTerm, error) {
	lead := l.leads.Load()
	if lead != nil && l.raft.State() == raft.Leader && l.raft.CurrentTerm() == lead.term {
		return lead, nil
	}
	if l.raft.State() == raft.Leader {
		return nil, ErrNotReady
	}
	return nil, l.notLeader()
}

// leading returns the current life if it leads and is ready. Errors: ErrStopped, and those of life.leading.
func (r *replica) leading() (*life, error) {
	l := r.current.Load()
	if l == nil {
		return nil, ErrStopped
	}
	_, err := l.leading()
	return l, err
}

func (l *life) notLeader() error {
	return &NotLeaderError{Group: l.replica.group, Leader: l.leaderNode()}
}

// leaderNode is the node this replica believes to lead, or empty.
func (l *life) leaderNode() shard.NodeID {
	address, _ := l.raft.LeaderWithID()
	if address == "" {
		return ""
	}
	node, _, err := transport.ParseAddress(address)
	if err != nil {
		return ""
	}
	return node
}

// noteRefusal hears raft's answer to every entry and remembers since when a leader refuses them all for a
// transfer of leadership: raft#696 leaves that flag set for ever.
func (l *life) noteRefusal(err error) {
	switch {
	case !errors.Is(err, raft.ErrLeadershipTransferInProgress):
		l.refusing.Store(0)
	case l.refusing.Load() == 0:
		l.refusing.Store(max(1, int64(l.replica.host.cfg.Clock.Monotonic())))
	}
}

// currentVoters returns the voters of raft's latest configuration, committed or not.
func (l *life) currentVoters() []voter {
	servers := l.raft.GetConfiguration().Configuration().Servers
	if cached := l.voters.Load(); cached != nil && sameServers(cached.servers, servers) {
		return cached.voters
	}
	list := &voterList{servers: servers}
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		node, id, err := transport.ParseAddress(s.Address)
		if err != nil {
			// Counting one voter less would be unsafe; one that never answers is only slow.
			l.replica.log.Error("a voter's address does not parse", "address", s.Address, "error", err)
		}
		list.voters = append(list.voters, voter{node: node, replica: id})
	}
	l.voters.Store(list)
	return list.voters
}

// sameServers holds for two views of one published configuration: raft stores a new slice at each change.
func sameServers(a, b []raft.Server) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// readIndex waits until a read that began before the call may be answered from the machine: until a majority
// confirmed the leader's term and the machine holds all that was committed then.
func (l *life) readIndex(ctx context.Context) error {
	if _, err := l.leading(); err != nil || knownbad.Confirmation {
		return err
	}
	commit, err := l.replica.host.confirmer.confirm(ctx, l.replica.group, l.currentVoters(), func() (leadership, error) {
		lead, err := l.leading()
		if err != nil {
			return leadership{}, err
		}
		return leadership{term: lead.term, commit: l.raft.CommitIndex(), voters: l.currentVoters()}, nil
	})
	if err != nil {
		return err
	}
	return l.waitApplied(ctx, commit)
}

// waitApplied waits until the machine holds every entry up to index that it will ever see. No-ops and barriers
// never reach it; up to a ready leader's floor all is applied, and above it storage knows which are which.
func (l *life) waitApplied(ctx context.Context, index uint64) error {
	if l.fsm.applied.load() >= index {
		return nil
	}
	if lead := l.leads.Load(); lead != nil && index <= lead.floor {
		return nil
	}
	done := l.fsm.applied.reached(l.stores.Log.LastVisible(index))
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		l.fsm.applied.forget(done)
		return fmt.Errorf("%w: %w", ErrDeadline, ctx.Err())
	case <-l.ctx.Done():
		l.fsm.applied.forget(done)
		return ErrStopped
	}
}

// errNotCaughtUp: a transfer's target has not lately acknowledged what the leader has.
var errNotCaughtUp = fmt.Errorf("%w: the voter that should take over has not caught up", ErrNotReady)

// lagMax is how many entries a voter may lack to take over, or a replica to become one: writes wait until it has them.
const lagMax = 1024

// transferLeadership moves leadership to a voter. raft would accept any server, and hangs for ever on one whose
// replicator is busy (raft#696), so both is checked here: it votes, and has just acknowledged an append that leaves
// little to be sent. Writes wait meanwhile, and those on their way are answered first: raft would report them as
// lost, their outcome unknown, when it steps down.
func (l *life) transferLeadership(to voter) error {
	if !slices.Contains(l.currentVoters(), to) {
		return fmt.Errorf("%w: replica %d on %s is not a voter of shard %d", ErrNotLeader, to.replica, to.node, l.replica.group)
	}
	if !l.keepsUp(to) {
		return errNotCaughtUp
	}
	address := transport.Address(to.node, to.replica)
	defer l.proposer.pause()()
	if l.ctx.Err() != nil {
		return ErrStopped
	}
	transferred := make(chan error, 1)
	// Ends with raft's answer. There is none if raft shuts down at this very moment: then the goroutine stays.
	go func() {
		transferred <- l.raft.LeadershipTransferToServer(transport.ServerID(to.replica), address).Error()
	}()
	select {
	case err := <-transferred:
		return err
	case <-l.ctx.Done():
		return ErrStopped
	case <-time.After(3 * l.replica.host.cfg.Timing.Election): // raft gives up after two: see paceHeartbeats
		return fmt.Errorf("%w: raft does not answer a transfer", ErrNotReady)
	}
}
