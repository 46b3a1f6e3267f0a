package server

import "github.com/prometheus/client_golang/prometheus"

// watchWatches adds the figures of the node's watches.
func (m *metrics) watchWatches(counts *watchCounts) {
	gauge := func(name, help string, of func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ostraka_" + name, Help: help}, of)
	}
	counter := func(name, help string, of func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "ostraka_" + name, Help: help}, func() float64 { return float64(of()) })
	}
	m.registry.MustRegister(
		gauge("watches", "Watches, one for each shard that a watch of a client's needs.", func() float64 { return float64(counts.watches.Load()) }),
		gauge("watch_bytes", "Bytes that count against watch_bytes_max.", func() float64 { return float64(counts.bytes.Load()) }),
		counter("watch_changes_total", "Changes sent to watches.", counts.changes.Load),
		counter("watch_compacted_total", "Watches ended because changes that they needed were not held any more.", counts.compacted.Load),
		counter("watch_refused_total", "Watches refused because of a limit.", counts.refusedOnes.Load),
	)
}
