package server

import (
	"errors"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

func TestMapRoundTrip(t *testing.T) {
	want := testMap(t)
	wire, err := proto.Marshal(encodeMap(want))
	if err != nil {
		t.Fatal(err)
	}
	p := new(ostrakapb.Map)
	if err := proto.Unmarshal(wire, p); err != nil {
		t.Fatal(err)
	}
	got, err := decodeMap(p)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMapRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*ostrakapb.Map)
		want  error
	}{
		"no format":      {func(p *ostrakapb.Map) { p.Format = 0 }, shard.ErrInvalidMap},
		"newer format":   {func(p *ostrakapb.Map) { p.Format = mapFormat + 1 }, errUnsupported},
		"no epoch":       {func(p *ostrakapb.Map) { p.Epoch = 0 }, shard.ErrInvalidMap},
		"unknown state":  {func(p *ostrakapb.Map) { p.Nodes[0].State = 256 }, shard.ErrInvalidMap},
		"unknown node":   {func(p *ostrakapb.Map) { p.Nodes = p.Nodes[1:] }, shard.ErrInvalidMap},
		"slot past end":  {func(p *ostrakapb.Map) { p.Shards[3].Ranges[0].To = shard.SlotCount + 1 }, shard.ErrInvalidMap},
		"slot past 64 k": {func(p *ostrakapb.Map) { p.Shards[0].Ranges[0].From += 1 << 16 }, shard.ErrInvalidMap},
		"no owner":       {func(p *ostrakapb.Map) { p.Shards = p.Shards[1:] }, shard.ErrInvalidMap},
		"nil shard":      {func(p *ostrakapb.Map) { p.Shards[0] = nil }, shard.ErrInvalidMap},
		"nil node":       {func(p *ostrakapb.Map) { p.Nodes[0] = nil }, shard.ErrInvalidMap},
		"nil range":      {func(p *ostrakapb.Map) { p.Shards[0].Ranges[0] = nil }, shard.ErrInvalidMap},
	} {
		p := encodeMap(testMap(t))
		c.spoil(p)
		if _, err := decodeMap(p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := decodeMap(nil); !errors.Is(err, shard.ErrInvalidMap) {
		t.Errorf("no map: %v", err)
	}
}

func FuzzDecodeMap(f *testing.F) {
	wire, err := proto.Marshal(encodeMap(testMap(f)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Fuzz(func(t *testing.T, wire []byte) {
		p := new(ostrakapb.Map)
		if proto.Unmarshal(wire, p) != nil {
			return
		}
		m, err := decodeMap(p)
		if err != nil {
			return
		}
		again, err := decodeMap(encodeMap(m))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("a map that decodes does not come back: %v", err)
		}
	})
}
