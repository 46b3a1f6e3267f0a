package ostrakapb

import (
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// PipelineFrame is a PipelineRequest or a PipelineResponse in its encoded form, to be sent and received on a stream in place of
// the message. A message of 64 calls is 456 objects, which reflection fills and the garbage collector clears away
// (BenchmarkPipelineMessage). pipeline.go writes and reads the bytes directly, and makes none; they are the same protobuf as
// ever, so that either end may use the generated types.
//
// It needs a stream with PipelineCodec.
type PipelineFrame struct {
	// Bytes of a received message. The receiver's own: receiving into a PipelineFrame again replaces what they were.
	Bytes []byte
	// buffers are what is sent.
	buffers mem.BufferSlice
}

// Add gives a frame that is to be sent a buffer of NewPipelineBuffer, which belongs to gRPC from then on. A message may
// be made of several.
func (f *PipelineFrame) Add(b *[]byte) {
	f.buffers = append(f.buffers, mem.NewBuffer(b, pipelineBuffers{}))
}

// Buffers to write messages into are used again, unless a large value has made them large.
const (
	bufferBytesMin = 4 << 10
	bufferBytesMax = 1 << 20
)

var freeBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, bufferBytesMin)
	return &b
}}

// NewPipelineBuffer returns an empty buffer, to be appended to.
func NewPipelineBuffer() *[]byte {
	b := freeBuffers.Get().(*[]byte)
	*b = (*b)[:0]
	return b
}

// FreePipelineBuffer gives back a buffer that was not sent.
func FreePipelineBuffer(b *[]byte) {
	if cap(*b) <= bufferBytesMax {
		freeBuffers.Put(b)
	}
}

// pipelineBuffers is how gRPC gives back what was sent.
type pipelineBuffers struct{}

func (pipelineBuffers) Get(length int) *[]byte {
	b := make([]byte, length)
	return &b
}

func (pipelineBuffers) Put(b *[]byte) { FreePipelineBuffer(b) }

// PipelineCodec is gRPC's protobuf codec, which takes a *PipelineFrame as it is.
type PipelineCodec struct{}

var _ encoding.CodecV2 = PipelineCodec{}

var protobuf = encoding.GetCodecV2(proto.Name)

// Name implements encoding.CodecV2: what is on the wire is protobuf.
func (PipelineCodec) Name() string { return proto.Name }

// Marshal implements encoding.CodecV2.
func (PipelineCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*PipelineFrame); ok {
		out := f.buffers
		f.buffers = nil
		return out, nil
	}
	return protobuf.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (PipelineCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*PipelineFrame); ok {
		n := data.Len()
		if cap(f.Bytes) < n {
			f.Bytes = make([]byte, n)
		}
		f.Bytes = f.Bytes[:n]
		data.CopyTo(f.Bytes)
		return nil
	}
	return protobuf.Unmarshal(data, v)
}
