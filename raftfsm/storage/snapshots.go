package storage

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/shard"
)

// ErrSnapshotOld means a snapshot older than one that the replica has. It is not kept: publishing it would take
// raft, and the FSM with an install, back behind what was vouched for.
var ErrSnapshotOld = errors.New("storage: a newer snapshot is there")

const (
	snapshotSuffix = ".snap"
	// asideSuffix marks a snapshot that isn't finished; leftovers are removed at open.
	asideSuffix = ".aside"
	// damagedSuffix is put behind the name of a snapshot that was found damaged; it is kept for people to look at,
	// and never read again.
	damagedSuffix = ".damaged"
)

// Snapshots is one replica's raft.SnapshotStore.
//
// A snapshot is written aside, synced, renamed, and its directory synced; then the minimum index is raised and
// older ones are removed. Open checks each block as it is read and the end before it says io.EOF: whoever
// restores from it builds aside and swaps only after io.EOF.
type Snapshots struct {
	node   *Node
	who    identity
	dir    string
	stable *Stable
	// log is the replica's, once there is one.
	log *Log

	mu sync.Mutex
	// kept are the snapshots that may be restored from, the newest first.
	kept []snapshotFile
	// damaged were found unreadable at open and wait for Reconcile's judgement.
	damaged []damagedSnapshot
	// sequence is above that of every file there ever was in this life, so that no name is used twice.
	sequence uint64
}

var _ raft.SnapshotStore = (*Snapshots)(nil)

// snapshotName is what a file's name says. Names are unique in the cluster, since replica ids are.
type snapshotName struct {
	term, index uint64
	replica     shard.ReplicaID
	sequence    uint64
}

// id is the snapshot's raft.SnapshotMeta.ID.
func (n snapshotName) id() string {
	return fmt.Sprintf("%d-%d-%d-%d", n.term, n.index, uint64(n.replica), n.sequence)
}

func parseSnapshotName(id string) (snapshotName, bool) {
	var n snapshotName
	var replica uint64
	if _, err := fmt.Sscanf(id, "%d-%d-%d-%d", &n.term, &n.index, &replica, &n.sequence); err != nil {
		return n, false
	}
	n.replica = shard.ReplicaID(replica)
	return n, n.id() == id
}

// newerFirst orders snapshots. Committed entries' terms grow with their index, so the index comes first.
func (n snapshotName) newerFirst(o snapshotName) int {
	return cmp.Or(cmp.Compare(o.index, n.index), cmp.Compare(o.term, n.term), cmp.Compare(o.sequence, n.sequence))
}

// snapshotFile is a kept snapshot.
type snapshotFile struct {
	snapshotName
	meta raft.SnapshotMeta
}

// damagedSnapshot is one that can't be restored from. Its name still says what it was.
type damagedSnapshot struct {
	snapshotName
	err error
}

// openSnapshots reads what is in the replica's directory.
func openSnapshots(n *Node, who identity, stable *Stable) (*Snapshots, error) {
	s := &Snapshots{node: n, who: who, dir: n.snapshotDir(who.group), stable: stable}
	if err := disk.MkdirAll(n.cfg.FS, s.dir); err != nil {
		return nil, err
	}
	// raft's own store skips what it can't read, and a voter may start empty. Here an error is an error.
	infos, err := n.cfg.FS.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		if err := s.noteFile(info.Name); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(s.kept, func(a, b snapshotFile) int { return a.newerFirst(b.snapshotName) })
	return s, nil
}

func (s *Snapshots) noteFile(file string) error {
	id, suffix, _ := strings.Cut(file, snapshotSuffix)
	name, ok := parseSnapshotName(id)
	switch {
	case !ok:
		s.node.cfg.Logger.Warn("a file that is no snapshot is left alone", "path", filepath.Join(s.dir, file))
		return nil
	case name.replica != s.who.replica:
		return nil
	}
	s.sequence = max(s.sequence, name.sequence)
	switch suffix {
	case asideSuffix:
		return s.node.cfg.FS.Remove(filepath.Join(s.dir, file))
	case damagedSuffix:
		return nil
	}
	meta, err := s.readMeta(name)
	switch {
	case errors.Is(err, ErrSnapshotDamaged):
		s.damaged = append(s.damaged, damagedSnapshot{name, err})
		return nil
	case err != nil:
		return err
	}
	s.kept = append(s.kept, snapshotFile{name, meta})
	return nil
}

