package app

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/jwks/keeper"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/controller/status"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/controller/webhook"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// externalSecret holds the root of an external signer (MT-20).
const externalSecret = "external-ca-cert"

// forKubernetes serves the objects of an API server. Nothing is asked of it here: it may be away.
func forKubernetes(cfg *server.Config, o Options) error {
	rc, err := restConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	rc.QPS, rc.Burst, rc.UserAgent = 80, 160, "undermesh-controller"
	client, err := kubernetes.NewForConfig(protobuf(rc))
	if err != nil {
		return fmt.Errorf("make client of API server: %w", err)
	}
	tokens, err := tokenReviews(rc, cfg, o)
	if err != nil {
		return err
	}
	dyn, err := dynamic.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make client of API server: %w", err)
	}
	source := watch.NewKubernetes(watch.KubeConfig{Client: client, Dynamic: dyn, Namespace: o.rootNamespace,
		Log: cfg.Log, Clock: cfg.Clock})
	cfg.Source, cfg.History = source, source.History()
	cfg.Probe = func(ctx context.Context) error {
		err := client.Discovery().RESTClient().Get().AbsPath("/livez").Do(ctx).Error()
		tokens.Heard(err == nil)
		if err != nil {
			return fmt.Errorf("ask API server for /livez: %w", err)
		}
		return nil
	}
	cfg.Compile.RequireMesh = true // the chart makes the ConfigMap
	cfg.Keys.Store = keeper.ConfigMapStore{Client: client.CoreV1().ConfigMaps(o.rootNamespace)}
	if cfg.Secrets, err = secretsIn(rc); err != nil {
		return err
	}
	own := rest.CopyConfig(rc) // statuses of many objects must not hold up watches
	own.RateLimiter = nil
	statuses, err := dynamic.NewForConfig(own)
	if err != nil {
		return fmt.Errorf("make client for statuses: %w", err)
	}
	writer := status.Kubernetes{Client: statuses, Clock: cfg.Clock}
	cfg.Status, cfg.Addresses = writer, writer
	cfg.Lead = server.ByLease(client, o.rootNamespace, o.identity, cfg.Log)
	secrets := client.CoreV1().Secrets(o.rootNamespace)
	external, err := o.external(client, cfg.Clock)
	if err != nil {
		return err
	}
	cfg.Authority = &server.AuthorityConfig{
		Store: ca.SecretStore{Client: secrets}, Rotation: ca.RotationSecret{Client: secrets}, Spread: o.rootSpread, External: external,
		DNS:           &ca.DNSConfig{Client: secrets, Namespace: o.rootNamespace, ClusterDomain: o.clusterDomain, Allowed: list(o.dnsNames)},
		PlugIn:        func(ctx context.Context) (map[string][]byte, error) { return plugIn(ctx, client, o.rootNamespace) },
		Authenticator: tokens,
		Direct:        client, ServingNames: o.servingNames(),
	}
	admission := func(context.Context, []byte) {}
	if o.webhookConfig != "" {
		trust := &webhook.Trust{Client: client.AdmissionregistrationV1().ValidatingWebhookConfigurations(), Name: o.webhookConfig, Log: cfg.Log}
		admission = trust.Keep
	}
	if o.webhookAddr != "" {
		cfg.WebhookAddr = o.webhookAddr
		if cfg.Catalogue, err = validate.NewCatalogue(); err != nil {
			return err
		}
	}
	cfg.Publish = func(ctx context.Context, roots []byte) error {
		admission(ctx, roots) // before anything is signed with a new root
		if o.writeRoot != "" {
			if err := writeFile(o.writeRoot, roots); err != nil {
				return err
			}
		}
		return publishRoots(ctx, client, o.rootNamespace, roots)
	}
	return nil
}

// external is nil when the controller's own key signs.
func (o Options) external(client kubernetes.Interface, c clock.Clock) (*ca.External, error) {
	if o.signer == "" {
		return nil, nil
	}
	return ca.NewExternal(ca.ExternalConfig{Client: client.CertificatesV1().CertificateSigningRequests(), Signer: o.signer, Clock: c,
		Roots: func(ctx context.Context) ([]byte, error) {
			s, err := client.CoreV1().Secrets(o.rootNamespace).Get(ctx, externalSecret, metav1.GetOptions{})
			if err != nil {
				return nil, fmt.Errorf("read secret %s/%s: %w", o.rootNamespace, externalSecret, err)
			}
			return s.Data[ca.FileRootCert], nil
		}})
}

// protobuf is the configuration for kinds of Kubernetes itself, which cost less to decode than JSON; custom kinds have only
// that.
func protobuf(rc *rest.Config) *rest.Config {
	own := rest.CopyConfig(rc)
	own.ContentType = runtime.ContentTypeProtobuf
	own.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return own
}

// tokenReviews proves callers, with one client for nodes and one for strangers, who do not use up its rate.
func tokenReviews(rc *rest.Config, cfg *server.Config, o Options) (*ca.TokenReview, error) {
	strangers, err := reviewClient(rc)
	if err != nil {
		return nil, err
	}
	nodes, err := reviewClient(rc)
	if err != nil {
		return nil, err
	}
	index := cfg.Index
	tokens := ca.NewTokenReview(strangers.AuthenticationV1().TokenReviews(), cfg.Clock, func(c ca.Caller) bool {
		return c.PodUID != "" && index.NodeOf(model.Name{Namespace: c.Namespace, Name: c.PodName}, c.PodUID) != ""
	})
	tokens.Reserve(nodes.AuthenticationV1().TokenReviews(), ca.Nodes{Accounts: []string{o.nodeAccount()}, At: index.OfNode})
	return tokens, nil
}

// reviewClient asks about tokens only. Strangers cause these requests: with the limiter of the other client they would hold
// up the renewal of the Lease and the checks of nodes.
func reviewClient(rc *rest.Config) (kubernetes.Interface, error) {
	own := rest.CopyConfig(rc)
	own.QPS, own.Burst, own.Timeout = 40, 80, 5*time.Second
	own.RateLimiter = nil // made of QPS and Burst; a copied one would be shared
	client, err := kubernetes.NewForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("make client for token reviews: %w", err)
	}
	return client, nil
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		rc, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("read in-cluster configuration (use -kubeconfig or -config elsewhere): %w", err)
		}
		return rc, nil
	}
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	return rc, nil
}

// plugIn returns nil when the operator gave no certificate.
func plugIn(ctx context.Context, client kubernetes.Interface, namespace string) (map[string][]byte, error) {
	s, err := client.CoreV1().Secrets(namespace).Get(ctx, ca.PlugInSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s/%s: %w", namespace, ca.PlugInSecret, err)
	}
	if s.Data == nil {
		return map[string][]byte{}, nil // it is there and empty: an error, not a reason to make our own
	}
	return s.Data, nil
}

// publishRoots keeps the ConfigMap that nodes read the root certificates from.
func publishRoots(ctx context.Context, client kubernetes.Interface, namespace string, roots []byte) error {
	store := client.CoreV1().ConfigMaps(namespace)
	data := map[string]string{ca.FileRootCert: string(roots)}
	now, err := store.Get(ctx, api.CAConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = store.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: api.CAConfigMap}, Data: data}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create config map %s/%s: %w", namespace, api.CAConfigMap, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read config map %s/%s: %w", namespace, api.CAConfigMap, err)
	}
	if maps.Equal(now.Data, data) {
		return nil
	}
	now.Data = data
	if _, err := store.Update(ctx, now, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update config map %s/%s: %w", namespace, api.CAConfigMap, err)
	}
	return nil
}
