package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/api"
)

// frame is what every verb shares: streams, global flags, and the clients made from them.
type frame struct {
	in             io.Reader
	out, err       io.Writer
	kubeconfig     string
	context        string
	istioNamespace string
	namespace      string
	output         string // "", json or yaml
}

// newRoot builds the command tree. name is argv[0]: as "istioctl" the program calls itself so.
func newRoot(name string, in io.Reader, out, errw io.Writer) *cobra.Command {
	f := &frame{in: in, out: out, err: errw}
	use := "undermesh"
	if strings.TrimSuffix(filepath.Base(name), ".exe") == "istioctl" {
		use = "istioctl"
	}
	root := &cobra.Command{
		Use:           use,
		Short:         "A sidecarless service mesh: install it, look into it, remove it",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(out)
	root.SetErr(errw)
	p := root.PersistentFlags()
	p.StringVarP(&f.kubeconfig, "kubeconfig", "c", "", "path of the kubeconfig (default: KUBECONFIG, then ~/.kube/config)")
	p.StringVar(&f.context, "context", "", "kubeconfig context")
	p.StringVarP(&f.istioNamespace, "istioNamespace", "i", api.DefaultRootNamespace, "namespace of the control plane")
	p.StringVarP(&f.namespace, "namespace", "n", "", "namespace to look at (default: all; of one pod: default)")
	verbs := []*cobra.Command{
		f.installCommand(), f.uninstallCommand(), f.precheckCommand(), f.versionCommand(), f.podsCommand(),
		f.manifestCommand(), f.profileCommand(), f.meshCommand(), f.caCommand(), f.proxyConfigCommand(), f.validateCommand(), f.analyzeCommand(),
		f.proxyStatusCommand(), f.statsCommand(), f.clustersCommand(), f.drainCommand(),
		f.explainCommand(), f.recordCommand(),
	}
	root.AddCommand(verbs...)
	x := &cobra.Command{Use: "experimental", Aliases: []string{"x"}, Short: "The documents' names for some verbs"}
	x.AddCommand(f.uninstallCommand(), f.precheckCommand())
	root.AddCommand(x)
	for _, c := range root.Commands() {
		helpful(c)
	}
	return root
}

// helpful has a command and those below it say what they were to be called like, and groups of commands refuse what is none of them.
func helpful(c *cobra.Command) {
	for _, sub := range c.Commands() {
		helpful(sub)
	}
	if !c.Runnable() {
		c.Args, c.RunE = cobra.NoArgs, func(c *cobra.Command, _ []string) error { return c.Help() }
		return
	}
	if check := c.Args; check != nil && !c.HasSubCommands() {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return fmt.Errorf("%w: want %s", err, c.UseLine())
			}
			return nil
		}
	}
}

// outputFlag adds -o to a verb that prints an object.
func (f *frame) outputFlag(c *cobra.Command) {
	c.Flags().StringVarP(&f.output, "output", "o", "", "output format: json or yaml (default: a table)")
	c.PreRunE = func(*cobra.Command, []string) error { return f.checkOutput() }
}

// checkOutput refuses a format that print does not know, before anything is asked of a cluster.
func (f *frame) checkOutput() error {
	if !slices.Contains([]string{"", "json", "yaml"}, f.output) {
		return fmt.Errorf("flag -o: %q is not a format (have json, yaml)", f.output)
	}
	return nil
}

// print writes v in the chosen format, or as a table by rows.
func (f *frame) print(v any, rows [][]string) error {
	switch f.output {
	case "json":
		enc := json.NewEncoder(f.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = f.out.Write(b)
		return err
	case "":
		w := tabwriter.NewWriter(f.out, 0, 8, 3, ' ', 0)
		for _, r := range rows {
			fmt.Fprintln(w, strings.Join(r, "\t"))
		}
		return w.Flush()
	}
	return f.checkOutput()
}

// cluster holds the clients of one API server.
type cluster struct {
	rest    *rest.Config
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	mapper  meta.ResettableRESTMapper
	names   metadata.Interface // lists objects without their content
	home    string             // the namespace of the kubeconfig's context; "" for none
}

func (f *frame) connect() (*cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: f.context})
	cfg, err := loader.ClientConfig()
	if err != nil {
		return nil, kubeconfigError(rules, err)
	}
	home, _, err := loader.Namespace()
	if err != nil {
		return nil, kubeconfigError(rules, err)
	}
	cfg.QPS, cfg.Burst, cfg.Timeout = 100, 200, 30*time.Second
	cfg.WarningHandler = rest.NoWarnings{}
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	names, err := metadata.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return &cluster{rest: cfg, kube: kube, dynamic: dyn, names: names, home: home, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(kube.Discovery()))}, nil
}

// kubeconfigError names the files that were looked for: client-go only says that it has no configuration.
func kubeconfigError(rules *clientcmd.ClientConfigLoadingRules, err error) error {
	if !clientcmd.IsEmptyConfig(err) {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	files := slices.Clone(rules.GetLoadingPrecedence())
	for i, name := range files {
		if _, statErr := os.Stat(name); statErr != nil {
			files[i] = statErr.Error() // "stat NAME: why"
			continue
		}
		files[i] = name + ": names no cluster"
	}
	return fmt.Errorf("read kubeconfig: %s (set KUBECONFIG, or use --kubeconfig)", strings.Join(files, "; "))
}
