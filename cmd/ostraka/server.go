package main

import (
	"log/slog"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ostraka-db/ostraka/server"
)

const serverLong = `Runs one node. A new one is blank: it waits until "ostraka cluster bootstrap" makes it part of a cluster. One that
belongs to a cluster goes on where it stopped; its data directory is its identity, and holds all that it must not lose.

The first SIGTERM or SIGINT hands leaderships over, lets running calls end, and exits with 0. The second one ends the
process at once with 1; nothing that was acknowledged is lost by that.`

func (a *app) serverCommand() *cobra.Command {
	var cfg server.Config
	var logLevel, logFormat string
	cmd := &cobra.Command{
		Use:   "server --id ID --data-dir DIR",
		Short: "Run a node",
		Long:  serverLong,
		Example: `  ostraka server --id n1 --data-dir /var/lib/ostraka --listen 10.0.0.1:7400 --http-listen 127.0.0.1:7401
  ostraka server --config /etc/ostraka.toml --max-memory 4GiB
  OSTRAKA_ID=n1 OSTRAKA_DATA_DIR=/data ostraka server --listen 0.0.0.0:7400 --advertise node-1.example.net:7400`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	serverFlags(flags, &cfg)
	flags.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&logFormat, "log-format", "text", "text or json, on stderr")
	var all []string
	flags.VisitAll(func(f *pflag.Flag) { all = append(all, f.Name) })
	settings(flags, all...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if cfg.Logger, err = a.logger(logLevel, logFormat); err != nil {
			return err
		}
		slog.SetDefault(cfg.Logger) // for libraries that log by themselves
		node, err := server.New(cfg)
		if err != nil {
			return err
		}
		return node.Run(cmd.Context())
	}
	return cmd
}

func serverFlags(flags *pflag.FlagSet, cfg *server.Config) {
	flags.StringVar(&cfg.ID, "id", "", "the node's `name` in its cluster, for ever")
	flags.StringVar(&cfg.DataDir, "data-dir", "", "`directory` of everything that the node must not lose")
	flags.StringVar(&cfg.Listen, "listen", "127.0.0.1:7400", "`host:port` to listen on for clients and other nodes")
	flags.StringVar(&cfg.Advertise, "advertise", "", "`host:port` under which others reach this node; by default that of --listen")
	flags.StringSliceVar(&cfg.Peers, "peers", nil, "`addresses` of other nodes, needed only when all addresses of a cluster have changed")
	flags.StringVar(&cfg.Zone, "zone", "", "`name` of what fails together with this node")
	flags.StringVar(&cfg.HTTPListen, "http-listen", "", "`host:port` of /metrics, /livez and /readyz; empty: none")
	flags.BoolVar(&cfg.PProf, "pprof", false, "serve Go profiles under /debug/pprof/ of --http-listen")
	flags.StringVar(&cfg.Sync, "sync", server.SyncAlways, "always: a write is synced on a majority before it is acknowledged; interval: within 100 ms after, which a power cut can lose")
	flags.DurationVar(&cfg.Timing.Election, "election-timeout", 0, "silence of a leader after which others stand for election; 0: the default of 1s")
	flags.IntVar(&cfg.Limits.KeyBytesMax, "key-bytes-max", 0, "longest key in `bytes`; 0: the default of 32 KiB, which is the most")
	flags.IntVar(&cfg.Limits.ValueBytesMax, "value-bytes-max", 0, "longest value in `bytes`, up to 64 MiB, the same at all nodes; 0: the default of 8 MiB")
	flags.Var((*byteSize)(&cfg.MaxMemory), "max-memory", "most memory for keys and values with all that holds them, as in 4GiB: at it writes that would take more are refused; 0: no limit")
	flags.IntVar(&cfg.Limits.ConnectionsMax, "connections-max", 0, "most connections at once; 0: the default of 16384")
	flags.Uint64Var(&cfg.Snapshots.LogBytes, "snapshot-log-bytes", 0, "`bytes` of log after which a replica writes a snapshot; 0: the default of 64 MiB")
	flags.Uint64Var(&cfg.Snapshots.TrailingEntries, "snapshot-trailing-entries", 0, "log entries kept before a snapshot at least; 0: the default of 100")
	flags.IntVar(&cfg.WatchHistoryBytes, "watch-history-bytes", 0, "`bytes` of latest changes kept for watches in each replica's memory; 0: the default of 8 MiB; negative: none, nothing can be watched")
	flags.IntVar(&cfg.Limits.WatchesMax, "watches-max", 0, "most watches at once; 0: the default of 65536")
	flags.DurationVar(&cfg.Verify.Every, "verify-every", 0, "beat at which replicas are compared, a few slots at a time; 0: the default of 10s, below: never")
	flags.IntVar(&cfg.Verify.Share, "verify-share", 0, "`percent` of a core that comparing may take in the background; 0: the default of 5")
	flags.IntVar(&cfg.Reaping.Share, "expiry-share", 0, "`percent` of a core that removing expired keys may take; 0: the default of 10")
	flags.DurationVar(&cfg.DrainTimeout, "drain-timeout", 0, "longest time to hand over and end calls at shutdown; 0: the default of 15s")
}

// logger writes to stderr.
func (a *app) logger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usagef("--log-level is debug, info, warn or error, not %q", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(a.err, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.err, o)), nil
	}
	return nil, usagef("--log-format is text or json, not %q", format)
}
