package wal

import (
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad/knownbadtest"
)

// The tests that guard what the log promises are worth something only if they fail where a measure is missing: each switch
// of package knownbad takes one out, and the test named beside it must notice.
func TestKnownBadBuilds(t *testing.T) {
	if raceDetector {
		t.Skip("what it builds has no race detector")
	}
	binary := knownbadtest.Build(t)
	run := func(bad string, tests ...string) (passed bool, out string) {
		return binary.Run(bad, tests, "-test.timeout", "120s", "-test.short")
	}
	var all []string
	for bad, tests := range map[string][]string{
		"sync":        {"TestCrashPoints"},
		"sync-order":  {"TestCrashPoints"},
		"rewrite":     {"TestRecoveredIsDurable"},
		"seed":        {"TestStaleFrames", "TestForgedFrames"},
		"purge-order": {"TestCrashPoints", "TestModel"},
		"purge-sync":  {"TestCrashPoints"},
	} {
		for _, test := range tests {
			all = append(all, test)
			t.Run(bad+" "+test, func(t *testing.T) {
				t.Parallel()
				if passed, out := run(bad, test); passed || !strings.Contains(out, "--- FAIL: "+test) {
					t.Errorf("%s does not notice: %s", test, out)
				}
			})
		}
	}
	if passed, out := run("", all...); !passed {
		t.Errorf("they fail on a good build: %s", out)
	}
}
