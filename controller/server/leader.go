package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseName is the Lease that the writing replica holds.
const leaseName = "istiod-leader"

// always leads: there is one replica only.
func always(ctx context.Context, lead func(context.Context) error) error { return lead(ctx) }

// ByLease returns a Config.Lead for several replicas: the one that holds the Lease of the namespace leads. identity must
// differ between replicas.
func ByLease(client kubernetes.Interface, namespace, identity string, log *slog.Logger) func(context.Context, func(context.Context) error) error {
	return lease{client: client, namespace: namespace, identity: identity, log: log}.run
}

// lease runs work while this replica holds the Lease of its namespace.
type lease struct {
	client    kubernetes.Interface
	namespace string
	identity  string
	log       *slog.Logger
}

// run tries again after the Lease was lost, until ctx ends. A replica that cannot reach the API server does not lead,
// and serves on.
func (l lease) run(ctx context.Context, lead func(context.Context) error) error {
	for ctx.Err() == nil {
		term := &term{lead: lead, done: make(chan error, 1)}
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: l.namespace, Name: leaseName},
				Client:     l.client.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: l.identity},
			},
			LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
			ReleaseOnCancel: true, Name: leaseName,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					l.log.Info("leadership gained", "identity", l.identity)
					term.start(ctx)
				},
				OnStoppedLeading: func() { l.log.Info("leadership ended", "identity", l.identity) },
			},
		})
		if err != nil {
			return fmt.Errorf("elect leader: %w", err)
		}
		elector.Run(ctx)
		if err := term.end(); err != nil {
			return err
		}
	}
	return nil
}

// term is one leadership. The elector starts its work in a goroutine that it does not wait for; end does.
type term struct {
	lead func(context.Context) error
	done chan error

	mu      sync.Mutex // protects below
	started bool
	ended   bool
}

func (t *term) start(ctx context.Context) {
	t.mu.Lock()
	if t.ended {
		t.mu.Unlock()
		return
	}
	t.started = true
	t.mu.Unlock()
	t.done <- t.lead(ctx)
}

func (t *term) end() error {
	t.mu.Lock()
	t.ended = true
	started := t.started
	t.mu.Unlock()
	if !started {
		return nil
	}
	return <-t.done
}
