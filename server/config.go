package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

// ErrConfig is wrapped by every complaint about a Config; the message names the field.
var ErrConfig = errors.New("configuration")

// Config is everything a node needs to know. Zero values take the defaults named at the fields.
type Config struct {
	// ID names the node for ever, inside its cluster and in its data directory: 1..64 letters, digits, '.', '_' or '-'.
	ID string
	// DataDir holds all that the node must not forget. It is locked while the node runs.
	DataDir string
	// Listen is the host:port of the gRPC port. Port 0 takes a free one.
	Listen string
	// Advertise is where others reach this node. Default: Listen, which must then name a host.
	Advertise string
	// Peers are addresses of other nodes. They are needed only when all addresses of a cluster have changed since
	// this node last ran.
	Peers []string
	// Zone is where replicas of one shard should not all be; empty: unknown.
	Zone string
	// HTTPListen is the host:port of metrics, health and, with PProf, profiles; empty: none.
	HTTPListen string
	PProf      bool

	// Sync says when a write counts as durable: SyncAlways (the default) or SyncInterval.
	Sync string

	// WatchHistoryBytes bounds the latest changes that each replica keeps in memory for those who watch it: raftfsm.Config.HistoryBytes.
	WatchHistoryBytes int

	Timing    raftfsm.Timing
	Snapshots raftfsm.SnapshotConfig
	Proposer  raftfsm.ProposerConfig
	Verify    raftfsm.VerifyConfig
	Reaping   raftfsm.ReapConfig
	Limits    Limits
	// MaxMemory bounds, in bytes, what all replicas here take in memory; 0: no limit. At it, writes that would take more are refused by
	// every shard with a voter here, until use has come down to 95 %. It is not the whole process's: leave a quarter on top, and 256 MiB at least,
	// where the system ends a process that takes more.
	MaxMemory int64
	// DrainTimeout bounds handing leaderships over and ending running calls at shutdown. Default 15 s.
	DrainTimeout time.Duration

	Logger *slog.Logger
	// Fatal is told what the node can't survive: a failed or hung disk, a log it can't read. It should end the
	// process; the default logs and exits with status 1.
	Fatal func(error)

	// The rest is injected by tests and simulation, so that whole clusters run in one process and in virtual time.
	// Defaults: the system's.
	Clock raftfsm.Clock
	FS    disk.FS
	// Memory, where set, holds logs, terms and votes instead of files. Nothing locks the data directory then.
	Memory *storage.Memory
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	// Bind listens on Listen and HTTPListen.
	Bind func(address string) (net.Listener, error)
}

// maxMemoryLeast is the lowest memory limit: stores that hold nearly nothing take a few pages each.
const maxMemoryLeast = 16 << 20

// What Config.Sync may be.
const (
	// SyncAlways: nothing is acknowledged before it was synced on a majority.
	SyncAlways = "always"
	// SyncInterval: what is acknowledged is in the kernels' memory of a majority, and synced within 100 ms. Killed
	// processes lose nothing; when machines stop, that window can be lost, and the replicas on them must be replaced.
	SyncInterval = "interval"
)

// syncModes are the write-ahead log's.
var syncModes = map[string]wal.SyncMode{SyncAlways: wal.SyncAlways, SyncInterval: wal.SyncInterval}

var nodeIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// CheckNodeID returns an error that says what a node id may be, if id is not one.
func CheckNodeID(id string) error {
	if !nodeIDPattern.MatchString(id) {
		return fmt.Errorf("%w: node id %q: want 1 to 64 letters, digits, '.', '_' or '-'", ErrConfig, id)
	}
	return nil
}

// addressBytesMax bounds a host:port; a host name has at most 253 bytes.
const addressBytesMax = 256

func checkAddress(field, address string) error {
	if len(address) > addressBytesMax {
		return fmt.Errorf("%w: %s of %d bytes: at most %d are possible", ErrConfig, field, len(address), addressBytesMax)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return fmt.Errorf("%w: %s %q: want host:port", ErrConfig, field, address)
	}
	unfit := func(r rune) bool { return r == '/' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	if strings.ContainsFunc(host, unfit) {
		return fmt.Errorf("%w: %s %q: not a host name", ErrConfig, field, address)
	}
	return nil
}

// checkReachable wants an address that others can dial: unlike one to listen on it names a host, and a port other than 0.
func checkReachable(field, address string) error {
	if err := checkAddress(field, address); err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(address)
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
		return fmt.Errorf("%w: %s %q: want the host and the number of the port that others reach", ErrConfig, field, address)
	}
	return nil
}

// withDefaults validates the configuration once and fills in what was left out.
func (c Config) withDefaults() (Config, error) {
	if err := CheckNodeID(c.ID); err != nil {
		return c, err
	}
	if c.DataDir == "" {
		return c, fmt.Errorf("%w: data-dir is not given", ErrConfig)
	}
	if err := checkAddress("listen", c.Listen); err != nil {
		return c, err
	}
	if c.Advertise != "" {
		if err := checkReachable("advertise", c.Advertise); err != nil {
			return c, err
		}
	} else if host, _, _ := net.SplitHostPort(c.Listen); host == "" || net.ParseIP(host).IsUnspecified() {
		return c, fmt.Errorf("%w: listen %q names no host that others could reach: give --advertise host:port", ErrConfig, c.Listen)
	}
	for _, p := range c.Peers {
		if err := checkReachable("peers", p); err != nil {
			return c, err
		}
	}
	if c.HTTPListen != "" {
		if err := checkAddress("http-listen", c.HTTPListen); err != nil {
			return c, err
		}
	}
	if c.Sync == "" {
		c.Sync = SyncAlways
	}
	if _, ok := syncModes[c.Sync]; !ok {
		return c, fmt.Errorf("%w: sync %q: want %s or %s", ErrConfig, c.Sync, SyncAlways, SyncInterval)
	}
	if c.MaxMemory != 0 && c.MaxMemory < maxMemoryLeast {
		return c, fmt.Errorf("%w: max-memory is %d bytes: want 0, which is no limit, or at least %d", ErrConfig, c.MaxMemory, maxMemoryLeast)
	}
	if c.Verify.Share < 0 || c.Verify.Share > 100 {
		return c, fmt.Errorf("%w: verify-share is %d: want 1 to 100 percent of a core, or 0 for the default", ErrConfig, c.Verify.Share)
	}
	if c.Reaping.Share < 0 || c.Reaping.Share > 100 {
		return c, fmt.Errorf("%w: expiry-share is %d: want 1 to 100 percent of a core, or 0 for the default", ErrConfig, c.Reaping.Share)
	}
	limits, err := c.Limits.withDefaults()
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	c.Limits = limits
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 15 * time.Second
	}
	if c.Timing.Election == 0 {
		c.Timing.Election = time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Logger = c.Logger.With("node", c.ID)
	if c.Fatal == nil {
		logger := c.Logger
		c.Fatal = func(err error) {
			logger.Error("the node can't go on", "error", err)
			os.Exit(1)
		}
	}
	if c.Clock == nil {
		c.Clock = raftfsm.NewSystemClock()
	}
	if c.FS == nil {
		c.FS = disk.OS{}
	}
	if c.Bind == nil {
		c.Bind = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	if c.Dial == nil {
		var d net.Dialer
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
	}
	return c, nil
}
