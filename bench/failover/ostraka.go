package failover

import (
	"context"
	"errors"
	"fmt"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// ForOstraka measures a cluster of Ostraka. Close ends its client, not the cluster.
func ForOstraka(ctx context.Context, c *cluster.Cluster) (*Ostraka, error) {
	cl, err := client.New(ctx, c.Endpoints())
	if err != nil {
		return nil, err
	}
	o := &Ostraka{cluster: c, client: cl}
	for _, sh := range cl.Map().Shards() {
		for i := 0; ; i++ {
			if key := fmt.Appendf(nil, "failover-%d", i); cl.ShardOf(key) == sh.ID {
				o.keys = append(o.keys, key)
				break
			}
		}
	}
	return o, nil
}

// Ostraka is a Cluster of real processes, one group for each shard.
type Ostraka struct {
	cluster *cluster.Cluster
	client  *client.Client
	keys    [][]byte // one of each shard
}

// Close ends the client.
func (o *Ostraka) Close() error { return o.client.Close() }

// Groups implements Cluster.
func (o *Ostraka) Groups() int { return len(o.keys) }

// Write implements Cluster.
func (o *Ostraka) Write(ctx context.Context, group int) error {
	_, err := o.client.Set(ctx, o.keys[group], []byte("written while a leader fails"))
	return err
}

// Settle implements Cluster.
func (o *Ostraka) Settle(ctx context.Context) (string, error) {
	s, err := o.cluster.AwaitStatus(ctx, cluster.Healthy)
	if err != nil {
		return "", err
	}
	node, _ := cluster.MostLeading(s)
	return node, nil
}

// End implements Cluster.
func (o *Ostraka) End(ctx context.Context, node string, gently bool) error {
	if !gently {
		return o.cluster.Node(node).Kill()
	}
	status, err := o.cluster.Node(node).Terminate(ctx)
	if err == nil && status != 0 {
		err = errors.New("it exited with status " + fmt.Sprint(status))
	}
	return err
}

// Restart implements Cluster.
func (o *Ostraka) Restart(ctx context.Context, node string) error {
	p := o.cluster.Node(node)
	if err := p.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	return p.AwaitListening(ctx)
}
