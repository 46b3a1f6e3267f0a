package client

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"math"
	"slices"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// Token is a place in the changes of a watch's keys, from which a watch can go on: of the same process or another, at the same nodes
// or others. It is printable, and must not be looked into; it is good as long as the cluster holds what came after it.
type Token string

// position is a place in the order of one shard's changes. See ostrakapb.Position.
type position struct {
	version uint64
	index   uint32
}

func (p position) after(q position) bool {
	return p.version > q.version || p.version == q.version && p.index > q.index
}

func (p position) message() *ostrakapb.Position {
	return &ostrakapb.Position{Version: p.version, Index: p.index}
}

func positionOf(p *ostrakapb.Position) position { return position{p.GetVersion(), p.GetIndex()} }

// A token is, in the alphabet of base64 for URLs and without padding:
//
//	format 1 │ cluster's mark 8 │ for each shard, ascending: shard, version, index + 1 mod 2^32 (varints) │ CRC-32C 4
//
// The index of a complete version is 2^32 - 1, so that nearly always it takes one byte.
const (
	tokenFormat = 1
	// tokenBytesMax is more than a token of all shards that a cluster may have.
	tokenBytesMax = 64 << 10
)

var tokenTable = crc32.MakeTable(crc32.Castagnoli)

// clusterMark tells clusters apart.
func clusterMark(id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id)) // never fails
	return h.Sum64()
}

func newToken(mark uint64, positions map[shard.ID]position) Token {
	b := binary.LittleEndian.AppendUint64([]byte{tokenFormat}, mark)
	shards := make([]shard.ID, 0, len(positions))
	for id := range positions {
		shards = append(shards, id)
	}
	slices.Sort(shards)
	for _, id := range shards {
		p := positions[id]
		b = binary.AppendUvarint(b, uint64(id))
		b = binary.AppendUvarint(b, p.version)
		b = binary.AppendUvarint(b, uint64(p.index+1))
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, tokenTable))
	return Token(base64.RawURLEncoding.EncodeToString(b))
}

// read returns what a token says. Errors: ErrInvalid, ErrWrongCluster.
func (t Token) read(mark uint64) (map[shard.ID]position, error) {
	invalid := func(format string, args ...any) error {
		return &InvalidError{Field: "token", Message: fmt.Sprintf(format, args...)}
	}
	if len(t) > tokenBytesMax {
		return nil, invalid("%d bytes long", len(t))
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(t))
	const head, tail = 1 + 8, 4
	switch {
	case err != nil:
		return nil, invalid("%v", err)
	case len(b) > 0 && b[0] != tokenFormat:
		return nil, invalid("format %d, this client reads %d", b[0], tokenFormat)
	case len(b) < head+tail:
		return nil, invalid("truncated")
	}
	sum := len(b) - tail
	if binary.LittleEndian.Uint32(b[sum:]) != crc32.Checksum(b[:sum], tokenTable) {
		return nil, invalid("garbled")
	}
	if binary.LittleEndian.Uint64(b[1:]) != mark {
		return nil, fmt.Errorf("%w: the token is of another", ErrWrongCluster)
	}
	positions := make(map[shard.ID]position)
	previous := -1
	for rest := b[head:sum]; len(rest) > 0; {
		var fields [3]uint64
		for i := range fields {
			value, n := binary.Uvarint(rest)
			if n <= 0 {
				return nil, invalid("cut off within a shard")
			}
			fields[i], rest = value, rest[n:]
		}
		if fields[0] > math.MaxUint32 || int(fields[0]) <= previous || fields[2] > math.MaxUint32 {
			return nil, invalid("shard %d after %d, index %d", fields[0], previous, fields[2])
		}
		previous = int(fields[0])
		positions[shard.ID(fields[0])] = position{fields[1], uint32(fields[2]) - 1}
	}
	return positions, nil
}
