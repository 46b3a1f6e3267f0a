package transport

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad/knownbadtest"
)

// TestKnownBadBuilds: these tests are worth something only if they fail without the gates.
func TestKnownBadBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a test binary")
	}
	binary := knownbadtest.Build(t)
	run := func(bad, test string) string {
		_, out := binary.Run(bad, []string{test}, "-test.timeout", "60s", "-test.v")
		return out
	}
	builds := map[string][]string{
		"leader-gate": {"TestLeaderEndIsHeld", "TestLeaderEndReturnsByItsDeadline", "TestCloseEndsHeldCalls", "TestSnapshotIsHeld",
			"TestLeadersDiskIsWaitedFor"},
		"follower-gate": {"TestFollowerEndIsHeld", "TestPresentEntriesAreHeld", "TestGateIsASequence", "TestClosedFollowerReleasesNothing",
			"TestSnapshotIsHeld", "TestFollowersDisksAreWaitedFor", "TestNonVoterIsHeld"},
		"non-voter-gate": {"TestNonVoterIsHeld"},
	}
	for bad, tests := range builds {
		for _, test := range tests {
			if out := run(bad, test); !strings.Contains(out, fmt.Sprintf("--- FAIL: %s ", test)) {
				t.Errorf("%s does not notice %s: %s", test, bad, out)
			}
			if out := run("", test); !strings.Contains(out, fmt.Sprintf("--- PASS: %s ", test)) {
				t.Errorf("%s fails on a good build: %s", test, out)
			}
		}
	}
}
