package server

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/shard"
)

// A cluster that has lost a majority of some group's voters for good is rebuilt offline, from the data directories of
// survivors:
//
//	every directory locked, a note in it that a recovery is under way: no node starts on it any more
//	  ─► the meta group: its best survivor alone, with the state of the rebuilt cluster ─► that decides
//	  ─► each shard: its best survivor alone ─► the other replicas wiped, to begin anew ─► node.json ─► the notes removed
//
// The rebuilt cluster has another id. So should a node that was taken for lost come back with its data, and find others
// like it, they are another cluster, and neither speaks to this one nor is spoken to. Cut off anywhere, a recovery is
// finished by running it again with the same directories.

// Errors of a recovery.
var (
	// ErrRecovery: the directories are not those of nodes of one cluster, or hold too little.
	ErrRecovery = errors.New("recovery is not possible")
	// ErrRecoveryUnfinished: a recovery of the data directory was begun and not finished.
	ErrRecoveryUnfinished = errors.New("a recovery of this data directory was cut off: run `ostraka recover` with the same directories again")
)

// recoveryFile is the note in a data directory that a recovery is under way.
const recoveryFile = "recovery.json"

type recoveryNote struct {
	Format int    `json:"format"`
	From   string `json:"from_cluster_id"`
	To     string `json:"to_cluster_id"`
}

// refuseUnfinishedRecovery is asked before a node starts.
func refuseUnfinishedRecovery(files disk.FS, dir string) error {
	path := filepath.Join(dir, recoveryFile)
	if _, err := files.Stat(path); err == nil {
		return fmt.Errorf("%w: %s is there", ErrRecoveryUnfinished, path)
	}
	return nil
}

// RecoveryReport says what a recovery is going to do, in the form that `ostraka recover --json` prints.
type RecoveryReport struct {
	ClusterID string `json:"cluster_id"`
	// NewClusterID is the rebuilt cluster's.
	NewClusterID string `json:"new_cluster_id"`
	// Survivors are the nodes whose data directories were given, Lost all others.
	Survivors []RecoveredNode  `json:"survivors"`
	Lost      []string         `json:"lost"`
	Groups    []RecoveredGroup `json:"groups"`
}

// RecoveredNode is a node whose data directory was given.
type RecoveredNode struct {
	ID      string `json:"id"`
	DataDir string `json:"data_dir"`
}

// What a recovery may lose of a group.
const (
	// LossNone: a majority of its voters is here, so that all that was acknowledged is.
	LossNone = "none"
	// LossPossible: what others had acknowledged after the last entry here is lost.
	LossPossible = "possible"
	// LossAll: no copy is here. It begins empty.
	LossAll = "all"
)

// RecoveredGroup is one group's part of a recovery.
type RecoveredGroup struct {
	// Shard is 0 for the cluster's own state.
	Shard uint32 `json:"shard"`
	// Node and Replica go on with the group, as its only voter at first.
	Node    string `json:"node"`
	Replica uint64 `json:"replica,omitempty"`
	// LastTerm and LastIndex are those of the last entry there, Written when it was made; absent where that is not known.
	LastTerm  uint64     `json:"last_term"`
	LastIndex uint64     `json:"last_index"`
	Written   *time.Time `json:"written,omitempty"`
	// Voters of the group, and how many of them are here and whole. A copy that may have lost its end, since its machine
	// stopped with --sync interval, is used but not counted.
	Voters     int    `json:"voters"`
	VotersHere int    `json:"voters_here"`
	Loss       string `json:"loss"`
	// Unusable says why copies that are here are no use.
	Unusable []string `json:"unusable,omitempty"`
}

// Recovery is a recovery in the making. Its data directories are locked until Close.
type Recovery struct {
	Report RecoveryReport

	files disk.FS
	log   *slog.Logger
	dirs  []*recoveryDir
	// state is what the rebuilt cluster begins with. decided: the meta group holds it already.
	state     *raftfsm.ClusterState
	decided   bool
	survivors map[shard.ID]raftfsm.Survivor
}

// recoveryDir is one data directory.
type recoveryDir struct {
	dir   string
	id    *identity
	held  map[shard.ID]heldReplica
	note  *recoveryNote
	disks *storage.Node
	lock  *disk.FileLock
}

