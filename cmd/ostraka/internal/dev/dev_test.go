package dev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary is the executable of the nodes under test as well: with "server" as its first argument it plays one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "server" {
		playNode(os.Args[2:])
		return
	}
	goleak.VerifyTestMain(m)
}

// playNode says what it was given and waits for the end, politely unless told otherwise.
func playNode(args []string) {
	stubborn := strings.Contains(strings.Join(args, " "), "--log-level stubborn")
	signals := make(chan os.Signal, 1)
	if stubborn {
		signal.Ignore(syscall.SIGTERM)
	} else {
		signal.Notify(signals, syscall.SIGTERM)
	}
	fmt.Fprintf(os.Stderr, "started with %s; OSTRAKA_ID is %q\n", strings.Join(args, " "), os.Getenv("OSTRAKA_ID"))
	<-signals
	fmt.Fprint(os.Stdout, "draining")
}

// log is what the nodes write.
type log struct {
	mu   sync.Mutex
	text strings.Builder
	grew chan struct{}
}

func newLog() *log { return &log{grew: make(chan struct{}, 1)} }

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	select {
	case l.grew <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until the log holds each of the texts.
func (l *log) await(t *testing.T, texts ...string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		missing := ""
		for _, text := range texts {
			if !strings.Contains(l.String(), text) {
				missing = text
			}
		}
		if missing == "" {
			return
		}
		select {
		case <-l.grew:
		case <-timeout:
			t.Fatalf("never logged %q; logged:\n%s", missing, l)
		}
	}
}

// freeBase finds a port behind which the ports of that many nodes are free.
func freeBase(t *testing.T, nodes int) int {
	t.Helper()
	for base := 21000; base < 60000; base += portsPerNode * nodes {
		plan, err := Plan(t.TempDir(), nodes, base)
		if err != nil {
			t.Fatal(err)
		}
		if checkPorts(plan) == nil {
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}

func start(t *testing.T, nodes int, args ...string) (*Children, []Node, *log) {
	t.Helper()
	plan, err := Plan(t.TempDir(), nodes, freeBase(t, nodes))
	if err != nil {
		t.Fatal(err)
	}
	l := newLog()
	c := &Children{Executable: os.Args[0], Args: args, Log: l}
	if err := c.Start(plan); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Kill(); c.Stop(time.Minute) })
	for _, n := range plan {
		l.await(t, "["+n.ID+"] started")
	}
	return c, plan, l
}

func TestChildrenRunAndStop(t *testing.T) {
	t.Setenv("OSTRAKA_ID", "not for the nodes")
	c, nodes, l := start(t, 2, "--zone", "z")
	l.await(t,
		fmt.Sprintf("[n1] started with --id n1 --data-dir %s --listen %s --http-listen %s --peers %s --zone z; OSTRAKA_ID is \"\"\n",
			nodes[0].DataDir, nodes[0].Address, nodes[0].HTTP, nodes[1].Address),
		"[n2] started")
	if killed := c.Stop(time.Minute); killed != nil {
		t.Errorf("killed %v", killed)
	}
	if c.Running() != 0 {
		t.Errorf("%d still run", c.Running())
	}
	l.await(t, "[n1] draining\n", "[n2] draining\n") // the last lines have no end of their own
}

func TestKilledChildIsReported(t *testing.T) {
	c, _, _ := start(t, 2)
	ctx, release := c.WhileAllRun(t.Context())
	defer release()
	victim := c.Lines()[1]
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e := <-c.Ended()
	if e.Node.ID != "n2" || !strings.Contains(e.State, "killed") {
		t.Errorf("got %+v", e)
	}
	if c.Running() != 1 {
		t.Errorf("%d run, want 1", c.Running())
	}
	<-ctx.Done()
}

func TestStubbornChildIsKilled(t *testing.T) {
	c, _, _ := start(t, 1, "--log-level", "stubborn")
	if killed := c.Stop(50 * time.Millisecond); fmt.Sprint(killed) != "[n1]" {
		t.Errorf("killed %v", killed)
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	base := freeBase(t, 2)
	taken, err := net.Listen("tcp", loopback(base+portsPerNode+portHTTP))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	plan, err := Plan(t.TempDir(), 2, base)
	if err != nil {
		t.Fatal(err)
	}
	c := &Children{Executable: os.Args[0], Log: newLog()}
	err = c.Start(plan)
	if !errors.Is(err, ErrPort) || !strings.Contains(err.Error(), strconv.Itoa(base+portsPerNode+portHTTP)) || !strings.Contains(err.Error(), "n2") {
		t.Fatalf("got %v", err)
	}
}

func TestMissingExecutable(t *testing.T) {
	plan, err := Plan(t.TempDir(), 1, freeBase(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	c := &Children{Executable: filepath.Join(t.TempDir(), "none"), Log: newLog()}
	if err := c.Start(plan); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
}

func TestPlan(t *testing.T) {
	plan, err := Plan("/data", 3, 7400)
	if err != nil {
		t.Fatal(err)
	}
	want := Node{ID: "n3", DataDir: "/data/n3", Address: "127.0.0.1:7420", HTTP: "127.0.0.1:7421"}
	if plan[2] != want {
		t.Errorf("got %+v, want %+v", plan[2], want)
	}
	for _, bad := range [][2]int{{0, 7400}, {3, 0}, {3, 65520}} {
		if _, err := Plan("/data", bad[0], bad[1]); !errors.Is(err, ErrPort) {
			t.Errorf("%v: got %v", bad, err)
		}
	}
}

func TestClaim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	claim := func(wanted Layout) (Layout, error) { return Claim(dir, wanted, 3) }
	made, err := claim(Layout{Shards: 8})
	if err != nil || made != (Layout{Format: layoutFormat, Nodes: 3, Shards: 8}) {
		t.Fatalf("new: %+v, %v", made, err)
	}
	made.Bootstrapped = true
	if err := made.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, same := range []Layout{{}, {Nodes: 3}, {Nodes: 3, Shards: 8}} {
		if got, err := claim(same); err != nil || got != made {
			t.Errorf("again, wanting %+v: %+v, %v", same, got, err)
		}
	}
	for _, other := range []Layout{{Nodes: 5}, {Shards: 16}} {
		if _, err := claim(other); !errors.Is(err, ErrLayout) {
			t.Errorf("wanting %+v: got %v", other, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, layoutFile), []byte(`{"format":2,"nodes":3}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := claim(Layout{}); !errors.Is(err, ErrLayout) {
		t.Errorf("a later format: got %v", err)
	}
	if err := os.Rename(filepath.Join(dir, layoutFile), filepath.Join(dir, "thesis.txt")); err != nil {
		t.Fatal(err)
	}
	if _, err := claim(Layout{}); !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), "thesis.txt") {
		t.Errorf("a foreign directory: got %v", err)
	}
}

func TestPrefixerCutsEndlessLines(t *testing.T) {
	l := newLog()
	p := &prefixer{prefix: []byte("[n1] "), to: l, mu: new(sync.Mutex)}
	for range 3 {
		p.Write([]byte(strings.Repeat("x", lineMax/2)))
	}
	if cap(p.rest) > 4*lineMax || !strings.HasPrefix(l.String(), "[n1] xxx") {
		t.Errorf("holds %d bytes, logged %d", cap(p.rest), len(l.String()))
	}
}
