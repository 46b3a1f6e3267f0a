package raftfsm

import (
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad/knownbadtest"
)

// The tests that guard what a build may lack are worth something only if they fail where it does: each switch of
// package knownbad takes one out, and the test named beside it must notice.
func TestKnownBadBuilds(t *testing.T) {
	binary := knownbadtest.Build(t)
	run := func(bad string, tests ...string) (passed bool, out string) {
		return binary.Run(bad, tests, "-test.timeout", "120s", "-test.failfast")
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
		"retry-table":     "TestWritesAreDoneOnce",
	} {
		all = append(all, test)
		t.Run(bad, func(t *testing.T) {
			t.Parallel()
			if passed, out := run(bad, test); passed || !strings.Contains(out, "--- FAIL: "+test) {
				t.Errorf("%s does not notice: %s", test, out)
			}
		})
	}
	if passed, out := run("", all...); !passed {
		t.Errorf("they fail on a good build: %s", out)
	}
}
