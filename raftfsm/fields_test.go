package raftfsm

import (
	"bytes"
	"math"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/ostraka-db/ostraka/store"
)

// sampleNumbers stand on both sides of every border between two encodings.
var sampleNumbers = []int64{0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, math.MaxInt32, math.MaxUint32, math.MaxUint32 + 1, math.MaxInt64,
	-1, -32, -33, -0x80, -0x81, -0x8000, -0x8001, math.MinInt32, math.MinInt32 - 1, math.MinInt64}

// What is appended is what the library writes: entries of earlier builds were written by it.
func TestFieldsAreMsgpack(t *testing.T) {
	var want bytes.Buffer
	enc := msgpack.NewEncoder(&want)
	same := func(what any, got []byte, err error) {
		t.Helper()
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%v: % x, want % x (%v)", what, got, want.Bytes(), err)
		}
		want.Reset()
	}
	for _, n := range sampleNumbers {
		err := enc.EncodeInt(n)
		same(n, appendInt(nil, n), err)
		err = enc.EncodeUint(uint64(n))
		same(uint64(n), appendUint(nil, uint64(n)), err)
	}
	for _, n := range []int{0, 1, 15, 16, 0xffff, 0x10000} {
		err := enc.EncodeArrayLen(n)
		same(n, appendArray(nil, n), err)
	}
	for _, b := range [][]byte{nil, {}, {1}, make([]byte, 255), make([]byte, 256), make([]byte, 0xffff), make([]byte, 0x10000)} {
		err := enc.EncodeBytes(b)
		same(len(b), appendBytes(nil, b), err)
	}
}

// FuzzFields reads a field of each kind as the library does, from any bytes.
func FuzzFields(f *testing.F) {
	for _, n := range sampleNumbers {
		f.Add(appendInt(nil, n))
		f.Add(appendUint(nil, uint64(n)))
	}
	f.Add(appendBytes(nil, make([]byte, 300)))
	f.Add(appendArray(nil, 70000))
	f.Add([]byte{codeFixStr | 3, 'a', 'b', 'c'})
	f.Add([]byte{codeStr8, 1, 'a'})
	f.Add([]byte{codeNil})
	f.Fuzz(func(t *testing.T, data []byte) {
		source := bytes.NewReader(data)
		fresh := func() (*msgpack.Decoder, *fieldReader) {
			source.Reset(data)
			return msgpack.NewDecoder(source), &fieldReader{data: data}
		}
		agree := func(kind string, got, want any, r *fieldReader, err error) {
			t.Helper()
			if (r.err == nil) != (err == nil) {
				t.Fatalf("%s: %v, the library says %v", kind, r.err, err)
			}
			if err == nil && (got != want || r.left() != source.Len()) {
				t.Fatalf("%s: %v with %d bytes left, the library reads %v with %d", kind, got, r.left(), want, source.Len())
			}
		}
		dec, r := fresh()
		u, err := dec.DecodeUint64()
		agree("uint", r.uint(), u, r, err)
		dec, r = fresh()
		i, err := dec.DecodeInt64()
		agree("int", r.int(), i, r, err)
		dec, r = fresh()
		n, err := dec.DecodeArrayLen()
		if n >= 0 { // the library reads nil as an array of -1, which no entry has
			agree("array", r.array(math.MaxUint32), n, r, err)
		}
		dec, r = fresh()
		if n, err = dec.DecodeBytesLen(); n > len(data) {
			return // the library would allocate what is claimed
		}
		var b []byte
		if err == nil && n > 0 {
			b = make([]byte, n)
			err = dec.ReadFull(b)
		}
		agree("bytes", string(r.bytes()), string(b), r, err)
	})
}

func sampleWrites(n int) []*Write {
	var writes []*Write
	for i := range n {
		writes = append(writes, &Write{
			Op:      store.Op{Kind: store.OpSet, Key: []byte("0123456789abcdef"), Value: make([]byte, 128), ValueBytesMax: 8 << 20},
			Session: Session{ClientID: [16]byte{1}, Request: uint64(1000 + i), Lowest: 990, Attempt: 1}})
	}
	return writes
}

// BenchmarkEntry is what one operation costs on its way into an entry and out of it.
func BenchmarkEntry(b *testing.B) {
	writes := sampleWrites(64)
	encoder := new(entryEncoder)
	data := encoder.encodeWrites(1, writes)
	perOp := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(writes)), "ns/operation")
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			encoder.encodeWrites(1, writes)
		}
		perOp(b)
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		ent := new(entry)
		for b.Loop() {
			if err := ent.decode(data); err != nil {
				b.Fatal(err)
			}
		}
		perOp(b)
	})
}
