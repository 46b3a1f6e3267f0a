package wal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/disk"
)

var (
	// ErrClosed means that the log was closed.
	ErrClosed = errors.New("wal: closed")
	// ErrNotFound means an entry that is not there.
	ErrNotFound = errors.New("wal: not found")
	// ErrNotNext means an entry that would leave a gap.
	ErrNotNext = errors.New("wal: entry does not follow the log")
	// ErrFormat means a segment in a format that this build doesn't know.
	ErrFormat = errors.New("wal: unknown format")
	// ErrStalled means that the disk did not answer within Config.StallMax.
	ErrStalled = errors.New("wal: the disk does not answer")
	// ErrTooLarge means an entry or a record that no segment could hold: over PayloadBytesMax.
	ErrTooLarge = errors.New("wal: entry or record is too large")
	// ErrNoSpace means that there is no room on the disk for another segment, or for the log to be opened.
	ErrNoSpace = errors.New("wal: no space left for the log")
	// ErrUnreadable means that the disk can't give back what is on it. What was read before is as good as ever, but whether
	// the rest was rot or whole can't be told: the disk must be replaced, and then what lay on it.
	ErrUnreadable = errors.New("wal: the disk can't be read")
	// ErrUncleanBoot means that the machine stopped while a log with SyncInterval was open: what it holds of a replica's
	// entries is a prefix of what was acknowledged, and may not be all. Records are all there. It comes wrapped in ErrDamaged.
	ErrUncleanBoot = errors.New("the machine stopped while the log was open, and it is synced at intervals only: what was acknowledged last may be lost")
	// ErrDamaged means bytes that are not what was written. The error that wraps it is a *DamagedError, or comes from
	// Replica.Damage.
	ErrDamaged = errors.New("wal: log is damaged")
)

// DamagedError says where the log is wrong.
type DamagedError struct {
	Path string
	// Offset is where the part of the file begins that doesn't check.
	Offset int64
	Reason string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s: %s at offset %d: %s", ErrDamaged, e.Path, e.Offset, e.Reason)
}

// Unwrap makes errors.Is(err, ErrDamaged) hold.
func (e *DamagedError) Unwrap() error { return ErrDamaged }

// SyncMode says when the log counts as durable.
type SyncMode uint8

const (
	// SyncAlways: when it was synced.
	SyncAlways SyncMode = iota
	// SyncInterval: when the kernel has it, and it is synced within Config.SyncEvery. A killed process loses nothing, a
	// power cut what came since. Records are synced at once.
	SyncInterval
)

// Config is what a Log needs. Zero numbers take the defaults named at each field.
type Config struct {
	// Dir holds the segments, and nothing else that ends in .wal or .aside. Required; it must exist.
	Dir string
	// FS is where Dir is. Default disk.OS.
	FS disk.FS
	// SegmentBytes is the size of a segment file. Default 32 MiB. A larger frame gets a file of its own size.
	SegmentBytes int64
	// Sync says what durable means. Default SyncAlways.
	Sync SyncMode
	// SyncEvery is the beat of SyncInterval. Default 100 ms.
	SyncEvery time.Duration
	// GatherMax is how long a write may wait for other replicas that have lately shared one. Default 100 µs; negative:
	// never.
	GatherMax time.Duration
	// PendingBytesMax bounds what waits for the disk in memory; appends over it wait. Default 64 MiB.
	PendingBytesMax int
	// SlowMax is how long a write or sync may take before Stalled says so. Default 2 s.
	SlowMax time.Duration
	// StallMax is how long one may take before Fatal is called. Default 10 s.
	StallMax time.Duration
	// Fatal is called once, when a write or sync failed or stalled. In production it ends the process; if it returns, all
	// later calls fail. Required.
	Fatal func(error)
	// BootID names the present start of the machine. Default: the kernel's, from /proc.
	BootID func() (string, error)
	// Progress, if set, hears how many bytes of how many have been read at open.
	Progress func(done, total int64)
	// Logger is required.
	Logger *slog.Logger
}

// PayloadBytesMax bounds an entry's data and extensions together, and a record's name and value.
const PayloadBytesMax = 1 << 30

// segmentBytesMin leaves room for a head, a mark, a summary of a few replicas, an entry and a seal.
const segmentBytesMin = 4 << 10

