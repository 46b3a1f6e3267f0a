package ostrakapb

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The messages of KV.Pipeline, written and read without reflection: their frame always, and inside it the operations that
// make up nearly all traffic, Get and Set, with their results. Everything else goes through package proto, and so does
// what a writer of another kind may have put together unusually. Tests hold both ways to what package proto does.

// Field numbers of kv.proto.
const (
	requestHeader = 1
	requestCalls  = 2

	callNumber  = 1
	callTimeout = 2
	callOp      = 3

	responseAnswers  = 1
	responseDraining = 2

	answerNumber = 1
	answerResult = 2

	opGet = 1
	opSet = 3
)

// errUnusual is met by the fast ways where only package proto knows what it means.
var errUnusual = errors.New("not in the usual form")

var errFieldNumber = errors.New("a field's number is out of range")

// fields walks through the fields of a message.
type fields struct{ rest []byte }

// next returns a field's number and value: that of a varint in number, that of a length-delimited field in bytes, which
// are the message's own. Fields of other types are left out: no message here has any that is known.
func (f *fields) next() (field protowire.Number, kind protowire.Type, number uint64, bytes []byte, err error) {
	for len(f.rest) > 0 {
		field, kind, n := protowire.ConsumeTag(f.rest)
		if n < 0 {
			return 0, 0, 0, nil, protowire.ParseError(n)
		}
		if !field.IsValid() {
			return 0, 0, 0, nil, errFieldNumber
		}
		f.rest = f.rest[n:]
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(f.rest)
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(f.rest)
		default:
			n = protowire.ConsumeFieldValue(field, kind, f.rest)
		}
		if n < 0 {
			return 0, 0, 0, nil, protowire.ParseError(n)
		}
		f.rest = f.rest[n:]
		if kind == protowire.VarintType || kind == protowire.BytesType {
			return field, kind, number, bytes[:len(bytes):len(bytes)], nil
		}
	}
	return 0, 0, 0, nil, nil
}

