package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/client"
)

func TestKeyCommands(t *testing.T) {
	tests := []struct {
		args  string // split at spaces
		stdin string
		fail  error
		code  int
		out   string
		// errOut must be contained in stderr; empty: stderr must be empty.
		errOut string
	}{
		{args: "get a", out: "1"},
		{args: "get YQ== --key-base64", out: "1"},
		{args: "get a --json", out: `{"key":"a","value":"1","version":1}` + "\n"},
		{args: "get bin --json", out: `{"key":"bin","value_base64":"/wA=","version":2,"ttl_ms":90000}` + "\n"},
		{args: "get none", code: exitNotFound, errOut: "ostraka: none: key not found\n"},
		{args: "get a", fail: client.ErrUnavailable, code: exitUnavailable, errOut: "trying again is safe"},
		{args: "get", code: exitUsage, errOut: "accepts 1 arg(s)"},
		{args: "get a b", code: exitUsage, errOut: "accepts 1 arg(s)"},
		{args: "get !! --key-base64", code: exitUsage, errOut: `key "!!"`},
		{args: "get a --nonsense", code: exitUsage, errOut: "unknown flag: --nonsense"},
		{args: "nonsense", code: exitUsage, errOut: `unknown command "nonsense"`},
		{args: "cluster nonsense", code: exitUsage, errOut: `unknown command "nonsense"`},

		{args: "set b 2", out: "OK\n"},
		{args: "set b 2 --json", out: `{"version":3}` + "\n"},
		{args: "set b -", stdin: "from\x00stdin\n", out: "OK\n"},
		{args: "set a 2 --return-previous", out: "1"},
		{args: "set a 2 --return-previous --json", out: `{"version":3,"previous":{"value":"1","version":1}}` + "\n"},
		{args: "set b 2 --return-previous", out: ""},
		{args: "set b 2", fail: &client.ConditionError{Version: 7}, code: exitConditionUnmet, errOut: "condition not met: the key has version 7"},
		{args: "set b 2", fail: client.ErrOutcomeUnknown, code: exitOutcomeUnknown, errOut: "may have been done"},
		{args: "set b 2", fail: &client.LimitError{Limit: "value_bytes_max", Max: 1, Got: 2}, code: exitError, errOut: "over the limit value_bytes_max: 2, at most 1 allowed"},
		{args: "set b 2 --if-absent --if-version 3", code: exitUsage, errOut: "none of the others can be"},
		{args: "set b 2 --ttl soon", code: exitUsage, errOut: "invalid argument"},

		{args: "del a none", out: "1\n"},
		{args: "del none", code: exitNotFound, out: "0\n", errOut: "key not found"},
		{args: "del a bin --json", out: `{"deleted":2}` + "\n"},
		{args: "del a", fail: client.ErrOutcomeUnknown, code: exitOutcomeUnknown, out: "1\n", errOut: "a: outcome unknown"},

		{args: "incr a", out: "2\n"},
		{args: "incr a -5", out: "-4\n"},
		{args: "incr fresh 3 --json", out: `{"value":3,"version":3}` + "\n"},
		{args: "incr a x", code: exitUsage, errOut: "N is a whole number"},
		{args: "incr bin", code: exitError, errOut: "bin: value is not an integer"},
		{args: "cas a 1 2", out: "OK\n"},
		{args: "cas a 1 2 --json", out: `{"version":3}` + "\n"},
		{args: "cas a 0 2", code: exitConditionUnmet, errOut: "condition not met"},
		{args: "cas none 0 2", code: exitConditionUnmet, errOut: "the key does not exist"},
		{args: "append a 23", out: "3\n"},
		{args: "append a - --json", stdin: "23", out: `{"value_bytes":3,"version":3}` + "\n"},

		{args: "ttl a", out: "none\n"},
		{args: "ttl bin", out: "1m30s\n"},
		{args: "ttl bin --json", out: `{"ttl_ms":90000,"version":2,"value_bytes":2}` + "\n"},
		{args: "ttl none", code: exitNotFound, errOut: "none: key not found"},
		{args: "expire a 10s", out: "OK\n"},
		{args: "expire a later", code: exitUsage, errOut: "TTL is a duration"},
		{args: "expire none 10s", code: exitNotFound, errOut: "key not found"},
		{args: "persist bin --json", out: `{"version":3}` + "\n"},
		{args: "persist none", code: exitNotFound, errOut: "key not found"},
		{args: "touch a", out: "OK\n"},
		{args: "touch none", code: exitNotFound, errOut: "key not found"},

		{args: "mget a bin", out: "a\t1\nbin\t\"\\xff\\x00\"\n"},
		{args: "mget none a --json", code: exitNotFound, out: `{"key":"a","value":"1","version":1}` + "\n", errOut: "none: key not found"},
		{args: "scan", out: "a\t1\nbin\t\"\\xff\\x00\"\n"},
		{args: "scan b --json", out: `{"key":"bin","value_base64":"/wA=","version":2,"ttl_ms":90000}` + "\n"},
		{args: "scan --keys-only", out: "a\nbin\n"},
		{args: "scan --keys-only --json b", out: `{"key":"bin","version":2,"ttl_ms":90000}` + "\n"},
		{args: "scan --limit -1", code: exitUsage, errOut: "--limit must not be negative"},
		{args: "scan", fail: client.ErrUnavailable, code: exitUnavailable, out: "a\t1\nbin\t\"\\xff\\x00\"\n", errOut: "unavailable"},

		{args: "export", out: `{"key":"a","value":"1","version":1}` + "\n" + `{"key":"bin","value_base64":"/wA=","version":2,"ttl_ms":90000}` + "\n"},
		{args: "export a --format csv", out: "key,value,key_base64,value_base64,version,ttl_ms\na,1,,,1,\n"},
		{args: "export none --format tsv", out: "key\tvalue\tkey_base64\tvalue_base64\tversion\tttl_ms\n"},
		{args: "export --format xml", code: exitUsage, errOut: `unknown format "xml"`},
		{args: "export a", fail: client.ErrUnavailable, code: exitUnavailable, out: `{"key":"a","value":"1","version":1}` + "\n", errOut: "unavailable"},

		{args: "bench --read-level sometimes", code: exitUsage, errOut: "--read-level is linearizable or stale"},
		{args: "server --log-level loud", code: exitUsage, errOut: "--log-level is debug"},
		{args: "server --log-format xml", code: exitUsage, errOut: "--log-format is text or json"},
		{args: "server", code: exitUsage, errOut: "configuration"},
		{args: "dev three", code: exitUsage, errOut: `unknown argument "three"`},
		{args: "cluster bootstrap", code: exitUsage, errOut: "--nodes n1=HOST:PORT"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			f := newFake()
			f.put([]byte("a"), []byte("1"), 0)
			f.put([]byte("bin"), []byte("\xff\x00"), 90*time.Second)
			f.fail = test.fail
			got := f.ostraka(t, test.stdin, nil, strings.Fields(test.args)...)
			if got.code != test.code || got.out != test.out {
				t.Errorf("got code %d and %q, want %d and %q; stderr %q", got.code, got.out, test.code, test.out, got.errOut)
			}
			if !strings.Contains(got.errOut, test.errOut) || test.errOut == "" && got.errOut != "" {
				t.Errorf("stderr %q, want %q in it", got.errOut, test.errOut)
			}
		})
	}
}

