package main

import (
	"encoding/json"
	"os"
	"time"
)

// reportFormat is raised when a field changes its meaning.
const reportFormat = 1

// report is all there is to tell, and what -json writes.
type report struct {
	Format   int       `json:"format"`
	Began    time.Time `json:"began"`
	Seconds  float64   `json:"seconds"`
	Complete bool      `json:"complete"`
	// Verified: after the load all nodes of each system held the same.
	Verified bool `json:"verified"`
	// Repeated counts measurements that others on the machine had disturbed and that were made again.
	Repeated     int            `json:"repeated"`
	Settings     settings       `json:"settings"`
	Machine      machine        `json:"machine"`
	Systems      []systemReport `json:"systems"`
	Missing      []missing      `json:"missing,omitempty"`
	Measurements []measurement  `json:"measurements"`
	// Summaries and Ratios follow from the measurements.
	Summaries []summary `json:"summaries"`
	Ratios    []ratio   `json:"ratios"`
}

// settings are those of the load.
type settings struct {
	Rounds          int      `json:"rounds"`
	DurationSeconds float64  `json:"duration_seconds"`
	WarmUpSeconds   float64  `json:"warm_up_seconds"`
	Workloads       []string `json:"workloads"`
	Callers         []int    `json:"callers"`
	Keys            int      `json:"keys"`
	KeySize         int      `json:"key_size"`
	ValueSize       int      `json:"value_size"`
	Nodes           int      `json:"nodes"`
	Seed            uint64   `json:"seed"`
	NoiseMaxCores   float64  `json:"noise_max_cores"`
}

// systemReport is what was compared.
type systemReport struct {
	Name string `json:"name"`
	facts
	// IdleCores is what its nodes use together while nobody asks them anything.
	IdleCores float64   `json:"idle_cores"`
	Syncs     syncCount `json:"syncs"`
}

// missing is a system that is not on the machine.
type missing struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

func newReport(opts *options, m machine) *report {
	return &report{
		Format: reportFormat, Began: time.Now().UTC(), Machine: m,
		Settings: settings{
			Rounds: opts.rounds, DurationSeconds: opts.duration.Seconds(), WarmUpSeconds: opts.warmUp.Seconds(),
			Workloads: opts.workloads, Callers: opts.callers,
			Keys: opts.keys, KeySize: keySize, ValueSize: opts.valueSize, Nodes: nodesPerSystem, Seed: opts.seed, NoiseMaxCores: opts.noiseMax,
		},
	}
}

// finish works out what follows from the measurements.
func (r *report) finish(complete bool) {
	r.Complete = complete
	r.Seconds = time.Since(r.Began).Seconds()
	var systems []string
	for _, s := range r.Systems {
		systems = append(systems, s.Name)
	}
	r.Summaries = summarize(r.cells(), systems, r.Measurements)
	r.Ratios = ratios(r.cells(), systems, r.Measurements)
}

func (r *report) cells() []cell {
	return (&options{workloads: r.Settings.Workloads, callers: r.Settings.Callers}).cells()
}

func (r *report) writeJSON(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