func appendVarintField(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendBoolField(b []byte, field protowire.Number, v bool) []byte {
	return appendVarintField(b, field, protowire.EncodeBool(v))
}

func appendBytesField(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// sizeVarintField and sizeBytesField are for fields whose tag takes one byte: all of those here.
func sizeVarintField(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func sizeBytesField(v []byte) int {
	if len(v) == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(len(v))
}

// begin opens a length-delimited field whose content takes size bytes.
func begin(b []byte, field protowire.Number, size int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(size))
}

// AppendRequestHeader appends a PipelineRequest's header.
func AppendRequestHeader(b []byte, h *Header) []byte {
	return appendHeader(b, requestHeader, h)
}

func appendHeader(b []byte, field protowire.Number, h *Header) []byte {
	if h == nil {
		return b
	}
	b = begin(b, field, sizeHeader(h))
	b = appendVarintField(b, 1, h.Epoch)
	b = appendBytesField(b, 2, h.ClientId)
	b = appendVarintField(b, 3, h.Request)
	b = appendVarintField(b, 4, h.LowestUnanswered)
	b = appendVarintField(b, 5, uint64(h.Attempt))
	b = appendVarintField(b, 6, uint64(h.SessionBorn))
	return appendBoolField(b, 7, h.OpenSession)
}

func sizeHeader(h *Header) int {
	return sizeVarintField(h.Epoch) + sizeBytesField(h.ClientId) + sizeVarintField(h.Request) +
		sizeVarintField(h.LowestUnanswered) + sizeVarintField(uint64(h.Attempt)) +
		sizeVarintField(uint64(h.SessionBorn)) + sizeVarintField(protowire.EncodeBool(h.OpenSession))
}

func sizeHeaderField(h *Header) int {
	if h == nil {
		return 0
	}
	return 1 + protowire.SizeBytes(sizeHeader(h))
}

// AppendCall appends one of a PipelineRequest's calls; op is what AppendOp made.
func AppendCall(b []byte, number uint64, timeoutMicros int64, op []byte) []byte {
	b = begin(b, requestCalls, sizeVarintField(number)+sizeVarintField(uint64(timeoutMicros))+1+protowire.SizeBytes(len(op)))
	b = appendVarintField(b, callNumber, number)
	b = appendVarintField(b, callTimeout, uint64(timeoutMicros))
	return protowire.AppendBytes(protowire.AppendTag(b, callOp, protowire.BytesType), op)
}

// AppendOp appends an operation's bytes.
func AppendOp(b []byte, op *Op) ([]byte, error) {
	switch o := op.Op.(type) {
	case *Op_Get:
		b = begin(b, opGet, sizeHeaderField(o.Get.Header)+sizeBytesField(o.Get.Key)+sizeVarintField(uint64(o.Get.Level)))
		b = appendHeader(b, 1, o.Get.Header)
		b = appendBytesField(b, 2, o.Get.Key)
		return appendVarintField(b, 3, uint64(o.Get.Level)), nil
	case *Op_Set:
		if r := o.Set; r.Condition == nil {
			b = begin(b, opSet, sizeHeaderField(r.Header)+sizeBytesField(r.Key)+sizeBytesField(r.Value)+
				sizeVarintField(uint64(r.TtlMs))+sizeVarintField(protowire.EncodeBool(r.KeepTtl))+
				sizeVarintField(protowire.EncodeBool(r.ReturnPrevious)))
			b = appendHeader(b, 1, r.Header)
			b = appendBytesField(b, 2, r.Key)
			b = appendBytesField(b, 3, r.Value)
			b = appendVarintField(b, 4, uint64(r.TtlMs))
			b = appendBoolField(b, 5, r.KeepTtl)
			return appendBoolField(b, 7, r.ReturnPrevious), nil
		}
	}
	return proto.MarshalOptions{}.MarshalAppend(b, op)
}

// RequestReader reads a PipelineRequest call by call.
type RequestReader struct {
	// Header is the message's; nil: it has none.
	Header *Header
	// Calls is how many there are.
	Calls int
	left  fields
}

// ReadRequest opens a message. A message that isn't whole is refused before a call of it is seen.
func ReadRequest(message []byte) (RequestReader, error) {
	r := RequestReader{left: fields{message}}
	all := fields{message}
	for len(all.rest) > 0 {
		field, kind, _, bytes, err := all.next()
		switch {
		case err != nil:
			return r, fmt.Errorf("pipeline request: %w", err)
		case kind != protowire.BytesType:
		case field == requestCalls:
			r.Calls++
		case field == requestHeader:
			if r.Header == nil {
				r.Header = new(Header)
			}
			if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(bytes, r.Header); err != nil {
				return r, fmt.Errorf("pipeline request: %w", err)
			}
		}
	}
	return r, nil
}

// Call is one call of a PipelineRequest.
type Call struct {
	Number        uint64
	TimeoutMicros int64
	// Op is for OpReader. It is the message's own.
	Op []byte
}

// Next returns the next call; false: there are no more.
func (r *RequestReader) Next() (c Call, more bool, err error) {
	for len(r.left.rest) > 0 {
		field, kind, _, bytes, err := r.left.next()
		if err != nil {
			return c, false, err
		}
		if field == requestCalls && kind == protowire.BytesType {
			c, err = readCall(bytes)
			return c, true, err
		}
	}
	return c, false, nil
}

func readCall(b []byte) (c Call, err error) {
	f := fields{b}
	for len(f.rest) > 0 {
		field, kind, number, bytes, err := f.next()
		switch {
		case err != nil:
			return c, fmt.Errorf("pipeline call: %w", err)
		case field == callNumber && kind == protowire.VarintType:
			c.Number = number
		case field == callTimeout && kind == protowire.VarintType:
			c.TimeoutMicros = int64(number)
		case field == callOp && kind == protowire.BytesType:
			if c.Op != nil {
				return c, fmt.Errorf("pipeline call: op stands twice: %w", errUnusual)
			}
			c.Op = bytes
		}
	}
	return c, nil
}

// OpReader reads operations one after the other. It makes no garbage of Get and Set, so what it returned last is gone
// with its next use. Not for use by several goroutines.
type OpReader struct {
	op     Op
	get    Op_Get
	set    Op_Set
	asked  GetRequest
	writes SetRequest
	header Header
}

// Read returns an operation, valid until the next Read. Keys and values are b's own.
func (r *OpReader) Read(b []byte) (*Op, error) {
	op, err := r.readUsual(b)
	if err == nil {
		return op, nil
	}
	op = new(Op)
	if err := proto.Unmarshal(b, op); err != nil {
		return nil, fmt.Errorf("pipeline operation: %w", err)
	}
	return op, nil
}

// readUsual reads Get and Set, each the only field.
func (r *OpReader) readUsual(b []byte) (*Op, error) {
	f := fields{b}
	field, kind, _, body, err := f.next()
	if err != nil || kind != protowire.BytesType || len(f.rest) > 0 {
		return nil, errUnusual
	}
	switch field {
	case opGet:
		r.get.Get, r.op.Op = &r.asked, &r.get
		return &r.op, r.readGet(body)
	case opSet:
		r.set.Set, r.op.Op = &r.writes, &r.set
		return &r.op, r.readSet(body)
	}
	return nil, errUnusual
}

func (r *OpReader) readGet(b []byte) error {
	q := &r.asked
	q.Header, q.Key, q.Level = nil, nil, 0
	f := fields{b}
	for len(f.rest) > 0 {
		field, kind, number, bytes, err := f.next()
		switch {
		case err != nil:
			return err
		case field == 1 && kind == protowire.BytesType:
			if err := r.readHeader(bytes, &q.Header); err != nil {
				return err
			}
		case field == 2 && kind == protowire.BytesType:
			q.Key = bytes
		case field == 3 && kind == protowire.VarintType:
			q.Level = ReadLevel(number)
		}
	}
	return nil
}

func (r *OpReader) readSet(b []byte) error {
	q := &r.writes
	q.Header, q.Key, q.Value, q.TtlMs, q.KeepTtl, q.Condition, q.ReturnPrevious = nil, nil, nil, 0, false, nil, false
	f := fields{b}
	for len(f.rest) > 0 {
		field, kind, number, bytes, err := f.next()
		switch {
		case err != nil:
			return err
		case field == 1 && kind == protowire.BytesType:
			if err := r.readHeader(bytes, &q.Header); err != nil {
				return err
			}
		case field == 2 && kind == protowire.BytesType:
			q.Key = bytes
		case field == 3 && kind == protowire.BytesType:
			q.Value = bytes
		case field == 4 && kind == protowire.VarintType:
			q.TtlMs = int64(number)
		case field == 5 && kind == protowire.VarintType:
			q.KeepTtl = number != 0
		case field == 6:
			return errUnusual
		case field == 7 && kind == protowire.VarintType:
			q.ReturnPrevious = number != 0
		}
	}
	return nil
}

func (r *OpReader) readHeader(b []byte, into **Header) error {
	if *into != nil {
		return errUnusual // twice: they would have to be merged
	}
	h := &r.header
	h.Epoch, h.ClientId, h.Request, h.LowestUnanswered, h.Attempt, h.SessionBorn, h.OpenSession = 0, nil, 0, 0, 0, 0, false
	*into = h
	f := fields{b}
	for len(f.rest) > 0 {
		field, kind, number, bytes, err := f.next()
		switch {
		case err != nil:
			return err
		case field == 1 && kind == protowire.VarintType:
			h.Epoch = number
		case field == 2 && kind == protowire.BytesType:
			h.ClientId = bytes
		case field == 3 && kind == protowire.VarintType:
			h.Request = number
		case field == 4 && kind == protowire.VarintType:
			h.LowestUnanswered = number
		case field == 5 && kind == protowire.VarintType:
			h.Attempt = uint32(number)
		case field == 6 && kind == protowire.VarintType:
			h.SessionBorn = int64(number)
		case field == 7 && kind == protowire.VarintType:
			h.OpenSession = number != 0
		}
	}
	return nil
}

// beginAnswer opens one of a PipelineResponse's answers with a result of the given kind whose content takes size bytes.
func beginAnswer(b []byte, number uint64, kind protowire.Number, size int) []byte {
	result := 1 + protowire.SizeBytes(size)
	b = begin(b, responseAnswers, sizeVarintField(number)+1+protowire.SizeBytes(result))
	b = appendVarintField(b, answerNumber, number)
	b = begin(b, answerResult, result)
	return begin(b, kind, size)
}

// AppendGetAnswer appends the answer to a Get.
func AppendGetAnswer(b []byte, number uint64, found bool, value []byte, version uint64, ttlMillis int64) []byte {
	b = beginAnswer(b, number, opGet, sizeVarintField(protowire.EncodeBool(found))+sizeBytesField(value)+
		sizeVarintField(version)+sizeVarintField(uint64(ttlMillis)))
	b = appendBoolField(b, 1, found)
	b = appendBytesField(b, 2, value)
	b = appendVarintField(b, 3, version)
	return appendVarintField(b, 4, uint64(ttlMillis))
}

// AppendSetAnswer appends the answer to a Set that asked for no previous value.
func AppendSetAnswer(b []byte, number uint64, done bool, version uint64) []byte {
	b = beginAnswer(b, number, opSet, sizeVarintField(protowire.EncodeBool(done))+sizeVarintField(version))
	b = appendBoolField(b, 1, done)
	return appendVarintField(b, 2, version)
}

// AppendAnswer appends an answer of any kind.
func AppendAnswer(b []byte, number uint64, result *OpResult) ([]byte, error) {
	size := proto.Size(result)
	b = begin(b, responseAnswers, sizeVarintField(number)+1+protowire.SizeBytes(size))
	b = appendVarintField(b, answerNumber, number)
	b = begin(b, answerResult, size)
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, result)
}

// AppendDraining appends the word that the node is about to stop.
func AppendDraining(b []byte) []byte { return appendBoolField(b, responseDraining, true) }

// AnswerReader reads a PipelineResponse answer by answer.
type AnswerReader struct {
	// Draining: the node is about to stop. Known once all answers are read.
	Draining bool
	left     fields
}

// ReadAnswers opens a message.
func ReadAnswers(message []byte) AnswerReader { return AnswerReader{left: fields{message}} }

// Next returns the next answer, its result for ReadResult; false: there are no more.
func (r *AnswerReader) Next() (number uint64, result []byte, more bool, err error) {
	for len(r.left.rest) > 0 {
		field, kind, v, bytes, err := r.left.next()
		switch {
		case err != nil:
			return 0, nil, false, err
		case field == responseDraining && kind == protowire.VarintType:
			r.Draining = v != 0
		case field == responseAnswers && kind == protowire.BytesType:
			number, result, err = readAnswer(bytes)
			return number, result, true, err
		}
	}
	return 0, nil, false, nil
}

func readAnswer(b []byte) (number uint64, result []byte, err error) {
	f := fields{b}
	for len(f.rest) > 0 {
		field, kind, v, bytes, err := f.next()
		switch {
		case err != nil:
			return 0, nil, err
		case field == answerNumber && kind == protowire.VarintType:
			number = v
		case field == answerResult && kind == protowire.BytesType:
			if result != nil {
				return 0, nil, fmt.Errorf("pipeline answer: result stands twice: %w", errUnusual)
			}
			result = bytes
		}
	}
	return number, result, nil
}

// ReadResult returns a result that holds nothing of b.
func ReadResult(b []byte) (*OpResult, error) {
	if r, err := readUsualResult(b); err == nil {
		return r, nil
	}
	r := new(OpResult)
	if err := proto.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("pipeline answer: %w", err)
	}
	return r, nil
}

