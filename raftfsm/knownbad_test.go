package raftfsm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The tests that guard the gated answers are worth something only if they fail where a measure is missing: each switch of
// package knownbad takes one out, and the test named beside it must notice.
func TestKnownBadBuilds(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "raftfsm.test")
	build := exec.Command("go", "test", "-c", "-tags", "knownbad", "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(bad, tests string, times string) (passed bool, out string) {
		cmd := exec.Command(binary, "-test.run", "^("+tests+")$", "-test.count", times, "-test.timeout", "120s", "-test.failfast")
		cmd.Env = append(os.Environ(), "OSTRAKA_KNOWN_BAD="+bad)
		b, err := cmd.CombinedOutput()
		return err == nil, string(b)
	}
	all := []string{}
	for bad, test := range map[string]string{
		"leader-gate":     "TestAnswersWaitForTheDisks",
		"follower-gate":   "TestAnswersWaitForTheDisks",
		"sole-voter-gate": "TestSoleVoterWaitsForItsDisk",
		"index-watermark": "TestOverruledTailIsNotVouchedFor",
		"rewrite":         "TestKilledThenPowerCut",
		"sync":            "TestPowerCuts",
		"snapshot-sync":   "TestPowerCuts",
	} {
		all = append(all, test)
		t.Run(bad, func(t *testing.T) {
			t.Parallel()
			if passed, out := run(bad, test, "1"); passed || !strings.Contains(out, "--- FAIL: "+test) {
				t.Errorf("%s does not notice: %s", test, out)
			}
		})
	}
	if passed, out := run("", strings.Join(all, "|"), "1"); !passed {
		t.Errorf("they fail on a good build: %s", out)
	}
}
