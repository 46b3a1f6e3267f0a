package raftfsm

import (
	"context"

	"github.com/ostraka-db/ostraka/store"
)

// Changes is what a replica's latest changes can be followed by. Only what is committed is applied, so any replica's will do: those
// of one that is behind come later.
type Changes struct {
	*store.History
	// Ended is closed when the replica stops or begins another life: no more changes come to this history.
	Ended <-chan struct{}
}

// Changes returns the replica's history. It begins anew when the replica does, behind the snapshot that it starts from, and goes on
// behind the one that it installs. Errors: ErrStopped, ErrNoHistory.
func (g *Group) Changes() (Changes, error) {
	l, m, err := g.life()
	if err != nil {
		return Changes{}, err
	}
	if m.history == nil {
		return Changes{}, ErrNoHistory
	}
	return Changes{History: m.history, Ended: l.ctx.Done()}, nil
}

// Position returns a position in the shard's changes that lies behind all writes acknowledged before the call, and before all that
// begin after it. Errors: those of a linearizable Read, ErrNoHistory.
func (g *Group) Position(ctx context.Context) (store.Position, error) {
	r, err := g.Read(ctx, Linearizable)
	if err != nil {
		return store.Position{}, err
	}
	if r.machine.history == nil {
		return store.Position{}, ErrNoHistory
	}
	_, at := r.machine.history.End()
	return at, nil
}
