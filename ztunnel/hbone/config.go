package hbone

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// Config holds the limits and the injected parts of a connection, client or server. The zero value of every field
// but Clock means its default. The defaults match what Istio's ztunnel advertises, where the wire shows them.
type Config struct {
	// Clock drives keepalive, drain and deadlines. Required.
	Clock clock.Clock
	// Log receives protocol errors of peers at Debug. Default: discard.
	Log *slog.Logger

	// StreamWindow is the receive window in bytes that a stream starts with (SETTINGS_INITIAL_WINDOW_SIZE).
	// Default 512 KiB. A stream whose reader keeps up grows to StreamWindowMax.
	StreamWindow int
	// StreamWindowMax is the largest receive window of a stream in bytes. Default 4 MiB.
	StreamWindowMax int
	// ConnWindow is the receive window of the connection in bytes. Default 16 MiB.
	ConnWindow int
	// MaxBuffered bounds the bytes that a connection holds for slow readers. Default 2 × ConnWindow, never less.
	MaxBuffered int
	// Budget bounds what all connections with the same one hold. Default nil: MaxBuffered of each connection alone.
	Budget *Budget
	// MaxFrame is the largest frame payload accepted, in bytes (SETTINGS_MAX_FRAME_SIZE). Default 1 MiB.
	MaxFrame int
	// MaxStreams is the number of streams that a peer may have open. Default 200.
	MaxStreams int
	// MaxHeaderList bounds a header list in bytes, counted as RFC 9113 §6.5.2 does. Default 64 KiB.
	MaxHeaderList int

	// PingInterval is the silence after which the peer is asked whether it lives. Default 10 s; negative: never.
	PingInterval time.Duration
	// PingTimeout is how long after that question the peer is declared dead. Default 20 s.
	PingTimeout time.Duration
	// SuspectInterval and SuspectTimeout stand for them, where they are shorter, while there is reason to think that the peer is gone
	// (Pool.Suspect). Defaults 1 s and 3 s.
	SuspectInterval, SuspectTimeout time.Duration
	// DrainTimeout bounds the time that Serve lets open streams go on after its context is done. Default 0: they
	// are reset at once. Server.Drain has no bound of its own.
	DrainTimeout time.Duration
	// IdleTimeout drains a server's connection that has had no stream for that time; a client that does not take part in it
	// (GOAWAY and PING) gets PingTimeout. Default 0: never. A Pool has its own.
	IdleTimeout time.Duration
	// CloseTimeout bounds the last write (GOAWAY, close_notify) of a connection. Default 1 s.
	CloseTimeout time.Duration

	// onStreamDone is called without locks whenever a stream ends or the connection changes state (Pool).
	onStreamDone func()
	// onDepart is called without locks when the peer says that it is being deleted (Pool).
	onDepart func()
	// onEnd is called without locks when the connection's goroutines have ended, just before Done (Pool).
	onEnd func()
}

func orDefault[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	orDefault(&c.StreamWindow, 512<<10)
	orDefault(&c.StreamWindowMax, max(4<<20, c.StreamWindow))
	orDefault(&c.ConnWindow, 16<<20)
	orDefault(&c.MaxBuffered, 2*c.ConnWindow)
	orDefault(&c.MaxFrame, 1<<20)
	orDefault(&c.MaxStreams, 200)
	orDefault(&c.MaxHeaderList, 64<<10)
	orDefault(&c.PingInterval, 10*time.Second)
	orDefault(&c.PingTimeout, 20*time.Second)
	orDefault(&c.SuspectInterval, time.Second)
	orDefault(&c.SuspectTimeout, 3*time.Second)
	orDefault(&c.CloseTimeout, time.Second)
	return c
}

// Validate reports the first field that is out of range. It is meant for a configuration made by hand; NewClient and
// NewServer panic on what it refuses, since that is a fault of the program, not of a peer.
func (c Config) Validate() error {
	if c.Clock == nil {
		return fmt.Errorf("check hbone config: Clock is nil")
	}
	c = c.withDefaults()
	for _, f := range []struct {
		name    string
		v       int
		low, up int
	}{
		{"StreamWindow", c.StreamWindow, 1, frame.MaxWindow},
		{"StreamWindowMax", c.StreamWindowMax, c.StreamWindow, frame.MaxWindow},
		{"ConnWindow", c.ConnWindow, frame.DefaultWindow, frame.MaxWindow},
		{"MaxBuffered", c.MaxBuffered, c.ConnWindow, 1 << 40},
		{"MaxFrame", c.MaxFrame, frame.MinMaxFrame, frame.MaxMaxFrame},
		{"MaxStreams", c.MaxStreams, 1, 1 << 20},
		{"MaxHeaderList", c.MaxHeaderList, 1 << 10, 1 << 24},
	} {
		if f.v < f.low || f.v > f.up {
			return fmt.Errorf("check hbone config: %s is %d, want %d to %d", f.name, f.v, f.low, f.up)
		}
	}
	if c.PingTimeout < 0 || c.SuspectInterval < 0 || c.SuspectTimeout < 0 || c.DrainTimeout < 0 || c.CloseTimeout < 0 || c.IdleTimeout < 0 {
		return fmt.Errorf("check hbone config: PingTimeout, SuspectInterval, SuspectTimeout, DrainTimeout, IdleTimeout or CloseTimeout is negative")
	}
	return nil
}

func (c Config) mustDefaults() Config {
	if err := c.Validate(); err != nil {
		panic(err)
	}
	return c.withDefaults()
}
