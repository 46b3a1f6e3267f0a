package bench

import (
	"context"
	"errors"

	"github.com/ostraka-db/ostraka/client"
)

// ForClient makes a Target of an Ostraka client. Calls of one key use Get and Set, larger ones MultiGet and
// MultiSet. stale: reads may be answered by any replica.
func ForClient(c *client.Client, stale bool) Target {
	t := &ostraka{client: c}
	if stale {
		t.reads = append(t.reads, client.Stale())
	}
	return t
}

type ostraka struct {
	client *client.Client
	reads  []client.ReadOption
}

func (o *ostraka) Read(ctx context.Context, keys [][]byte) (failed int, err error) {
	if len(keys) == 1 {
		if _, err = o.client.Get(ctx, keys[0], o.reads...); err != nil && !errors.Is(err, client.ErrNotFound) {
			return 1, err
		}
		return 0, nil
	}
	for _, r := range o.client.MultiGet(ctx, keys, o.reads...) {
		if r.Err != nil && !errors.Is(r.Err, client.ErrNotFound) {
			failed, err = failed+1, r.Err
		}
	}
	return failed, err
}

func (o *ostraka) Write(ctx context.Context, keys, values [][]byte) (failed int, err error) {
	if len(keys) == 1 {
		if _, err = o.client.Set(ctx, keys[0], values[0]); err != nil {
			return 1, err
		}
		return 0, nil
	}
	items := make([]client.SetItem, len(keys))
	for i := range keys {
		items[i] = client.SetItem{Key: keys[i], Value: values[i]}
	}
	for _, e := range o.client.MultiSet(ctx, items) {
		if e != nil {
			failed, err = failed+1, e
		}
	}
	return failed, err
}
