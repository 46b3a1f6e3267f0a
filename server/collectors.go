package server

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// replicaCollector reports on every replica at the time of the scrape.
type replicaCollector struct {
	statuses func() []raftfsm.Status
	figures  []replicaFigure
}

type replicaFigure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*raftfsm.Status) float64
}

func newReplicaCollector(statuses func() []raftfsm.Status) *replicaCollector {
	c := &replicaCollector{statuses: statuses}
	add := func(name, help string, kind prometheus.ValueType, of func(*raftfsm.Status) float64) {
		desc := prometheus.NewDesc("ostraka_replica_"+name, help, []string{"shard", "replica"}, nil)
		c.figures = append(c.figures, replicaFigure{desc, kind, of})
	}
	add("leader", "1 where this replica leads its shard.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return flag(s.Role == "leader") })
	add("running", "1 where raft runs for this replica.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return flag(s.Role != "shutdown") })
	add("voter", "1 where this replica votes.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return flag(s.Voter) })
	add("term", "Raft's term.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Term) })
	add("commit_index", "Last log index known as committed.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Commit) })
	add("applied_index", "Last log index applied to the memory.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Applied) })
	add("last_index", "Last log index.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Last) })
	add("snapshot_index", "Log index of the newest snapshot; 0: none.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Snapshot) })
	add("restarts_total", "Times that raft was restarted for this replica inside the process.", prometheus.CounterValue, func(s *raftfsm.Status) float64 { return float64(s.Restarts) })
	add("keys", "Keys held, expired and not yet removed ones included.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Keys) })
	add("expiring_keys", "Keys with an expiry time.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Expiring) })
	add("bytes", "Bytes of keys and values.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Bytes) })
	add("reads_total", "Keys read from this replica, estimated from samples of one in 64.", prometheus.CounterValue, func(s *raftfsm.Status) float64 { return float64(s.Reads) })
	add("version", "The shard's write counter: its rate is the rate of writes applied.", prometheus.GaugeValue, func(s *raftfsm.Status) float64 { return float64(s.Version) })
	return c
}

// Describe implements prometheus.Collector.
func (c *replicaCollector) Describe(out chan<- *prometheus.Desc) {
	for _, f := range c.figures {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (c *replicaCollector) Collect(out chan<- prometheus.Metric) {
	for _, s := range c.statuses() {
		shardLabel, replicaLabel := strconv.FormatUint(uint64(s.Shard), 10), strconv.FormatUint(uint64(s.Replica), 10)
		for _, f := range c.figures {
			out <- prometheus.MustNewConstMetric(f.desc, f.kind, f.of(&s), shardLabel, replicaLabel)
		}
	}
}

// nodeCollector reports how the node stands in its cluster at the time of the scrape.
type nodeCollector struct {
	node                                       nodeView
	epoch, formatLevel, bootstrapped, draining *prometheus.Desc

	memory, memoryLimit, memoryOver, memoryRefused *prometheus.Desc
	reaped, reapTime                               *prometheus.Desc
}

func newNodeCollector(node nodeView) *nodeCollector {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc("ostraka_"+name, help, nil, nil) }
	return &nodeCollector{
		node:         node,
		epoch:        desc("map_epoch", "Epoch of the map this node routes by; 0: none."),
		formatLevel:  desc("format_level", "The cluster's format level; 0: not known."),
		bootstrapped: desc("bootstrapped", "1 where the node belongs to a cluster."),
		draining:     desc("draining", "1 where the node is shutting down."),

		memory:        desc("memory_bytes", "Bytes that the stores of all replicas here take: what max-memory bounds."),
		memoryLimit:   desc("memory_limit_bytes", "max-memory in bytes; 0: none."),
		memoryOver:    desc("memory_over", "1 where this node is over its memory limit, so that writes which would take more are refused."),
		reaped:        desc("expired_keys_removed_total", "Expired keys that leaders here had removed."),
		reapTime:      desc("expired_keys_seconds_total", "Time that applying that took here."),
		memoryRefused: desc("memory_refused_total", "Writes refused here, by leaders, because a voter's node is over its memory limit."),
	}
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.epoch, c.formatLevel, c.bootstrapped, c.draining,
		c.memory, c.memoryLimit, c.memoryOver, c.memoryRefused, c.reaped, c.reapTime} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) { out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	var epoch float64
	if m := c.node.Map(); m != nil {
		epoch = float64(m.Epoch())
	}
	gauge(c.epoch, epoch)
	gauge(c.formatLevel, float64(c.node.FormatLevel()))
	gauge(c.bootstrapped, flag(c.node.ClusterID() != ""))
	gauge(c.draining, flag(c.node.Draining()))
	if host := c.node.Host(); host != nil {
		use := host.Memory()
		gauge(c.memory, float64(use.Used))
		gauge(c.memoryLimit, float64(use.Limit))
		gauge(c.memoryOver, flag(use.Over))
		removed := host.ReapStats()
		out <- prometheus.MustNewConstMetric(c.reaped, prometheus.CounterValue, float64(removed.Keys))
		out <- prometheus.MustNewConstMetric(c.reapTime, prometheus.CounterValue, removed.Took.Seconds())
		out <- prometheus.MustNewConstMetric(c.memoryRefused, prometheus.CounterValue, float64(use.Refused))
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// peerCollector reports on the streams to and from each peer node at the time of the scrape.
type peerCollector struct {
	stats                                func() map[shard.NodeID]transport.PeerStats
	frames, envelopes, heartbeats, bytes *prometheus.Desc // peer, direction
	dials, dropped, connected            *prometheus.Desc // peer
}

func newPeerCollector(stats func() map[shard.NodeID]transport.PeerStats) *peerCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("ostraka_peer_"+name, help, append([]string{"peer"}, labels...), nil)
	}
	return &peerCollector{
		stats:      stats,
		frames:     desc("frames_total", "Messages on the streams between nodes.", "direction"),
		envelopes:  desc("envelopes_total", "Messages of raft groups inside them.", "direction"),
		heartbeats: desc("heartbeats_total", "Heartbeats among those.", "direction"),
		bytes:      desc("bytes_total", "Bytes of messages and snapshots.", "direction"),
		dials:      desc("dials_total", "Attempts to connect to the peer."),
		dropped:    desc("dropped_total", "Answers lost to a full queue."),
		connected:  desc("connected", "1 where this node's stream to the peer stands."),
	}
}

// Describe implements prometheus.Collector.
func (c *peerCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.frames, c.envelopes, c.heartbeats, c.bytes, c.dials, c.dropped, c.connected} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *peerCollector) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for node, s := range c.stats() {
		peer := string(node)
		for direction, t := range map[string]transport.Traffic{"sent": s.Sent, "received": s.Received} {
			counter(c.frames, t.Frames, peer, direction)
			counter(c.envelopes, t.Envelopes, peer, direction)
			counter(c.heartbeats, t.Heartbeats, peer, direction)
			counter(c.bytes, t.Bytes, peer, direction)
		}
		counter(c.dials, s.Dials, peer)
		counter(c.dropped, s.Dropped, peer)
		out <- prometheus.MustNewConstMetric(c.connected, prometheus.GaugeValue, flag(s.Connected), peer)
	}
}