// OpenRecovery looks at the data directories of stopped nodes, and says in Report what Run would do. It changes what they
// hold no more than a start of the nodes does. With emptyShards, shards of which no copy is here begin empty; without, that
// is an error. Errors: ErrRecovery, disk.ErrLocked for a node that runs, what opening a data directory can fail with.
func OpenRecovery(dirs []string, emptyShards bool, log *slog.Logger) (r *Recovery, err error) {
	r = &Recovery{files: disk.OS{}, log: log, survivors: make(map[shard.ID]raftfsm.Survivor)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for _, dir := range dirs {
		if err := r.open(dir); err != nil {
			return r, fmt.Errorf("data directory %s: %w", dir, err)
		}
	}
	if err := r.checkDirs(); err != nil {
		return r, err
	}
	return r, r.plan(emptyShards)
}

func (r *Recovery) open(dir string) error {
	// Before the lock, which would make the directory look used.
	id, err := readIdentity(r.files, dir)
	if err != nil {
		return err
	}
	if id.Phase != phaseMember {
		return fmt.Errorf("%w: the node is %s, and holds nothing", ErrRecovery, id.Phase)
	}
	d := &recoveryDir{dir: dir, id: id}
	r.dirs = append(r.dirs, d)
	if d.lock, err = disk.Lock(filepath.Join(dir, "lock")); err != nil {
		return err
	}
	if d.note, err = readNote(r.files, dir); err != nil {
		return err
	}
	m, err := decodeMap(id.plan.GetMap())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIdentityDamaged, err)
	}
	d.held = id.holdings(m)
	d.disks, err = storage.Open(storage.Config{Dir: dir, FS: r.files, Logger: r.log.With("node", id.Node), StallMax: time.Minute, TrustUnclean: true,
		Fatal: func(err error) { r.log.Error("the disk failed", "data_dir", dir, "error", err) }})
	return err
}

