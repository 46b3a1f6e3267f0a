package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/bench/cluster"
)

// Where etcd's clients connect to.
const (
	etcdLeader = "leader"
	etcdAll    = "all"
)

// etcd is three members, each a process of this binary that runs etcd's own server (etcdnode.go).
type etcd struct {
	// connections is the number of clients, each with one connection; endpointsOf says to whom.
	connections int
	endpointsOf string

	nodes   children
	members []etcdMember     // of the nodes
	control *clientv3.Client // to all members
	driven  etcdTarget
	version string
}

func (e *etcd) start(ctx context.Context, dir string) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, e.stop())
		}
	}()
	endpoints, err := e.startNodes(dir)
	if err != nil {
		return err
	}
	if e.control, err = newEtcdClient(endpoints...); err != nil {
		return err
	}
	err = e.nodes.await(ctx, "etcd serves", func(ctx context.Context) (bool, error) {
		asked, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := e.control.Get(asked, "ready")
		return err == nil, err
	})
	if err != nil {
		return err
	}
	leader, err := e.leader(ctx, endpoints)
	if err != nil {
		return err
	}
	for i := range e.connections {
		to := leader
		if e.endpointsOf == etcdAll {
			to = endpoints[i%len(endpoints)]
		}
		c, err := newEtcdClient(to)
		if err != nil {
			return err
		}
		e.driven.clients = append(e.driven.clients, c)
	}
	return nil
}

// startNodes runs the members and returns their endpoints for clients.
func (e *etcd) startNodes(dir string) (endpoints []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addresses, err := cluster.FreeAddresses(2 * nodesPerSystem)
	if err != nil {
		return nil, err
	}
	clients, peers := addresses[:nodesPerSystem], addresses[nodesPerSystem:]
	var initial []string
	for i, peer := range peers {
		initial = append(initial, fmt.Sprintf("n%d=http://%s", i+1, peer))
	}
	for i := range nodesPerSystem {
		spec := etcdNode{
			Name: fmt.Sprintf("n%d", i+1), Dir: filepath.Join(dir, fmt.Sprintf("n%d", i+1)),
			ClientURL: "http://" + clients[i], PeerURL: "http://" + peers[i],
			InitialCluster: strings.Join(initial, ","),
		}
		m := etcdMember{spec: spec, dir: dir, executable: self}
		node, err := m.run()
		if err != nil {
			return nil, err
		}
		e.nodes, e.members = append(e.nodes, node), append(e.members, m)
		endpoints = append(endpoints, spec.ClientURL)
	}
	return endpoints, nil
}

// etcdMember is all that it takes to run a member, for the first time or again.
type etcdMember struct {
	spec            etcdNode
	dir, executable string
}

func (m etcdMember) run() (*child, error) {
	arg, err := json.Marshal(m.spec)
	if err != nil {
		return nil, err
	}
	return startChild("etcd "+m.spec.Name, m.dir, filepath.Join(m.dir, m.spec.Name+".log"), m.executable, etcdNodeArgument, string(arg))
}

func newEtcdClient(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

func (e *etcd) leader(ctx context.Context, endpoints []string) (string, error) {
	for _, endpoint := range endpoints {
		s, err := e.control.Status(ctx, endpoint)
		if err != nil {
			return "", err
		}
		e.version = s.Version
		if s.Leader == s.Header.MemberId {
			return endpoint, nil
		}
	}
	return "", errors.New("etcd: no member says that it leads")
}

func (e *etcd) facts() facts {
	return facts{
		Version: fmt.Sprintf("%s (embedded, with grpc %s and bbolt %s)", e.version,
			moduleVersion("google.golang.org/grpc"), moduleVersion("go.etcd.io/bbolt")),
		Writes:   "Put: in the write-ahead logs of 2 of 3 members, synced",
		Reads:    "Get: linearizable",
		Client:   fmt.Sprintf("clientv3, %s to %s", plural(e.connections, "connection"), map[string]string{etcdLeader: "the leader", etcdAll: "all members in turn"}[e.endpointsOf]),
		Settings: "fsync on (the default), quota 8 GiB, no compaction, log level error",
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (e *etcd) target() bench.Target { return &e.driven }
func (e *etcd) pids() []int          { return e.nodes.pids() }
func (e *etcd) alive() error         { return e.nodes.alive() }

// verify compares the members' hashes of all they hold at the same revision.
func (e *etcd) verify(ctx context.Context) error {
	now, err := e.control.Get(ctx, "revision")
	if err != nil {
		return err
	}
	return e.nodes.await(ctx, "etcd's members hold the same", func(ctx context.Context) (bool, error) {
		hashes := make(map[uint32]bool)
		for _, endpoint := range e.control.Endpoints() {
			h, err := e.control.HashKV(ctx, endpoint, now.Header.Revision)
			if err != nil {
				return false, err // a member that has not come so far says so
			}
			hashes[h.Hash] = true
		}
		if len(hashes) != 1 {
			return false, fmt.Errorf("%d different hashes at revision %d", len(hashes), now.Header.Revision)
		}
		return true, nil
	})
}

func (e *etcd) stop() error {
	for _, c := range e.driven.clients {
		_ = c.Close() // the nodes end next
	}
	if e.control != nil {
		_ = e.control.Close()
	}
	err := e.nodes.stop()
	e.driven.clients, e.control, e.nodes, e.members = nil, nil, nil, nil
	return err
}

// etcdTarget spreads calls over clients in turn.
type etcdTarget struct {
	clients []*clientv3.Client
	calls   atomic.Uint64
}

func (t *etcdTarget) client() *clientv3.Client {
	return t.clients[t.calls.Add(1)%uint64(len(t.clients))]
}

func (t *etcdTarget) Read(ctx context.Context, keys [][]byte) (failed int, err error) {
	for _, key := range keys {
		if _, getErr := t.client().Get(ctx, string(key)); getErr != nil {
			failed, err = failed+1, getErr
		}
	}
	return failed, err
}

// Write puts one key by itself, more of them in a transaction, of which etcd takes 128 keys by default.
func (t *etcdTarget) Write(ctx context.Context, keys, values [][]byte) (failed int, err error) {
	if len(keys) == 1 {
		_, err = t.client().Put(ctx, string(keys[0]), string(values[0]))
	} else {
		puts := make([]clientv3.Op, len(keys))
		for i := range keys {
			puts[i] = clientv3.OpPut(string(keys[i]), string(values[i]))
		}
		_, err = t.client().Txn(ctx).Then(puts...).Commit()
	}
	if err != nil {
		return len(keys), err
	}
	return 0, nil
}
