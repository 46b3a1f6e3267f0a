package ostrakapb

// Flow control of HTTP/2, for both ends of every connection: what one stream, and all of a connection together, may have
// under way that the receiver has not taken, in bytes. gRPC would find windows by itself, from 64 KiB on, and to do so it
// answers a message that it receives with a ping as soon as the one before has come back. On a connection that carries small
// messages to and fro nearly every message then brings another four system calls, and their wake-ups.
//
// A stream moves at most a window in a round trip: 20 MB/s over 50 ms.
const (
	StreamWindowBytes = 1 << 20
	ConnWindowBytes   = 4 << 20
)