func readNote(files disk.FS, dir string) (*recoveryNote, error) {
	path := filepath.Join(dir, recoveryFile)
	data, err := disk.ReadFile(files, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var note recoveryNote
	if err := json.Unmarshal(data, &note); err != nil || note.Format != 1 || note.From == "" || note.To == "" {
		return nil, fmt.Errorf("%w: %s can't be read: %w", ErrRecovery, path, err)
	}
	return &note, nil
}

// checkDirs wants different nodes of one cluster, and finds the ids of that and of the rebuilt one.
func (r *Recovery) checkDirs() error {
	if len(r.dirs) == 0 {
		return fmt.Errorf("%w: no data directory is given", ErrRecovery)
	}
	var random [16]byte
	rand.Read(random[:])
	r.Report.ClusterID, r.Report.NewClusterID = r.dirs[0].id.ClusterID, hex.EncodeToString(random[:])
	for _, d := range r.dirs {
		if d.note != nil {
			r.Report.ClusterID, r.Report.NewClusterID = d.note.From, d.note.To
		}
	}
	seen := make(map[shard.NodeID]string)
	for _, d := range r.dirs {
		if other := seen[d.id.Node]; other != "" {
			return fmt.Errorf("%w: %s and %s are both of node %s", ErrRecovery, other, d.dir, d.id.Node)
		}
		seen[d.id.Node] = d.dir
		if d.id.ClusterID != r.Report.ClusterID && d.id.ClusterID != r.Report.NewClusterID {
			return fmt.Errorf("%w: %s is of cluster %s, another of cluster %s", ErrRecovery, d.dir, d.id.ClusterID, r.Report.ClusterID)
		}
		r.Report.Survivors = append(r.Report.Survivors, RecoveredNode{ID: string(d.id.Node), DataDir: d.dir})
	}
	return nil
}

// copyOf is one replica that is here.
type copyOf struct {
	dir     *recoveryDir
	replica heldReplica
	remains *raftfsm.Remains
}

// better tells whether a copy rather than another should go on: those that were not stopped for differing from their peers first, then
// whole ones before those that were still being made, then by what Raft elects for.
func (c *copyOf) better(than *copyOf) bool {
	if fenced := c.replica.Fenced != ""; fenced != (than.replica.Fenced != "") {
		return !fenced
	}
	if c.replica.Joining != than.replica.Joining {
		return !c.replica.Joining
	}
	return c.remains.Newer(than.remains)
}

// best finds the copy of a group that goes on; nil: there is none that can be used.
func (r *Recovery) best(group shard.ID) (best *copyOf, report RecoveredGroup, err error) {
	report = RecoveredGroup{Shard: uint32(group), Loss: LossAll}
	var here []*copyOf
	for _, d := range r.dirs {
		held, ok := d.held[group]
		if !ok {
			continue
		}
		remains, err := raftfsm.Survey(d.disks, group, held.ID)
		switch {
		case raftfsm.MustBeReplaced(err):
			report.Unusable = append(report.Unusable, fmt.Sprintf("%s: %v", d.id.Node, err))
			continue
		case err != nil:
			return nil, report, err
		}
		c := &copyOf{d, held, remains}
		here = append(here, c)
		if best == nil || c.better(best) {
			best = c
		}
	}
	if best == nil {
		return nil, report, nil
	}
	report.Node, report.Replica = string(best.dir.id.Node), uint64(best.replica.ID)
	report.LastTerm, report.LastIndex = best.remains.LastTerm, best.remains.LastIndex
	if w := best.remains.Written; !w.IsZero() {
		report.Written = &w
	}
	for _, m := range best.remains.Members {
		if !m.Voter {
			continue
		}
		report.Voters++
		if slices.ContainsFunc(here, func(c *copyOf) bool {
			return c.replica.ID == m.Replica && !c.replica.Joining && c.replica.Fenced == "" && !c.remains.Unclean
		}) {
			report.VotersHere++
		}
	}
	if report.Loss = LossPossible; report.VotersHere > report.Voters/2 {
		report.Loss = LossNone
	}
	return best, report, nil
}

// plan finds who goes on with each group, and the state of the rebuilt cluster.
func (r *Recovery) plan(emptyShards bool) error {
	meta, report, err := r.best(shard.MetaGroup)
	if err != nil {
		return err
	}
	if meta == nil {
		return fmt.Errorf("%w: no whole copy of the cluster's own state is here: %s", ErrRecovery, report.Unusable)
	}
	r.Report.Groups = append(r.Report.Groups, report)
	r.survivors[shard.MetaGroup] = raftfsm.Survivor{Node: meta.dir.id.Node, Replica: meta.replica.ID}
	state, err := raftfsm.ReadState(meta.dir.disks, meta.replica.ID)
	if err != nil {
		return err
	}
	r.decided = state.ClusterID == r.Report.NewClusterID
	if !r.decided && state.ClusterID != r.Report.ClusterID {
		return fmt.Errorf("%w: the state is of cluster %s, the node of cluster %s", ErrRecovery, state.ClusterID, r.Report.ClusterID)
	}
	var nodes []shard.NodeID
	for _, d := range r.dirs {
		nodes = append(nodes, d.id.Node)
	}
	for _, n := range state.Map.Nodes() {
		if !slices.Contains(nodes, n.ID) {
			r.Report.Lost = append(r.Report.Lost, string(n.ID))
		}
	}
	for _, s := range state.Map.Shards() {
		best, report, err := r.best(s.ID)
		if err != nil {
			return err
		}
		who := raftfsm.Survivor{}
		switch {
		case r.decided: // as it was when the recovery was cut off
			if who, err = r.decidedSurvivor(s); err != nil {
				return err
			}
			report.Node = string(who.Node)
		case best != nil:
			who = raftfsm.Survivor{Node: best.dir.id.Node, Replica: best.replica.ID}
		case !emptyShards:
			return fmt.Errorf("%w: no whole copy of shard %d is here %s; --empty-lost-shards lets it begin empty", ErrRecovery, s.ID, report.Unusable)
		default:
			who = raftfsm.Survivor{Node: emptyHome(state.Map, s, nodes)}
			report.Node = string(who.Node)
		}
		r.survivors[s.ID] = who
		r.Report.Groups = append(r.Report.Groups, report)
	}
	if r.state = state; r.decided {
		return nil
	}
	r.state, err = state.Recovered(r.Report.NewClusterID, r.survivors, nodes)
	return err
}

// decidedSurvivor is who goes on with a shard by the state of the rebuilt cluster.
func (r *Recovery) decidedSurvivor(s shard.Shard) (raftfsm.Survivor, error) {
	who := raftfsm.Survivor{Node: s.Preferred}
	d := r.dirOf(s.Preferred)
	if d == nil {
		return who, fmt.Errorf("%w: node %s goes on with shard %d, and its data directory is not given", ErrRecovery, who.Node, s.ID)
	}
	for _, m := range s.Replicas {
		if !m.Voter {
			continue
		}
		switch _, err := raftfsm.Survey(d.disks, s.ID, m.ID); {
		case err == nil:
			who.Replica = m.ID
		case !errors.Is(err, storage.ErrReplicaBehind): // else it begins empty, and had not begun yet
			return who, err
		}
	}
	return who, nil
}

// emptyHome is the survivor that a shard begins anew on.
func emptyHome(m *shard.Map, s shard.Shard, nodes []shard.NodeID) shard.NodeID {
	for _, n := range nodes {
		if _, ok := m.ReplicaOn(s.ID, n); ok {
			return n
		}
	}
	return nodes[int(s.ID)%len(nodes)]
}

// Run rebuilds the cluster. After an error it may be tried again, with the same directories.
func (r *Recovery) Run() error {
	for _, step := range r.steps() {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// steps are those of Run, in order. Each may be cut off, and repeated.
func (r *Recovery) steps() []func() error {
	var steps []func() error
	for _, d := range r.dirs {
		steps = append(steps, func() error { return r.leaveNote(d) })
	}
	if !r.decided {
		steps = append(steps, func() error {
			who := r.survivors[shard.MetaGroup]
			self := raftfsm.Member{Node: who.Node, Replica: who.Replica, Voter: true}
			return raftfsm.RecoverMeta(r.dirOf(who.Node).disks, self, r.state, r.log)
		})
	}
	for _, s := range r.state.Map.Shards() {
		steps = append(steps, func() error { return r.recoverShard(s) })
	}
	for _, d := range r.dirs {
		steps = append(steps, func() error { return r.rebuildNode(d) })
	}
	for _, d := range r.dirs {
		steps = append(steps, func() error {
			return errors.Join(disk.RemoveIfThere(r.files, filepath.Join(d.dir, recoveryFile)), r.files.SyncDir(d.dir))
		})
	}
	return steps
}

func (r *Recovery) leaveNote(d *recoveryDir) error {
	note, err := json.Marshal(recoveryNote{Format: 1, From: r.Report.ClusterID, To: r.Report.NewClusterID})
	if err != nil {
		return err
	}
	return disk.WriteFileAtomic(r.files, filepath.Join(d.dir, recoveryFile), append(note, '\n'))
}

func (r *Recovery) recoverShard(s shard.Shard) error {
	who := r.survivors[s.ID]
	d := r.dirOf(who.Node)
	held, _ := r.state.MemberOn(s.ID, who.Node)
	if who.Replica == 0 {
		return raftfsm.RecoverEmpty(d.disks, s.ID, held)
	}
	return raftfsm.RecoverShard(d.disks, s.ID, held, r.log)
}

// rebuildNode wipes what a node holds and doesn't go on with, and makes it a node of the rebuilt cluster.
func (r *Recovery) rebuildNode(d *recoveryDir) error {
	plan := planOf(r.state, d.id.plan)
	data, err := protojson.Marshal(plan)
	if err != nil {
		return err
	}
	next := *d.id
	next.ClusterID, next.Plan, next.Replicas = plan.GetClusterId(), data, nil
	for _, group := range r.state.GroupsOn(d.id.Node) {
		m, _ := r.state.MemberOn(group, d.id.Node)
		next.hold(group, heldReplica{ID: m.Replica, Joining: !m.Voter})
	}
	for group, held := range d.held {
		if next.Replicas[group].ID == held.ID {
			continue
		}
		if err := d.disks.Remove(group, held.ID); err != nil {
			return err
		}
	}
	return next.save(r.files, d.dir)
}

func (r *Recovery) dirOf(node shard.NodeID) *recoveryDir {
	for _, d := range r.dirs {
		if d.id.Node == node {
			return d
		}
	}
	return nil
}

// Close closes and unlocks the data directories.
func (r *Recovery) Close() (failed error) {
	for _, d := range r.dirs {
		if d.disks != nil {
			failed = errors.Join(failed, d.disks.Close())
		}
		if d.lock != nil {
			failed = errors.Join(failed, d.lock.Unlock())
		}
	}
	return failed
}