func (c Config) withDefaults() (Config, error) {
	if c.FS == nil {
		c.FS = disk.OS{}
	}
	if c.BootID == nil {
		c.BootID = kernelBootID
	}
	c.SegmentBytes = cmp.Or(c.SegmentBytes, 32<<20)
	c.SyncEvery = cmp.Or(c.SyncEvery, 100*time.Millisecond)
	c.GatherMax = cmp.Or(c.GatherMax, 100*time.Microsecond)
	c.PendingBytesMax = cmp.Or(c.PendingBytesMax, 64<<20)
	c.SlowMax = cmp.Or(c.SlowMax, 2*time.Second)
	c.StallMax = cmp.Or(c.StallMax, 10*time.Second)
	switch {
	case c.Dir == "":
		return c, errors.New("wal: Config.Dir is empty")
	case c.Fatal == nil || c.Logger == nil:
		return c, errors.New("wal: Config needs Fatal and Logger")
	case c.SegmentBytes < segmentBytesMin || c.SegmentBytes > 1<<31:
		return c, fmt.Errorf("wal: Config.SegmentBytes %d is not within [%d, %d]", c.SegmentBytes, segmentBytesMin, 1<<31)
	case min(c.SyncEvery, c.SlowMax, c.StallMax) < 0 || c.PendingBytesMax < 0:
		return c, errors.New("wal: Config has a negative number")
	case c.SlowMax > c.StallMax:
		return c, fmt.Errorf("wal: Config.SlowMax %s is over StallMax %s", c.SlowMax, c.StallMax)
	}
	c.SegmentBytes = int64(padded(int(c.SegmentBytes)))
	return c, nil
}

// Log is the write-ahead log of one node, shared by all its replicas.
type Log struct {
	cfg Config
	// ctx ends when the log is closed or has failed; goroutines are joined by Close.
	ctx        context.Context
	cancel     context.CancelCauseFunc
	goroutines sync.WaitGroup

	// released is up to which sequence Notify answers: durable, or only written with SyncInterval. released >= durable.
	released atomic.Uint64
	// busySince is when the writer last asked the disk for something it hasn't answered, by Log.clock; 0: nothing is asked.
	busySince atomic.Int64
	// starvedSince is since when appends wait for a segment to be made, for which there is room; 0: none does.
	starvedSince atomic.Int64
	// born is where Log.clock begins.
	born time.Time

	mu sync.Mutex
	// changed is signalled, to all, when there is a spare, less pending, more durable, or an end.
	changed *sync.Cond
	// segments are those of the log, the oldest first; the last is appended to.
	segments []*segment
	// spare is the next segment, nil while it is being made; wanted is how large it must be.
	spare  *segment
	wanted int64
	// starving counts appends that wait for a spare.
	starving int
	// short: noSpace is set. For who asks without the lock.
	short atomic.Bool
	// reserved is the size of the reserve. The keeper's, and before it runs the open's.
	reserved int64
	// noSpace is why the last attempt to make a spare failed, for want of room; nil: it didn't.
	noSpace error
	// open is the chunk that is appended to, nil if there is none; queue those before it that the writer hasn't taken.
	open  *chunk
	queue []*chunk
	// writing is the chunk that the writer has, lastWritten the segment of the one before; changed by the writer only.
	writing     *chunk
	lastWritten *segment
	// pending is the size of queue and open.
	pending int
	// total counts the frames of all replicas, since the log was made.
	total uint64
	// appended is the sequence behind the newest frame; durable that up to which all is on the disk.
	appended, durable Sequence
	// durableAt is where durable lies, for marks.
	durableAt mark
	replicas  map[ID]*Replica
	waiting   waiters
	company   company
	failure   error // why the log has ended; nil while it runs
	closing   bool

	// What an open found, for it to settle: damaged replicas, places that are judged, and files whose head doesn't check.
	damaged    []damagedReplica
	judged     []place
	unreadable []string

	// wake holds a token when the writer has something to do, keep when the keeper has.
	wake, keep chan struct{}
	closed     chan struct{} // closed when Close is done

	// overtaken is a sync that is yet to come, in known-bad builds. The writer's.
	overtaken func() error
	// retired are files of purged segments. Only the keeper touches them, and Close after it.
	retired []retired

	stats stats
}

// mark is a place in the log.
type mark struct {
	segment uint64
	offset  int64
}

func (m mark) before(o mark) bool {
	return m.segment < o.segment || m.segment == o.segment && m.offset < o.offset
}

// chunk is what is written at once: a mark and the frames behind it. Room for the mark is left at its beginning: only
// when it is written does its writer know what is durable.
type chunk struct {
	segment *segment
	offset  int64
	buf     []byte
	// end is the sequence behind its last frame.
	end Sequence
	// totalBefore is Log.total when it was begun, total when it was ended.
	totalBefore, total uint64
	// seals: its segment ends with it.
	seals bool
	// urgent: it must be synced whatever the mode, and waits for nobody.
	urgent bool
	// replicas counts those that have a frame in it.
	replicas int
}

