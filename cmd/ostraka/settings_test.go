package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// settled parses and settles the flags of a made-up command.
func settled(t *testing.T, file string, env map[string]string, args ...string) (*pflag.FlagSet, error) {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.String("data-dir", "default", "")
	flags.StringSlice("peers", []string{"d"}, "")
	flags.Duration("wait", time.Second, "")
	flags.Int("count", 1, "")
	flags.Bool("pprof", false, "")
	flags.Bool("json", false, "")
	settings(flags, "data-dir", "peers", "wait", "count", "pprof")
	if file != "" {
		path := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(path, []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return flags, settle(flags, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
}

func TestPrecedence(t *testing.T) {
	const file = "data-dir = 'file'\npeers = ['f1', 'f2']\nwait = '3s'\ncount = 3\npprof = true\n"
	env := map[string]string{"OSTRAKA_DATA_DIR": "env", "OSTRAKA_PEERS": "e1,e2", "OSTRAKA_WAIT": "2s", "OSTRAKA_COUNT": "2", "OSTRAKA_PPROF": "false"}
	for _, test := range []struct {
		name string
		file string
		env  map[string]string
		args []string
		want string
	}{
		{"defaults", "", nil, nil, "default [d] 1s 1 false"},
		{"file", file, nil, nil, "file [f1,f2] 3s 3 true"},
		{"environment over file", file, env, nil, "env [e1,e2] 2s 2 false"},
		{"flags over all", file, env, []string{"--data-dir=flag", "--peers=x", "--wait=4s", "--count=4", "--pprof"}, "flag [x] 4s 4 true"},
		{"each by itself", "count = 3", map[string]string{"OSTRAKA_WAIT": "2s"}, []string{"--data-dir=flag"}, "flag [d] 2s 3 false"},
		{"a flag given with its default stands", file, env, []string{"--data-dir=default"}, "default [e1,e2] 2s 2 false"},
		{"underscores in the file", "data_dir = 'file'", nil, nil, "file [d] 1s 1 false"},
		{"--json is no setting", "", map[string]string{"OSTRAKA_JSON": "true"}, nil, "default [d] 1s 1 false"},
	} {
		t.Run(test.name, func(t *testing.T) {
			flags, err := settled(t, test.file, test.env, test.args...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, name := range []string{"data-dir", "peers", "wait", "count", "pprof"} {
				got = append(got, flags.Lookup(name).Value.String())
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %q, want %q", strings.Join(got, " "), test.want)
			}
		})
	}
}

func TestSettingsAreRefused(t *testing.T) {
	for _, test := range []struct {
		name, file string
		env        map[string]string
		want       string
	}{
		{"unknown key", "data-dirr = 'x'", nil, `unknown key "data-dirr"`},
		{"a flag that is no setting", "json = true", nil, `unknown key "json"`},
		{"a file that names a file", "config = 'x'", nil, `unknown key "config"`},
		{"a table", "[server]\nid = 'n1'", nil, `unknown key "server"`},
		{"twice", "data-dir = 'x'\ndata_dir = 'y'", nil, `"data-dir" and "data_dir" are the same key`},
		{"wrong type", "count = 'many'", nil, `key "count"`},
		{"list of numbers", "peers = [1]", nil, `key "peers"`},
		{"a date", "data-dir = 2026-01-01", nil, `key "data-dir"`},
		{"no TOML", "data-dir", nil, "configuration"},
		{"environment", "", map[string]string{"OSTRAKA_COUNT": "many"}, `environment variable OSTRAKA_COUNT="many"`},
		{"no such file", "", map[string]string{"OSTRAKA_CONFIG": "/does/not/exist"}, "/does/not/exist"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := settled(t, test.file, test.env)
			if !isUsage(err) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestConnectionSettings(t *testing.T) {
	f := newFake()
	f.put([]byte("a"), nil, 0)
	env := map[string]string{"OSTRAKA_ENDPOINTS": "a:1,b:2", "OSTRAKA_TIMEOUT": "7s"}
	if got := f.ostraka(t, "", env, "get", "a"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	if strings.Join(f.reached.endpoints, " ") != "a:1 b:2" || f.reached.timeout != 7*time.Second {
		t.Errorf("reached %+v", f.reached)
	}
	f.ostraka(t, "", env, "get", "a", "--endpoints", "c:3", "--timeout", "1s")
	if strings.Join(f.reached.endpoints, " ") != "c:3" || f.reached.timeout != time.Second {
		t.Errorf("reached %+v", f.reached)
	}
}

func TestMistakenSettingIsReportedPlainly(t *testing.T) {
	got := newFake().ostraka(t, "", map[string]string{"OSTRAKA_TIMEOUT": "soon"}, "get", "a")
	if got.code != exitUsage || !strings.HasPrefix(got.errOut, `ostraka: environment variable OSTRAKA_TIMEOUT="soon": `) {
		t.Errorf("%+v", got)
	}
}

// TestServerSettings: every flag of the server is a setting, as the contract says.
func TestServerSettings(t *testing.T) {
	cmd := (&app{}).serverCommand()
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !isSetting(f) {
			t.Errorf("--%s cannot be given by environment and file", f.Name)
		}
	})
	for _, name := range strings.Fields("id data-dir listen advertise peers zone http-listen pprof log-level log-format election-timeout value-bytes-max config") {
		if cmd.Flags().Lookup(name) == nil {
			t.Errorf("there is no --%s", name)
		}
	}
}
