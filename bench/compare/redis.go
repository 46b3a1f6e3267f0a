package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ostraka-db/ostraka/bench"
	"github.com/ostraka-db/ostraka/bench/cluster"
)

// How callers share connections to Redis.
const (
	redisPerCaller = "per-caller"
	redisJoined    = "joined"
)

// redis is a primary with two replicas.
type redis struct {
	// server is the executable's name or path.
	server string
	// client is redisPerCaller or redisJoined; connectionsMax is the most callers.
	client         string
	connectionsMax int

	nodes     children
	addresses []string    // the primary's first
	control   []*respConn // one to each
	await     *replicated
	driven    closingTarget
	version   string
}

// closingTarget is a target with connections.
type closingTarget interface {
	bench.Target
	close()
}

// replicated is the request that follows writes in the same round trip, and answers once they are where they must be.
type replicated struct {
	name      string
	arguments [][]byte
	// promise says it in words, caveat in few what is missing; empty: nothing.
	promise, caveat string
	// check returns an error unless the reply says that it is so.
	check func(reply) error
}

// replicationWaitMillis is how long Redis waits for replicas before it answers with less.
const replicationWaitMillis = "5000"

var errNotReplicated = errors.New("redis: the write is not where it must be to count")

// waitAOF is for servers from 7.2 on.
var waitAOF = &replicated{
	name:      "WAITAOF",
	arguments: [][]byte{[]byte("1"), []byte("1"), []byte(replicationWaitMillis)},
	promise:   "SET and WAITAOF 1 1 in one round trip: in the append-only files of the primary and one replica, synced",
	check: func(r reply) error {
		if err := r.err(); err != nil {
			return err
		}
		if len(r.elements) != 2 || r.elements[0].number < 1 || r.elements[1].number < 1 {
			return fmt.Errorf("%w: WAITAOF 1 1 answered %s", errNotReplicated, numbers(r.elements))
		}
		return nil
	},
}

// waitMemory is for older ones.
var waitMemory = &replicated{
	name:      "WAIT",
	arguments: [][]byte{[]byte("1"), []byte(replicationWaitMillis)},
	promise: "SET and WAIT 1 in one round trip: synced at the primary, and received by one replica. " +
		"WAIT does NOT wait for the replica's fsync: this server has no WAITAOF (7.2 and later do), so Redis promises less here",
	caveat: "WAIT 1: synced at the primary alone, the replica only has it",
	check: func(r reply) error {
		if err := r.err(); err != nil {
			return err
		}
		if r.number < 1 {
			return fmt.Errorf("%w: WAIT 1 answered %d", errNotReplicated, r.number)
		}
		return nil
	},
}

func numbers(elements []reply) string {
	var all []string
	for _, e := range elements {
		all = append(all, strconv.FormatInt(e.number, 10))
	}
	return "[" + strings.Join(all, " ") + "]"
}

func (r *redis) start(ctx context.Context, dir string) (err error) {
	server, err := exec.LookPath(r.server)
	if err != nil {
		return fmt.Errorf("%w: there is no %s; `apt-get install redis-server` on Debian and Ubuntu, or name one with -redis-server",
			errMissing, r.server)
	}
	if server, err = filepath.Abs(server); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop())
		}
	}()
	if err = r.startNodes(ctx, server, dir); err != nil {
		return err
	}
	for i := range r.control {
		if err = r.checkSync(i); err != nil {
			return err
		}
	}
	if err = r.nodes.await(ctx, "Redis's replicas follow", func(context.Context) (bool, error) { return r.following() }); err != nil {
		return err
	}
	if err = r.chooseWait(); err != nil {
		return err
	}
	if r.client == redisJoined {
		r.driven = newJoined(r.addresses[0], r.await)
	} else {
		r.driven = newPerCaller(r.addresses[0], r.await, r.connectionsMax)
	}
	return nil
}

