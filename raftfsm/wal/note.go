package wal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// Notes are small files beside the segments: lines of text, the last of them a checksum. What a note says only ever makes
// an open surer of what it finds, so one that doesn't check is like none.
const (
	// closedNote says that the log was closed at the end of a segment: all of that must be there, and what follows are
	// spares. Without it, a disk that forgot the last blocks, seal included, would leave what looks like a log that was
	// not closed and lost nothing. An open removes it before it writes anything new.
	closedNote = "closed"
	// judgedNote lists the places where an open found the log wrong, and has recorded whom that concerns. What can be told
	// of the others depends on what lies around the place, and purging takes that away.
	judgedNote = "judged"
)

func writeNote(fsys disk.FS, dir, name string, lines []string) error {
	b := []byte(strings.Join(lines, "\n") + "\n")
	b = fmt.Appendf(b, "%08x\n", crc32.Checksum(b, castagnoli))
	return disk.WriteFileAtomic(fsys, filepath.Join(dir, name), b)
}

// readNote returns a note's lines, none if there is no such note, and an error that wraps errNote if it doesn't check.
func readNote(fsys disk.FS, dir, name string) ([]string, error) {
	path := filepath.Join(dir, name)
	b, err := disk.ReadFile(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, ok := bytes.CutSuffix(b, []byte("\n"))
	cut := bytes.LastIndexByte(text, '\n') + 1
	if !ok || cut == 0 || string(text[cut:]) != fmt.Sprintf("%08x", crc32.Checksum(text[:cut], castagnoli)) {
		return nil, fmt.Errorf("%w: %s", errNote, path)
	}
	return strings.Split(string(text[:cut-1]), "\n"), nil
}

// errNote: a note does not check.
var errNote = errors.New("wal: a note does not check, and is left alone")

// closing is where a log was closed: at the end of a segment, when so many frames of replicas had been written.
type closing struct{ segment, total uint64 }

const closingLine = "closed at the end of segment %016x after %d frames"

func readClosed(fsys disk.FS, dir string) (c closing, err error) {
	lines, err := readNote(fsys, dir, closedNote)
	if err != nil || len(lines) == 0 {
		return closing{}, err
	}
	if _, err := fmt.Sscanf(lines[0], closingLine, &c.segment, &c.total); err != nil {
		return closing{}, fmt.Errorf("%w: %s: %w", errNote, filepath.Join(dir, closedNote), err)
	}
	return c, nil
}

func writeClosed(fsys disk.FS, dir string, c closing) error {
	return writeNote(fsys, dir, closedNote, []string{fmt.Sprintf(closingLine, c.segment, c.total)})
}

// place is a part of the log that was lost: [from, to) of a segment, 0 and 0 for all of it.
type place struct {
	segment  uint64
	from, to int64
}

func readJudged(fsys disk.FS, dir string) ([]place, error) {
	lines, err := readNote(fsys, dir, judgedNote)
	if err != nil {
		return nil, err
	}
	places := make([]place, 0, len(lines))
	for _, line := range lines {
		var p place
		if _, err := fmt.Sscanf(line, "segment %x from %d to %d", &p.segment, &p.from, &p.to); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errNote, filepath.Join(dir, judgedNote), err)
		}
		places = append(places, p)
	}
	return places, nil
}

func writeJudged(fsys disk.FS, dir string, places []place) error {
	if len(places) == 0 {
		return removeDurably(fsys, filepath.Join(dir, judgedNote))
	}
	lines := make([]string, 0, len(places))
	for _, p := range places {
		lines = append(lines, fmt.Sprintf("segment %016x from %d to %d", p.segment, p.from, p.to))
	}
	return writeNote(fsys, dir, judgedNote, lines)
}
