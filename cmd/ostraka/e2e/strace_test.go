package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// strace makes calls of a running process fail or wait.
type strace struct {
	t     *testing.T
	cmd   *exec.Cmd
	trace string
	done  chan struct{} // closed when strace has ended
}

// inject lets every call of the names, separated by commas, meet what strace's inject says of it ("error=EIO"), from when it
// returns. Without strace, or without the right to trace, the test is skipped.
func inject(t *testing.T, p *cluster.Process, calls, what string) *strace {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("not tested here: it needs strace")
	}
	s := &strace{t: t, trace: filepath.Join(t.TempDir(), "trace"), done: make(chan struct{})}
	s.cmd = exec.Command(path, "-f", "-ttt", "-o", s.trace, "-e", "trace="+calls, "-e", "inject="+calls+":"+what, "-p", strconv.Itoa(p.Pid()))
	said, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	attached := make(chan string, 1)
	go func() { // ends with strace
		defer close(s.done)
		first := ""
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if first == "" {
				first = lines.Text()
				attached <- first
			}
		}
		if first == "" {
			attached <- "it ended"
		}
		_ = s.cmd.Wait()
	}()
	t.Cleanup(s.stop)
	if got := <-attached; !strings.Contains(got, "attached") {
		t.Skipf("not tested here: strace can't trace: %s", got)
	}
	return s
}

// stop lets the process go on, if it still runs.
func (s *strace) stop() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// times returns when the first call met its fault and when the process ended, by what was traced; zero: it didn't.
func (s *strace) times() (struck, ended time.Time) {
	s.t.Helper()
	b, err := os.ReadFile(s.trace)
	if err != nil {
		s.t.Fatal(err)
	}
	line := regexp.MustCompile(`^\d+ +(\d+)\.(\d{6}) (.*)$`)
	for text := range bytes.Lines(b) {
		m := line.FindSubmatch(bytes.TrimSpace(text))
		if m == nil {
			continue
		}
		seconds, _ := strconv.ParseInt(string(m[1]), 10, 64)
		micros, _ := strconv.ParseInt(string(m[2]), 10, 64)
		at := time.Unix(seconds, micros*1000)
		switch {
		case struck.IsZero() && bytes.Contains(m[3], []byte("(INJECTED)")):
			struck = at
		case bytes.HasPrefix(m[3], []byte("+++")):
			ended = at
		}
	}
	return struck, ended
}

// ledByOthers tells that every shard has a leader, on another node.
func ledByOthers(id string) func(*client.Status) bool {
	return func(s *client.Status) bool {
		for _, sh := range s.Shards {
			if sh.Leader == "" || sh.Leader == id {
				return false
			}
		}
		return len(s.Shards) > 0
	}
}

// awaitEnd waits until a process has ended by itself.
func awaitEnd(t *testing.T, p *cluster.Process) {
	t.Helper()
	for deadline := time.Now().Add(patience); p.Running(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s lives on", p.ID)
		}
	}
}

// A disk that fails a sync or a write ends the leader's process within a second; the others elect and go on, nothing that was
// acknowledged is lost, and the node comes back.
func TestDiskErrorsEndTheProcess(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms"}})
	l := startLoad(t, c, 5)
	for _, call := range []string{"fdatasync", "pwrite64", "fdatasync"} {
		l.progress(200)
		id, _ := cluster.MostLeading(await(t, c, cluster.Led))
		p := c.Node(id)
		s := inject(t, p, call, "error=EIO")
		began := time.Now()
		awaitEnd(t, p)
		<-s.done
		struck, ended := s.times()
		if struck.IsZero() || ended.IsZero() {
			t.Fatalf("%s was not struck, or did not end", id)
		}
		if took := ended.Sub(struck); took > time.Second {
			t.Errorf("%s failed, and the process ended %s later", call, took)
		}
		await(t, c, ledByOthers(id))
		t.Logf("%s: the process ended %s after the first error; new leaders after %s", call, ended.Sub(struck), time.Since(began))
		l.progress(100)
		restart(t, p)
	}
	l.progress(100)
	l.end(connect(t, c))
	await(t, c, cluster.Converged)
}

// A disk that hangs makes the leader step down within the log's patience of 2 s and an election; ten seconds later its process
// ends. Nothing is lost, and the node comes back.
func TestHungDiskLosesLeadership(t *testing.T) {
	const patienceOfTheLog, election = 2 * time.Second, 500 * time.Millisecond
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", election.String()}})
	l := startLoad(t, c, 6)
	l.progress(200)
	id, _ := cluster.MostLeading(await(t, c, cluster.Led))
	p := c.Node(id)
	began := time.Now()
	s := inject(t, p, "fdatasync", fmt.Sprintf("delay_enter=%d", time.Minute.Microseconds()))
	await(t, c, ledByOthers(id))
	// A follower waits one to two election timeouts; the rest is for a slow machine, and for strace to attach.
	took := time.Since(began)
	if took > patienceOfTheLog+2*election+2*time.Second {
		t.Errorf("a new leader only after %s", took)
	}
	l.progress(200)
	for !strings.Contains(c.Logs(1<<20), "the disk does not answer") {
		if time.Since(began) > patience {
			t.Fatal("the process lives on")
		}
		time.Sleep(20 * time.Millisecond) // between two looks at a condition
	}
	ended := time.Since(began)
	t.Logf("new leaders %s after the disk hung, the process gave up after %s", took, ended)
	if ended > 15*time.Second {
		t.Errorf("the process gave up only after %s", ended)
	}
	s.stop() // no process is quite dead while a call of its hangs
	awaitEnd(t, p)
	restart(t, p)
	l.progress(100)
	l.end(connect(t, c))
	await(t, c, cluster.Converged)
}