func (r *redis) startNodes(ctx context.Context, server, dir string) (err error) {
	if r.addresses, err = cluster.FreeAddresses(nodesPerSystem); err != nil {
		return err
	}
	primaryHost, primaryPort, err := net.SplitHostPort(r.addresses[0])
	if err != nil {
		return err
	}
	for i, address := range r.addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("n%d", i+1)
		data := filepath.Join(dir, name)
		if err := os.Mkdir(data, 0o755); err != nil {
			return err
		}
		args := []string{"--bind", host, "--port", port, "--dir", data, "--daemonize", "no",
			"--appendonly", "yes", "--appendfsync", "always",
			"--save", "", // the append-only file is what counts; snapshots beside it would only cost
			"--repl-diskless-sync-delay", "0"} // the first copy is of nothing
		if i > 0 {
			args = append(args, "--replicaof", primaryHost, primaryPort)
		}
		node, err := startChild("redis "+name, data, filepath.Join(dir, name+".log"), server, args...)
		if err != nil {
			return err
		}
		r.nodes = append(r.nodes, node)
	}
	for _, address := range r.addresses {
		err := r.nodes.await(ctx, "redis-server answers", func(ctx context.Context) (bool, error) {
			c, err := dialRESP(ctx, address)
			if err != nil {
				return false, err
			}
			if _, err := c.do("PING"); err != nil {
				return false, errors.Join(err, c.close())
			}
			r.control = append(r.control, c)
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkSync makes sure that a node syncs each write.
func (r *redis) checkSync(i int) error {
	for name, want := range map[string]string{"appendonly": "yes", "appendfsync": "always"} {
		got, err := r.control[i].do("CONFIG", "GET", name)
		if err != nil {
			return err
		}
		if len(got.elements) != 2 || string(got.elements[1].text) != want {
			return fmt.Errorf("redis n%d: %s is not %s", i+1, name, want)
		}
	}
	return nil
}

// info reads a section of a node's own account as names and values.
func (r *redis) info(i int, section string) (map[string]string, error) {
	got, err := r.control[i].do("INFO", section)
	if err != nil {
		return nil, err
	}
	values := make(map[string]string)
	for line := range strings.SplitSeq(string(got.text), "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			values[name] = value
		}
	}
	return values, nil
}

// following reports whether both replicas have the primary's data and write their own append-only files.
func (r *redis) following() (bool, error) {
	primary, err := r.info(0, "replication")
	if err != nil {
		return false, err
	}
	if primary["connected_slaves"] != strconv.Itoa(nodesPerSystem-1) {
		return false, fmt.Errorf("the primary has %s replicas", primary["connected_slaves"])
	}
	for i := range r.control {
		disk, err := r.info(i, "persistence")
		if err != nil {
			return false, err
		}
		if disk["loading"] != "0" || disk["aof_enabled"] != "1" || disk["aof_rewrite_in_progress"] != "0" || disk["aof_rewrite_scheduled"] != "0" {
			return false, fmt.Errorf("n%d is not ready to append", i+1)
		}
		if i == 0 {
			continue
		}
		link, err := r.info(i, "replication")
		if err != nil {
			return false, err
		}
		if link["master_link_status"] != "up" {
			return false, fmt.Errorf("n%d's link to the primary is %s", i+1, link["master_link_status"])
		}
	}
	return true, nil
}

// chooseWait takes WAITAOF where the server has it, and reads the version.
func (r *redis) chooseWait() error {
	known, err := r.control[0].do("COMMAND", "INFO", waitAOF.name)
	if err != nil {
		return err
	}
	r.await = waitMemory
	if len(known.elements) == 1 && len(known.elements[0].elements) > 0 {
		r.await = waitAOF
	}
	server, err := r.info(0, "server")
	if err != nil {
		return err
	}
	r.version = server["redis_version"]
	if name := server["server_name"]; name != "" && name != "redis" { // Valkey keeps an old redis_version for old clients
		r.version = name + " " + server[name+"_version"]
	}
	return nil
}

func (r *redis) facts() facts {
	how := "own RESP codec, a connection for each caller and no pipelining over callers: with -redis-client joined Redis does more"
	if r.client == redisJoined {
		how = fmt.Sprintf("own RESP codec, %d connections; calls that wait together share a round trip, and one %s", joinedConnections, r.await.name)
	}
	caveat := "reads are not linearizable"
	if r.await.caveat != "" {
		caveat = r.await.caveat + "; " + caveat
	}
	return facts{
		Caveat:   caveat,
		Version:  r.version,
		Writes:   r.await.promise,
		Reads:    "GET at the primary: NOT linearizable, Redis has no such read",
		Client:   how,
		Settings: `primary and 2 replicas, appendonly yes, appendfsync always, save ""`,
	}
}

func (r *redis) target() bench.Target { return r.driven }
func (r *redis) pids() []int          { return r.nodes.pids() }
func (r *redis) alive() error         { return r.nodes.alive() }

// verify waits until the replicas have applied all that the primary wrote, which is the same stream of commands.
func (r *redis) verify(ctx context.Context) error {
	return r.nodes.await(ctx, "Redis's replicas hold the same", func(context.Context) (bool, error) {
		var offset, keys string
		for i, c := range r.control {
			link, err := r.info(i, "replication")
			if err != nil {
				return false, err
			}
			size, err := c.do("DBSIZE")
			if err != nil {
				return false, err
			}
			at, held := link["master_repl_offset"], strconv.FormatInt(size.number, 10)
			if i > 0 {
				at = link["slave_repl_offset"]
			}
			if i == 0 {
				offset, keys = at, held
			} else if at != offset || held != keys {
				return false, fmt.Errorf("n%d is at %s with %s keys, the primary at %s with %s", i+1, at, held, offset, keys)
			}
		}
		return true, nil
	})
}

func (r *redis) stop() error {
	if r.driven != nil {
		r.driven.close()
	}
	for _, c := range r.control {
		_ = c.close() // the nodes end next
	}
	err := r.nodes.stop()
	r.driven, r.control, r.nodes = nil, nil, nil
	return err
}
