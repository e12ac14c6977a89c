package sim

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/model"
)

// swap opens an ALLOW policy to a client and creates, before that and in the same batch, the DENY policy that keeps it out: at no
// moment was the client allowed. It connects all the time, while nodes hear of it in pieces.
func swap(w *world, ctx context.Context) error {
	if !pause(ctx, 3*time.Second) {
		return context.Cause(ctx)
	}
	pods := slices.DeleteFunc(w.living(), func(p *pod) bool { return !p.enrolled })
	to := pods[0]
	at := scope{to.ns, to.app}
	open, shut := model.Name{Namespace: to.ns, Name: "open"}, model.Name{Namespace: to.ns, Name: "shut"}
	put := func(n model.Name, a authz) {
		w.note("%s is %+v", n, a)
		w.objects.set(model.KindAuthorizationPolicy, n, a.object(n), func(f *facts) {
			if f.authz == nil {
				f.authz = map[model.Name]authz{}
			}
			f.authz[n] = a
		})
	}
	everyone := rule{namespaces: namespaces}
	many := rule{} // makes a response of several TLS records, whose borders are elsewhere each time
	for i := range 12 {
		for j := range 6 {
			many.principals = append(many.principals, account{"elsewhere", fmt.Sprintf("account-%d-%d", i, j)})
		}
		put(open, authz{scope: at})
		if !pause(ctx, 1500*time.Millisecond) {
			return context.Cause(ctx)
		}
		put(shut, authz{scope: at, deny: true, rules: []rule{everyone}})
		put(open, authz{scope: at, rules: []rule{everyone, {principals: slices.Clone(many.principals)}}})
		for range 30 {
			if !pause(ctx, 20*time.Millisecond) {
				return context.Cause(ctx)
			}
			for _, from := range pods[1:] {
				s := w.newStream(from, netip.AddrPortFrom(to.ip, 80))
				s.chunks = []int{10}
				w.launch(s)
			}
		}
		put(open, authz{scope: at})
		if !pause(ctx, 1500*time.Millisecond) {
			return context.Cause(ctx)
		}
		w.objects.set(model.KindAuthorizationPolicy, shut, nil, func(f *facts) { delete(f.authz, shut) })
		if !pause(ctx, 1500*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// TestPoliciesThatChangeTogether looks for a moment at which a node has one of two policies and not the other.
func TestPoliciesThatChangeTogether(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			report(t, seed, history(t, Options{Seed: seed, play: swap}))
		})
	}
}
