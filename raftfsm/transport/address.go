package transport

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// ErrAddress is returned for a raft address that Address could not have made.
var ErrAddress = errors.New("transport: not a replica's raft address")

// Address is a replica's raft address, "n1/17": node id and replica id. raft keys its vote record by the address bytes,
// so it names no host or port, and a node's change of address is harmless.
func Address(node shard.NodeID, replica shard.ReplicaID) raft.ServerAddress {
	return raft.ServerAddress(string(node) + "/" + strconv.FormatUint(uint64(replica), 10))
}

// ServerID is a replica's raft id: the replica id in decimal.
func ServerID(replica shard.ReplicaID) raft.ServerID {
	return raft.ServerID(strconv.FormatUint(uint64(replica), 10))
}

// ParseAddress is the inverse of Address; any other spelling of the same ids is ErrAddress.
func ParseAddress(address raft.ServerAddress) (shard.NodeID, shard.ReplicaID, error) {
	cut := strings.LastIndexByte(string(address), '/')
	if cut <= 0 {
		return "", 0, fmt.Errorf("%w: %q", ErrAddress, address)
	}
	node := shard.NodeID(address[:cut])
	number, err := strconv.ParseUint(string(address[cut+1:]), 10, 64)
	if err != nil || Address(node, shard.ReplicaID(number)) != address {
		return "", 0, fmt.Errorf("%w: %q", ErrAddress, address)
	}
	return node, shard.ReplicaID(number), nil
}