// Replica returns a replica's part of the log, an empty one if there is none yet.
func (l *Log) Replica(id ID) *Replica {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replicaLocked(id)
}

func (l *Log) replicaLocked(id ID) *Replica {
	r := l.replicas[id]
	if r == nil {
		r = &Replica{log: l, id: id, records: make(map[string]recordAt)}
		l.replicas[id] = r
	}
	return r
}

// urgentLocked makes the open chunk one that is synced in any mode.
func (l *Log) urgentLocked() {
	if l.open != nil {
		l.open.urgent = true
	}
	l.wakeWriter()
}

// deadLocked counts a frame as not needed any more.
func (l *Log) deadLocked(at position) {
	s := at.segment
	s.live -= int64(at.size)
	s.emptied = l.appended
	if s.live == 0 && s == l.segments[0] {
		signal(l.keep)
	}
}

// read reads a frame from a chunk that isn't written yet, or from its file.
func (l *Log) read(at position) (frame, error) {
	if int64(at.offset) >= at.segment.written.Load() {
		if f, ok := l.readPending(at); ok {
			return f, nil
		}
	}
	return at.segment.read(int64(at.offset), int(at.size))
}

func (l *Log) readPending(at position) (frame, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.writing.frame(at); ok {
		return f, true
	}
	for _, c := range l.queue {
		if f, ok := c.frame(at); ok {
			return f, true
		}
	}
	return l.open.frame(at)
}

// frame copies a frame out of a chunk.
func (c *chunk) frame(at position) (frame, bool) {
	if c == nil || c.segment != at.segment || int64(at.offset) < c.offset || int64(at.offset) >= c.offset+int64(len(c.buf)) {
		return frame{}, false
	}
	from := int64(at.offset) - c.offset
	b := append([]byte(nil), c.buf[from:from+int64(at.size)]...)
	f, _, err := decodeFrame(b, c.segment.seed, int64(at.offset))
	if err != nil {
		panic(fmt.Sprintf("wal: a frame in memory does not decode: %s at %d", c.segment.path, at.offset))
	}
	return f, true
}

// Stalled tells that the disk has not answered for over Config.SlowMax: neither a write, nor what makes the segment that
// appends wait for.
func (l *Log) Stalled() bool {
	return l.overdue(&l.busySince) || l.overdue(&l.starvedSince)
}

func (l *Log) overdue(since *atomic.Int64) bool {
	at := since.Load()
	return at != 0 && l.clock()-at > int64(l.cfg.SlowMax)
}

// clock is monotonic: no change of the machine's time makes the disk look slow. It is never 0.
func (l *Log) clock() int64 { return int64(time.Since(l.born)) + 1 }

// fail ends the log with the first error, and returns it.
func (l *Log) fail(err error) error {
	l.mu.Lock()
	first := l.failure == nil
	if first {
		l.failure = err
	}
	err = l.failure
	waiting := l.waiting.takeAll()
	l.changed.Broadcast()
	l.mu.Unlock()
	if first {
		l.cancel(err)
		l.cfg.Fatal(err)
	}
	waiting.tell(err)
	return err
}

// Close writes and syncs what is pending, seals the log and closes its files. Calls that come later, or still wait for
// room, fail with ErrClosed.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		<-l.closed
		return nil
	}
	l.restateLocked()
	l.closing = true
	l.changed.Broadcast()
	l.mu.Unlock()
	l.wakeWriter()
	l.goroutines.Wait()
	l.cancel(ErrClosed)

	l.mu.Lock()
	waiting := l.waiting.takeAll()
	failure := l.failure
	segments := l.segments
	if l.spare != nil {
		segments = append(segments, l.spare)
	}
	l.mu.Unlock()
	waiting.tell(ErrClosed)
	var errs []error
	for _, s := range segments {
		if file := s.take(); file != nil {
			errs = append(errs, file.Close())
		}
	}
	_ = l.dropRetired() // what stays, the next open removes
	close(l.closed)
	return errors.Join(append(errs, failure)...)
}

// restateLocked writes every replica's count once more, if there is room: rot that is found in the last segment then
// concerns only those who lost something by it, though nobody may append any more.
func (l *Log) restateLocked() {
	if l.failure == nil && l.fitsLocked(l.summaryBytesLocked()) {
		l.summarizeLocked()
	}
}

// signal leaves a token in a channel of capacity one.
func signal(token chan struct{}) {
	select {
	case token <- struct{}{}:
	default:
	}
}

func (l *Log) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

func (l *Log) wakeWriter() { signal(l.wake) }

func newSalt() uint64 { return rand.Uint64() }