func (s *Snapshots) readMeta(name snapshotName) (raft.SnapshotMeta, error) {
	r, err := openSnapshot(s.node.cfg.FS, s.path(name))
	if err != nil {
		return raft.SnapshotMeta{}, err
	}
	defer r.Close()
	m := r.meta
	if m.Group != s.who.group || m.Replica != name.replica || m.Index != name.index || m.Term != name.term {
		return raft.SnapshotMeta{}, r.damaged(0, fmt.Sprintf("it is of replica %d of shard %d at index %d in term %d, its name says otherwise",
			m.Replica, m.Group, m.Index, m.Term))
	}
	meta, err := m.raftMeta(name.id(), r.stateBytes)
	if err != nil {
		return raft.SnapshotMeta{}, r.damaged(headFixedBytes, err.Error())
	}
	return meta, nil
}

func (s *Snapshots) path(name snapshotName) string {
	return filepath.Join(s.dir, name.id()+snapshotSuffix)
}

// Create implements raft.SnapshotStore. It fails with ErrSnapshotOld where a newer one is there.
func (s *Snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	s.sequence++
	name := snapshotName{term: term, index: index, replica: s.who.replica, sequence: s.sequence}
	err := s.checkNotOldLocked(name)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	meta := &snapshotMeta{Group: s.who.group, Replica: s.who.replica, Version: int(version), Index: index, Term: term,
		ConfigurationIndex: configurationIndex}
	for _, server := range configuration.Servers {
		meta.Servers = append(meta.Servers, snapshotServer{Suffrage: server.Suffrage.String(), ID: string(server.ID), Address: string(server.Address)})
	}
	return newSnapshotSink(s, name, meta)
}

func (s *Snapshots) checkNotOldLocked(name snapshotName) error {
	if len(s.kept) > 0 && name.index < s.kept[0].index {
		return fmt.Errorf("%w: index %d, and one at index %d is there", ErrSnapshotOld, name.index, s.kept[0].index)
	}
	return nil
}

// List implements raft.SnapshotStore: the newest first.
func (s *Snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	metas := make([]*raft.SnapshotMeta, len(s.kept))
	for i, f := range s.kept {
		meta := f.meta
		metas[i] = &meta
	}
	return metas, nil
}

// Open implements raft.SnapshotStore. Damage is found where it is read; the snapshot is then set aside, and List
// goes on to the one before, back to which the log is kept.
func (s *Snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	at := slices.IndexFunc(s.kept, func(f snapshotFile) bool { return f.meta.ID == id })
	var file snapshotFile
	if at >= 0 {
		file = s.kept[at]
	}
	s.mu.Unlock()
	if at < 0 {
		return nil, nil, fmt.Errorf("storage: snapshot %s of %s: %w", id, s.who, fs.ErrNotExist)
	}
	r, err := openSnapshot(s.node.cfg.FS, s.path(file.snapshotName))
	if err != nil {
		return nil, nil, s.noteDamage(file.snapshotName, err)
	}
	return &file.meta, &keptReader{snapshotReader: r, snapshots: s, name: file.snapshotName}, nil
}

// keptReader sets a snapshot aside when it finds it damaged.
type keptReader struct {
	*snapshotReader
	snapshots *Snapshots
	name      snapshotName
}

func (r *keptReader) Read(p []byte) (int, error) {
	n, err := r.snapshotReader.Read(p)
	if err != nil && err != io.EOF {
		err = r.snapshots.noteDamage(r.name, err)
	}
	return n, err
}

// noteDamage sets a snapshot aside if err says that it is damaged, and returns err.
func (s *Snapshots) noteDamage(name snapshotName, err error) error {
	if errors.Is(err, ErrSnapshotDamaged) {
		s.node.cfg.Logger.Error("a snapshot is damaged and set aside", "error", err)
		return errors.Join(err, s.setAside(name))
	}
	return err
}

// setAside takes a snapshot out of use and keeps its file for people.
func (s *Snapshots) setAside(name snapshotName) error {
	s.mu.Lock()
	s.kept = slices.DeleteFunc(s.kept, func(f snapshotFile) bool { return f.snapshotName == name })
	s.mu.Unlock()
	path := s.path(name)
	err := s.node.cfg.FS.Rename(path, path+damagedSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another reader was faster
	}
	if err != nil {
		return err
	}
	return s.node.cfg.FS.SyncDir(s.dir)
}

