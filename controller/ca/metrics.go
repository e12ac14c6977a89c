package ca

import (
	"fmt"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// metrics have the names under which Istio's CA is watched.
type metrics struct {
	requests, signed prometheus.Counter
	authentication   prometheus.Counter
	parsing          prometheus.Counter
	identities       prometheus.Counter
	signing          *prometheus.CounterVec
}

func newMetrics() *metrics {
	count := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "citadel_server_" + name, Help: help})
	}
	return &metrics{
		requests:       count("csr_count", "Certificate requests received."),
		signed:         count("success_cert_issuance_count", "Certificates issued."),
		authentication: count("authentication_failure_count", "Requests of callers that could not be authenticated."),
		parsing:        count("csr_parsing_err_count", "Requests whose CSR, or whose lifetime, was refused."),
		identities:     count("id_extraction_err_count", "Requests for an identity that the caller may not have."),
		signing: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "citadel_server_csr_sign_err_count",
			Help: "Requests that were granted and could not be signed."}, []string{"error"}),
	}
}

// register is called once the authority is loaded.
func (m *metrics) register(to prometheus.Registerer, a *Authority) error {
	if to == nil {
		return nil
	}
	ends := func(name, help string, at func(*issuer) time.Time, value func(end, now time.Time) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "citadel_server_" + name, Help: help}, func() float64 {
			iss, err := a.current()
			if err != nil {
				return math.NaN()
			}
			return value(at(iss), a.cfg.Clock.Now())
		})
	}
	root := func(iss *issuer) time.Time { return iss.root().NotAfter }
	chain := func(iss *issuer) time.Time {
		end := iss.cert.NotAfter
		for _, c := range iss.chain {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		return end
	}
	stamp := func(end, _ time.Time) float64 { return float64(end.Unix()) }
	left := func(end, now time.Time) float64 { return end.Sub(now).Seconds() }
	for _, c := range []prometheus.Collector{m.requests, m.signed, m.authentication, m.parsing, m.identities, m.signing,
		ends("root_cert_expiry_timestamp", "When the root certificate ends, in seconds since 1970.", root, stamp),
		ends("root_cert_expiry_seconds", "Seconds until the root certificate ends.", root, left),
		ends("cert_chain_expiry_timestamp", "When the first of the signing chain ends, in seconds since 1970.", chain, stamp),
		ends("cert_chain_expiry_seconds", "Seconds until the first of the signing chain ends.", chain, left),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "undermesh_ca_trusted_roots", Help: "Roots that the mesh trusts now."},
			func() float64 {
				raw, _ := a.RootPEM()
				certs, _ := parseCerts(raw)
				return float64(len(certs))
			}),
	} {
		if err := to.Register(c); err != nil {
			return fmt.Errorf("register metrics of the certificate authority: %w", err)
		}
	}
	return nil
}

// stage is how far a request came.
type stage int

const (
	stageCaller stage = iota
	stageIdentity
	stageRequest
	stageSign
)

func (m *metrics) answered(reached stage, code codes.Code) {
	m.requests.Inc()
	switch {
	case code == codes.OK:
		m.signed.Inc()
	case reached == stageCaller:
		m.authentication.Inc()
	case reached == stageIdentity:
		m.identities.Inc()
	case reached == stageRequest:
		m.parsing.Inc()
	default:
		m.signing.WithLabelValues(code.String()).Inc()
	}
}
