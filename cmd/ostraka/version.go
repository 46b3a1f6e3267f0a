package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/ostraka-db/ostraka/server"
)

// build is what `ostraka version` tells.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Time     string `json:"commit_time,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	// FormatLevel is the highest level of formats, on disk and on the wire, that this build reads and writes.
	FormatLevel int `json:"format_level"`
}

// thisBuild reads what the Go tool stamped into the binary; a plain `go build` in a checkout stamps it all.
func thisBuild() build {
	b := build{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, FormatLevel: server.FormatLevel}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version = info.Main.Version
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print what this binary was built from",
		Example: "  ostraka version\n  ostraka version --json",
		Args:    cobra.NoArgs,
	}
	addJSON(cmd, &asJSON)
	cmd.RunE = func(*cobra.Command, []string) error {
		b := thisBuild()
		if asJSON {
			return a.printJSON(b)
		}
		commit := orDash(b.Commit)
		if b.Modified {
			commit += " with changes"
		}
		return a.print(fmt.Sprintf("ostraka %s\ncommit %s\n%s %s\nformat level %d", b.Version, commit, b.Go, b.Platform, b.FormatLevel))
	}
	return cmd
}
