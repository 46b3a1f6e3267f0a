package transport

import (
	"errors"
	"fmt"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// HandshakeFormat is the version of the node-to-node messages that this build speaks. Version 1 had no Heartbeats: a node of
// that version would leave them unanswered.
const HandshakeFormat = 2

// Why a stream is refused. Both ends send their handshake before they judge the other's, so each end can tell for itself.
var (
	// ErrWrongCluster: the peer belongs to another cluster, or one of the two belongs to none yet.
	ErrWrongCluster = errors.New("transport: node of another cluster")
	// ErrStranger: the peer names this cluster, which knows of no such node.
	ErrStranger = errors.New("transport: the cluster has no such node")
	// ErrWrongNode: who answers at the address is not the node that was meant.
	ErrWrongNode = errors.New("transport: another node than expected")
	// ErrFormat: the peer speaks another version of the node-to-node messages.
	ErrFormat = errors.New("transport: node speaks another message format")
	// ErrOldIncarnation: a stream of a later start of the same node is already there.
	ErrOldIncarnation = errors.New("transport: stream of an earlier start of the node")
	// ErrOutlived: the peer lost its data and was taken back; this is what it was before.
	ErrOutlived = errors.New("transport: an earlier life of the node")
	// ErrReplaced: a newer stream of the same node took this one's place.
	ErrReplaced = errors.New("transport: stream replaced by a newer one")
)

// handshake introduces this node to the peer it means to speak to; target is empty in an answer.
func (t *Transport) handshake(target shard.NodeID) *ostrakapb.Handshake {
	return &ostrakapb.Handshake{
		Format:       HandshakeFormat,
		ClusterId:    t.cfg.ClusterID(),
		NodeId:       string(t.cfg.Self),
		Address:      t.cfg.Address(),
		Incarnation:  t.cfg.Incarnation(),
		TargetNodeId: string(target),
	}
}

// judge decides whether to speak to the sender of a handshake. expected is the node that was dialed, or empty for an
// accepted stream. Whom Config.Known does not know is refused only there: the nodes that are dialed come from raft's
// configurations, which may be ahead of it.
func (t *Transport) judge(hs *ostrakapb.Handshake, expected shard.NodeID) error {
	own := t.cfg.ClusterID()
	from := shard.NodeID(hs.GetNodeId())
	switch {
	case hs == nil:
		return fmt.Errorf("%w: no handshake", ErrMalformed)
	case hs.Format != HandshakeFormat:
		return fmt.Errorf("%w: %d, not %d", ErrFormat, hs.Format, HandshakeFormat)
	case own == "" || hs.ClusterId != own:
		return fmt.Errorf("%w: node %q of cluster %q met node %q of cluster %q", ErrWrongCluster, t.cfg.Self, own, from, hs.ClusterId)
	case from == "" || from == t.cfg.Self || expected != "" && from != expected:
		return fmt.Errorf("%w: got %q, wanted %q", ErrWrongNode, from, expected)
	case expected == "" && !t.cfg.Known(from):
		return fmt.Errorf("%w: %q", ErrStranger, from)
	case t.cfg.Outlived(from, hs.Incarnation):
		return fmt.Errorf("%w: %q, incarnation %#x", ErrOutlived, from, hs.Incarnation)
	case hs.TargetNodeId != "" && shard.NodeID(hs.TargetNodeId) != t.cfg.Self:
		return fmt.Errorf("%w: this is %q, node %q wanted %q", ErrWrongNode, t.cfg.Self, from, hs.TargetNodeId)
	}
	return nil
}
