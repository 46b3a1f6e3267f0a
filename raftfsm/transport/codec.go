//lint:file-ignore SA1019 raft fills and reads its deprecated fields, so every field is carried.

package transport

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// ErrMalformed is a message from a peer that raft must not see: it lacks a part, contradicts itself, or holds what would
// make raft panic (an unknown entry type, a configuration that does not decode).
var ErrMalformed = errors.New("transport: malformed message")

// snapshotVersion is the only one raft still writes.
const snapshotVersion = 1

// setRequest puts one of raft's requests into an envelope. It panics on a type that raft v1.7.3 does not send.
func setRequest(e *ostrakapb.Envelope, request any) {
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		e.Term, e.Body = r.Term, &ostrakapb.Envelope_Append{Append: encodeAppend(r)}
	case *raft.RequestVoteRequest:
		e.Term, e.Body = r.Term, &ostrakapb.Envelope_Vote{Vote: &ostrakapb.RequestVote{
			Header: encodeHeader(r.RPCHeader), Term: r.Term, Candidate: r.Candidate,
			LastLogIndex: r.LastLogIndex, LastLogTerm: r.LastLogTerm, LeadershipTransfer: r.LeadershipTransfer}}
	case *raft.RequestPreVoteRequest:
		e.Term, e.Body = r.Term, &ostrakapb.Envelope_PreVote{PreVote: &ostrakapb.RequestVote{
			Header: encodeHeader(r.RPCHeader), Term: r.Term,
			LastLogIndex: r.LastLogIndex, LastLogTerm: r.LastLogTerm}}
	case *raft.TimeoutNowRequest: // has no term; the Facade adds it
		e.Body = &ostrakapb.Envelope_TimeoutNow{TimeoutNow: &ostrakapb.TimeoutNow{Header: encodeHeader(r.RPCHeader)}}
	case *raft.InstallSnapshotRequest:
		e.Term, e.Body = r.Term, &ostrakapb.Envelope_Install{Install: &ostrakapb.InstallSnapshot{
			Header: encodeHeader(r.RPCHeader), SnapshotVersion: uint32(r.SnapshotVersion), Term: r.Term, Leader: r.Leader,
			LastLogIndex: r.LastLogIndex, LastLogTerm: r.LastLogTerm,
			Configuration: r.Configuration, ConfigurationIndex: r.ConfigurationIndex, Size: r.Size}}
	default:
		panic(fmt.Sprintf("transport: raft sends an unknown %T", request))
	}
}

// decodeRequest returns one of raft's requests, fit to be handed to raft, or ErrMalformed.
func decodeRequest(e *ostrakapb.Envelope) (any, error) {
	switch body := e.GetBody().(type) {
	case *ostrakapb.Envelope_Append:
		return decodeAppend(body.Append)
	case *ostrakapb.Envelope_Vote:
		v := body.Vote
		return &raft.RequestVoteRequest{RPCHeader: decodeHeader(v.GetHeader()), Term: v.GetTerm(), Candidate: v.GetCandidate(),
			LastLogIndex: v.GetLastLogIndex(), LastLogTerm: v.GetLastLogTerm(), LeadershipTransfer: v.GetLeadershipTransfer()}, nil
	case *ostrakapb.Envelope_PreVote:
		v := body.PreVote
		return &raft.RequestPreVoteRequest{RPCHeader: decodeHeader(v.GetHeader()), Term: v.GetTerm(),
			LastLogIndex: v.GetLastLogIndex(), LastLogTerm: v.GetLastLogTerm()}, nil
	case *ostrakapb.Envelope_TimeoutNow:
		return &raft.TimeoutNowRequest{RPCHeader: decodeHeader(body.TimeoutNow.GetHeader())}, nil
	case *ostrakapb.Envelope_Install:
		return decodeInstall(body.Install)
	}
	return nil, fmt.Errorf("%w: %T is no request", ErrMalformed, e.GetBody())
}

