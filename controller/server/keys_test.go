package server

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	securitybeta "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/jwks/keeper"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

const publicKey = `{"keys":[{"kty":"EC","kid":"a","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`

// once is a Source of one batch.
type once []model.Event

func (o once) Run(ctx context.Context, emit func([]model.Event)) error {
	emit(o)
	<-ctx.Done()
	return nil
}

// keySets records the key sets that one replica serves.
type keySets struct {
	mu  sync.Mutex
	has map[string]string // source → keys
}

func (k *keySets) Apply(_ uint64, upserts []xds.Resource, removed []xds.Key) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range upserts {
		if s, ok := r.Message.(*settings.JsonWebKeySet); ok {
			k.has[s.GetSource()] = s.GetKeys()
		}
	}
	for _, r := range removed {
		if r.Type == api.JWKSType {
			clear(k.has)
		}
	}
	return nil
}

func (k *keySets) of(source string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.has[source]
}

// TestJW09LeaderFetchesAllServe: one replica fetches, both serve; the other one takes over when it goes.
func TestJW09LeaderFetchesAllServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const source = "https://issuer.example/keys"
		request := &securityv1.RequestAuthentication{}
		request.Namespace, request.Name = "foo", "jwt"
		request.Spec.JwtRules = []*securitybeta.JWTRule{{Issuer: "x", JwksUri: source}}
		events := once{{Kind: model.KindRequestAuthentication, Name: model.Name{Namespace: "foo", Name: "jwt"}, Object: request}}
		var sources []*watch.Injected
		store := keeper.NewLocalStore(func(cm *corev1.ConfigMap) {
			for _, s := range sources {
				s.Put(model.Event{Kind: model.KindConfigMap, Name: model.Name{Namespace: "istio-system", Name: cm.Name}, Object: cm})
			}
		})
		lease, answers := make(chan struct{}, 1), atomic.Bool{}
		answers.Store(true)
		fetches := [2]atomic.Int32{}
		var serve [2]*keySets
		var stop [2]func()
		for range 2 {
			sources = append(sources, watch.Inject(events))
		}
		for i := range 2 {
			s, err := New(Config{
				Source: sources[i], Clock: clock.System(), Listen: func(string, string) (net.Listener, error) { return nil, errors.New("none") },
				Keys: &keeper.Config{Store: store, Fetch: func(context.Context, string) (string, error) {
					fetches[i].Add(1)
					if !answers.Load() {
						return "", errors.New("cannot connect")
					}
					return publicKey, nil
				}},
				Lead: func(ctx context.Context, lead func(context.Context) error) error {
					select {
					case <-ctx.Done():
						return nil
					case lease <- struct{}{}:
					}
					defer func() { <-lease }()
					return lead(ctx)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			serve[i] = &keySets{has: map[string]string{}}
			s.engine.out.store = serve[i]
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			stop[i] = sync.OnceFunc(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if serve[0].of(source) != publicKey || serve[1].of(source) != publicKey || fetches[0].Load() != 1 || fetches[1].Load() != 0 {
			t.Fatalf("served %q and %q after %d and %d fetches", serve[0].of(source), serve[1].of(source), fetches[0].Load(), fetches[1].Load())
		}
		stop[0]()
		answers.Store(false)
		<-time.After(time.Hour)
		synctest.Wait()
		if fetches[1].Load() == 0 || serve[1].of(source) != publicKey {
			t.Errorf("after the hand-over %d fetches, served %q", fetches[1].Load(), serve[1].of(source))
		}
		stop[1]()
	})
}
