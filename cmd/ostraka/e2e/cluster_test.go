package e2e

import (
	"bytes"
	"context"
	bigendian "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/bench/cluster"
	"github.com/ostraka-db/ostraka/client"
)

// Keys and values of every awkward kind are stored exactly, or refused with the limit's name.
func TestKeysAndValuesOfAllSizes(t *testing.T) {
	c := startCluster(t, cluster.Options{})
	cl := connect(t, c)
	ctx := testContext(t)
	binaryValue := make([]byte, 256)
	for i := range binaryValue {
		binaryValue[i] = byte(i)
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), (5<<20)/16)
	for _, kv := range []struct{ key, value []byte }{
		{[]byte("empty value"), nil},
		{[]byte{0}, []byte("NUL key")},
		{binaryValue, binaryValue},
		{[]byte("\xff\xfe\xfd"), []byte("not UTF-8")},
		{[]byte("{tag}a"), []byte("tagged")},
		{[]byte("{}"), []byte("empty tag")},
		{[]byte("new\nline\ttab"), []byte("a\r\nb")},
		{bytes.Repeat([]byte("k"), 32<<10), []byte("largest key")},
		{[]byte("5 MiB"), large},
		{[]byte("8 MiB"), bytes.Repeat([]byte{7}, 8<<20)},
	} {
		if err := insist(ctx, func() error { _, err := cl.Set(ctx, kv.key, kv.value); return err }); err != nil {
			t.Errorf("set of a %d-byte key and %d-byte value: %v", len(kv.key), len(kv.value), err)
			continue
		}
		got, err := cl.Get(ctx, kv.key)
		if err != nil || !bytes.Equal(got.Value, kv.value) {
			t.Errorf("get of a %d-byte key: %d bytes, want %d, %v", len(kv.key), len(got.Value), len(kv.value), err)
		}
	}
	for _, kv := range []struct {
		key, value []byte
		limit      string
	}{
		{bytes.Repeat([]byte("k"), 32<<10+1), nil, "key_bytes_max"},
		{[]byte("k"), make([]byte, 8<<20+1), "value_bytes_max"},
	} {
		_, err := cl.Set(ctx, kv.key, kv.value)
		var limit *client.LimitError
		if !errors.As(err, &limit) || limit.Limit != kv.limit {
			t.Errorf("want the limit %s named, got %v", kv.limit, err)
		}
	}
	if _, err := cl.Set(ctx, nil, []byte("v")); !errors.Is(err, client.ErrInvalid) && !errors.Is(err, client.ErrLimit) {
		t.Errorf("empty key: %v", err)
	}
	err := insist(ctx, func() error { _, err := cl.Append(ctx, []byte("8 MiB"), []byte("x")); return err })
	if !errors.Is(err, client.ErrLimit) {
		t.Errorf("append past the limit: %v", err)
	}
	if got, err := cl.Get(ctx, []byte("8 MiB")); err != nil || len(got.Value) != 8<<20 {
		t.Errorf("after the refused append: %d bytes, %v", len(got.Value), err)
	}
	await(t, c, cluster.Converged)
}

// insist repeats a call that may be repeated while its outcome is unknown: megabytes to a slow disk can cost a leader
// its lease.
func insist(ctx context.Context, call func() error) error {
	for {
		err := call()
		if !errors.Is(err, client.ErrOutcomeUnknown) || ctx.Err() != nil {
			return err
		}
	}
}

