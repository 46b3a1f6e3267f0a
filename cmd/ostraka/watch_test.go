package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/client"
)

func watchedCluster() *fakeCluster {
	f := newFake()
	f.changes = []client.Change{
		{Kind: client.ChangeSet, Key: []byte("a"), Value: []byte("1"), Version: 7, Time: time.UnixMilli(1000), TTL: 5 * time.Second},
		{Kind: client.ChangeSet, Key: []byte("a"), Value: []byte("\xff"), Version: 8, Time: time.UnixMilli(1001),
			Previous: &client.Value{Value: []byte("1"), Version: 7}},
		{Kind: client.ChangeDelete, Key: []byte("a"), Version: 9, Time: time.UnixMilli(1002), Previous: &client.Value{Value: []byte("\xff"), Version: 8}},
		{Kind: client.ChangeExpire, Key: []byte("\xfe"), Version: 10, Time: time.UnixMilli(1003), Previous: &client.Value{Version: 2}},
	}
	return f
}

func TestWatchPrintsChanges(t *testing.T) {
	for _, test := range []struct {
		args string
		out  []string
	}{
		{"watch --limit 4", []string{"set\ta\t1", "set\ta\t\"\\xff\"", "delete\ta", "expire\t\"\\xfe\""}},
		{"watch --limit 4 --previous", []string{"set\ta\t1\t-", "set\ta\t\"\\xff\"\t1", "delete\ta\t\"\\xff\"", "expire\t\"\\xfe\"\t\"\""}},
		{"watch --limit 3 --json", []string{
			`{"change":"set","key":"a","value":"1","version":7,"time_ms":1000,"ttl_ms":5000,"token":"token1"}`,
			`{"change":"set","key":"a","value_base64":"/w==","version":8,"time_ms":1001,"previous_version":7,"token":"token2"}`,
			`{"change":"delete","key":"a","version":9,"time_ms":1002,"previous_version":8,"token":"token3"}`,
		}},
		{"watch --limit 4 --json --previous", []string{
			`{"change":"set","key":"a","value":"1","version":7,"time_ms":1000,"ttl_ms":5000,"token":"token1"}`,
			`{"change":"set","key":"a","value_base64":"/w==","version":8,"time_ms":1001,"previous":"1","previous_version":7,"token":"token2"}`,
			`{"change":"delete","key":"a","version":9,"time_ms":1002,"previous_base64":"/w==","previous_version":8,"token":"token3"}`,
			`{"change":"expire","key_base64":"/g==","version":10,"time_ms":1003,"previous":"","previous_version":2,"token":"token4"}`,
		}},
	} {
		got := watchedCluster().ostraka(t, "", nil, strings.Fields(test.args)...)
		if want := strings.Join(test.out, "\n") + "\n"; got.code != exitDone || got.out != want {
			t.Errorf("%s: %d, %s%s\nwant\n%s", test.args, got.code, got.out, got.errOut, want)
		}
		if !strings.HasPrefix(got.errOut, "watching from token0\n") || !strings.Contains(got.errOut, "go on with --from token") {
			t.Errorf("%s: %q", test.args, got.errOut)
		}
	}
}

func TestWatchUnderstandsItsArguments(t *testing.T) {
	for args, want := range map[string]client.KeyRange{
		"watch":                           {},
		"watch p":                         client.Prefix([]byte("p")),
		"watch --key p":                   client.Key([]byte("p")),
		"watch cA== --key-base64":         client.Prefix([]byte("p")),
		"watch p --from t --previous":     client.Prefix([]byte("p")),
		"watch p --endpoints 127.0.0.1:1": client.Prefix([]byte("p")),
	} {
		f := watchedCluster()
		got := f.ostraka(t, "", nil, append(strings.Fields(args), "--limit", "1")...)
		if got.code != exitDone || string(f.watched.Start) != string(want.Start) || string(f.watched.End) != string(want.End) {
			t.Errorf("%s: %d, %q, %s", args, got.code, f.watched, got.errOut)
		}
		if options := map[bool]int{true: 2}[strings.Contains(args, "--from")]; f.watchOptions != options {
			t.Errorf("%s: %d options", args, f.watchOptions)
		}
	}
	for _, args := range []string{"watch a b", "watch --limit -1", "watch --key", "watch !! --key-base64"} {
		if got := watchedCluster().ostraka(t, "", nil, strings.Fields(args)...); got.code != exitUsage {
			t.Errorf("%s: %d, %s", args, got.code, got.errOut)
		}
	}
}

func TestWatchEnds(t *testing.T) {
	f := watchedCluster()
	f.watchErr = &client.CompactedError{Restart: "restart"}
	got := f.ostraka(t, "", nil, "watch")
	if got.code != exitError || !strings.Contains(got.errOut, "go on with --from restart\n") || !strings.Contains(got.errOut, "ostraka scan") {
		t.Errorf("compacted: %d, %s", got.code, got.errOut)
	}
	f = watchedCluster()
	f.watchErr = client.ErrUnsupported
	if got := f.ostraka(t, "", nil, "watch"); got.code != exitError {
		t.Errorf("unsupported: %d, %s", got.code, got.errOut)
	}
	// A signal ends the context, and that is how a watch is meant to end.
	f = watchedCluster()
	var out, errOut strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := &app{in: strings.NewReader(""), out: &out, err: &errOut, connect: f.connect, lookupEnv: func(string) (string, bool) { return "", false }}
	if code := a.run(ctx, []string{"watch"}); code != exitDone || !strings.Contains(errOut.String(), "go on with --from token4") {
		t.Errorf("interrupted: %d, %s", code, errOut.String())
	}
}
