//lint:file-ignore SA1019 raft fills and reads its deprecated fields, so every field is carried.

package transport

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

func TestAddress(t *testing.T) {
	for address, want := range map[raft.ServerAddress]struct {
		node    shard.NodeID
		replica shard.ReplicaID
	}{
		"n1/17":                   {"n1", 17},
		"a/b/0":                   {"a/b", 0},
		"n1/18446744073709551615": {"n1", 1<<64 - 1},
	} {
		node, replica, err := ParseAddress(address)
		if err != nil || node != want.node || replica != want.replica || Address(node, replica) != address {
			t.Errorf("ParseAddress(%q) = %q, %d, %v", address, node, replica, err)
		}
	}
	for _, bad := range []raft.ServerAddress{"", "n1", "/17", "n1/", "n1/017", "n1/+1", "n1/-1", "n1/ 1", "n1/x", "n1/18446744073709551616"} {
		if _, _, err := ParseAddress(bad); !errors.Is(err, ErrAddress) {
			t.Errorf("ParseAddress(%q): %v", bad, err)
		}
	}
	if got := ServerID(17); got != "17" {
		t.Errorf("ServerID(17) = %q", got)
	}
}

var (
	testHeader        = raft.RPCHeader{ProtocolVersion: 3, ID: []byte("1"), Addr: []byte("n1/1")}
	testConfiguration = raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "1", Address: "n1/1"}}})
)

func testRequests() []any {
	return []any{
		&raft.AppendEntriesRequest{RPCHeader: testHeader, Term: 5, Leader: []byte("n1/1"), PrevLogEntry: 7, PrevLogTerm: 4, LeaderCommitIndex: 6,
			Entries: []*raft.Log{
				{Index: 8, Term: 4, Type: raft.LogCommand, Data: []byte{0, 255}, Extensions: []byte("x"), AppendedAt: time.Unix(3, 4)},
				{Index: 9, Term: 5, Type: raft.LogNoop},
				{Index: 10, Term: 5, Type: raft.LogBarrier},
				{Index: 11, Term: 5, Type: raft.LogConfiguration, Data: testConfiguration},
			}},
		&raft.AppendEntriesRequest{RPCHeader: testHeader, Term: 5},
		&raft.RequestVoteRequest{RPCHeader: testHeader, Term: 5, Candidate: []byte("n1/1"), LastLogIndex: 3, LastLogTerm: 2, LeadershipTransfer: true},
		&raft.RequestPreVoteRequest{RPCHeader: testHeader, Term: 5, LastLogIndex: 3, LastLogTerm: 2},
		&raft.TimeoutNowRequest{RPCHeader: testHeader},
		&raft.InstallSnapshotRequest{RPCHeader: testHeader, SnapshotVersion: 1, Term: 5, Leader: []byte("n1/1"), LastLogIndex: 3, LastLogTerm: 2,
			Configuration: testConfiguration, ConfigurationIndex: 1, Size: 1 << 40},
	}
}

func testReplies() []any {
	return []any{
		&raft.AppendEntriesResponse{RPCHeader: testHeader, Term: 5, LastLog: 9, Success: true, NoRetryBackoff: true},
		&raft.RequestVoteResponse{RPCHeader: testHeader, Term: 5, Granted: true},
		&raft.RequestPreVoteResponse{RPCHeader: testHeader, Term: 5, Granted: true},
		&raft.TimeoutNowResponse{RPCHeader: testHeader},
		&raft.InstallSnapshotResponse{RPCHeader: testHeader, Term: 5, Success: true},
	}
}

// overTheWire encodes and decodes, as gRPC would.
func overTheWire(t testing.TB, e *ostrakapb.Envelope) *ostrakapb.Envelope {
	encoded, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	got := &ostrakapb.Envelope{}
	if err := proto.Unmarshal(encoded, got); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestRequestsSurvive fails, too, when raft's structs get a field that the codec does not know: all fields are set above.
func TestRequestsSurvive(t *testing.T) {
	for _, want := range testRequests() {
		e := &ostrakapb.Envelope{}
		setRequest(e, want)
		got, err := decodeRequest(overTheWire(t, e))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%T: got %+v, %v, want %+v", want, got, err, want)
		}
	}
}