func readUsualResult(b []byte) (*OpResult, error) {
	f := fields{b}
	field, kind, _, body, err := f.next()
	if err != nil || kind != protowire.BytesType || len(f.rest) > 0 {
		return nil, errUnusual
	}
	switch field {
	case opGet:
		return readGetResult(body)
	case opSet:
		return readSetResult(body)
	}
	return nil, errUnusual
}

func readGetResult(b []byte) (*OpResult, error) {
	var all struct { // one allocation for the three
		result OpResult
		kind   OpResult_Get
		get    GetResponse
	}
	all.result.Result, all.kind.Get = &all.kind, &all.get
	f := fields{b}
	for len(f.rest) > 0 {
		field, kind, number, bytes, err := f.next()
		switch {
		case err != nil:
			return nil, err
		case field == 1 && kind == protowire.VarintType:
			all.get.Found = number != 0
		case field == 2 && kind == protowire.BytesType:
			all.get.Value = append([]byte(nil), bytes...)
		case field == 3 && kind == protowire.VarintType:
			all.get.Version = number
		case field == 4 && kind == protowire.VarintType:
			all.get.TtlMs = int64(number)
		}
	}
	return &all.result, nil
}

func readSetResult(b []byte) (*OpResult, error) {
	var all struct {
		result OpResult
		kind   OpResult_Set
		set    SetResponse
	}
	all.result.Result, all.kind.Set = &all.kind, &all.set
	f := fields{b}
	for len(f.rest) > 0 {
		field, kind, number, _, err := f.next()
		switch {
		case err != nil:
			return nil, err
		case field == 1 && kind == protowire.VarintType:
			all.set.Done = number != 0
		case field == 2 && kind == protowire.VarintType:
			all.set.Version = number
		case field == 3:
			return nil, errUnusual
		}
	}
	return &all.result, nil
}
