package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/ostraka-db/ostraka/client"
)

func Example() {
	ctx := context.Background()
	c, err := client.New(ctx, []string{"127.0.0.1:7400"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	if _, err := c.Set(ctx, []byte("greeting"), []byte("hello"), client.WithTTL(time.Hour)); err != nil {
		log.Fatal(err)
	}
	v, err := c.Get(ctx, []byte("greeting"))
	switch {
	case errors.Is(err, client.ErrNotFound):
		fmt.Println("no greeting")
	case err != nil:
		log.Fatal(err)
	default:
		fmt.Printf("%s, version %d, %v left\n", v.Value, v.Version, v.TTL)
	}
}

// A lock that expires by itself: whoever writes the key first has it.
func ExampleClient_Set_ifAbsent() {
	var c *client.Client // from client.New
	_, err := c.Set(context.Background(), []byte("lock"), []byte("me"), client.IfAbsent(), client.WithTTL(10*time.Second))
	switch {
	case err == nil:
		fmt.Println("locked")
	case errors.Is(err, client.ErrConditionNotMet):
		fmt.Println("somebody else has it")
	case errors.Is(err, client.ErrOutcomeUnknown):
		fmt.Println("perhaps locked: read the key to find out")
	default:
		fmt.Println("not done:", err)
	}
}

// Read, change, and write only if nobody wrote in between; a lost race is tried again with what is there now.
func ExampleIfVersion() {
	var c *client.Client // from client.New
	ctx, key := context.Background(), []byte("document")
	for {
		v, err := c.Get(ctx, key)
		if err != nil {
			log.Fatal(err)
		}
		changed := append(v.Value, " and more"...)
		_, err = c.Set(ctx, key, changed, client.IfVersion(v.Version), client.KeepTTL())
		if errors.Is(err, client.ErrConditionNotMet) {
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		return
	}
}

// A long scan that goes on where it stopped when the cluster was away for longer than its calls could wait.
func ExampleClient_Scan() {
	var c *client.Client // from client.New
	var opts []client.ScanOption
	for done := false; !done; {
		done = true
		for item, err := range c.Scan(context.Background(), client.Prefix([]byte("user:")), opts...) {
			if errors.Is(err, client.ErrUnavailable) {
				done = false
				break
			}
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%s = %s\n", item.Key, item.Value)
			opts = []client.ScanOption{client.After(item.Key)}
		}
	}
}

func ExampleClient_MultiSet() {
	var c *client.Client // from client.New
	items := []client.SetItem{
		{Key: []byte("a"), Value: []byte("1")},
		{Key: []byte("b"), Value: []byte("2"), TTL: time.Minute},
	}
	for i, err := range c.MultiSet(context.Background(), items) {
		if err != nil {
			fmt.Printf("%s: %v\n", items[i].Key, err)
		}
	}
}

func ExamplePrefix() {
	r := client.Prefix([]byte("user:"))
	fmt.Printf("[%s, %s)\n", r.Start, r.End)
	// Output: [user:, user;)
}

func ExampleAdmin_Bootstrap() {
	a, err := client.NewAdmin([]string{"127.0.0.1:7400"})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	made, err := a.Bootstrap(context.Background(), client.BootstrapSpec{Nodes: []client.NodeSpec{
		{ID: "n1", Address: "127.0.0.1:7400"},
		{ID: "n2", Address: "127.0.0.1:7410"},
		{ID: "n3", Address: "127.0.0.1:7420"},
	}})
	if errors.Is(err, client.ErrAlreadyMember) {
		log.Fatal("one of the nodes belongs to another cluster: ", err)
	}
	fmt.Println(made.ClusterID, made.Shards, err)
}

// Follow keys, and go on after a restart of this program: the token says how far it is.
func ExampleClient_Watch() {
	var c *client.Client          // from client.New
	var saved *client.Token       // from an earlier run, if there was one
	save := func(client.Token) {} // to wherever the work is saved that changes cause
	var options []client.WatchOption
	if saved != nil {
		options = append(options, client.From(*saved))
	}
	ctx := context.Background()
	w, err := c.Watch(ctx, client.Prefix([]byte("user:")), options...)
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	for change, err := range w.Changes(ctx) {
		if compacted, ok := errors.AsType[*client.CompactedError](err); ok {
			save(compacted.Restart) // and read all keys anew
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %s is now %q\n", change.Kind, change.Key, change.Value)
		save(w.Token())
	}
}

// Keep a copy of some keys: what is there now, and every change from then on. The watch begins first, so that nothing falls between; a
// change that the scan already showed is known by its version.
func ExampleClient_Watch_copy() {
	var c *client.Client // from client.New
	ctx, keys := context.Background(), client.Prefix([]byte("user:"))
	w, err := c.Watch(ctx, keys)
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	values, versions := make(map[string][]byte), make(map[string]uint64)
	for item, err := range c.Scan(ctx, keys) {
		if err != nil {
			log.Fatal(err)
		}
		values[string(item.Key)], versions[string(item.Key)] = item.Value, item.Version
	}
	for change, err := range w.Changes(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		key := string(change.Key)
		switch {
		case change.Version <= versions[key]:
		case change.Kind == client.ChangeSet:
			values[key] = change.Value
		default:
			delete(values, key)
		}
	}
}
