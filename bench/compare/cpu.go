package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// tick is the kernel's unit of CPU time in /proc (USER_HZ, 100 on every Linux that Go runs on).
const tick = 10 * time.Millisecond

// cpuSample is what has been used since some fixed moment.
type cpuSample struct {
	at time.Time
	// machine is what all processes and the kernel used, client what this process did.
	machine, client time.Duration
	// groups is what each process group used, ended and waited-for members included.
	groups map[int]time.Duration
}

// cpuUse is what was used between two samples, as shares of one core's time: 1 is a core.
type cpuUse struct {
	// Server is the system under load, Idle all others of the comparison together.
	Server float64 `json:"server"`
	Idle   float64 `json:"idle_systems"`
	Client float64 `json:"client"`
	// Others is what everything else on the machine used: noise.
	Others float64 `json:"others"`
}

func sampleCPU() (cpuSample, error) {
	s := cpuSample{groups: make(map[int]time.Duration)}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return s, err
	}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return s, err
		}
		group, used, err := parseStat(data)
		if err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
		s.groups[group] += used
	}
	machine, err := os.ReadFile("/proc/stat")
	if err != nil {
		return s, err
	}
	if s.machine, err = parseMachine(machine); err != nil {
		return s, err
	}
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return s, err
	}
	s.client = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	s.at = time.Now()
	return s, nil
}

// parseStat reads a process's group and its CPU time, with that of its children that it has waited for, from a line
// in the form of proc(5): after the name in brackets come state, ppid, pgrp, …, utime, stime, cutime, cstime.
func parseStat(line []byte) (group int, used time.Duration, err error) {
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	const pgrp, utime, cstime = 5 - 3, 14 - 3, 17 - 3
	if len(fields) <= cstime {
		return 0, 0, fmt.Errorf("%d fields", len(fields))
	}
	if group, err = strconv.Atoi(string(fields[pgrp])); err != nil {
		return 0, 0, err
	}
	for _, f := range fields[utime : cstime+1] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, 0, err
		}
		used += time.Duration(n) * tick
	}
	return group, used, nil
}

// parseMachine reads the busy time of all cores from the first line of /proc/stat: user, nice, system, idle, iowait,
// irq, softirq. What a hypervisor stole and guests used is left out.
func parseMachine(stat []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 8 || string(fields[0]) != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var busy time.Duration
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(string(fields[i]), 10, 64)
		if err != nil {
			return 0, err
		}
		busy += time.Duration(n) * tick
	}
	return busy, nil
}

// since tells the use between an earlier sample and this one. The groups named are those of the system under load and of the
// others.
func (s cpuSample) since(earlier cpuSample, server, idle []int) cpuUse {
	span := s.at.Sub(earlier.at).Seconds()
	if span <= 0 {
		return cpuUse{}
	}
	cores := func(d time.Duration) float64 { return max(0, d.Seconds()/span) }
	sum := func(groups []int) (used time.Duration) {
		for _, g := range groups {
			used += s.groups[g] - earlier.groups[g]
		}
		return used
	}
	busy, client, serving, idling := s.machine-earlier.machine, s.client-earlier.client, sum(server), sum(idle)
	return cpuUse{Server: cores(serving), Idle: cores(idling), Client: cores(client), Others: cores(busy - client - serving - idling)}
}

const (
	// quietCores is how much the machine may use and count as quiet: elections, heartbeats.
	quietCores = 0.2
	// quietEvery is the time over which that is measured, quietMax the longest wait for it.
	quietEvery = 250 * time.Millisecond
	quietMax   = 5 * time.Second
)

// awaitQuiet waits until the servers have ended what they do after a load, and everybody else what they do, and reports
// whether that came about.
func awaitQuiet(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, quietMax, errNotQuiet)
	defer cancel()
	for {
		before, err := sampleCPU()
		if err != nil {
			return false, err
		}
		if err := rest(ctx, quietEvery); err != nil {
			if context.Cause(ctx) == errNotQuiet {
				return false, nil
			}
			return false, err
		}
		after, err := sampleCPU()
		if err != nil {
			return false, err
		}
		if after.since(before, nil, nil).Others < quietCores {
			return true, nil
		}
	}
}

var errNotQuiet = errors.New("the machine is still busy")

// rest waits, unless ctx ends first.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