// setReply puts raft's answer into an envelope.
func setReply(e *ostrakapb.Envelope, reply any) error {
	switch r := reply.(type) {
	case *raft.AppendEntriesResponse:
		e.Term, e.Body = r.Term, &ostrakapb.Envelope_AppendReply{AppendReply: &ostrakapb.AppendEntriesReply{
			Header: encodeHeader(r.RPCHeader), Term: r.Term, LastLog: r.LastLog, Success: r.Success, NoRetryBackoff: r.NoRetryBackoff}}
	case *raft.RequestVoteResponse:
		e.Term, e.Body = r.Term, &ostrakapb.Envelope_VoteReply{VoteReply: &ostrakapb.RequestVoteReply{
			Header: encodeHeader(r.RPCHeader), Term: r.Term, Granted: r.Granted}}
	case *raft.RequestPreVoteResponse:
		e.Term, e.Body = r.Term, &ostrakapb.Envelope_PreVoteReply{PreVoteReply: &ostrakapb.RequestVoteReply{
			Header: encodeHeader(r.RPCHeader), Term: r.Term, Granted: r.Granted}}
	case *raft.TimeoutNowResponse:
		e.Body = &ostrakapb.Envelope_TimeoutNowReply{TimeoutNowReply: &ostrakapb.TimeoutNowReply{Header: encodeHeader(r.RPCHeader)}}
	case *raft.InstallSnapshotResponse:
		e.Term, e.Body = r.Term, &ostrakapb.Envelope_InstallReply{InstallReply: &ostrakapb.InstallSnapshotReply{
			Header: encodeHeader(r.RPCHeader), Term: r.Term, Success: r.Success}}
	default:
		return fmt.Errorf("transport: raft answered with a %T", reply)
	}
	return nil
}

// readReply fills in reply, a pointer to the response type that raft waits for, or returns ErrMalformed.
func readReply(e *ostrakapb.Envelope, reply any) error {
	switch r := reply.(type) {
	case *raft.AppendEntriesResponse:
		if m := e.GetAppendReply(); m != nil {
			*r = raft.AppendEntriesResponse{RPCHeader: decodeHeader(m.Header), Term: m.Term, LastLog: m.LastLog,
				Success: m.Success, NoRetryBackoff: m.NoRetryBackoff}
			return nil
		}
	case *raft.RequestVoteResponse:
		if m := e.GetVoteReply(); m != nil {
			*r = raft.RequestVoteResponse{RPCHeader: decodeHeader(m.Header), Term: m.Term, Granted: m.Granted}
			return nil
		}
	case *raft.RequestPreVoteResponse:
		if m := e.GetPreVoteReply(); m != nil {
			*r = raft.RequestPreVoteResponse{RPCHeader: decodeHeader(m.Header), Term: m.Term, Granted: m.Granted}
			return nil
		}
	case *raft.TimeoutNowResponse:
		if m := e.GetTimeoutNowReply(); m != nil {
			*r = raft.TimeoutNowResponse{RPCHeader: decodeHeader(m.Header)}
			return nil
		}
	case *raft.InstallSnapshotResponse:
		if m := e.GetInstallReply(); m != nil {
			*r = raft.InstallSnapshotResponse{RPCHeader: decodeHeader(m.Header), Term: m.Term, Success: m.Success}
			return nil
		}
	}
	return fmt.Errorf("%w: %T does not answer for a %T", ErrMalformed, e.GetBody(), reply)
}

func encodeHeader(h raft.RPCHeader) *ostrakapb.RaftHeader {
	return &ostrakapb.RaftHeader{Protocol: uint32(h.ProtocolVersion), Id: h.ID, Addr: h.Addr}
}

// decodeHeader takes a missing header for protocol version 0, which raft refuses.
func decodeHeader(h *ostrakapb.RaftHeader) raft.RPCHeader {
	// Capped, or a huge number would turn into a negative version.
	version := min(h.GetProtocol(), math.MaxInt32)
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(version), ID: h.GetId(), Addr: h.GetAddr()}
}

func encodeAppend(r *raft.AppendEntriesRequest) *ostrakapb.AppendEntries {
	m := &ostrakapb.AppendEntries{
		Header: encodeHeader(r.RPCHeader), Term: r.Term, Leader: r.Leader,
		PrevLogEntry: r.PrevLogEntry, PrevLogTerm: r.PrevLogTerm, LeaderCommitIndex: r.LeaderCommitIndex,
	}
	if len(r.Entries) > 0 {
		m.Entries = make([]*ostrakapb.LogEntry, len(r.Entries))
	}
	for i, l := range r.Entries {
		m.Entries[i] = &ostrakapb.LogEntry{Index: l.Index, Term: l.Term, Type: uint32(l.Type), Data: l.Data, Extensions: l.Extensions}
		if !l.AppendedAt.IsZero() {
			m.Entries[i].AppendedAt = l.AppendedAt.UnixNano()
		}
	}
	return m
}

