package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ostraka-db/ostraka/client"
)

// fakeCluster is a keyValue in memory. Options of writes cannot be looked into: it counts them.
type fakeCluster struct {
	data map[string]client.Value
	// fail is returned by every call if it is set.
	fail error
	// options counts those given to the last Set.
	options int
	// version is the last one given.
	version uint64
	// connections counts, reached is the latest.
	connections int
	reached     connection
	// setsLeft is how many items MultiSet still takes before it fails; negative: any number.
	setsLeft int
	// changes are what a watch yields, before watchErr.
	changes  []client.Change
	watchErr error
	// watched and watchOptions are of the last Watch.
	watched      client.KeyRange
	watchOptions int
}

func newFake() *fakeCluster {
	return &fakeCluster{data: make(map[string]client.Value), setsLeft: -1}
}

func (f *fakeCluster) connect(_ context.Context, c connection) (keyValue, error) {
	f.connections++
	f.reached = c
	return f, nil
}

func (f *fakeCluster) put(key, value []byte, ttl time.Duration) uint64 {
	f.version++
	f.data[string(key)] = client.Value{Value: bytes.Clone(value), Version: f.version, TTL: ttl}
	return f.version
}

func (f *fakeCluster) Get(_ context.Context, key []byte, _ ...client.ReadOption) (client.Value, error) {
	v, ok := f.data[string(key)]
	if !ok {
		return v, cmp.Or(f.fail, client.ErrNotFound)
	}
	return v, f.fail
}

func (f *fakeCluster) TTL(ctx context.Context, key []byte, _ ...client.ReadOption) (client.KeyInfo, error) {
	v, err := f.Get(ctx, key)
	return client.KeyInfo{TTL: v.TTL, Version: v.Version, Size: int64(len(v.Value))}, err
}

func (f *fakeCluster) Set(_ context.Context, key, value []byte, opts ...client.SetOption) (client.SetResult, error) {
	f.options = len(opts)
	if f.fail != nil {
		return client.SetResult{}, f.fail
	}
	var r client.SetResult
	if previous, ok := f.data[string(key)]; ok {
		r.Previous = &previous
	}
	r.Version = f.put(key, value, 0)
	return r, nil
}

func (f *fakeCluster) CompareAndSet(_ context.Context, key, old, new []byte) (uint64, error) {
	v, ok := f.data[string(key)]
	if !ok || string(v.Value) != string(old) {
		return 0, &client.ConditionError{Version: v.Version}
	}
	return f.put(key, new, v.TTL), nil
}

func (f *fakeCluster) Increment(_ context.Context, key []byte, delta int64) (client.IncrementResult, error) {
	n, err := strconv.ParseInt(cmp.Or(string(f.data[string(key)].Value), "0"), 10, 64)
	if err != nil {
		return client.IncrementResult{}, client.ErrNotInteger
	}
	return client.IncrementResult{Value: n + delta, Version: f.put(key, strconv.AppendInt(nil, n+delta, 10), 0)}, f.fail
}

func (f *fakeCluster) Append(_ context.Context, key, value []byte) (client.AppendResult, error) {
	whole := slices.Concat(f.data[string(key)].Value, value)
	return client.AppendResult{Length: int64(len(whole)), Version: f.put(key, whole, 0)}, f.fail
}

func (f *fakeCluster) Expire(_ context.Context, key []byte, ttl time.Duration) (uint64, error) {
	v, ok := f.data[string(key)]
	if !ok {
		return 0, client.ErrNotFound
	}
	return f.put(key, v.Value, ttl), nil
}

func (f *fakeCluster) Persist(ctx context.Context, key []byte) (uint64, error) {
	return f.Expire(ctx, key, 0)
}

func (f *fakeCluster) Touch(ctx context.Context, key []byte) (uint64, error) {
	return f.Expire(ctx, key, f.data[string(key)].TTL)
}

func (f *fakeCluster) MultiGet(ctx context.Context, keys [][]byte, _ ...client.ReadOption) []client.GetResult {
	results := make([]client.GetResult, len(keys))
	for i, key := range keys {
		results[i].Value, results[i].Err = f.Get(ctx, key)
	}
	return results
}

func (f *fakeCluster) MultiSet(_ context.Context, items []client.SetItem) []error {
	errs := make([]error, len(items))
	for i, item := range items {
		if f.setsLeft == 0 {
			errs[i] = client.ErrWrongCluster
			continue
		}
		f.setsLeft--
		f.put(item.Key, item.Value, item.TTL)
	}
	return errs
}

func (f *fakeCluster) MultiDelete(_ context.Context, keys [][]byte) ([]bool, []error) {
	deleted, errs := make([]bool, len(keys)), make([]error, len(keys))
	for i, key := range keys {
		_, deleted[i] = f.data[string(key)]
		delete(f.data, string(key))
		errs[i] = f.fail
	}
	return deleted, errs
}

// Scan honours the range and no option.
func (f *fakeCluster) Scan(_ context.Context, keys client.KeyRange, _ ...client.ScanOption) iter.Seq2[client.Item, error] {
	return func(yield func(client.Item, error) bool) {
		for _, key := range slices.Sorted(maps.Keys(f.data)) {
			if key < string(keys.Start) || len(keys.End) > 0 && key >= string(keys.End) {
				continue
			}
			v := f.data[key]
			if !yield(client.Item{Key: []byte(key), Value: v.Value, Version: v.Version, TTL: v.TTL}, nil) {
				return
			}
		}
		if f.fail != nil {
			yield(client.Item{}, f.fail)
		}
	}
}

// Watch yields the script, and then its error, or what ctx ends with.
func (f *fakeCluster) Watch(_ context.Context, keys client.KeyRange, opts ...client.WatchOption) (changes, error) {
	f.watched, f.watchOptions = keys, len(opts)
	return &fakeWatch{f: f}, f.fail
}

type fakeWatch struct {
	f      *fakeCluster
	passed int
}

func (w *fakeWatch) Changes(ctx context.Context) iter.Seq2[client.Change, error] {
	return func(yield func(client.Change, error) bool) {
		for _, c := range w.f.changes {
			w.passed++
			if !yield(c, nil) {
				return
			}
		}
		err := w.f.watchErr
		if err == nil {
			<-ctx.Done()
			err = ctx.Err()
		}
		yield(client.Change{}, err)
	}
}

func (w *fakeWatch) Token() client.Token { return client.Token(fmt.Sprint("token", w.passed)) }
func (w *fakeWatch) Close() error        { return nil }

func (f *fakeCluster) ClusterID() string { return "fake" }
func (f *fakeCluster) Close() error {
	f.connections--
	return nil
}

// outcome is what a command line did.
type outcome struct {
	code        int
	out, errOut string
}

// ostraka runs a command line in this process.
func (f *fakeCluster) ostraka(t *testing.T, stdin string, env map[string]string, args ...string) outcome {
	t.Helper()
	var out, errOut strings.Builder
	a := &app{
		in: strings.NewReader(stdin), out: &out, err: &errOut, connect: f.connect,
		lookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		abort:     abort{how: func() { t.Error("aborted") }},
	}
	code := a.run(t.Context(), args)
	if f.connections != 0 {
		t.Error("the connection was left open")
	}
	return outcome{code: code, out: out.String(), errOut: errOut.String()}
}

var errBroken = errors.New("broken")
