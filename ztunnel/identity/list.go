package identity

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"time"
)

// States of a listed identity.
const (
	StateAvailable    = "Available"    // a valid certificate is held
	StateInitializing = "Initializing" // the first request is under way
	StateUnavailable  = "Unavailable"  // the CA refused, or the certificate expired
)

// Info is one identity of the listing; it never holds a key. The JSON names are those of Istio's config_dump.
type Info struct {
	Identity  string    `json:"identity"`
	State     string    `json:"state"`
	Holds     int       `json:"holds"` // pods on the node that run as it
	RenewAt   time.Time `json:"renewAt,omitzero"`
	LastError string    `json:"lastError,omitempty"`
	CertChain []Part    `json:"certChain,omitempty"` // leaf first
	RootCerts []Part    `json:"rootCerts,omitempty"`
}

// Part is one certificate of a chain.
type Part struct {
	PEM            []byte    `json:"pem"`
	SerialNumber   string    `json:"serialNumber"` // decimal
	ValidFrom      time.Time `json:"validFrom"`
	ExpirationTime time.Time `json:"expirationTime"`
}

// Certificates lists all identities in use, sorted by name.
func (m *Manager) Certificates() []Info {
	now := m.cfg.Clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Info, 0, len(m.entries))
	for _, e := range m.entries {
		i := Info{Identity: e.id.String(), State: StateInitializing, Holds: e.holds}
		if e.err != nil {
			i.State, i.LastError = StateUnavailable, e.err.Error()
		}
		if e.cert != nil {
			i.State, i.RenewAt = StateUnavailable, e.renewAt
			if e.cert.valid(now) {
				i.State = StateAvailable
			}
			i.CertChain = parts(append([]*x509.Certificate{e.cert.Leaf}, e.cert.Intermediates...))
			i.RootCerts = parts([]*x509.Certificate{e.cert.Root})
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b Info) int { return cmp.Compare(a.Identity, b.Identity) })
	return list
}

func parts(chain []*x509.Certificate) []Part {
	list := make([]Part, 0, len(chain))
	for _, c := range chain {
		var text bytes.Buffer
		// Encode fails only when the writer or a header does; there is neither.
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		list = append(list, Part{PEM: text.Bytes(), SerialNumber: c.SerialNumber.String(), ValidFrom: c.NotBefore, ExpirationTime: c.NotAfter})
	}
	return list
}

// Parts lists the roots of the file, in its order.
func (r *Roots) Parts() []Part { return parts(r.List()) }

func (m *Manager) countValid() int {
	now := m.cfg.Clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, e := range m.entries {
		if e.cert != nil && e.cert.valid(now) {
			n++
		}
	}
	return n
}

func (m *Manager) countWanted() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.entries)
}
