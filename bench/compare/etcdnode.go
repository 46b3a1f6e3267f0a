package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcdNodeArgument as the first argument makes this process one member of an etcd cluster instead of the benchmark. The
// second one is an etcdNode as JSON.
const etcdNodeArgument = "etcd-node"

// etcdQuotaBytes is etcd's recommended most. The default of 2 GiB would end a long run, since old revisions are kept.
const etcdQuotaBytes = 8 << 30

// etcdNode is a member to be run.
type etcdNode struct{ Name, Dir, ClientURL, PeerURL, InitialCluster string }

// runEtcdNode serves until SIGTERM. Everything not set here is etcd's default; so it syncs.
func runEtcdNode(spec string) error {
	var node etcdNode
	if err := json.Unmarshal([]byte(spec), &node); err != nil {
		return fmt.Errorf("%s: %w", etcdNodeArgument, err)
	}
	client, err := url.Parse(node.ClientURL)
	if err != nil {
		return err
	}
	peer, err := url.Parse(node.PeerURL)
	if err != nil {
		return err
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = node.Name, node.Dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = node.InitialCluster
	cfg.QuotaBackendBytes = etcdQuotaBytes
	cfg.LogLevel, cfg.LogOutputs = "error", []string{"stderr"}
	if cfg.UnsafeNoFsync {
		return errors.New("etcd would not sync")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer server.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Err():
		return err
	case <-server.Server.StopNotify():
		return errors.New("etcd stopped by itself")
	}
}
