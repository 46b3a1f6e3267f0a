package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ostraka-db/ostraka/bench/failover"
)

// compareFailovers kills leaders of etcd and Ostraka in turn, and prints how long writes stood still. Redis is left out: without
// Sentinel its primary has no successor.
func compareFailovers(ctx context.Context, opts *options, stdout, progress io.Writer) (err error) {
	if err := os.MkdirAll(opts.dir, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(opts.dir, "failover-")
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	names := []string{nameEtcd, nameOstraka}
	measured := make(map[string]failover.Cluster)
	for _, name := range names {
		s := newSystem(name, opts)
		own := filepath.Join(dir, name)
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
		started, cancel := context.WithTimeout(ctx, startMax)
		err := s.start(started, own)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer func() { err = errors.Join(err, s.stop()) }()
		c, err := failoversOf(ctx, s)
		if err != nil {
			return err
		}
		measured[name] = c
		if o, ok := c.(io.Closer); ok {
			defer o.Close()
		}
		f := s.facts()
		fmt.Fprintf(progress, "%s %s is up, %s\n", title(name), f.Version, plural(c.Groups(), "group"))
	}
	samples := make(map[string][]failover.Sample)
	for i := range opts.failovers {
		for j := range names {
			name := names[(i+j)%len(names)]
			s, err := failover.Once(ctx, measured[name], false)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			samples[name] = append(samples[name], s)
			fmt.Fprintf(progress, "%d/%d: %s's writes stood still for %s\n", i+1, opts.failovers, title(name), s.Gap.Round(100*time.Microsecond))
		}
	}
	return writeFailovers(stdout, names, samples)
}

func writeFailovers(w io.Writer, names []string, samples map[string][]failover.Sample) error {
	var b strings.Builder
	fmt.Fprintf(&b, "longest time without an acknowledged write around each kill -9 of a leader, in ms; calls that failed after all that their client tried\n\n"+
		"| system | kills | p50 | p90 | p99 | max | failed calls |\n| ------ | ----: | --: | --: | --: | --: | -----------: |\n")
	for _, name := range names {
		s := failover.Summarize(samples[name])
		fmt.Fprintf(&b, "| %s | %d | %.0f | %.0f | %.0f | %.0f | %d |\n", title(name), s.Ends, s.GapMS.P50, s.GapMS.P90, s.GapMS.P99, s.GapMS.Max, s.Failed)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// failoversOf makes a started system one whose leaders can be killed.
func failoversOf(ctx context.Context, s system) (failover.Cluster, error) {
	switch s := s.(type) {
	case *etcd:
		return &etcdFailovers{s}, nil
	case *ostraka:
		return failover.ForOstraka(ctx, s.cluster)
	}
	return nil, fmt.Errorf("no leader of %T can be killed", s)
}

// etcdFailovers is a failover.Cluster: one group, and a client that knows all members.
type etcdFailovers struct{ *etcd }

func (e *etcdFailovers) Groups() int { return 1 }

func (e *etcdFailovers) Write(ctx context.Context, _ int) error {
	_, err := e.control.Put(ctx, "failover", "written while a leader fails")
	return err
}

// Settle waits until every member answers and knows the same leader, and has applied what that one had.
func (e *etcdFailovers) Settle(ctx context.Context) (node string, err error) {
	err = e.nodes.await(ctx, "etcd is well", func(ctx context.Context) (bool, error) {
		leaders := make(map[uint64]string)
		var applied []uint64
		for _, m := range e.members {
			asked, cancel := context.WithTimeout(ctx, time.Second)
			s, err := e.control.Status(asked, m.spec.ClientURL)
			cancel()
			if err != nil {
				return false, err
			}
			if leaders[s.Leader] == "" || s.Leader == s.Header.MemberId {
				leaders[s.Leader] = m.spec.Name
			}
			if s.Leader == s.Header.MemberId {
				node = m.spec.Name
			}
			applied = append(applied, s.RaftAppliedIndex)
		}
		return len(leaders) == 1 && node != "" && slices.Max(applied) == slices.Min(applied), nil
	})
	return node, err
}

func (e *etcdFailovers) member(node string) int {
	return slices.IndexFunc(e.members, func(m etcdMember) bool { return m.spec.Name == node })
}

func (e *etcdFailovers) End(_ context.Context, node string, gently bool) error {
	c := e.nodes[e.member(node)]
	if gently {
		return c.stop()
	}
	if err := syscall.Kill(-c.pid(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	<-c.exited
	return nil
}

func (e *etcdFailovers) Restart(_ context.Context, node string) (err error) {
	i := e.member(node)
	e.nodes[i], err = e.members[i].run()
	return err
}
