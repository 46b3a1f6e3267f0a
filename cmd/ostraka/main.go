// Command ostraka is the one binary of Ostraka: a node, a cluster to play with, and every tool that talks to one.
//
// It owns what a person or a script meets: flags, environment and configuration files, text in and out, exit codes.
// It refuses to know how anything is done: the server package is a node, the client package talks to a cluster, the
// bench package measures one, and no other package of the module is imported here.
//
// Contracts that scripts rely on: data goes to stdout, everything else to stderr; the exit code is one of the table in
// exit.go; with --json a command prints one JSON value a line.
//
// Start reading at root.go, which lists the commands; each has a file of its own. What can be told apart from the
// terminal is in packages below internal/: records (text formats), ingest (the engine of import), dev (child
// processes).
package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"
)

func main() {
	a := &app{
		in:        os.Stdin,
		out:       os.Stdout,
		err:       os.Stderr,
		lookupEnv: os.LookupEnv,
		progress:  term.IsTerminal(int(os.Stderr.Fd())),
		connect:   connect,
		abort:     abort{how: func() { os.Exit(exitError) }},
	}
	ctx, stop := a.interruptible(context.Background())
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// interruptible returns a context that the first SIGINT or SIGTERM ends. The second one aborts.
func (a *app) interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // lives as long as the process
		<-signals
		cancel()
		<-signals
		a.abort.do()
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel()
	}
}

// abort is what a second signal does: by default it ends the process at once.
type abort struct {
	mu  sync.Mutex
	how func()
}

func (a *abort) do() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.how()
}

func (a *abort) instead(how func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.how = how
}
