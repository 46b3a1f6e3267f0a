package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/shard"
)

// Errors of a data directory that does not fit.
var (
	// ErrOtherNode: the directory belongs to a node with another id.
	ErrOtherNode = errors.New("the data directory belongs to another node")
	// ErrIdentityDamaged: node.json does not parse or contradicts itself.
	ErrIdentityDamaged = errors.New("node.json is damaged")
)

const (
	identityFile   = "node.json"
	identityFormat = 1
)

// phase is how far a node has come in becoming a member. It only moves forward.
type phase string

const (
	phaseBlank    phase = "blank"
	phaseAdopting phase = "adopting"
	phaseMember   phase = "member"
)

// message is the phase as other nodes are told it.
func (p phase) message() ostrakapb.NodePhase {
	switch p {
	case phaseBlank:
		return ostrakapb.NodePhase_NODE_PHASE_BLANK
	case phaseAdopting:
		return ostrakapb.NodePhase_NODE_PHASE_ADOPTING
	case phaseMember:
		return ostrakapb.NodePhase_NODE_PHASE_MEMBER
	}
	return ostrakapb.NodePhase_NODE_PHASE_UNSPECIFIED
}

// identity is what a node knows of itself and must never forget. A value is never changed: the next one is made from
// a copy, written as a whole, atomically, and only then acted upon.
type identity struct {
	Format int          `json:"format"`
	Node   shard.NodeID `json:"node"`
	Phase  phase        `json:"phase"`
	// Incarnation counts the node's starts.
	Incarnation uint64 `json:"incarnation"`
	ClusterID   string `json:"cluster_id,omitempty"`
	// Plan is the bootstrap plan as adopted, a BootstrapPlan in protobuf's JSON form. Set unless blank.
	Plan json.RawMessage `json:"plan,omitempty"`
	// Replicas are the replicas that the node holds, by group, where they are not those of the plan any more.
	Replicas map[shard.ID]heldReplica `json:"replicas,omitempty"`
	// Book is where the cluster's nodes were last known to listen.
	Book map[shard.NodeID]bookEntry `json:"addresses,omitempty"`

	// plan is Plan, decoded; nil for a blank node. Nobody changes it.
	plan *ostrakapb.BootstrapPlan
}

// heldReplica is a replica that belongs on this node.
type heldReplica struct {
	ID shard.ReplicaID `json:"id"`
	// Joining: the replica may start without data. It is a fresh one, and nothing that it said has counted yet. Once this is
	// gone an empty replica is one that lost its data, and never starts again: see raftfsm.Host.StartJoiner.
	Joining bool `json:"joining,omitempty"`
	// Fenced is why the replica must not start again: its contents differ from its peers'. It is replaced. Empty: it is well.
	Fenced string `json:"fenced,omitempty"`
}

// bookEntry is a node's address, and in which of its starts it listened there.
type bookEntry struct {
	Address     string `json:"address"`
	Incarnation uint64 `json:"incarnation"`
}

// loadIdentity reads node.json, or makes a blank identity where the directory has none.
func loadIdentity(files disk.FS, dir string, node shard.NodeID) (*identity, error) {
	id, err := readIdentity(files, dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &identity{Format: identityFormat, Node: node, Phase: phaseBlank}, nil
	case err != nil:
		return nil, err
	case id.Node != node:
		return nil, fmt.Errorf("%w: %s is of node %q, this one is %q: give its --id or another --data-dir",
			ErrOtherNode, filepath.Join(dir, identityFile), id.Node, node)
	}
	return id, nil
}

// readIdentity reads node.json, whosever it is.
func readIdentity(files disk.FS, dir string) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	data, err := disk.ReadFile(files, path)
	if err != nil {
		return nil, err
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrIdentityDamaged, path, err)
	}
	switch {
	case id.Format != identityFormat:
		return nil, fmt.Errorf("%w: %s: format %d, this build reads up to %d", ErrIdentityDamaged, path, id.Format, identityFormat)
	case id.Phase != phaseBlank && id.Phase != phaseAdopting && id.Phase != phaseMember:
		return nil, fmt.Errorf("%w: %s: unknown phase %q", ErrIdentityDamaged, path, id.Phase)
	case id.Phase != phaseBlank && (len(id.Plan) == 0 || id.ClusterID == ""):
		return nil, fmt.Errorf("%w: %s: phase %q without a plan", ErrIdentityDamaged, path, id.Phase)
	case id.Phase == phaseBlank:
		return &id, nil
	}
	if err := id.decodePlan(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrIdentityDamaged, path, err)
	}
	return &id, nil
}

func (id *identity) save(files disk.FS, dir string) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	path := filepath.Join(dir, identityFile)
	err = disk.WriteFileAtomic(files, path, data)
	if disk.IsNoSpace(err) {
		if err := disk.RemoveIfThere(files, path+roomSuffix); err != nil {
			return err
		}
		err = disk.WriteFileAtomic(files, path, data)
	}
	if err == nil {
		keepRoom(files, path+roomSuffix, max(roomBytesMin, 2*int64(len(data))))
	}
	return err
}

const (
	// roomSuffix marks the file that keeps room for the next identity: a node counts its starts in it, and must be able to start
	// on a full disk. The one before is kept until the next is whole, so its own room is of no use.
	roomSuffix   = ".room"
	roomBytesMin = 64 << 10
)

// keepRoom takes room on the disk, if there is any. Without it all goes well until the disk is full.
func keepRoom(files disk.FS, path string, bytes int64) {
	if info, err := files.Stat(path); err == nil && info.Size >= bytes {
		return
	}
	f, err := files.Create(path)
	if err != nil {
		return
	}
	if errors.Join(f.Preallocate(bytes), f.Close()) != nil {
		_ = files.Remove(path) // half of it is no use; should it stay, the next save tries again
	}
}

// adopt makes a blank identity one that holds a plan. What counts from then on is the plan as it is stored: a node
// that restarts must not find another than it had acted upon.
func (id *identity) adopt(plan *ostrakapb.BootstrapPlan) error {
	data, err := protojson.Marshal(plan)
	if err != nil {
		return err
	}
	id.Phase, id.ClusterID, id.Plan = phaseAdopting, plan.GetClusterId(), data
	return id.decodePlan()
}

// holdings are the replicas that belong on this node, by group. m is the plan's map.
func (id *identity) holdings(m *shard.Map) map[shard.ID]heldReplica {
	all := make(map[shard.ID]heldReplica)
	for _, meta := range membersOf(id.plan.GetMeta()) {
		if meta.Node == id.Node {
			all[shard.MetaGroup] = heldReplica{ID: meta.Replica}
		}
	}
	for _, s := range m.Shards() {
		if r, ok := m.ReplicaOn(s.ID, id.Node); ok {
			all[s.ID] = heldReplica{ID: r.ID}
		}
	}
	maps.Copy(all, id.Replicas)
	return all
}

// hold notes that the node holds a replica. Values are never changed, so the map is a new one.
func (id *identity) hold(group shard.ID, held heldReplica) {
	next := maps.Clone(id.Replicas)
	if next == nil {
		next = make(map[shard.ID]heldReplica)
	}
	next[group] = held
	id.Replicas = next
}

func (id *identity) decodePlan() error {
	plan := new(ostrakapb.BootstrapPlan)
	if err := protojson.Unmarshal(id.Plan, plan); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	if plan.GetClusterId() != id.ClusterID {
		return fmt.Errorf("plan of cluster %q in an identity of cluster %q", plan.GetClusterId(), id.ClusterID)
	}
	id.plan = plan
	return nil
}
