// Command netpol enforces networking.k8s.io/v1 NetworkPolicies for the pods of one node of a test cluster, by nftables in the
// node's network namespace.
//
// One inet table holds a chain for every isolated pod and direction; after each change the whole table is replaced in one
// transaction. Its hook is forward, after kube-proxy's destination NAT (policies see pod addresses); bridged traffic between
// pods of one node comes through it because bridge-nf-call-iptables is on. The node's own traffic, such as kubelet's probes, is
// in the output hook and never filtered; established connections live on. Rules stay when the program ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// settle is how long a change waits for others, so that what comes together is loaded together.
const settle = 20 * time.Millisecond

// retryAfter is the pause after nft refused a table.
const retryAfter = time.Second

func main() {
	node := flag.String("node", "", "name of this node")
	kubeconfig := flag.String("kubeconfig", "", "file that tells how to reach the API server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(ctx, *node, *kubeconfig, log); err != nil {
		log.Error("netpol ended", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, node, kubeconfig string, log *slog.Logger) error {
	if node == "" {
		return errors.New("check options: -node is needed")
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, namespaces := factory.Core().V1().Pods(), factory.Core().V1().Namespaces()
	policies := factory.Networking().V1().NetworkPolicies()
	changed := make(chan struct{}, 1)
	note := func() {
		select {
		case changed <- struct{}{}:
		default: // one is pending already
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { note() }, UpdateFunc: func(any, any) { note() },
		DeleteFunc: func(any) { note() }}
	for _, i := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		if _, err := i.AddEventHandler(handler); err != nil {
			return fmt.Errorf("watch objects: %w", err)
		}
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	factory.WaitForCacheSync(ctx.Done())
	note()
	loaded := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if !pause(ctx, settle) {
			return nil
		}
		w, err := snapshot(node, pods.Lister(), namespaces.Lister(), policies.Lister())
		if err != nil {
			return err
		}
		table := w.render()
		if table == loaded {
			continue
		}
		begin := time.Now()
		if err := load(ctx, table); err != nil {
			log.Error("table is refused", "err", err, "table", table)
			if !pause(ctx, retryAfter) {
				return nil
			}
			note()
			continue
		}
		loaded = table
		log.Info("table is loaded", "lines", strings.Count(table, "\n"), "dur", time.Since(begin))
	}
}

// pause waits for d and tells whether ctx lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func load(ctx context.Context, table string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(table)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run nft: %w: %s", err, out)
	}
	return nil
}