// One node's address changes between restarts; then all do at once, and --peers is what they find each other by.
func TestAddressesChange(t *testing.T) {
	c := startCluster(t, cluster.Options{})
	cl := connect(t, c)
	ctx := testContext(t)
	if _, err := cl.Set(ctx, []byte("k"), []byte("before")); err != nil {
		t.Fatal(err)
	}
	move := func(p *cluster.Process) {
		address, err := cluster.FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		p.Address = address
	}
	known := func(s *client.Status) bool {
		for _, n := range s.Nodes {
			if n.Address != c.Node(n.ID).Address || n.State != "up" {
				return false
			}
		}
		return cluster.Led(s)
	}

	one := c.Nodes()[1]
	kill(t, one)
	move(one)
	restart(t, one)
	await(t, c, known)
	if got, err := cl.Get(ctx, []byte("k")); err != nil || string(got.Value) != "before" {
		t.Fatalf("after one moved: %q, %v", got.Value, err)
	}

	for _, p := range c.Nodes() {
		kill(t, p)
		move(p)
	}
	for _, p := range c.Nodes() {
		p.Peers = strings.Join(c.Endpoints(), ",")
		restart(t, p)
	}
	await(t, c, known)
	fresh := connect(t, c)
	if got, err := fresh.Get(ctx, []byte("k")); err != nil || string(got.Value) != "before" {
		t.Fatalf("after all moved: %q, %v", got.Value, err)
	}
	if _, err := fresh.Set(ctx, []byte("k"), []byte("after")); err != nil {
		t.Fatal(err)
	}

	// The seeds are needed once: with the flag gone everything is still found.
	for _, p := range c.Nodes() {
		kill(t, p)
	}
	for _, p := range c.Nodes() {
		p.Peers = ""
		restart(t, p)
	}
	await(t, c, known)
	if got, err := fresh.Get(ctx, []byte("k")); err != nil || string(got.Value) != "after" {
		t.Fatalf("after the restart without --peers: %q, %v", got.Value, err)
	}
}

// A bootstrap is refused where a node belongs to a cluster, confirmed when repeated, and finished when it was
// cut off in the middle.
func TestBootstrap(t *testing.T) {
	ctx := testContext(t)
	c, err := cluster.Blank(ctx, cluster.Options{Binary: binary, Dir: t.TempDir(), Nodes: 4})
	if err != nil {
		t.Fatal(err)
	}
	cleanUp(t, c)
	n := c.Nodes()
	spec := func(nodes ...*cluster.Process) string {
		var parts []string
		for _, p := range nodes {
			parts = append(parts, p.ID+"="+p.Address)
		}
		return strings.Join(parts, ",")
	}

	// A blank node says what to do.
	status, _, stderr := ostraka(t, "", "get", "k", "--endpoints", n[0].Address, "--timeout", "2s")
	if status == 0 || !strings.Contains(stderr, "cluster bootstrap") {
		t.Errorf("get from a blank node: status %d, %q", status, stderr)
	}

	// One of the nodes is away: nothing that can't be finished happens.
	kill(t, n[2])
	status, _, stderr = ostraka(t, "", "cluster", "bootstrap", "--nodes", spec(n[:3]...), "--shards", "3", "--timeout", "10s")
	if status == 0 || !strings.Contains(stderr, n[2].ID) {
		t.Errorf("bootstrap with a node away: status %d, %q", status, stderr)
	}
	restart(t, n[2])

	// A wrong name is found out before anything is written.
	status, _, stderr = ostraka(t, "", "cluster", "bootstrap", "--nodes", "x1="+n[0].Address)
	if status == 0 || !strings.Contains(stderr, n[0].ID) {
		t.Errorf("bootstrap under a wrong name: status %d, %q", status, stderr)
	}

	status, stdout, stderr := ostraka(t, "", "cluster", "bootstrap", "--nodes", spec(n[:3]...), "--shards", "3", "--json")
	if status != 0 {
		t.Fatalf("bootstrap: status %d, %q", status, stderr)
	}
	var first, second struct {
		ClusterID string `json:"cluster_id"`
		Already   bool   `json:"already"`
	}
	if err := json.Unmarshal([]byte(stdout), &first); err != nil || first.ClusterID == "" {
		t.Fatalf("%q: %v", stdout, err)
	}
	status, stdout, stderr = ostraka(t, "", "cluster", "bootstrap", "--nodes", spec(n[:3]...), "--shards", "3", "--json")
	if err := json.Unmarshal([]byte(stdout), &second); status != 0 || err != nil || second.ClusterID != first.ClusterID || !second.Already {
		t.Errorf("the same again: status %d, %q, %q, %v", status, stdout, stderr, err)
	}
	for _, args := range [][]string{
		{"--nodes", spec(n[:3]...), "--shards", "5"},
		{"--nodes", spec(n[0], n[1], n[3]), "--shards", "3"},
	} {
		status, _, stderr = ostraka(t, "", append([]string{"cluster", "bootstrap"}, args...)...)
		if status == 0 || !strings.Contains(stderr, "belongs to a cluster") && !strings.Contains(stderr, "of cluster") {
			t.Errorf("%v: status %d, %q", args, status, stderr)
		}
	}
	// The refused attempt left the fourth node blank.
	if blank, err := os.ReadFile(filepath.Join(n[3].DataDir, "node.json")); err != nil || !bytes.Contains(blank, []byte(`"phase": "blank"`)) {
		t.Errorf("%s: %v", blank, err)
	}
}

