package wal

import (
	"encoding/hex"
	"testing"
)

// A frame's bytes, made by another program from the drawing in frame.go: what lies on disks is read for ever.
func TestFrameGolden(t *testing.T) {
	s := seed{sequence: 0x0102030405060708, salt: 0x1112131415161718}
	f := frame{kind: kindEntry, entryType: 2, id: ID{Shard: 3, Replica: 0x21222324}, index: 7, term: 9, count: 11, time: 0x3132,
		extensions: []byte("ex"), data: []byte("data!")}
	const want = "000000071a9877d9050607080402126a000000030000000200000000212223240000000000000007" +
		"0000000000000009000000000000000b00000000000031326578646174612100"
	b := appendFrame(nil, s, headBytes, &f)
	if got := hex.EncodeToString(b); got != want {
		t.Fatalf("%s, want %s", got, want)
	}
	got, size, err := decodeFrame(b, s, headBytes)
	if err != nil || size != len(b) || got.id != f.id || got.index != f.index || got.term != f.term || got.count != f.count ||
		got.time != f.time || got.entryType != f.entryType || string(got.data) != "data!" || string(got.extensions) != "ex" {
		t.Errorf("%+v, %d, %v", got, size, err)
	}
}
