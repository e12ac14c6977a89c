package identity

import (
	"context"
	"crypto/x509"
	"sync"
	"time"
)

// switchIssuer passes requests to one CA or another.
type switchIssuer struct {
	mu sync.Mutex
	to *fakeCA
}

func (s *switchIssuer) set(ca *fakeCA) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = ca
}

func (s *switchIssuer) Issue(ctx context.Context, r Request) ([]string, error) {
	s.mu.Lock()
	ca := s.to
	s.mu.Unlock()
	return ca.Issue(ctx, r)
}

// alteredIssuer changes the answers of a CA.
type alteredIssuer struct {
	ca    *fakeCA
	after func([]string) []string
}

func (a *alteredIssuer) Issue(ctx context.Context, r Request) ([]string, error) {
	answer, err := a.ca.Issue(ctx, r)
	if err == nil && a.after != nil {
		answer = a.after(answer)
	}
	return answer, err
}

// trusts reports whether m accepts chains of ca.
func trusts(m *Manager, ca *fakeCA) bool {
	_, err := ca.root.Verify(x509.VerifyOptions{Roots: m.trusted.Load(), CurrentTime: time.Now()})
	return err == nil
}
