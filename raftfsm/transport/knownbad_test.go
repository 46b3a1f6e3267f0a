package transport

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestKnownBadBuilds: these tests are worth something only if they fail without the gates.
func TestKnownBadBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a test binary")
	}
	binary := filepath.Join(t.TempDir(), "transport.test")
	build := exec.Command("go", "test", "-c", "-tags", "knownbad", "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(bad string, tests []string) string {
		cmd := exec.Command(binary, "-test.run", "^("+strings.Join(tests, "|")+")$", "-test.timeout", "60s", "-test.v")
		cmd.Env = append(os.Environ(), "OSTRAKA_KNOWN_BAD="+bad)
		out, _ := cmd.CombinedOutput()
		return string(out)
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
			if out := run(bad, []string{test}); !strings.Contains(out, fmt.Sprintf("--- FAIL: %s ", test)) {
				t.Errorf("%s does not notice %s: %s", test, bad, out)
			}
			if out := run("", []string{test}); !strings.Contains(out, fmt.Sprintf("--- PASS: %s ", test)) {
				t.Errorf("%s fails on a good build: %s", test, out)
			}
		}
	}
}
