package main

import (
	"errors"
	"flag"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestWrongCommandLines(t *testing.T) {
	for line, want := range map[string]string{
		"-nonsense":                  "-nonsense",
		"extra":                      `"extra"`,
		"-rounds 0":                  "-rounds",
		"-rounds many":               "many",
		"-callers 64,0":              "-callers",
		"-callers 64,64":             "twice",
		"-callers 100000":            "9000",
		"-systems etcd,mysql":        "etcd, redis, ostraka",
		"-systems etcd,etcd":         "twice",
		"-workloads scans":           "writes, reads",
		"-workloads=":                "writes, reads",
		"-duration 0s":               "duration",
		"-warm-up -1s":               "warm-up",
		"-keys 0":                    "keys",
		"-value-size -1":             "value size",
		"-noise-max -1":              "-noise-max",
		"-noise-max NaN":             "-noise-max",
		"-shards -1":                 "-shards",
		"-etcd-connections 0":        "-etcd-connections",
		"-etcd-endpoints some":       "leader or all",
		"-redis-client cluster":      "per-caller or joined",
		"-quick -callers 1 -keys -5": "keys",
	} {
		_, err := parseOptions(strings.Fields(line), io.Discard)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a usage error with %q", line, err, want)
		}
	}
}

func TestHelpNamesEveryFlag(t *testing.T) {
	var b strings.Builder
	if _, err := parseOptions([]string{"-help"}, &b); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, name := range []string{"Usage", "-systems", "-quick", "-ostraka-arg", "-keep-data", "-plot"} {
		if !strings.Contains(b.String(), name) {
			t.Errorf("no %s in the help", name)
		}
	}
}

func TestOptions(t *testing.T) {
	opts, err := parseOptions(strings.Fields("-quick -rounds 4 -systems ostraka,etcd -ostraka-arg --a=1 -ostraka-arg --b"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	// What is said counts more than what -quick says.
	if opts.rounds != 4 || opts.duration >= time.Second || opts.keys != 1000 || !reflect.DeepEqual(opts.callers, []int{64}) {
		t.Errorf("quick: %+v", opts)
	}
	if !reflect.DeepEqual(opts.systems, []string{nameOstraka, nameEtcd}) || !reflect.DeepEqual(opts.ostrakaArgs, []string{"--a=1", "--b"}) {
		t.Errorf("lists: %+v", opts)
	}
	if want := []cell{{writes, 64}, {reads, 64}}; !reflect.DeepEqual(opts.cells(), want) {
		t.Errorf("cells %v", opts.cells())
	}
	first, second := opts.load(cell{writes, 8}, 0), opts.load(cell{reads, 8}, 1)
	if first.Writes != 1 || second.Writes != 0 || first.Clients != 8 || first.KeySize != 16 || first.ValueSize != 128 || first.Seed == second.Seed {
		t.Errorf("loads %+v, %+v", first, second)
	}
}
