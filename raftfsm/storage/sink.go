package storage

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

// snapshotSink is a snapshot being written. raft and its FSM each close it: once is enough, and a later Close
// answers as the first did.
type snapshotSink struct {
	snapshots *Snapshots
	name      snapshotName
	meta      *snapshotMeta
	file      disk.File
	writer    *snapshotWriter

	ended bool
	err   error // of the end
}

var _ raft.SnapshotSink = (*snapshotSink)(nil)

var errSinkEnded = errors.New("storage: snapshot was closed or cancelled")

func newSnapshotSink(s *Snapshots, name snapshotName, meta *snapshotMeta) (*snapshotSink, error) {
	k := &snapshotSink{snapshots: s, name: name, meta: meta}
	var err error
	if k.file, err = s.node.cfg.FS.Create(k.aside()); err != nil {
		return nil, err
	}
	if k.writer, err = newSnapshotWriter(k.file, meta); err != nil {
		return nil, errors.Join(err, k.Cancel())
	}
	return k, nil
}

func (k *snapshotSink) aside() string { return k.snapshots.path(k.name) + asideSuffix }

// ID implements raft.SnapshotSink.
func (k *snapshotSink) ID() string { return k.name.id() }

// Write implements raft.SnapshotSink.
func (k *snapshotSink) Write(p []byte) (int, error) {
	if k.ended {
		return 0, errSinkEnded
	}
	return k.writer.Write(p)
}

// Close implements raft.SnapshotSink: it publishes the snapshot.
func (k *snapshotSink) Close() error {
	if k.ended {
		return k.err
	}
	k.ended = true
	k.err = errors.Join(k.writer.finish(), k.file.Close())
	if k.err == nil {
		k.err = k.publish()
	}
	if k.err != nil {
		k.err = fmt.Errorf("snapshot %s of %s: %w", k.ID(), k.snapshots.who, errors.Join(k.err, k.removeAside()))
	}
	return k.err
}

func (k *snapshotSink) publish() error {
	meta, err := k.meta.raftMeta(k.ID(), k.writer.state)
	if err != nil {
		return err
	}
	return k.snapshots.publish(snapshotFile{k.name, meta})
}

// Cancel implements raft.SnapshotSink: it drops what was written.
func (k *snapshotSink) Cancel() error {
	if k.ended {
		return nil
	}
	k.ended, k.err = true, errSinkEnded
	return errors.Join(k.file.Close(), k.removeAside())
}

func (k *snapshotSink) removeAside() error {
	return disk.RemoveIfThere(k.snapshots.node.cfg.FS, k.aside()) // it may have its name already
}
