package http

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Config is what an Engine is made of.
type Config struct {
	Clock      clock.Clock   // default the machine's
	Random     func() uint64 // request ids, weights, percentages, jitter; safe for concurrent use; default math/rand/v2
	Limits     Limits
	Turns      int          // requests that do at once what takes a processor for long: see turns; default one fewer than processors, at least 1
	ServerName string       // value of the server field that answers get; default "envoy"
	Log        *slog.Logger // default: nothing is logged
}

// Limits bound what one connection or request may take. Zero means the default, a negative duration none.
type Limits struct {
	HeadBytes         int           // of a request's head; default 60 KiB; beyond: 431
	HeadFields        int           // of a request's head and of an answer's; default 100; beyond: 431, 502
	ResponseHeadBytes int           // default 80 KiB; beyond: 502
	ReplayBytes       int           // of a request's body that are kept for another try; default 64 KiB; beyond: no other try
	Head              time.Duration // from the first byte of a request's head to its end; default 60 s; beyond: 408
	Idle              time.Duration // between requests of a downstream connection; default 1 h
	StreamIdle        time.Duration // without a byte in either direction of a request; default none, as Istio sets it; beyond: 504 or reset
	Request           time.Duration // from a request's head to the end of its body; default none; beyond: 408
	DelayedClose      time.Duration // to wait for the client to read an answer that ends the connection; default 1 s
	PoolIdle          time.Duration // of an upstream connection without a request, unless its cluster says; default 1 h
	Streams           int           // of HTTP/2 under way on a downstream connection; default 1024; beyond: refused
	Requests          int           // on one downstream connection, then it is closed; default no limit
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Random == nil {
		c.Random = rand.Uint64
	}
	if c.ServerName == "" {
		c.ServerName = "envoy"
	}
	if c.Turns == 0 {
		c.Turns = max(1, runtime.GOMAXPROCS(0)-1)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	l := &c.Limits
	for _, x := range []struct {
		to *int
		by int
	}{{&l.HeadBytes, 60 << 10}, {&l.HeadFields, 100}, {&l.ResponseHeadBytes, 80 << 10}, {&l.ReplayBytes, 64 << 10}} {
		if *x.to == 0 {
			*x.to = x.by
		}
	}
	for _, x := range []struct {
		to *time.Duration
		by time.Duration
	}{{&l.Head, time.Minute}, {&l.Idle, time.Hour}, {&l.DelayedClose, time.Second}, {&l.PoolIdle, time.Hour}} {
		if *x.to == 0 {
			*x.to = x.by
		}
	}
	return c
}

// Validate names the field that cannot be.
func (c Config) Validate() error {
	l := c.Limits
	switch {
	case c.Turns < 0 || c.Turns >= someWait:
		return errors.New("turns is not one of 0 to 2³²-1")
	case l.HeadBytes < 0:
		return errors.New("limits.headBytes is negative")
	case l.HeadFields < 0:
		return errors.New("limits.headFields is negative")
	case l.ResponseHeadBytes < 0:
		return errors.New("limits.responseHeadBytes is negative")
	case l.ReplayBytes < 0:
		return errors.New("limits.replayBytes is negative")
	case l.Streams < 0:
		return errors.New("limits.streams is negative")
	case l.Requests < 0:
		return errors.New("limits.requests is negative")
	case l.HeadBytes > 0 && l.HeadBytes < 1<<10 || l.ResponseHeadBytes > 0 && l.ResponseHeadBytes < 1<<10:
		return errors.New("limits of heads are below 1 KiB")
	case l.HeadFields > 0 && l.HeadFields < 8 || l.HeadFields > 1<<14:
		return errors.New("limits.headFields is not one of 8 to 16384")
	case l.Streams > 1<<20:
		return errors.New("limits.streams is above 1048576")
	case l.HeadBytes > 1<<20 || l.ResponseHeadBytes > 1<<20:
		return errors.New("limits of heads are above 1 MiB")
	}
	return nil
}
