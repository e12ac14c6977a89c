package node

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/undermesh/undermesh/test/cluster/build"
	"github.com/undermesh/undermesh/test/cluster/plan"
)

// conflist is the primary CNI: a bridge a node, no masquerading, as pods of other nodes must see the sender's address.
func (c Config) conflist() string {
	var ranges []string
	for _, p := range c.Plan.PodCIDRs(c.Member) {
		ranges = append(ranges, fmt.Sprintf(`[{"subnet": %q}]`, p))
	}
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
      "ipMasq": false,
      "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [%s]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, strings.Join(ranges, ", "))
}

// containerdConfig: AppArmor profiles are not loaded inside a node, and without CAP_SYS_RESOURCE on the machine the out-of-memory
// score cannot be lowered.
func (c Config) containerdConfig() string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = %q

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = %q
        SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
`, containerdSocket, PauseImage, filepath.Join(c.Bin[build.Runc], "runc"))
}

// kubeletConfig: eviction by disk is off, as the machine's disk is not the cluster's to judge.
func (c Config) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /
failSwapOn: false
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %q}
authorization: {mode: Webhook}
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: /etc/kubelet-resolv.conf
containerRuntimeEndpoint: unix://%s
evictionHard:
  memory.available: 50Mi
  nodefs.available: "0%%"
  nodefs.inodesFree: "0%%"
  imagefs.available: "0%%"
  imagefs.inodesFree: "0%%"
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 4s
`, filepath.Join(c.Plan.PKIDir(), "ca.crt"), plan.DNSServiceIP, containerdSocket)
}

func (c Config) proxyConfig() string {
	cidrs := join(c.Plan.ClusterCIDRs(), func(p netip.Prefix) netip.Prefix { return p })
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clientConnection: {kubeconfig: %q}
clusterCIDR: %q
hostnameOverride: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, c.Plan.Proxy, filepath.Join(c.Plan.PKIDir(), "kube-proxy.kubeconfig"), cidrs, plan.MemberName(c.Member))
}