// A replica whose log is rotten, and a node whose whole directory is gone, count for nothing while the others are no majority
// without them: either would vote, having forgotten what it acknowledged. Once the others are enough, both are replaced.
func TestLostDataDoesNotVote(t *testing.T) {
	c := startCluster(t, cluster.Options{})
	cl := connect(t, c)
	ctx := testContext(t)
	if _, err := cl.Set(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	lame, wiped, away := c.Nodes()[0], c.Nodes()[1], c.Nodes()[2]
	kill(t, away)
	kill(t, lame)
	rotEntry(t, lame.DataDir, 1)
	restart(t, lame)
	s := await(t, c, func(s *client.Status) bool {
		running := 0
		for _, sh := range s.Shards {
			for _, r := range sh.Replicas {
				if r.Node == lame.ID && (r.Role == "follower" || r.Role == "leader") {
					running++
				}
			}
		}
		return running == len(s.Shards)-1 && s.Shards[1].Leader != "" && s.Shards[2].Leader != ""
	})
	if s.Shards[0].Leader != "" {
		t.Errorf("shard 1 is led by %s, though one replica is rotten and one away", s.Shards[0].Leader)
	}
	damaged := false
	for _, r := range s.Shards[0].Replicas {
		if r.Node == lame.ID {
			damaged = r.State == "damaged" && r.Role == "shutdown"
		}
	}
	if !damaged {
		t.Errorf("shard 1: %+v", s.Shards[0].Replicas)
	}
	restart(t, away)
	await(t, c, cluster.Healthy)

	kill(t, away)
	kill(t, wiped)
	if err := os.RemoveAll(wiped.DataDir); err != nil {
		t.Fatal(err)
	}
	restart(t, wiped)
	ids := map[string]string{wiped.ID: "blank"}
	await(t, c, func(s *client.Status) bool { return s.ClusterID != "" })
	for range 3 { // and it stays so: nobody may decide that it is taken back
		s := await(t, c, func(s *client.Status) bool { return len(s.Nodes) == 3 })
		for _, n := range s.Nodes {
			if want := ids[n.ID]; want != "" && n.State != want {
				t.Errorf("%s is %s, want %s", n.ID, n.State, want)
			}
		}
		time.Sleep(time.Second) // for something that must not happen
	}
	restart(t, away)
	await(t, c, cluster.Healthy)
	if got, err := cl.Get(ctx, []byte("k")); err != nil || string(got.Value) != "v" {
		t.Errorf("got %q, %v", got.Value, err)
	}
}

// rotEntry flips a bit in the first entry of a shard in a node's write-ahead log; see the frames in raftfsm/wal/frame.go.
func rotEntry(t *testing.T, dataDir string, shard uint32) {
	t.Helper()
	const headBytes, frameBytes, kindEntry = 512, 64, 4
	segments, err := filepath.Glob(filepath.Join(dataDir, "wal", "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range segments { // in the order of their names
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := headBytes; at+frameBytes < len(b); at += 8 {
			if b[at+12] == kindEntry && bigendian.BigEndian.Uint32(b[at+16:]) == shard && bigendian.BigEndian.Uint32(b[at+8:]) > 0 {
				b[at+frameBytes] ^= 4
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatalf("no entry of shard %d in %v", shard, segments)
}

// A bootstrap whose coordinator is killed at any moment is finished by running it again.
func TestBootstrapCutOff(t *testing.T) {
	for _, after := range []time.Duration{0, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			ctx := testContext(t)
			c, err := cluster.Blank(ctx, cluster.Options{Binary: binary, Dir: t.TempDir(), Shards: 2})
			if err != nil {
				t.Fatal(err)
			}
			cleanUp(t, c)
			admin, err := client.NewAdmin([]string{c.Nodes()[0].Address})
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close()
			var spec client.BootstrapSpec
			for _, p := range c.Nodes() {
				spec.Nodes = append(spec.Nodes, client.NodeSpec{ID: p.ID, Address: p.Address})
			}
			spec.Shards = 2
			begun, cancel := context.WithTimeout(ctx, 5*time.Second)
			done := make(chan error, 1)
			go func() { _, err := admin.Bootstrap(begun, spec); done <- err }()
			time.Sleep(after) // the fault's moment
			kill(t, c.Nodes()[0])
			cancel()
			<-done
			restart(t, c.Nodes()[0])
			finished, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if err := c.Bootstrap(finished); err != nil {
				t.Fatal(err)
			}
			cl := connect(t, c)
			if _, err := cl.Set(ctx, []byte("k"), []byte("v")); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// SIGTERM hands leaderships over, lets calls end and exits 0; writers see no error.
func TestTerminate(t *testing.T) {
	// Patient elections: a false alarm on a busy machine would lose writes' answers, and that is not what is tested.
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "3s"}})
	l := startLoad(t, c, 4)
	ctx := testContext(t)
	for _, p := range c.Nodes() {
		l.progress(200)
		status, err := p.Terminate(ctx)
		if err != nil || status != 0 {
			t.Fatalf("%s: exit status %d, %v", p.ID, status, err)
		}
		restart(t, p)
		await(t, c, func(s *client.Status) bool {
			return cluster.Led(s) && !slices.ContainsFunc(s.Nodes, func(n client.NodeStatus) bool { return n.State != "up" })
		})
	}
	l.end(connect(t, c))
	if l.unknown.Load() > 0 {
		t.Errorf("%d writes had an unknown outcome, though every node ended in order", l.unknown.Load())
	}
}

// Two processes can't share a data directory, and a directory is one node's.
func TestDataDirectoryIsLocked(t *testing.T) {
	c := startCluster(t, cluster.Options{Nodes: 1})
	p := c.Nodes()[0]
	status, _, stderr := ostraka(t, "", "server", "--id", p.ID, "--data-dir", p.DataDir, "--listen", "127.0.0.1:0")
	if status != 1 || !strings.Contains(stderr, p.DataDir) || !strings.Contains(stderr, "lock") && !strings.Contains(stderr, "use") {
		t.Errorf("status %d, %q", status, stderr)
	}
	kill(t, p)
	status, _, stderr = ostraka(t, "", "server", "--id", "other", "--data-dir", p.DataDir, "--listen", "127.0.0.1:0")
	if status != 1 || !strings.Contains(stderr, "belongs to another node") {
		t.Errorf("status %d, %q", status, stderr)
	}
}

// The exit statuses of design.md, from the real binary against a real cluster.
func TestExitStatuses(t *testing.T) {
	c := startCluster(t, cluster.Options{})
	at := []string{"--endpoints", strings.Join(c.Endpoints(), ",")}
	for _, tc := range []struct {
		args   []string
		stdin  string
		status int
		stdout string
	}{
		{args: []string{"get", "missing"}, status: 3},
		{args: []string{"set", "k", "v"}, status: 0},
		{args: []string{"get", "k"}, status: 0, stdout: "v"},
		{args: []string{"set", "k", "-"}, stdin: "from\nstdin\x00", status: 0},
		{args: []string{"get", "k"}, status: 0, stdout: "from\nstdin\x00"},
		{args: []string{"set", "k", "v", "--if-absent"}, status: 4},
		{args: []string{"set", "k", "v", "--if-version", "999999"}, status: 4},
		{args: []string{"cas", "k", "wrong", "new"}, status: 4},
		{args: []string{"cas", "missing", "a", "b"}, status: 4},
		{args: []string{"cas", "k", "from\nstdin", "new"}, status: 4},
		{args: []string{"set", "k", "v1"}, status: 0},
		{args: []string{"cas", "k", "v1", "v2"}, status: 0},
		{args: []string{"del", "k"}, status: 0},
		{args: []string{"del", "k"}, status: 3},
		{args: []string{"incr", "n"}, status: 0, stdout: "1\n"},
		{args: []string{"incr", "n", "41"}, status: 0, stdout: "42\n"},
		{args: []string{"incr"}, status: 2},
		{args: []string{"set", "k"}, status: 2},
		{args: []string{"get", "k", "--nonsense"}, status: 2},
		{args: []string{"nonsense"}, status: 2},
	} {
		status, stdout, stderr := ostraka(t, tc.stdin, append(slices.Clone(tc.args), at...)...)
		if status != tc.status || tc.stdout != "" && stdout != tc.stdout {
			t.Errorf("ostraka %q: status %d, want %d; stdout %q, want %q; stderr %q", tc.args, status, tc.status, stdout, tc.stdout, stderr)
		}
	}
	nobody, err := cluster.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := ostraka(t, "", "set", "k", "v", "--endpoints", nobody, "--timeout", "1s"); status != 5 {
		t.Errorf("no node reachable: status %d, %q", status, stderr)
	}
	status, stdout, _ := ostraka(t, "", append([]string{"cluster", "status", "--json"}, at...)...)
	var s struct {
		ClusterID string `json:"cluster_id"`
		Epoch     uint64 `json:"epoch"`
		Nodes     []struct{ ID, Address, State string }
		Shards    []struct {
			ID     int
			Slots  int
			Leader string
			Term   uint64
		}
	}
	if err := json.Unmarshal([]byte(stdout), &s); status != 0 || err != nil || s.ClusterID == "" || len(s.Nodes) != 3 || len(s.Shards) == 0 {
		t.Errorf("status %d, %v: %s", status, err, stdout)
	}
	slots := 0
	for _, sh := range s.Shards {
		slots += sh.Slots
	}
	if slots != 16384 {
		t.Errorf("the shards' slots are %d", slots)
	}
}

// A key with a TTL is gone on time, and stays gone whoever leads.
func TestExpiry(t *testing.T) {
	c := startCluster(t, cluster.Options{ServerArgs: []string{"--election-timeout", "500ms"}})
	cl := connect(t, c)
	ctx := testContext(t)
	var keys [][]byte
	for i := range 50 {
		key := []byte(fmt.Sprint("short-", i))
		keys = append(keys, key)
		if _, err := cl.Set(ctx, key, []byte("v"), client.WithTTL(300*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cl.Set(ctx, []byte("long"), []byte("v"), client.WithTTL(time.Hour)); err != nil {
		t.Fatal(err)
	}
	gone := make(map[int]bool)
	deadline := time.Now().Add(patience)
	for len(gone) < len(keys) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d of %d keys have expired", len(gone), len(keys))
		}
		for i, key := range keys {
			_, err := cl.Get(ctx, key)
			switch {
			case errors.Is(err, client.ErrNotFound):
				gone[i] = true
			case err != nil:
				t.Fatal(err)
			case gone[i]:
				t.Fatalf("%s was seen expired and is back", key)
			}
		}
	}
	s := await(t, c, cluster.Led)
	id, _ := cluster.MostLeading(s)
	kill(t, c.Node(id))
	for _, key := range keys {
		if _, err := cl.Get(ctx, key); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("%s after a change of leader: %v", key, err)
		}
	}
	info, err := cl.TTL(ctx, []byte("long"))
	if err != nil || info.TTL <= 50*time.Minute || info.TTL > time.Hour {
		t.Errorf("the long key's TTL: %v, %v", info.TTL, err)
	}
	restart(t, c.Node(id))
	// The leaders remove what has expired, without anybody asking for it.
	await(t, c, func(s *client.Status) bool {
		keys := uint64(0)
		for _, sh := range s.Shards {
			keys += sh.Keys
		}
		return keys == 1
	})
}
