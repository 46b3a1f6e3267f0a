package transport

import (
	"context"
	"fmt"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// ConfirmItem asks whether one replica of the peer is still in a term.
type ConfirmItem struct {
	Group   shard.ID
	Replica shard.ReplicaID
	Term    uint64
}

// confirmItemsMax bounds the questions of one message: a node holds far fewer groups, and the answers are worked out on
// the goroutine behind which all messages of the peer wait.
const confirmItemsMax = 4096

// Confirm asks a peer node about many groups (at most 4096) in one message, and returns one answer per item, in order. It is sent after
// Confirm was called, never before, and fails at once while the link is down. It returns by ctx at the latest.
func (t *Transport) Confirm(ctx context.Context, node shard.NodeID, items []ConfirmItem) ([]bool, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(t.ctx, func() { cancel(ErrClosed) })()

	p, err := t.peer(node)
	if err != nil {
		return nil, err
	}
	until := limit{ctx: ctx}
	d, err := p.link.acquire(until, false)
	if err != nil {
		return nil, err
	}
	request := &ostrakapb.Envelope{Body: &ostrakapb.Envelope_Confirm{Confirm: encodeConfirm(items)}}
	w := t.calls.get(0) // ctx has the deadline
	defer t.calls.put(w)
	if err := d.submit(request, w); err != nil {
		return nil, err
	}
	answer, err := d.wait(until, request, w)
	if err != nil {
		return nil, err
	}
	same := answer.GetConfirmReply().GetSameTerm()
	if len(same) != len(items) {
		return nil, fmt.Errorf("%w: %d answers to %d questions", ErrMalformed, len(same), len(items))
	}
	return same, nil
}

func (t *Transport) answerConfirm(request *ostrakapb.Envelope) (*ostrakapb.Envelope, error) {
	if n := len(request.GetConfirm().GetGroups()); n > confirmItemsMax {
		return nil, fmt.Errorf("%w: %d questions in one message, at most %d are answered", ErrMalformed, n, confirmItemsMax)
	}
	items := decodeConfirm(request.GetConfirm())
	answer := answerTo(request)
	answer.Body = &ostrakapb.Envelope_ConfirmReply{ConfirmReply: &ostrakapb.ReadConfirmReply{SameTerm: t.cfg.Confirmer(items)}}
	return answer, nil
}

func encodeConfirm(items []ConfirmItem) *ostrakapb.ReadConfirm {
	m := &ostrakapb.ReadConfirm{Groups: make([]*ostrakapb.ReadConfirmGroup, len(items))}
	for i, item := range items {
		m.Groups[i] = &ostrakapb.ReadConfirmGroup{Group: uint32(item.Group), Replica: uint64(item.Replica), Term: item.Term}
	}
	return m
}

func decodeConfirm(m *ostrakapb.ReadConfirm) []ConfirmItem {
	items := make([]ConfirmItem, len(m.GetGroups()))
	for i, g := range m.GetGroups() {
		items[i] = ConfirmItem{Group: shard.ID(g.GetGroup()), Replica: shard.ReplicaID(g.GetReplica()), Term: g.GetTerm()}
	}
	return items
}