func TestSetReadsStdinExactly(t *testing.T) {
	f := newFake()
	f.ostraka(t, "a\x00b\r\n", nil, "set", "k", "-")
	if got := string(f.data["k"].Value); got != "a\x00b\r\n" {
		t.Errorf("stored %q", got)
	}
}

func TestSetFlagsBecomeOptions(t *testing.T) {
	for args, want := range map[string]int{
		"": 0, "--ttl 1s": 1, "--keep-ttl": 1, "--if-absent": 1, "--if-exists": 1, "--if-version 0": 1, "--return-previous": 1,
		"--ttl 1s --if-version 3 --return-previous": 3,
	} {
		f := newFake()
		got := f.ostraka(t, "", nil, append([]string{"set", "k", "v"}, strings.Fields(args)...)...)
		if got.code != 0 || f.options != want {
			t.Errorf("%q: %d options, want %d; %+v", args, f.options, want, got)
		}
	}
}

// TestEveryCommandExplainsItself: help is the manual.
func TestEveryCommandExplainsItself(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Example == "" || cmd.RunE == nil {
			t.Errorf("%q lacks a line about it, an example, or code", cmd.CommandPath())
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk((&app{}).newRoot())
}

func TestClientCommandsTakeTheirConnection(t *testing.T) {
	with := map[string]bool{}
	for _, cmd := range (&app{}).newRoot().Commands() {
		with[cmd.Name()] = cmd.Flags().Lookup("endpoints") != nil && cmd.Flags().Lookup("timeout") != nil
	}
	for _, name := range strings.Fields("get set del incr cas append ttl expire persist touch mget scan import export bench") {
		if !with[name] {
			t.Errorf("%s has no --endpoints and --timeout", name)
		}
	}
}

func TestProtectNegative(t *testing.T) {
	for in, want := range map[string]string{
		"incr k -5":        "incr k -- -5",
		"incr --json k -5": "incr --json k -- -5",
		"incr k -- -5":     "incr k -- -5",
		"incr -5":          "incr -5",
		"incr k -h":        "incr k -h",
		"incr k 5":         "incr k 5",
		"set k -5":         "set k -5",
	} {
		if got := strings.Join(protectNegative(strings.Fields(in)), " "); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":            `""`,
		"plain text":  "plain text",
		"größe 日本":    "größe 日本",
		`say "hi"`:    `say "hi"`,
		`"quoted"`:    `"\"quoted\""`,
		"tab\there":   `"tab\there"`,
		"line\n":      `"line\n"`,
		"\x1b[31mred": `"\x1b[31mred"`,
		"\xff":        `"\xff"`,
		"a\u202eb":    `"a\u202eb"`,
		"nb\u00a0sp":  `"nb\u00a0sp"`,
	} {
		if got := printable([]byte(in)); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func TestReadableBytes(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 30: "1.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		if got := readableBytes(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestNodeSpecs(t *testing.T) {
	specs, err := nodeSpecs([]string{"n1=a:1", "n2=b:2"}, []string{"n2=west"})
	if err != nil || fmt.Sprint(specs) != "[{n1 a:1 } {n2 b:2 west}]" {
		t.Errorf("got %v, %v", specs, err)
	}
	for _, bad := range [][2][]string{
		{nil, nil},
		{{"n1"}, nil},
		{{"=a:1"}, nil},
		{{"n1=a:1", "n1=b:2"}, nil},
		{{"n1=a:1"}, {"n1"}},
		{{"n1=a:1"}, {"n2=west"}},
	} {
		if _, err := nodeSpecs(bad[0], bad[1]); !isUsage(err) {
			t.Errorf("%v: got %v", bad, err)
		}
	}
}

func TestStatusTable(t *testing.T) {
	var out strings.Builder
	a := &app{out: &out}
	status := &client.Status{ClusterID: "c1", Epoch: 2,
		Nodes: []client.NodeStatus{{ID: "n1", Address: "h:1", State: "up", MemoryBytes: 3 << 20, MemoryLimitBytes: 4 << 20, MemoryOver: true},
			{ID: "n2", Address: "h:2", State: "unreachable", Zone: "west"}},
		Shards: []client.ShardStatus{{ID: 0, Ranges: []string{"0-16383"}, Leader: "n1", Term: 3, Keys: 4, Bytes: 2048,
			Replicas: []client.ReplicaStatus{{Node: "n1", Role: "leader", Voter: true}, {Node: "n2", Voter: true}}}},
	}
	if err := a.printStatus(status); err != nil {
		t.Fatal(err)
	}
	want := `cluster c1, epoch 2

NODE  ADDRESS  STATE        ZONE  LEADS  MEMORY              BUILD
n1    h:1      up           -     1      3.0 MiB of 4.0 MiB  -
n2    h:2      unreachable  west  0      -                   -

WARNING: n1 is over its memory limit: its shards refuse writes that would take more

SHARD  SLOTS    LEADER  REPLICAS     TERM  KEYS  BYTES
0      0-16383  n1      n1,n2(away)  3     4     2.0 KiB
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// TestUsageComesFirst: what is wrong with the command line is told even where no cluster answers.
func TestUsageComesFirst(t *testing.T) {
	for _, args := range []string{"incr a x", "get !! --key-base64", "expire a later", "scan --limit -1", "export --format xml", "import a.dat", "import a.csv --on-error ask"} {
		var errOut strings.Builder
		a := &app{in: strings.NewReader(""), out: &strings.Builder{}, err: &errOut,
			lookupEnv: func(string) (string, bool) { return "", false },
			connect:   func(context.Context, connection) (keyValue, error) { return nil, client.ErrNoEndpoint }}
		if code := a.run(t.Context(), strings.Fields(args)); code != exitUsage {
			t.Errorf("%s: code %d, %s", args, code, &errOut)
		}
	}
}
