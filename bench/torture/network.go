package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// network gives every node a network namespace, joined by a bridge at which the clients are. Each node's firewall drops
// what faults ask for on arrival, so that a cut can be one-way, and connections that were open stay open and silent.
//
//	         clients 10.77.0.254
//	┌──────────────┴─ bridge ─┬──────────────┐
//	n1 10.77.0.1         n2 10.77.0.2    n3 10.77.0.3        one namespace each
//
// The bridge lives in the namespace of this process, which is a new one (see enterNamespace): nothing of the machine's
// own network is touched. One goroutine's.
type network struct {
	nodes []string
	// drops holds, for each node, the firewall's rules by the fault that made them.
	drops map[string]map[string][]string
}

const (
	bridgeName   = "torture"
	clientHost   = "10.77.0.254"
	namespaceEnv = "OSTRAKA_TORTURE_NAMESPACE"
)

func nodeHost(i int) string { return fmt.Sprintf("10.77.0.%d", i+1) }

// needsOfNetwork says what keeps this machine from having namespaces; empty: nothing.
func needsOfNetwork() string {
	if os.Geteuid() != 0 {
		return "root"
	}
	for _, tool := range []string{"ip", "nft", "tc", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " (packages iproute2, nftables, util-linux)"
		}
	}
	return ""
}

// enterNamespace runs this program again in a network namespace of its own and returns its exit status; in that second
// run it returns at once. The namespace goes with its last process.
func enterNamespace() (status int, inside bool, err error) {
	if os.Getenv(namespaceEnv) != "" {
		return 0, true, run("ip", "link", "set", "lo", "up")
	}
	self, err := os.Executable()
	if err != nil {
		return 0, false, err
	}
	again := exec.Command(self, os.Args[1:]...)
	again.Env = append(os.Environ(), namespaceEnv+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err = again.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), false, nil
	}
	return 0, false, err
}

func newNetwork(nodes []string) (*network, error) {
	n := &network{nodes: nodes, drops: make(map[string]map[string][]string)}
	removeStaleNamespaces()
	steps := [][]string{
		{"ip", "link", "add", bridgeName, "type", "bridge"},
		{"ip", "address", "add", clientHost + "/24", "dev", bridgeName},
		{"ip", "link", "set", bridgeName, "up"},
	}
	for i, node := range nodes {
		ns := namespaceOf(node)
		steps = append(steps,
			[]string{"ip", "netns", "add", ns},
			[]string{"ip", "link", "add", "to-" + node, "type", "veth", "peer", "name", "eth0", "netns", ns},
			[]string{"ip", "link", "set", "to-" + node, "master", bridgeName, "up"},
			[]string{"ip", "-n", ns, "link", "set", "lo", "up"},
			[]string{"ip", "-n", ns, "address", "add", nodeHost(i) + "/24", "dev", "eth0"},
			[]string{"ip", "-n", ns, "link", "set", "eth0", "up"})
		n.drops[node] = make(map[string][]string)
	}
	for _, step := range steps {
		if err := run(step...); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	return n, nil
}

// namespaceOf names a node's namespace; the name tells whose it is, so that one left behind can be told.
func namespaceOf(node string) string {
	return fmt.Sprintf("%s%d-%s", namespacePrefix, os.Getpid(), node)
}

const namespacePrefix = "ostraka-torture-"

// removeStaleNamespaces removes those of runs that were killed.
func removeStaleNamespaces() {
	names, err := os.ReadDir("/run/netns")
	if err != nil {
		return
	}
	for _, name := range names {
		rest, ours := strings.CutPrefix(name.Name(), namespacePrefix)
		pid, _, _ := strings.Cut(rest, "-")
		if _, err := os.Stat("/proc/" + pid); ours && err != nil {
			run("ip", "netns", "delete", name.Name())
		}
	}
}

// wrap is the command that puts a node's process into its namespace.
func (n *network) wrap(node string) []string {
	return []string{"nsenter", "--net=/run/netns/" + namespaceOf(node)}
}

func (n *network) close() error {
	var failed error
	for _, node := range n.nodes {
		failed = errors.Join(failed, run("ip", "netns", "delete", namespaceOf(node)))
	}
	return failed
}

func (n *network) host(node string) string {
	for i, name := range n.nodes {
		if name == node {
			return nodeHost(i)
		}
	}
	return clientHost
}

// cut drops what a node, or the clients ("clients"), send to another node, until heal.
func (n *network) cut(from, to string) error {
	return n.add(to, "cut", fmt.Sprintf("ip saddr %s drop", n.host(from)))
}

// cutBoth cuts both ways between two nodes, or a node and the clients. Clients have no firewall of their own: they are cut off
// at the node's, on the way out too.
func (n *network) cutBoth(a, b string) error {
	if b == "clients" {
		return errors.Join(n.cut(b, a), n.add(a, "cut", fmt.Sprintf("ip daddr %s drop", n.host(b))))
	}
	return errors.Join(n.cut(a, b), n.cut(b, a))
}

// lose drops a percentage of all packets that reach a node.
func (n *network) lose(node string, percent int) error {
	return n.add(node, "loss", fmt.Sprintf("numgen random mod 100 < %d drop", percent))
}

// slow bounds what a node sends, in kbit/s.
func (n *network) slow(node string, kbit int) error {
	return run("tc", "-n", namespaceOf(node), "qdisc", "replace", "dev", "eth0", "root", "tbf",
		"rate", fmt.Sprintf("%dkbit", kbit), "burst", "16kb", "latency", "300ms")
}

func (n *network) add(node, fault, rule string) error {
	n.drops[node][fault] = append(n.drops[node][fault], rule)
	return n.apply(node)
}

// heal removes all faults.
func (n *network) heal() error {
	var failed error
	for _, node := range n.nodes {
		clear(n.drops[node])
		failed = errors.Join(failed, n.apply(node))
		if out, err := exec.Command("tc", "-n", namespaceOf(node), "qdisc", "show", "dev", "eth0").Output(); err == nil && strings.Contains(string(out), "tbf") {
			failed = errors.Join(failed, run("tc", "-n", namespaceOf(node), "qdisc", "delete", "dev", "eth0", "root"))
		}
	}
	return failed
}

// apply loads a node's rules in place of those before.
func (n *network) apply(node string) error {
	var b strings.Builder
	b.WriteString("table inet faults {}\nflush table inet faults\ndelete table inet faults\ntable inet faults {\n")
	for _, hook := range []string{"input", "output"} {
		fmt.Fprintf(&b, "chain %s {\ntype filter hook %s priority 0\n", hook, hook)
		for _, rules := range n.drops[node] {
			for _, rule := range rules {
				if strings.Contains(rule, "daddr") == (hook == "output") {
					fmt.Fprintln(&b, rule)
				}
			}
		}
		b.WriteString("}\n")
	}
	b.WriteString("}\n")
	nft := exec.Command("nsenter", "--net=/run/netns/"+namespaceOf(node), "nft", "-f", "-")
	nft.Stdin = strings.NewReader(b.String())
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("nft for %s: %w: %s\n%s", node, err, out, b.String())
	}
	return nil
}

func run(line ...string) error {
	if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(line, " "), err, out)
	}
	return nil
}
