package main

import (
	"context"
	"errors"
	"sync"

	"github.com/ostraka-db/ostraka/bench"
)

// perCaller gives each call a connection of its own while it lasts, so that there are as many as callers.
type perCaller struct {
	address string
	await   *replicated
	// idle holds connections that nobody uses; what does not fit is closed.
	idle chan *respConn
}

func newPerCaller(address string, await *replicated, callersMax int) *perCaller {
	return &perCaller{address: address, await: await, idle: make(chan *respConn, callersMax)}
}

func (p *perCaller) Read(ctx context.Context, keys [][]byte) (int, error) {
	return p.call(ctx, &redisCall{keys: keys})
}

func (p *perCaller) Write(ctx context.Context, keys, values [][]byte) (int, error) {
	return p.call(ctx, &redisCall{keys: keys, values: values})
}

func (p *perCaller) call(ctx context.Context, call *redisCall) (int, error) {
	conn, err := p.take(ctx)
	if err != nil {
		return len(call.keys), err
	}
	if err := roundTrip(conn, p.await, []*redisCall{call}); err != nil {
		return len(call.keys), errors.Join(err, conn.close())
	}
	p.put(conn)
	return call.failed, call.err
}

func (p *perCaller) take(ctx context.Context) (*respConn, error) {
	select {
	case conn := <-p.idle:
		return conn, nil
	default:
		return dialRESP(ctx, p.address)
	}
}

func (p *perCaller) put(conn *respConn) {
	select {
	case p.idle <- conn:
	default:
		_ = conn.close()
	}
}

// close is for the time after all calls.
func (p *perCaller) close() {
	for {
		select {
		case conn := <-p.idle:
			_ = conn.close()
		default:
			return
		}
	}
}

const (
	// joinedConnections share all calls.
	joinedConnections = 4
	// joinedCallsMax bounds the calls of a round trip, and those that wait; further callers wait for a place.
	joinedCallsMax = 1024
)

// joined puts calls that wait at the same time into one round trip on one of a few connections, as clients with
// automatic pipelining do. All writes of a round trip are followed by one wait for the replicas.
type joined struct {
	address string
	await   *replicated
	waiting chan *redisCall
	// ended is closed by close; links are the goroutines, joined there.
	ended chan struct{}
	links sync.WaitGroup
}

func newJoined(address string, await *replicated) *joined {
	j := &joined{address: address, await: await, waiting: make(chan *redisCall, joinedCallsMax), ended: make(chan struct{})}
	for range joinedConnections {
		j.links.Go(j.link)
	}
	return j
}

func (j *joined) Read(_ context.Context, keys [][]byte) (int, error) {
	return j.call(&redisCall{keys: keys})
}

func (j *joined) Write(_ context.Context, keys, values [][]byte) (int, error) {
	return j.call(&redisCall{keys: keys, values: values})
}

// call needs no context: a round trip has a deadline.
func (j *joined) call(call *redisCall) (int, error) {
	call.done = make(chan struct{})
	j.waiting <- call
	<-call.done
	return call.failed, call.err
}

// link owns a connection and makes round trips with what waits.
func (j *joined) link() {
	var conn *respConn
	var calls []*redisCall
	for {
		select {
		case call := <-j.waiting:
			calls = append(calls[:0], call)
		case <-j.ended:
			if conn != nil {
				_ = conn.close()
			}
			return
		}
		for more := true; more && len(calls) < joinedCallsMax; {
			select {
			case call := <-j.waiting:
				calls = append(calls, call)
			default:
				more = false
			}
		}
		if err := j.try(&conn, calls); err != nil {
			for _, call := range calls {
				call.failed, call.err = len(call.keys), err
			}
		}
		for _, call := range calls {
			close(call.done)
		}
	}
}

// try makes the round trip, over a new connection if there is none or it has failed.
func (j *joined) try(conn **respConn, calls []*redisCall) (err error) {
	if *conn == nil {
		if *conn, err = dialRESP(context.Background(), j.address); err != nil {
			*conn = nil
			return err
		}
	}
	if err := roundTrip(*conn, j.await, calls); err != nil {
		err = errors.Join(err, (*conn).close())
		*conn = nil
		return err
	}
	return nil
}

// close is for the time after all calls.
func (j *joined) close() {
	close(j.ended)
	j.links.Wait()
}

// redisCall is what one caller asks. Nil values: it reads.
type redisCall struct {
	keys, values [][]byte
	failed       int
	err          error
	done         chan struct{} // of joined: closed with the answer
}

// roundTrip sends calls together and reads their answers. Writes count as done if the wait for the replicas behind all of
// them says so. An error is the connection's: no call has an answer then.
func roundTrip(conn *respConn, await *replicated, calls []*redisCall) error {
	wrote := false
	for _, call := range calls {
		for i, key := range call.keys {
			if call.values == nil {
				conn.add("GET", key)
			} else {
				conn.add("SET", key, call.values[i])
				wrote = true
			}
		}
	}
	if wrote {
		conn.add(await.name, await.arguments...)
	}
	if err := conn.flush(); err != nil {
		return err
	}
	for _, call := range calls {
		for range call.keys {
			r, err := conn.reply()
			if err != nil {
				return err
			}
			if err := r.err(); err != nil {
				call.failed, call.err = call.failed+1, err
			}
		}
	}
	if !wrote {
		return nil
	}
	r, err := conn.reply()
	if err != nil {
		return err
	}
	if err := await.check(r); err != nil {
		for _, call := range calls {
			if call.values != nil {
				call.failed, call.err = len(call.keys), err
			}
		}
	}
	return nil
}

var (
	_ bench.Target = (*perCaller)(nil)
	_ bench.Target = (*joined)(nil)
)