func TestRepliesSurvive(t *testing.T) {
	for _, want := range testReplies() {
		e := &ostrakapb.Envelope{}
		if err := setReply(e, want); err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(want).Elem()).Interface()
		if err := readReply(overTheWire(t, e), got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%T: got %+v, %v, want %+v", want, got, err, want)
		}
		for _, other := range testReplies() {
			if reflect.TypeOf(other) != reflect.TypeOf(want) && !errors.Is(readReply(e, other), ErrMalformed) {
				t.Errorf("a %T passes for a %T", want, other)
			}
		}
	}
	for _, wrong := range []any{nil, "text", &raft.AppendEntriesRequest{}} {
		if err := setReply(&ostrakapb.Envelope{}, wrong); err == nil {
			t.Errorf("setReply takes a %T", wrong)
		}
	}
}

func TestMalformed(t *testing.T) {
	entry := func(index, term uint64, typ uint32, data []byte) *ostrakapb.LogEntry {
		return &ostrakapb.LogEntry{Index: index, Term: term, Type: typ, Data: data}
	}
	appendOf := func(prev uint64, entries ...*ostrakapb.LogEntry) *ostrakapb.Envelope {
		return &ostrakapb.Envelope{Body: &ostrakapb.Envelope_Append{Append: &ostrakapb.AppendEntries{Term: 5, PrevLogEntry: prev, Entries: entries}}}
	}
	install := func(m *ostrakapb.InstallSnapshot) *ostrakapb.Envelope {
		return &ostrakapb.Envelope{Body: &ostrakapb.Envelope_Install{Install: m}}
	}
	for name, e := range map[string]*ostrakapb.Envelope{
		"nothing":                  nil,
		"no body":                  {},
		"a reply":                  {Body: &ostrakapb.Envelope_VoteReply{}},
		"a gap":                    appendOf(7, entry(9, 5, 0, nil)),
		"a repetition":             appendOf(7, entry(8, 5, 0, nil), entry(8, 5, 0, nil)),
		"index overflow":           appendOf(1<<64-1, entry(0, 5, 0, nil)),
		"an entry of a later term": appendOf(7, entry(8, 6, 0, nil)),
		"a nil entry":              appendOf(7, nil),
		"an unknown entry type":    appendOf(7, entry(8, 5, 6, nil)),
		"a type beyond a byte":     appendOf(7, entry(8, 5, 256, nil)),
		"an outdated entry type":   appendOf(7, entry(8, 5, uint32(raft.LogAddPeerDeprecated), nil)),
		"a broken configuration":   appendOf(7, entry(8, 5, uint32(raft.LogConfiguration), []byte("\xdd\xff\xff\xff\xff"))),
		"an empty configuration":   appendOf(7, entry(8, 5, uint32(raft.LogConfiguration), nil)),
		"no snapshot":              install(nil),
		"snapshot version 0":       install(&ostrakapb.InstallSnapshot{Configuration: testConfiguration}),
		"snapshot version 2":       install(&ostrakapb.InstallSnapshot{SnapshotVersion: 2, Configuration: testConfiguration}),
		"a negative size":          install(&ostrakapb.InstallSnapshot{SnapshotVersion: 1, Configuration: testConfiguration, Size: -1}),
		"no configuration":         install(&ostrakapb.InstallSnapshot{SnapshotVersion: 1}),
	} {
		if got, err := decodeRequest(e); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// FuzzEnvelope: no bytes from a peer panic the codec, and what it accepts is what raft would send again.
func FuzzEnvelope(f *testing.F) {
	for _, request := range testRequests() {
		e := &ostrakapb.Envelope{Group: 1, FromReplica: 2, ToReplica: 3, Sequence: 4}
		setRequest(e, request)
		seed, _ := proto.Marshal(e)
		f.Add(seed)
	}
	for _, reply := range testReplies() {
		e := &ostrakapb.Envelope{}
		setReply(e, reply)
		seed, _ := proto.Marshal(e)
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e := &ostrakapb.Envelope{}
		if proto.Unmarshal(b, e) != nil {
			return
		}
		for _, reply := range testReplies() {
			readReply(e, reply)
		}
		decodeConfirm(e.GetConfirm())
		request, err := decodeRequest(e)
		if err != nil {
			return
		}
		again := &ostrakapb.Envelope{}
		setRequest(again, request)
		second, err := decodeRequest(overTheWire(t, again))
		if err != nil || !reflect.DeepEqual(request, second) {
			t.Errorf("%+v became %+v, %v", request, second, err)
		}
	})
}
