package server

import (
	"bytes"
	"context"
	"fmt"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// A cursor is where the next page begins. Callers must not look inside.
//
//	format (1 byte, 1) │ first key that may be in the next page
const cursorFormat = 1

func encodeCursor(next []byte) []byte {
	return append([]byte{cursorFormat}, next...)
}

func decodeCursor(cursor []byte) (next []byte, err error) {
	switch {
	case cursor[0] != cursorFormat:
		return nil, &fieldError{"cursor", fmt.Sprintf("format %d, this node reads %d: begin the scan again", cursor[0], cursorFormat)}
	case len(cursor) == 1:
		return nil, &fieldError{"cursor", "truncated"}
	}
	return cursor[1:], nil
}

// Scan implements ostrakapb.KVServer: one page of one shard. An expired key is listed until the shard's
// time, which moves with its log, has passed the key's end.
func (s *kvService) Scan(ctx context.Context, r *ostrakapb.ScanRequest) (*ostrakapb.ScanResponse, error) {
	from, to, err := scanRange(r)
	if err != nil {
		return nil, err
	}
	level, err := readLevel(r.GetLevel())
	if err != nil {
		return nil, err
	}
	if err := checkClient(r.GetHeader()); err != nil {
		return nil, err
	}
	m, err := s.admit(ctx)
	if err != nil {
		return nil, err
	}
	id := shard.ID(r.GetShard())
	found, err := s.find(m, id)
	if err != nil {
		return nil, err
	}
	shown, err := openReader(ctx, id, found, level)
	if err != nil {
		return nil, err
	}
	limits := s.node.Limits()
	items := limits.ScanItemsMax
	if asked := r.GetLimit(); asked != 0 && int64(asked) < int64(items) {
		items = int(asked)
	}
	return shown.page(from, to, items, limits.ScanBytesMax, r.GetKeysOnly()), nil
}

// scanRange returns [from, to), to nil without an end.
func scanRange(r *ostrakapb.ScanRequest) (from, to []byte, err error) {
	from = r.GetStart()
	if len(r.GetCursor()) > 0 {
		if from, err = decodeCursor(r.GetCursor()); err != nil {
			return nil, nil, err
		}
	}
	if len(r.GetEnd()) > 0 {
		to = r.GetEnd()
	}
	return from, to, nil
}

// page ends with the item that reaches bytesMax, so that an item of any size can be passed.
func (r shardReader) page(from, to []byte, itemsMax, bytesMax int, keysOnly bool) *ostrakapb.ScanResponse {
	answer := &ostrakapb.ScanResponse{}
	size := 0
	next, more := r.from.scan(from, to, itemsMax, 0, func(key, value []byte, m store.Meta) bool {
		item := &ostrakapb.Item{Key: bytes.Clone(key), Version: uint64(m.Version), TtlMs: r.from.TTL(m).Milliseconds()}
		size += len(key)
		if !keysOnly {
			item.Value = bytes.Clone(value)
			size += len(value)
		}
		answer.Items = append(answer.Items, item)
		return size < bytesMax
	})
	if more {
		answer.Cursor = encodeCursor(next)
	}
	return answer
}
