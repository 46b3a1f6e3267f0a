package main

import (
	"fmt"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows on a terminal how far a long job is: a bar with rate and time left where the end is known. Anywhere
// else it shows nothing. It is for one goroutine.
type progress struct {
	bar  *progressbar.ProgressBar // nil: show nothing
	what string
}

// newProgress begins with a total in bytes; -1: the end is not known.
func (a *app) newProgress(what string, bytes int64) *progress {
	if !a.progress {
		return &progress{}
	}
	return &progress{what: what, bar: progressbar.NewOptions64(bytes,
		progressbar.OptionSetWriter(a.err),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetWidth(30),
		progressbar.OptionClearOnFinish(),
	)}
}

// at says where the job is: bytes done, and records.
func (p *progress) at(bytes, records int64) {
	if p.bar == nil {
		return
	}
	p.bar.Describe(fmt.Sprintf("%s, %d records", p.what, records))
	p.bar.Set64(bytes) // a bar that cannot be drawn is no reason to stop
}

// end takes the bar away, whether the job is done or not.
func (p *progress) end() {
	if p.bar != nil {
		p.bar.Clear()
	}
}
