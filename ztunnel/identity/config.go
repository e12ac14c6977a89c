package identity

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Issuer signs certificate requests; CAClient is the real one.
type Issuer interface {
	// Issue returns the chain for a request in PEM: leaf first, root last. It must return when ctx ends.
	Issue(ctx context.Context, r Request) ([]string, error)
}

// Request asks for one certificate.
type Request struct {
	Identity api.Identity
	CSR      []byte        // PEM
	TTL      time.Duration // what is asked for; the CA may shorten it
}

// Trust is whose certificates a workload of the mesh accepts.
type Trust struct {
	Domain  string   // the mesh's own; "" refuses everybody
	Aliases []string // further domains that count as the own one
}

// accepts reports whether identities of a domain count. Before the domain of the mesh is known none does.
func (t Trust) accepts(domain string) bool {
	return t.Domain != "" && (domain == t.Domain || slices.Contains(t.Aliases, domain))
}

// Config is what a Manager needs. Issuer, Roots, Trust and Clock are required.
type Config struct {
	Issuer Issuer
	// Roots are the trusted roots of the root file, shared with the control-plane connection.
	Roots *Roots
	// Trust returns the trust domains in force; called for every handshake.
	Trust func() Trust
	// TTL returns the lifetime to ask for; nil or 0 means 24 h.
	TTL   func() time.Duration
	Clock clock.Clock
	Log   *slog.Logger // default: discard
	// Metrics is where the collectors are registered; nil: nowhere.
	Metrics prometheus.Registerer
	// Jitter returns numbers in [0, 1); default math/rand/v2.
	Jitter func() float64

	FirstWait  time.Duration // how long Certificate waits for a valid certificate; default 10 s
	IssueLimit time.Duration // of one request to the CA; default 10 s
	BackoffMin time.Duration // after the first failure, doubled by each further one; default 100 ms
	BackoffMax time.Duration // default 5 s: below FirstWait, so that a caller sees a CA that is back
	// RenewSettle and RenewSpread: when another root signs, certificates of the old one are renewed between RenewSettle
	// (default 30 s: every replica of the CA signs with the new one by then) and RenewSpread (default 2 min) later.
	RenewSettle, RenewSpread time.Duration
	Linger                   time.Duration // how long an identity that nobody uses is kept; default 30 s
	Parallel                 int           // requests to the CA at a time; default 8
	RootPoll                 time.Duration // how often the root file is read; default 5 s
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Jitter == nil {
		c.Jitter = rand.Float64
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.FirstWait, 10 * time.Second}, {&c.IssueLimit, 10 * time.Second},
		{&c.BackoffMin, 100 * time.Millisecond}, {&c.BackoffMax, 5 * time.Second},
		{&c.Linger, 30 * time.Second}, {&c.RootPoll, 5 * time.Second},
		{&c.RenewSettle, 30 * time.Second}, {&c.RenewSpread, 2 * time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Parallel == 0 {
		c.Parallel = 8
	}
	return c
}

// Validate names the first field that is missing or out of range.
func (c Config) Validate() error {
	switch {
	case c.Issuer == nil:
		return errors.New("identity config: Issuer is not set")
	case c.Roots == nil:
		return errors.New("identity config: Roots is not set")
	case c.Trust == nil:
		return errors.New("identity config: Trust is not set")
	case c.Clock == nil:
		return errors.New("identity config: Clock is not set")
	case c.FirstWait < 0, c.IssueLimit < 0, c.BackoffMin < 0, c.BackoffMax < 0, c.Linger < 0, c.RootPoll < 0, c.RenewSettle < 0, c.RenewSpread < 0:
		return errors.New("identity config: a duration is negative")
	case c.Parallel < 0:
		return errors.New("identity config: Parallel is negative")
	}
	return nil
}