// decodeAppend refuses entries that do not follow each other from the previous one: lowerCommit counts on it, and raft
// takes an index at its word.
func decodeAppend(m *ostrakapb.AppendEntries) (*raft.AppendEntriesRequest, error) {
	r := &raft.AppendEntriesRequest{
		RPCHeader: decodeHeader(m.GetHeader()), Term: m.GetTerm(), Leader: m.GetLeader(),
		PrevLogEntry: m.GetPrevLogEntry(), PrevLogTerm: m.GetPrevLogTerm(), LeaderCommitIndex: m.GetLeaderCommitIndex(),
	}
	entries := m.GetEntries()
	if r.PrevLogEntry > math.MaxUint64-uint64(len(entries)) {
		return nil, fmt.Errorf("%w: %d entries after index %d", ErrMalformed, len(entries), r.PrevLogEntry)
	}
	if len(entries) > 0 {
		r.Entries = make([]*raft.Log, len(entries))
	}
	for i, entry := range entries {
		if want := r.PrevLogEntry + uint64(i) + 1; entry.GetIndex() != want || entry.GetTerm() > r.Term {
			return nil, fmt.Errorf("%w: entry %d of term %d where entry %d is due in term %d",
				ErrMalformed, entry.GetIndex(), entry.GetTerm(), want, r.Term)
		}
		l, err := decodeEntry(entry)
		if err != nil {
			return nil, err
		}
		r.Entries[i] = l
	}
	return r, nil
}

// decodeEntry refuses the types at which raft panics once the entry is committed, and those of raft's oldest protocol,
// which nobody writes.
func decodeEntry(m *ostrakapb.LogEntry) (*raft.Log, error) {
	if m.GetType() > uint32(raft.LogConfiguration) {
		return nil, fmt.Errorf("%w: entry %d has unknown type %d", ErrMalformed, m.GetIndex(), m.GetType())
	}
	l := &raft.Log{Index: m.GetIndex(), Term: m.GetTerm(), Type: raft.LogType(m.GetType()), Data: m.GetData(), Extensions: m.GetExtensions()}
	if at := m.GetAppendedAt(); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	switch l.Type {
	case raft.LogConfiguration:
		if err := checkConfiguration(l.Data); err != nil {
			return nil, fmt.Errorf("entry %d: %w", l.Index, err)
		}
	case raft.LogAddPeerDeprecated, raft.LogRemovePeerDeprecated:
		return nil, fmt.Errorf("%w: entry %d has outdated type %s", ErrMalformed, l.Index, l.Type)
	}
	return l, nil
}

func decodeInstall(m *ostrakapb.InstallSnapshot) (*raft.InstallSnapshotRequest, error) {
	switch {
	case m.GetSnapshotVersion() != snapshotVersion:
		return nil, fmt.Errorf("%w: snapshot version %d", ErrMalformed, m.GetSnapshotVersion())
	case m.GetSize() < 0:
		return nil, fmt.Errorf("%w: snapshot of %d bytes", ErrMalformed, m.GetSize())
	}
	if err := checkConfiguration(m.GetConfiguration()); err != nil {
		return nil, fmt.Errorf("snapshot at index %d: %w", m.GetLastLogIndex(), err)
	}
	return &raft.InstallSnapshotRequest{
		RPCHeader: decodeHeader(m.GetHeader()), SnapshotVersion: snapshotVersion, Term: m.GetTerm(), Leader: m.GetLeader(),
		LastLogIndex: m.GetLastLogIndex(), LastLogTerm: m.GetLastLogTerm(),
		Configuration: m.GetConfiguration(), ConfigurationIndex: m.GetConfigurationIndex(), Size: m.GetSize(),
	}, nil
}

// checkConfiguration tries what raft will do on its main loop, where a configuration that does not decode is a panic.
func checkConfiguration(encoded []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: configuration: %v", ErrMalformed, p)
		}
	}()
	raft.DecodeConfiguration(encoded)
	return nil
}
