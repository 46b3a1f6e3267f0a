package main

import (
	"math"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	line := "42 (evil) name (x) S 1 77 77 0 -1 4194304 100 200 0 0 5 6 7 8 20 0 1 0 100 1000 10"
	group, used, err := parseStat([]byte(line))
	if err != nil || group != 77 || used != (5+6+7+8)*tick {
		t.Errorf("group %d, %v, %v", group, used, err)
	}
	for _, bad := range []string{"", "42 (short) S 1 2", "42 (x) S 1 y 77 0 -1 0 0 0 0 0 5 6 7 8", "42 (x) S 1 7 77 0 -1 0 0 0 0 0 5 x 7 8"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestParseMachine(t *testing.T) {
	busy, err := parseMachine([]byte("cpu  1 2 3 1000 2000 4 5 6 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\n"))
	if err != nil || busy != (1+2+3+4+5)*tick {
		t.Errorf("%v, %v", busy, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "cpu0 1 2 3 4 5 6 7 8", "cpu a 2 3 4 5 6 7 8"} {
		if _, err := parseMachine([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestUseBetweenSamples(t *testing.T) {
	at := time.Now()
	before := cpuSample{at: at, machine: 10 * time.Second, client: time.Second, groups: map[int]time.Duration{1: time.Second, 2: time.Second, 3: 0}}
	after := cpuSample{at: at.Add(2 * time.Second), machine: 14 * time.Second, client: 2 * time.Second,
		groups: map[int]time.Duration{1: 2 * time.Second, 2: 1200 * time.Millisecond, 3: 400 * time.Millisecond, 9: time.Hour}}
	got := after.since(before, []int{1}, []int{2, 3})
	for _, c := range []struct {
		what      string
		got, want float64
	}{{"server", got.Server, 0.5}, {"idle", got.Idle, 0.3}, {"client", got.Client, 0.5}, {"others", got.Others, 0.7}} {
		if math.Abs(c.got-c.want) > 1e-9 {
			t.Errorf("%s used %g cores, want %g", c.what, c.got, c.want)
		}
	}
	if (cpuSample{}).since(cpuSample{}, nil, nil) != (cpuUse{}) {
		t.Error("no time, but use")
	}
}

// A group's time has that of its forks in it, while they run and after they have ended.
func TestSamplesCountForks(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; sleep 60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	group := cmd.Process.Pid
	defer func() {
		_ = syscall.Kill(-group, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	var used time.Duration
	for deadline := time.Now().Add(20 * time.Second); used < 50*time.Millisecond; time.Sleep(pollEvery) {
		s, err := sampleCPU()
		if err != nil {
			t.Fatal(err)
		}
		if now := s.groups[group]; now >= used {
			used = now
		} else {
			t.Errorf("the group used %v and then %v", used, now)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the fork's work was not counted: %v", used)
		}
	}
	if s, err := sampleCPU(); err != nil || s.client <= 0 || s.machine < s.client || s.groups[syscall.Getpgrp()] <= 0 {
		t.Errorf("of process %d: %+v, %v", os.Getpid(), s, err)
	}
}

func TestCountingSystemCalls(t *testing.T) {
	trace := "101   fdatasync(9)                      = 0\n" +
		"102 fsync(7 <unfinished ...>\n" +
		"101 fdatasync(9 <unfinished ...>\n" +
		"102 <... fsync resumed>)              = 0\n" +
		"101 <... fdatasync resumed>)          = 0\n" +
		"103 +++ exited with 0 +++\n" +
		"101 sync_file_range(3, 0, 10, 2) = 0\n" +
		"101 restart_syscall(<... resuming interrupted fsync ...>) = 0\n"
	if got := countCalls([]byte(trace)); got != 4 {
		t.Errorf("%d calls, want 4", got)
	}
	for _, c := range []struct {
		perNode []int
		want    bool
	}{{[]int{20, 20, 0}, true}, {[]int{0, 25, 20}, true}, {[]int{19, 20, 1}, true}, {[]int{60, 19, 0}, false}, {[]int{20, 19, 0}, false}, {nil, false}} {
		if got := (syncCount{Counted: true, Writes: 20, PerNode: c.perNode}).onMajority(); got != c.want {
			t.Errorf("%v: %v", c.perNode, got)
		}
	}
}