// oldestOfAll returns the index of the oldest kept snapshot, and whether there are as many as are to be kept.
func (s *Snapshots) oldestOfAll() (index uint64, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) == 0 || len(s.kept) < s.node.cfg.SnapshotsKept {
		return 0, false
	}
	return s.kept[len(s.kept)-1].index, true
}

func (s *Snapshots) newest() (snapshotName, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) == 0 {
		return snapshotName{}, false
	}
	return s.kept[0].snapshotName, true
}

// newestConfiguration returns the newest snapshot's configuration and its index; 0: there is no snapshot.
func (s *Snapshots) newestConfiguration() (raft.Configuration, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) == 0 {
		return raft.Configuration{}, 0
	}
	meta := &s.kept[0].meta
	return meta.Configuration, meta.ConfigurationIndex
}

// termAt returns the term of a kept snapshot with this index, or only of the newest.
func (s *Snapshots) termAt(index uint64, onlyNewest bool) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.kept {
		if onlyNewest && i > 0 {
			break
		}
		if f.index == index {
			return f.term, true
		}
	}
	return 0, false
}

// publish gives a finished file its name and takes it into use, once all that the log has is durable: a snapshot must not
// overtake it (raft.md, gated answers, 4).
func (s *Snapshots) publish(file snapshotFile) error {
	if err := s.log.waitDurable(); err != nil {
		return err
	}
	path := s.path(file.snapshotName)
	s.mu.Lock()
	err := s.checkNotOldLocked(file.snapshotName)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := s.node.cfg.FS.Rename(path+asideSuffix, path); err != nil {
		return err
	}
	if err := s.node.cfg.FS.SyncDir(s.dir); err != nil {
		// Whether the name is durable isn't known. In use it is not, so it must go.
		return errors.Join(err, s.node.cfg.FS.Remove(path))
	}
	s.mu.Lock()
	s.kept = append(s.kept, file)
	slices.SortFunc(s.kept, func(a, b snapshotFile) int { return a.newerFirst(b.snapshotName) })
	s.mu.Unlock()
	if err := s.stable.raiseMinIndex(file.index); err != nil {
		return err
	}
	s.prune()
	return nil
}

// prune removes what is over the number of snapshots to keep or can't be gone on from.
func (s *Snapshots) prune() {
	s.mu.Lock()
	var old []snapshotFile
	if n := s.node.cfg.SnapshotsKept; len(s.kept) > n {
		old = slices.Clone(s.kept[n:])
		s.kept = s.kept[:n:n]
	}
	s.mu.Unlock()
	s.removeFiles(old)
	s.dropUnreachable(s.log.bounds())
}

// dropUnreachable removes the snapshots from which raft could not go on by the log [first, last]: all older than
// the newest whose next entry is gone. After an install that cleared the log that is all of them, and a start
// that fell back on one would be amnesia.
func (s *Snapshots) dropUnreachable(first, last uint64) {
	s.mu.Lock()
	var old []snapshotFile
	for i, f := range s.kept {
		if i > 0 && (last == 0 || first > f.index+1) {
			old = slices.Clone(s.kept[i:])
			s.kept = s.kept[:i:i]
			break
		}
	}
	s.mu.Unlock()
	s.removeFiles(old)
}

// removeFiles removes files that are out of use. What it must leave behind, the next open sees again.
func (s *Snapshots) removeFiles(files []snapshotFile) {
	for _, f := range files {
		path := s.path(f.snapshotName)
		if err := disk.RemoveIfThere(s.node.cfg.FS, path); err != nil {
			s.node.cfg.Logger.Warn("an old snapshot can't be removed", "path", path, "error", err)
		}
	}
}

// removeSnapshots removes all files of one replica.
func removeSnapshots(fsys disk.FS, dir string, replica shard.ReplicaID) error {
	infos, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, info := range infos {
		id, _, _ := strings.Cut(info.Name, snapshotSuffix)
		if name, ok := parseSnapshotName(id); ok && name.replica == replica {
			if err := fsys.Remove(filepath.Join(dir, info.Name)); err != nil {
				return err
			}
		}
	}
	return fsys.SyncDir(dir)
}
