package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ostraka-db/ostraka/bench/cluster"
)

// profile begins to profile every node for a while, if that was asked for. The function it returns waits for the end.
func profile(ctx context.Context, opts options, c *cluster.Cluster, name string, length time.Duration) (wait func() error) {
	if opts.profiles == "" {
		return func() error { return nil }
	}
	var all errgroup.Group
	for _, p := range c.Nodes() {
		all.Go(func() error {
			from := fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(length.Seconds()))
			return download(ctx, p, from, filepath.Join(opts.profiles, name+"-"+p.ID+".pprof"))
		})
	}
	return all.Wait
}

func download(ctx context.Context, p *cluster.Process, from, to string) error {
	body, err := p.Get(ctx, from)
	if err != nil {
		return err
	}
	defer body.Close()
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(file, body); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// fileName is a subject in the names of its files.
func fileName(s subject) string {
	return fmt.Sprintf("%s-%d", filepath.Base(s.binary), s.shards)
}
