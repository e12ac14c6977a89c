// Package plan derives everything that a test cluster is called and addressed by from its name, its options and one
// small number, so that several clusters live on one machine without meeting. It does no I/O apart from making paths.
package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
)

// Proxy modes and address families that a cluster can have.
const (
	ProxyNFTables = "nftables"
	ProxyIPTables = "iptables"
	FamilyIPv4    = "ipv4"
	FamilyDual    = "dual"
)

// DefaultName is the cluster that commands mean when no name is given.
const DefaultName = "undermesh"

// MaxIndex is the highest number that tells clusters of one machine apart.
const MaxIndex = 15

// maxNodes bounds the nodes of one cluster: their addresses lie in one /24 from .11 on.
const maxNodes = 99

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// Options are what the user chooses.
type Options struct {
	// Name of the cluster, default "undermesh".
	Name string `json:"name"`
	// Nodes is the number of nodes beside the control plane, default 2.
	Nodes int `json:"nodes"`
	// Proxy is kube-proxy's mode: nftables (default) or iptables.
	Proxy string `json:"proxy"`
	// Family is ipv4 (default) or dual (IPv4 first, then IPv6).
	Family string `json:"family"`
}

// WithDefaults returns o with empty fields filled in.
func (o Options) WithDefaults() Options {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Proxy == "" {
		o.Proxy = ProxyNFTables
	}
	if o.Family == "" {
		o.Family = FamilyIPv4
	}
	return o
}

// Validate says which option has a value that no cluster can have.
func (o Options) Validate() error {
	switch {
	case !validName.MatchString(o.Name):
		return fmt.Errorf("check option name: %q is not a lower-case DNS label of at most 32 characters", o.Name)
	case o.Nodes < 1 || o.Nodes > maxNodes:
		return fmt.Errorf("check option nodes: %d is not within 1 to %d", o.Nodes, maxNodes)
	case o.Proxy != ProxyNFTables && o.Proxy != ProxyIPTables:
		return fmt.Errorf("check option proxy: %q is neither %s nor %s", o.Proxy, ProxyNFTables, ProxyIPTables)
	case o.Family != FamilyIPv4 && o.Family != FamilyDual:
		return fmt.Errorf("check option family: %q is neither %s nor %s", o.Family, FamilyIPv4, FamilyDual)
	}
	return nil
}

// Plan is one cluster: options, where its files lie and which number it drew. It is what the state file holds.
type Plan struct {
	Options
	// Root is the repository that started the cluster; binaries and images come from its cache.
	Root string `json:"root"`
	// Index tells the clusters of this machine apart, 0 to MaxIndex; addresses derive from it.
	Index int `json:"index"`
}

// Dual tells whether the cluster has IPv6 beside IPv4.
func (p Plan) Dual() bool { return p.Family == FamilyDual }

// CacheDir is where this repository keeps what clusters share.
func (p Plan) CacheDir() string { return filepath.Join(p.Root, ".cache", "cluster") }

// StateDir holds everything that belongs to this cluster alone; `down` removes it.
func (p Plan) StateDir() string { return filepath.Join(p.CacheDir(), p.Name) }

// Kubeconfig is the administrator's kubeconfig: at a fixed place for the default cluster, beside its state for others.
func (p Plan) Kubeconfig() string {
	if p.Name == DefaultName {
		return filepath.Join(p.CacheDir(), "kubeconfig")
	}
	return filepath.Join(p.StateDir(), "kubeconfig")
}

// PKIDir holds certificates, keys and the components' kubeconfigs.
func (p Plan) PKIDir() string { return filepath.Join(p.StateDir(), "pki") }

// MemberName is what member n calls itself: 0 is the control plane, from 1 on the nodes.
func MemberName(n int) string {
	if n == 0 {
		return "control"
	}
	return fmt.Sprintf("node%d", n)
}

// MemberDir holds the files of member n.
func (p Plan) MemberDir(n int) string { return filepath.Join(p.StateDir(), MemberName(n)) }

// LogFile is where the component of member n writes to.
func (p Plan) LogFile(n int, component string) string {
	return filepath.Join(p.MemberDir(n), component+".log")
}

// CgroupName is the directory of the cluster at the top of each cgroup hierarchy.
func (p Plan) CgroupName() string { return "cluster-" + p.Name }

// HostLink is the name of the one link that the cluster has in the machine's own network namespace; at most 15 bytes.
func (p Plan) HostLink() string {
	const prefix, limit = "uc-", 15
	if len(prefix)+len(p.Name) <= limit {
		return prefix + p.Name
	}
	h := sha256.Sum256([]byte(p.Name))
	return prefix + p.Name[:5] + "-" + hex.EncodeToString(h[:3])
}

// HostAddrs are the addresses of the machine on the nodes' network, one for each family.
func (p Plan) HostAddrs() []netip.Prefix { return p.addrs(1) }

// MemberAddrs are the addresses of member n on the nodes' network, IPv4 first.
func (p Plan) MemberAddrs(n int) []netip.Prefix {
	if n == 0 {
		return p.addrs(2)
	}
	return p.addrs(10 + n)
}

func (p Plan) addrs(host int) []netip.Prefix {
	out := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("172.30.%d.%d/24", p.Index, host))}
	if p.Dual() {
		// The decimal digits are written as the last group, so that .11 and ::11 are the same node.
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd30:0:0:%x::%d/64", p.Index, host)))
	}
	return out
}

// PodCIDRs are the pod ranges of node n, IPv4 first.
func (p Plan) PodCIDRs(n int) []netip.Prefix {
	out := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", 244-p.Index, n))}
	if p.Dual() {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd30:244:%x:%x::/64", p.Index, n)))
	}
	return out
}

// ClusterCIDRs are the ranges that hold the pod ranges of all nodes.
func (p Plan) ClusterCIDRs() []netip.Prefix {
	out := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 244-p.Index))}
	if p.Dual() {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd30:244:%x::/48", p.Index)))
	}
	return out
}

// ServiceCIDRs are the ranges of ClusterIPs. They exist only inside nodes, so every cluster has the same.
func (p Plan) ServiceCIDRs() []netip.Prefix {
	out := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	if p.Dual() {
		out = append(out, netip.MustParsePrefix("fd30:96::/112"))
	}
	return out
}

// APIServiceIP is the ClusterIP of the Service kubernetes.
const APIServiceIP = "10.96.0.1"

// DNSServiceIP is the ClusterIP of the cluster's DNS.
const DNSServiceIP = "10.96.0.10"

// APIServer is the URL of the API server on the nodes' network.
func (p Plan) APIServer() string {
	return fmt.Sprintf("https://%s:6443", p.MemberAddrs(0)[0].Addr())
}

// Members are the numbers of all members, control plane first.
func (p Plan) Members() []int {
	out := make([]int, 0, p.Nodes+1)
	for n := 0; n <= p.Nodes; n++ {
		out = append(out, n)
	}
	return out
}
