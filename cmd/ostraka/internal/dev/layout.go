// Package dev runs the nodes of a cluster as child processes on one machine: the engine of `ostraka dev`.
//
// It owns the data directory's layout, the ports and the processes. It knows nothing of what a node does: it starts
// the executable with the flags of `ostraka server` and ends it with signals.
//
// Start reading at children.go; layout.go says what a data directory holds.
package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrLayout: the data directory holds something else than the cluster that was asked for.
var ErrLayout = errors.New("the data directory does not fit")

// layoutFormat is the version of the layout file. One of another version is refused.
const layoutFormat = 1

// layoutFile is the file in the data directory that makes it one of dev's. Beside it are the nodes' directories.
const layoutFile = "dev.json"

// Layout is what a data directory was made for.
type Layout struct {
	Format int `json:"format"`
	Nodes  int `json:"nodes"`
	// Shards that were asked for; 0: the default.
	Shards int `json:"shards"`
	// Bootstrapped: the nodes are a cluster, and need not be made one again.
	Bootstrapped bool `json:"bootstrapped"`
}

// Claim takes a directory for a cluster. One that holds a cluster already must have been made as wanted, where 0 wants
// nothing particular; an empty or missing one is taken for a new cluster, with defaultNodes if no number is wanted.
// Errors: ErrLayout, or those of the files.
func Claim(dir string, wanted Layout, defaultNodes int) (Layout, error) {
	data, err := os.ReadFile(filepath.Join(dir, layoutFile))
	switch {
	case err == nil:
		return resumed(dir, data, wanted)
	case !errors.Is(err, os.ErrNotExist):
		return Layout{}, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Layout{}, err
	}
	if len(entries) > 0 {
		return Layout{}, fmt.Errorf("%w: %s holds %s and more, but no cluster of `ostraka dev`", ErrLayout, dir, entries[0].Name())
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Layout{}, err
	}
	if wanted.Nodes == 0 {
		wanted.Nodes = defaultNodes
	}
	wanted.Format = layoutFormat
	return wanted, wanted.Save(dir)
}

func resumed(dir string, data []byte, wanted Layout) (Layout, error) {
	var have Layout
	if err := json.Unmarshal(data, &have); err != nil {
		return Layout{}, fmt.Errorf("%w: %s in %s: %w", ErrLayout, layoutFile, dir, err)
	}
	switch {
	case have.Format != layoutFormat:
		return Layout{}, fmt.Errorf("%w: %s is of format %d, this program knows %d", ErrLayout, dir, have.Format, layoutFormat)
	case wanted.Nodes != 0 && wanted.Nodes != have.Nodes:
		return Layout{}, fmt.Errorf("%w: %s holds a cluster of %d nodes, not %d", ErrLayout, dir, have.Nodes, wanted.Nodes)
	case wanted.Shards != 0 && wanted.Shards != have.Shards:
		return Layout{}, fmt.Errorf("%w: the cluster in %s was made with --shards %d, not %d", ErrLayout, dir, have.Shards, wanted.Shards)
	}
	return have, nil
}

// Save writes the layout into its directory, as a whole or not at all.
func (l Layout) Save(dir string) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	aside := filepath.Join(dir, layoutFile+".new")
	if err := os.WriteFile(aside, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(aside, filepath.Join(dir, layoutFile))
}
