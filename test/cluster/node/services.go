package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/undermesh/undermesh/test/cluster/build"
	"github.com/undermesh/undermesh/test/cluster/kube"
	"github.com/undermesh/undermesh/test/cluster/plan"
)

// PauseImage is the image that holds a pod's namespaces.
const PauseImage = "registry.k8s.io/pause:3.10"

const containerdSocket = "/run/containerd/containerd.sock"

// files writes what the daemons read, and sets the member's own network settings.
func (c Config) files() error {
	if c.Member == 0 {
		return nil
	}
	settings := map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0",
		"net/bridge/bridge-nf-call-iptables": "1",
	}
	if c.Plan.Dual() {
		settings["net/ipv6/conf/all/forwarding"] = "1"
		settings["net/bridge/bridge-nf-call-ip6tables"] = "1"
	}
	for name, value := range settings {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s: %w", strings.ReplaceAll(name, "/", "."), err)
		}
	}
	for _, p := range []string{"bridge", "host-local", "loopback", "portmap"} {
		b, err := os.ReadFile(filepath.Join(c.Bin[build.CNI], p))
		if err == nil {
			err = os.WriteFile(filepath.Join("/opt/cni/bin", p), b, 0o755)
		}
		if err != nil {
			return fmt.Errorf("install CNI plugin %s: %w", p, err)
		}
	}
	for file, text := range map[string]string{
		"/etc/cni/net.d/10-pods.conflist": c.conflist(),
		"/etc/containerd/config.toml":     c.containerdConfig(),
		"/etc/kubelet.yaml":               c.kubeletConfig(),
		"/etc/kube-proxy.yaml":            c.proxyConfig(),
		"/etc/kubelet-resolv.conf":        "nameserver 127.0.0.1\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
	}
	return nil
}

// env is the environment of the daemons: containerd finds its shim by PATH.
func (c Config) env() []string {
	return []string{"PATH=" + c.Bin[build.Containerd] + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
}

func (c Config) services() []service {
	if c.Member == 0 {
		return c.controlPlane()
	}
	bin := func(component, name string) string { return filepath.Join(c.Bin[component], name) }
	kubeall := bin(build.Kubernetes, "kubeall")
	pki := c.Plan.PKIDir()
	name := plan.MemberName(c.Member)
	out := []service{
		{name: "containerd", args: []string{bin(build.Containerd, "containerd"), "--config", "/etc/containerd/config.toml"},
			ready: c.containerdAnswers, once: c.importEarly},
		{name: "kubelet", args: []string{kubeall, "kubelet", "--config=/etc/kubelet.yaml",
			"--kubeconfig=" + filepath.Join(pki, name+".kubeconfig"), "--hostname-override=" + name,
			"--node-ip=" + join(c.Plan.MemberAddrs(c.Member), netip.Prefix.Addr), "--root-dir=/var/lib/kubelet",
			"--cert-dir=/var/lib/kubelet/pki", "--v=2"}},
		{name: "kube-proxy", args: []string{kubeall, "kube-proxy", "--config=/etc/kube-proxy.yaml", "--v=2"}},
	}
	if c.Netpol {
		out = append(out, service{name: "netpol", args: []string{bin(build.Netpol, "netpol"), "-node", name,
			"-kubeconfig", filepath.Join(pki, "netpol.kubeconfig")}})
	}
	for i := range out {
		out[i].env = c.env()
	}
	return out
}

// join writes f of every prefix, separated by commas.
func join[T fmt.Stringer](ps []netip.Prefix, f func(netip.Prefix) T) string {
	s := make([]string, 0, len(ps))
	for _, p := range ps {
		s = append(s, f(p).String())
	}
	return strings.Join(s, ",")
}

func (c Config) controlPlane() []service {
	kubeall := filepath.Join(c.Bin[build.Kubernetes], "kubeall")
	pki := func(f string) string { return filepath.Join(c.Plan.PKIDir(), f) }
	ip := c.Plan.MemberAddrs(0)[0].Addr().String()
	kubeconfigs := func(who string) []string {
		k := pki(who + ".kubeconfig")
		return []string{"--kubeconfig=" + k, "--authentication-kubeconfig=" + k, "--authorization-kubeconfig=" + k,
			"--leader-elect=false", "--bind-address=127.0.0.1", "--v=1"}
	}
	out := []service{
		{name: "etcd", args: []string{kubeall, "etcd", "--data-dir", filepath.Join(c.Plan.MemberDir(0), "etcd"),
			"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
			"--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level", "warn"}},
		{name: "apiserver", args: []string{kubeall, "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + ip, "--bind-address=0.0.0.0", "--secure-port=6443",
			"--service-cluster-ip-range=" + join(c.Plan.ServiceCIDRs(), func(p netip.Prefix) netip.Prefix { return p }),
			"--authorization-mode=Node,RBAC", "--allow-privileged=true", "--enable-admission-plugins=NodeRestriction",
			"--enable-aggregator-routing=true", "--endpoint-reconciler-type=lease",
			"--client-ca-file=" + pki("ca.crt"), "--tls-cert-file=" + pki("apiserver.crt"),
			"--tls-private-key-file=" + pki("apiserver.key"),
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
			"--kubelet-client-certificate=" + pki("kubelet-client.crt"), "--kubelet-client-key=" + pki("kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--requestheader-client-ca-file=" + pki("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-username-headers=X-Remote-User", "--proxy-client-cert-file=" + pki("front-proxy.crt"),
			"--proxy-client-key-file=" + pki("front-proxy.key"), "--v=1"}},
		{name: "controller-manager", args: append([]string{kubeall, "kube-controller-manager",
			"--root-ca-file=" + pki("ca.crt"), "--service-account-private-key-file=" + pki("sa.key"),
			"--use-service-account-credentials=true", "--cluster-signing-cert-file=" + pki("ca.crt"),
			"--cluster-signing-key-file=" + pki("ca.key"), "--allocate-node-cidrs=false",
			// Its dozens of controllers each fetch a token at the start, which the default of 20 requests a second draws out.
			"--kube-api-qps=500", "--kube-api-burst=1000"},
			kubeconfigs("controller-manager")...)},
		{name: "scheduler", args: append([]string{kubeall, "kube-scheduler"}, kubeconfigs("scheduler")...)},
	}
	out[1].ready = func(ctx context.Context, _ *supervisor) error {
		client, err := kube.New(c.Plan)
		if err != nil {
			return err
		}
		return client.Ready(ctx)
	}
	for i := range out {
		out[i].env = c.env()
	}
	return out
}

// containerdAnswers is checked before kubelet starts: it ends at once when its runtime does not answer.
func (c Config) containerdAnswers(ctx context.Context, s *supervisor) error {
	if _, err := os.Stat(containerdSocket); err != nil {
		return fmt.Errorf("find socket of containerd: %w", err)
	}
	return c.ctr(ctx, s, "version")
}

func (c Config) importEarly(ctx context.Context, s *supervisor) error {
	for _, f := range c.EarlyImages {
		if err := c.ctr(ctx, s, "-n", "k8s.io", "images", "import", f); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) ctr(ctx context.Context, s *supervisor, args ...string) error {
	args = append([]string{filepath.Join(c.Bin[build.Containerd], "ctr")}, args...)
	status, err := s.runOnce(ctx, "ctr", args, c.env())
	if err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		return fmt.Errorf("run %v: exit status %d, see %s", args, status.ExitStatus(), c.Plan.LogFile(c.Member, "ctr"))
	}
	return nil
}
