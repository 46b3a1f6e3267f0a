package main

import (
	"context"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
)

// keyValue is what commands need of a cluster: a *client.Client, or a test's stand-in.
type keyValue interface {
	Get(ctx context.Context, key []byte, opts ...client.ReadOption) (client.Value, error)
	TTL(ctx context.Context, key []byte, opts ...client.ReadOption) (client.KeyInfo, error)
	Set(ctx context.Context, key, value []byte, opts ...client.SetOption) (client.SetResult, error)
	CompareAndSet(ctx context.Context, key, old, new []byte) (uint64, error)
	Increment(ctx context.Context, key []byte, delta int64) (client.IncrementResult, error)
	Append(ctx context.Context, key, value []byte) (client.AppendResult, error)
	Expire(ctx context.Context, key []byte, ttl time.Duration) (uint64, error)
	Persist(ctx context.Context, key []byte) (uint64, error)
	Touch(ctx context.Context, key []byte) (uint64, error)
	MultiGet(ctx context.Context, keys [][]byte, opts ...client.ReadOption) []client.GetResult
	MultiSet(ctx context.Context, items []client.SetItem) []error
	MultiDelete(ctx context.Context, keys [][]byte) ([]bool, []error)
	Scan(ctx context.Context, keys client.KeyRange, opts ...client.ScanOption) iter.Seq2[client.Item, error]
	Watch(ctx context.Context, keys client.KeyRange, opts ...client.WatchOption) (changes, error)
	ClusterID() string
	Close() error
}

// connection is how a command reaches a cluster.
type connection struct {
	endpoints []string
	timeout   time.Duration
}

// connect reaches a cluster through the client library.
func connect(ctx context.Context, c connection) (keyValue, error) {
	cl, err := client.New(ctx, c.endpoints, client.WithTimeout(c.timeout))
	if err != nil {
		return nil, err
	}
	return clusterClient{cl}, nil
}

// flags adds those that every client command takes. defaultTimeout bounds what timeoutOf names.
func (c *connection) flags(cmd *cobra.Command, timeoutOf string) {
	flags := cmd.Flags()
	flags.StringSliceVar(&c.endpoints, "endpoints", []string{"127.0.0.1:7400"}, "`addresses` of nodes, comma-separated; any one will do")
	flags.DurationVar(&c.timeout, "timeout", client.DefaultTimeout, "longest wait for "+timeoutOf)
	settings(flags, "endpoints", "timeout")
}

// bounded gives a whole command the timeout.
func (c *connection) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.timeout)
}

// call is what a command does with a cluster, once its arguments are understood.
type call func(ctx context.Context, kv keyValue) error

// keyCommand completes a command that makes one call: understand the arguments, connect, call, close. The timeout is
// for all of it but the arguments, which may come from stdin.
func (a *app) keyCommand(cmd *cobra.Command, understand func(args []string) (call, error)) *cobra.Command {
	var c connection
	c.flags(cmd, "the answer")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		call, err := understand(args)
		if err != nil {
			return err
		}
		ctx, cancel := c.bounded(cmd.Context())
		defer cancel()
		return a.withCluster(ctx, c, call)
	}
	return cmd
}

// longCommand completes a command that makes many calls, each within the timeout.
func (a *app) longCommand(cmd *cobra.Command, understand func(args []string) (call, error)) *cobra.Command {
	var c connection
	c.flags(cmd, "each call")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		call, err := understand(args)
		if err != nil {
			return err
		}
		return a.withCluster(cmd.Context(), c, call)
	}
	return cmd
}

func (a *app) withCluster(ctx context.Context, c connection, call call) error {
	kv, err := a.connect(ctx, c)
	if err != nil {
		return err
	}
	defer kv.Close()
	return call(ctx, kv)
}
