package h2

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// Config holds the limits and the injected parts of a connection of either role. The zero value of every field but Clock means
// its default.
type Config struct {
	// Clock drives the timeouts and the rates. Required.
	Clock clock.Clock
	// Log receives what peers do wrong at Debug. Default: discard.
	Log *slog.Logger

	// MaxStreams is the number of streams that a client may have open with us, those included that it has reset and whose
	// handler has not returned. More are refused. Default 1024.
	MaxStreams int
	// MaxHeaderList bounds a header list in bytes, counted as RFC 9113 §6.5.2 does. Default 60 KiB, Envoy's.
	MaxHeaderList int
	// MaxFields bounds the fields of a header list, the pseudo fields included. Default 100, Envoy's.
	MaxFields int
	// MaxFragments bounds the frames of one header block. Default 32.
	MaxFragments int
	// MaxFrame is the largest payload of a frame that is accepted, in bytes. Default 16 KiB.
	MaxFrame int
	// StreamWindow is the receive window in bytes that a stream starts with. Default 64 KiB. It grows to StreamWindowMax
	// while what comes is read at once.
	StreamWindow int
	// StreamWindowMax is the largest receive window of a stream in bytes. Default 1 MiB.
	StreamWindowMax int
	// ConnWindow is the receive window of the connection in bytes, and so bounds what is held for slow readers. Default
	// 4 MiB.
	ConnWindow int
	// MaxQueued is how many bytes wait for the peer to read before writers wait. Default 256 KiB.
	MaxQueued int
	// MaxControl is how many bytes of answers (to PING, SETTINGS, resets) wait for the peer to read before the connection
	// ends. Default 64 KiB.
	MaxControl int
	// Burst and Rate bound what costs us and brings nothing: Burst at once (default 1000), then Rate a second (default 100);
	// more ends the connection with ENHANCE_YOUR_CALM. Frames count (PING, SETTINGS, PRIORITY, GOAWAY, unknown types, DATA
	// without a byte, informational responses and, beyond ten for each DATA frame that we sent, WINDOW_UPDATE), but one for
	// each DATA frame of either side and each answered request; and, apart from them, requests that were refused, reset by the
	// client or by an error of the client, but one for each answered request.
	Burst, Rate int

	// ExtendedConnect lets clients use :protocol (RFC 8441). Default false, as Envoy.
	ExtendedConnect bool

	// SettingsTimeout is how long the peer has to acknowledge our SETTINGS. Default 10 s.
	SettingsTimeout time.Duration
	// HeadTimeout is how long a frame, or a header block in several, may take from its first byte to its last. Default 10 s.
	HeadTimeout time.Duration
	// WriteTimeout is how long the peer may take to read anything while something waits for it. Default 30 s.
	WriteTimeout time.Duration
	// IdleTimeout drains a connection that has had no stream for that time. Default 1 h, Envoy's; negative: never.
	IdleTimeout time.Duration
	// PingInterval is the silence after which the peer is asked whether it lives. Default 0: never.
	PingInterval time.Duration
	// PingTimeout is how long after that question the peer is declared dead. Default 20 s.
	PingTimeout time.Duration
	// CloseTimeout bounds the last words of a connection (GOAWAY) and what it waits for the peer to hear them. Default 1 s.
	CloseTimeout time.Duration

	// Ended is called once, without locks, when the connection has ended with all its goroutines. It must not block. Default nil.
	Ended func()
	// Changed is called without locks when the peer's limit of streams may have changed or no stream can be opened any more,
	// and at other times. It must not block. Default nil.
	Changed func()
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
	orDefault(&c.MaxStreams, 1024)
	orDefault(&c.MaxHeaderList, 60<<10)
	orDefault(&c.MaxFields, 100)
	orDefault(&c.MaxFragments, 32)
	orDefault(&c.MaxFrame, frame.MinMaxFrame)
	orDefault(&c.StreamWindow, 64<<10)
	orDefault(&c.StreamWindowMax, max(1<<20, c.StreamWindow))
	orDefault(&c.ConnWindow, 4<<20)
	orDefault(&c.MaxQueued, 256<<10)
	orDefault(&c.MaxControl, 64<<10)
	orDefault(&c.Burst, 1000)
	orDefault(&c.Rate, 100)
	orDefault(&c.SettingsTimeout, 10*time.Second)
	orDefault(&c.HeadTimeout, 10*time.Second)
	orDefault(&c.WriteTimeout, 30*time.Second)
	orDefault(&c.IdleTimeout, time.Hour)
	orDefault(&c.PingTimeout, 20*time.Second)
	orDefault(&c.CloseTimeout, time.Second)
	return c
}

// Validate reports the first field that is out of range. NewServer and NewClient panic on what it refuses: that is a fault of
// the program, not of a peer.
func (c Config) Validate() error {
	if c.Clock == nil {
		return fmt.Errorf("check HTTP/2 config: Clock is nil")
	}
	c = c.withDefaults()
	for _, f := range []struct {
		name    string
		v       int
		low, up int
	}{
		{"MaxStreams", c.MaxStreams, 1, 1 << 20},
		{"MaxHeaderList", c.MaxHeaderList, 1 << 10, 1 << 24},
		{"MaxFields", c.MaxFields, 8, 1 << 14},
		{"MaxFragments", c.MaxFragments, 1, 1 << 14},
		{"MaxFrame", c.MaxFrame, frame.MinMaxFrame, 1 << 20},
		{"StreamWindow", c.StreamWindow, 1, frame.MaxWindow},
		{"StreamWindowMax", c.StreamWindowMax, c.StreamWindow, frame.MaxWindow},
		{"ConnWindow", c.ConnWindow, frame.DefaultWindow, frame.MaxWindow},
		{"MaxQueued", c.MaxQueued, 1 << 10, 1 << 30},
		{"MaxControl", c.MaxControl, 1 << 10, 1 << 30},
		{"Burst", c.Burst, 1, 1 << 30},
		{"Rate", c.Rate, 1, 1 << 30},
	} {
		if f.v < f.low || f.v > f.up {
			return fmt.Errorf("check HTTP/2 config: %s is %d, want %d to %d", f.name, f.v, f.low, f.up)
		}
	}
	for _, f := range []struct {
		name string
		v    time.Duration
	}{
		{"SettingsTimeout", c.SettingsTimeout}, {"HeadTimeout", c.HeadTimeout}, {"WriteTimeout", c.WriteTimeout},
		{"PingInterval", c.PingInterval}, {"PingTimeout", c.PingTimeout}, {"CloseTimeout", c.CloseTimeout},
	} {
		if f.v < 0 {
			return fmt.Errorf("check HTTP/2 config: %s is negative", f.name)
		}
	}
	return nil
}

func (c Config) mustDefaults() Config {
	if err := c.Validate(); err != nil {
		panic(err)
	}
	return c.withDefaults()
}
