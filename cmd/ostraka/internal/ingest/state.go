package ingest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

// stateFormat is the version of the state file. One of another version is refused.
const stateFormat = 1

// Errors of a state file.
var (
	// ErrNoState: there is none, so there is nothing to go on with.
	ErrNoState = errors.New("no state of an earlier import")
	// ErrState: it cannot be used for this import.
	ErrState = errors.New("the state file does not fit")
)

// State is how far an import of one input has come. It is JSON on disk.
type State struct {
	Format int `json:"format"`
	// Input and Options describe the import; one that differs in them must not go on with this state.
	Input   string `json:"input"`
	Options string `json:"options"`
	// Position: everything before it is acknowledged by the cluster.
	Position records.Position `json:"position"`
	Counts   Counts           `json:"counts"`
}

// StateFile keeps a State. It is for one goroutine.
type StateFile struct {
	path  string
	every time.Duration
	state State
	// saved is when the file was last written; dirty: it is behind the state.
	saved time.Time
	dirty bool
}

// NewStateFile prepares to keep the state of an import from its beginning. The file is written at most once in each
// period of every, and by Flush: what is lost with a killed process is imported again, which does no harm.
func NewStateFile(path, input, options string, every time.Duration) *StateFile {
	return &StateFile{path: path, every: every, state: State{Format: stateFormat, Input: input, Options: options}}
}

// Resume reads the state that an earlier import left. Errors: ErrNoState, ErrState, or those of reading.
func (f *StateFile) Resume() (State, error) {
	data, err := os.ReadFile(f.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return State{}, fmt.Errorf("%w: %s does not exist", ErrNoState, f.path)
	case err != nil:
		return State{}, err
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, fmt.Errorf("%w: %s: %w", ErrState, f.path, err)
	}
	switch {
	case s.Format != stateFormat:
		return State{}, fmt.Errorf("%w: %s has format %d, this program knows %d", ErrState, f.path, s.Format, stateFormat)
	case s.Input != f.state.Input:
		return State{}, fmt.Errorf("%w: %s is of an import of %s, not of %s", ErrState, f.path, s.Input, f.state.Input)
	case s.Options != f.state.Options:
		return State{}, fmt.Errorf("%w: %s is of an import with %s, not with %s", ErrState, f.path, s.Options, f.state.Options)
	}
	f.state = s
	return s, nil
}

// Keep notes how far the import has come, and writes it down if it is time.
func (f *StateFile) Keep(p records.Position, c Counts) error {
	f.state.Position, f.state.Counts, f.dirty = p, c, true
	if time.Since(f.saved) < f.every {
		return nil
	}
	return f.Flush()
}

// Flush writes what was noted. The file is replaced as a whole: whoever reads it finds this state or the one before.
func (f *StateFile) Flush() error {
	if !f.dirty {
		return nil
	}
	data, err := json.MarshalIndent(f.state, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(f.path, append(data, '\n')); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	f.saved, f.dirty = time.Now(), false
	return nil
}

// Remove deletes the file after a finished import. A file that was never written is fine.
func (f *StateFile) Remove() error {
	if err := os.Remove(f.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// replaceFile writes aside, syncs, renames, and syncs the directory.
func replaceFile(path string, data []byte) (failed error) {
	aside, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if failed != nil {
			os.Remove(aside.Name())
		}
	}()
	_, err = aside.Write(data)
	if err := errors.Join(err, aside.Sync(), aside.Close()); err != nil {
		return err
	}
	if err := os.Rename(aside.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
