package raftfsm

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger hands raft's messages, warnings and above, to slog.
func raftLogger(to *slog.Logger) hclog.Logger {
	logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Warn, Output: io.Discard})
	logger.RegisterSink(slogSink{to: to})
	return logger
}

// ofPeer are what raft says, again and again, of a peer that does not answer. transport warns once when the link
// goes down; these would only bury that.
var ofPeer = map[string]bool{
	"failed to heartbeat to": true, "failed to appendEntries to": true, "failed to contact": true,
	"failed to make requestVote RPC": true, "failed to make requestPreVote RPC": true,
}

// routine is what raft warns of in every election, planned ones and a cluster's first included.
var routine = map[string]bool{
	"heartbeat timeout reached, starting election": true, "rejecting pre-vote request since we have a leader": true,
	"rejecting vote request since we have a leader": true, "Election timeout reached, restarting election": true,
}

// slogSink implements hclog.SinkAdapter.
type slogSink struct{ to *slog.Logger }

func (s slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	severity := slog.LevelDebug
	switch {
	case ofPeer[msg]:
	case routine[msg]:
		severity = slog.LevelInfo
	case level >= hclog.Error:
		severity = slog.LevelError
	case level == hclog.Warn:
		severity = slog.LevelWarn
	case level == hclog.Info:
		severity = slog.LevelInfo
	}
	for i, arg := range args {
		if format, ok := arg.(hclog.Format); ok { // hclog.Fmt: a lazy Printf
			args[i] = hclogFormat(format)
		}
	}
	s.to.Log(context.Background(), severity, msg, args...)
}

// hclogFormat renders hclog.Fmt's value.
func hclogFormat(f hclog.Format) string {
	if len(f) == 0 {
		return ""
	}
	format, ok := f[0].(string)
	if !ok {
		return fmt.Sprint(f...)
	}
	return fmt.Sprintf(format, f[1:]...)
}
