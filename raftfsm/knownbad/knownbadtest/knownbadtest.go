// Package knownbadtest builds a package's tests with the switches of knownbad, and runs them with one on.
package knownbadtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Binary is the tests of a package with the switches in it.
type Binary string

// Build builds the tests of the package that is being tested.
func Build(t testing.TB) Binary {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "knownbad.test")
	build := exec.Command("go", "test", "-c", "-tags", "knownbad", "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return Binary(binary)
}

// Run runs some of the tests with a switch on; empty: none, as in a good build.
func (b Binary) Run(bad string, tests []string, flags ...string) (passed bool, out string) {
	cmd := exec.Command(string(b), append([]string{"-test.run", "^(" + strings.Join(tests, "|") + ")$"}, flags...)...)
	cmd.Env = append(os.Environ(), "OSTRAKA_KNOWN_BAD="+bad)
	said, err := cmd.CombinedOutput()
	return err == nil, string(said)
}
