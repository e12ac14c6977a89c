package app

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// Options are the flags. Parse fills them.
type Options struct {
	LogLevel slog.Level // of the logger that the caller makes

	kubeconfig    string
	configDir     string
	tokenFile     string
	certDir       string
	writeRoot     string
	rootNamespace string
	trustDomain   string
	clusterDomain string
	clusterID     string
	certTTL       time.Duration
	rootSpread    time.Duration
	xdsAddr       string
	xdsPlainAddr  string
	monitorAddr   string
	readyAddr     string
	debugAddr     string
	webhookAddr   string
	webhookConfig string
	identity      string
	tlsNames      string
	keys          keyOptions
	dnsNames      string
	signer        string // of Kubernetes' certificates API; "": the controller's own key
}

func port(n int) string { return ":" + strconv.Itoa(n) }

// Parse reads the command line of the program called name. What flags there are goes to out, what is wrong is returned.
func Parse(name string, args []string, out io.Writer) (Options, error) {
	var o Options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server; default: in-cluster")
	fs.StringVar(&o.configDir, "config", "", "`directory` of YAML to serve instead of an API server")
	fs.StringVar(&o.tokenFile, "token-file", "", "CSV `file` of tokens: token,system:serviceaccount:NS:SA[,node] (with -config)")
	fs.StringVar(&o.certDir, "cert-dir", "", "`directory` that keeps the certificate authority (with -config)")
	fs.StringVar(&o.writeRoot, "write-root", "", "`file` to write the root certificates to")
	fs.StringVar(&o.rootNamespace, "root-namespace", api.DefaultRootNamespace, "`namespace` of the mesh's ConfigMap and of policies for the whole mesh")
	fs.StringVar(&o.trustDomain, "trust-domain", api.DefaultTrustDomain, "default trust `domain`; the mesh's ConfigMap overrides it")
	fs.StringVar(&o.clusterDomain, "cluster-domain", api.DefaultClusterDomain, "DNS `domain` of services")
	fs.StringVar(&o.clusterID, "cluster-id", api.DefaultClusterID, "`name` of the cluster")
	fs.DurationVar(&o.certTTL, "cert-ttl", 24*time.Hour, "lifetime of workload certificates")
	fs.DurationVar(&o.rootSpread, "root-spread", 5*time.Minute, "how long another root is published before it signs; kubelets bring it into pods within 2m")
	fs.StringVar(&o.xdsAddr, "xds-addr", port(api.PortXDS), "`address` of discovery and certificate service over TLS")
	fs.StringVar(&o.xdsPlainAddr, "xds-plain-addr", "", "`address` of discovery without TLS, for tests only")
	fs.StringVar(&o.monitorAddr, "monitor-addr", port(api.PortMonitor), "`address` of /metrics")
	fs.StringVar(&o.readyAddr, "ready-addr", ":8080", "`address` of /ready")
	fs.StringVar(&o.webhookAddr, "webhook-addr", "", "`address` of admission over TLS; \"\": none")
	fs.StringVar(&o.webhookConfig, "webhook-config", "", "`name` of the ValidatingWebhookConfiguration that is told the roots of this controller")
	fs.StringVar(&o.debugAddr, "debug-addr", "", "loopback `address` of /debug/syncz and profiles, which proxy-status reads by port-forward")
	fs.StringVar(&o.identity, "identity", "", "`name` of this replica; default: POD_NAME, or the host name")
	fs.StringVar(&o.tlsNames, "tls-names", "", "further `names`, separated by commas, of the server's certificate")
	fs.StringVar(&o.dnsNames, "dns-certificate-names", "", "further `names`, separated by commas, that the mesh configuration's certificates may have; *.SUFFIX for all below one")
	fs.BoolVar(&o.keys.private, "jwks-private", true, "fetch keys of token issuers from private addresses too, as issuers inside the cluster have")
	fs.StringVar(&o.keys.allow, "jwks-allow", "", "`networks`, separated by commas, that are allowed without -jwks-private")
	fs.StringVar(&o.keys.deny, "jwks-deny", "", "`networks`, separated by commas, from which keys are never fetched")
	fs.StringVar(&o.keys.roots, "jwks-roots", "", "`file` of further root certificates of token issuers")
	fs.TextVar(&o.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(out)
		fs.Usage()
		return o, err
	} else if err != nil {
		return o, fmt.Errorf("%w (-help lists the flags)", err)
	}
	var err error
	if o.signer, err = externalSigner(os.Getenv("EXTERNAL_CA"), os.Getenv("K8S_SIGNER")); err != nil {
		return o, err
	}
	o.keys.node = os.Getenv("HOST_IP")
	if o.identity == "" {
		o.identity = os.Getenv("POD_NAME")
	}
	if o.identity == "" {
		host, err := os.Hostname()
		if err != nil {
			return o, fmt.Errorf("read host name: %w", err)
		}
		o.identity = host
	}
	return o, o.check(fs.NArg())
}

// externalSigner reads the documents' variables (MT-20).
func externalSigner(externalCA, signer string) (string, error) {
	switch {
	case externalCA == "" && signer == "":
		return "", nil
	case externalCA != "ISTIOD_RA_KUBERNETES_API":
		return "", fmt.Errorf("variable EXTERNAL_CA: %q is not known (have ISTIOD_RA_KUBERNETES_API)", externalCA)
	case signer == "":
		return "", errors.New("variable K8S_SIGNER: missing, and EXTERNAL_CA is set")
	case signer == "kubernetes.io/legacy-unknown":
		return "", errors.New("variable K8S_SIGNER: kubernetes.io/legacy-unknown is gone from Kubernetes' certificates API since 1.22: name a signer of your own")
	}
	return signer, nil
}

func (o Options) check(rest int) error {
	switch {
	case rest > 0:
		return errors.New("takes no arguments")
	case o.configDir == "" && (o.tokenFile != "" || o.certDir != ""):
		return errors.New("-token-file and -cert-dir need -config")
	case o.configDir != "" && !isDirectory(o.configDir):
		return fmt.Errorf("-config %s: is not a directory", o.configDir)
	case o.configDir != "" && o.signer != "":
		return errors.New("EXTERNAL_CA needs an API server, and -config is set")
	case o.configDir != "" && o.kubeconfig != "":
		return errors.New("-config and -kubeconfig exclude each other")
	case o.configDir != "" && o.xdsAddr != "" && (o.tokenFile == "" || o.certDir == ""):
		return errors.New("-config needs -token-file and -cert-dir, or -xds-addr \"\"")
	case o.configDir != "" && o.webhookAddr+o.webhookConfig != "":
		return errors.New("-webhook-addr and -webhook-config need an API server")
	case o.certTTL < time.Minute:
		return errors.New("-cert-ttl must be a minute or more")
	case o.rootSpread <= 0:
		return errors.New("-root-spread must be more than 0")
	}
	return nil
}

func isDirectory(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}
