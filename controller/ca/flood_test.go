package ca

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/peer"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// AfterFunc implements clock.Clock: without another clock, what waits by this one waits for ever.
func (m *manual) AfterFunc(d time.Duration, f func()) clock.Timer {
	if m.Clock != nil {
		return m.Clock.AfterFunc(d, f)
	}
	return never{}
}

type never struct{}

func (never) Stop() bool               { return true }
func (never) Reset(time.Duration) bool { return true }

// from is the context of a call from an address.
func from(ctx context.Context, ip string) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}})
}

// paced answers 40 reviews a second: tokens of nodes are good, all others are not.
type paced struct {
	mu   sync.Mutex
	next time.Time
}

func (p *paced) Create(ctx context.Context, r *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(25 * time.Millisecond)
	wait := p.next.Sub(now)
	p.mu.Unlock()
	if !clock.Pause(ctx, clock.System(), wait) {
		return nil, ctx.Err()
	}
	out := &authenticationv1.TokenReview{}
	if strings.HasPrefix(r.Spec.Token, jwtPrefix) {
		out.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{api.TokenAudience},
			User: authenticationv1.UserInfo{Username: "system:serviceaccount:istio-system:ztunnel"}}
	}
	return out, nil
}

// jwtPrefix begins the tokens of nodes: their signature is right.
const jwtPrefix = "bm9kZQ."

// TestFloodOfTokens: one pod, and then many, ask about made-up tokens with as many calls as connections have places for; nodes
// are served, those whose token is new and those whose token was known before.
func TestFloodOfTokens(t *testing.T) {
	for name, x := range map[string]struct {
		pods   int
		isNode func(netip.Addr) bool // of the new node
	}{
		"one pod":   {1, nil},
		"forty":     {40, func(ip netip.Addr) bool { return ip.String() == "10.0.0.1" }},
		"forty, on": {40, func(ip netip.Addr) bool { return ip.String() != "10.0.0.2" }}, // what masquerades as nodes has no more
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := NewTokenReview(&paced{}, clock.System(), nil)
				tr.Reserve(&paced{}, Nodes{Accounts: []string{"istio-system/ztunnel"}, At: x.isNode})
				token := func(prefix, id string) string {
					_, rest, _ := strings.Cut(jwt(id, api.TokenAudience, time.Now().Add(time.Hour)), ".")
					return prefix + rest
				}
				known := token(jwtPrefix, "known")
				if _, err := tr.Authenticate(from(t.Context(), "10.0.0.2"), known); err != nil {
					t.Fatal(err)
				}
				time.Sleep(reviewTTL + time.Second) // of the bubble, like all below
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				for i := range 800 {
					wg.Go(func() {
						for n := 0; ctx.Err() == nil; n++ {
							_, _ = tr.Authenticate(from(ctx, fmt.Sprint("10.66.0.", i%x.pods)), token("ZXZpbA.", fmt.Sprint(i, " ", n)))
							clock.Pause(ctx, clock.System(), time.Second)
						}
					})
				}
				time.Sleep(10 * time.Second)
				for who, call := range map[string]struct{ ip, token string }{"new": {"10.0.0.1", token(jwtPrefix, "new")}, "known": {"10.0.0.2", known}} {
					before := time.Now()
					if _, err := tr.Authenticate(from(ctx, call.ip), call.token); err != nil || time.Since(before) > 4*time.Second {
						t.Errorf("%s node: %v after %s", who, err, time.Since(before))
					}
				}
				cancel()
				wg.Wait()
			})
		})
	}
}

// TestTenantsDoNotEvictNodes: a tenant has thousands of valid tokens; what is known of a node's is there when an outage comes.
func TestTenantsDoNotEvictNodes(t *testing.T) {
	good := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{api.TokenAudience},
		User: authenticationv1.UserInfo{Username: "system:serviceaccount:istio-system:ztunnel"}}
	f, clk := &fakeReview{status: good}, &manual{now: start}
	tr := NewTokenReview(f, clk, func(Caller) bool { return true })
	tr.Reserve(f, Nodes{Accounts: []string{"istio-system/ztunnel"}})
	node := jwt("node", api.TokenAudience, start.Add(time.Hour))
	if _, err := tr.Authenticate(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	clk.add(reviewTTL + time.Second)
	f.status.User.Username = "system:serviceaccount:tenant:a"
	for i := range reviewsMax + 1 {
		if _, err := tr.Authenticate(t.Context(), jwt(fmt.Sprint("t", i), api.TokenAudience, start.Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	f.err = errors.New("away")
	if c, err := tr.Authenticate(t.Context(), node); err != nil || c.String() != "istio-system/ztunnel" {
		t.Errorf("%s: %v", c, err)
	}
	t.Run("control: a token that was never known", func(t *testing.T) {
		if _, err := tr.Authenticate(t.Context(), jwt("other", api.TokenAudience, start.Add(time.Hour))); err == nil {
			t.Error("it is good")
		}
	})
}
