package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/controller/xds"
)

// maxSyncz bounds what is read of one replica: a client has about 2 KB.
const maxSyncz = 64 << 20

// none stands in a column that has nothing to say, so that the columns after it keep their numbers.
const none = "<none>"

// proxyLine is one line of "undermesh proxy-status": a proxy of a node, or a workload that one serves.
type proxyLine struct {
	Name    string                    `json:"name"` // POD.NAMESPACE
	Cluster string                    `json:"cluster"`
	Node    string                    `json:"node"`
	Via     string                    `json:"via,omitempty"` // the node's proxy, for a workload
	Types   map[string]xds.TypeStatus `json:"types"`         // by type URL
	States  map[string]string         `json:"states"`        // the same in a word
	Istiod  string                    `json:"istiod"`        // the replica that it is connected to
	Version string                    `json:"version"`       // of that replica
}

// proxyTypes are the columns between the second and the seventh.
var proxyTypes = []struct{ title, typ string }{
	{"MESH", api.MeshSettingsType}, {"SETTINGS", api.WorkloadSettingsType}, {"POLICIES", api.AuthorizationType},
	{"ADDRESSES", api.AddressType},
}

func (f *frame) proxyStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "proxy-status [POD[.NAMESPACE]]",
		Aliases: []string{"ps"},
		Short:   "Say whether every proxy has what the control plane sent (IN-14)",
		Long: `Say whether every proxy has what the control plane sent.

One line for each node's proxy and node agent that is connected, and for each workload, which has what its node's proxy
has. A column of a type says SYNCED; STALE: sent and not acknowledged yet; REJECTED: refused, the reason is printed below;
NOT-SENT: not asked for. ISTIOD is the pod of the control plane that the proxy follows; the lines of all replicas are
merged. It is read by port-forward to the control plane's pods, which needs that right in their namespace.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.proxyStatus(cmd.Context(), strings.Join(args, ""))
		},
	}
	f.outputFlag(cmd)
	return cmd
}

func (f *frame) proxyStatus(ctx context.Context, wanted string) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	replicas, err := c.syncStatuses(ctx, f.istioNamespace)
	if replicas == nil && err != nil {
		return err
	}
	if err != nil {
		fmt.Fprintf(f.err, "Warning: lines of a replica are missing: %v\n", err)
	}
	pods, err := c.kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	lines := slices.DeleteFunc(proxyLines(replicas, pods.Items), func(l proxyLine) bool { return !l.matches(wanted, f.namespace) })
	if len(lines) == 0 && wanted != "" {
		return fmt.Errorf("%s: no proxy and no workload of the mesh has this name", wanted)
	}
	if err := f.print(lines, proxyRows(lines)); err != nil {
		return err
	}
	if f.output == "" {
		for _, l := range lines {
			for _, why := range l.refusals() {
				fmt.Fprintln(f.err, why)
			}
		}
	}
	return nil
}

// syncStatuses asks all replicas of the control plane. It returns those that answered, and an error that names the others.
func (c *cluster) syncStatuses(ctx context.Context, namespace string) ([]server.SyncStatus, error) {
	pods, err := c.controllers(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var out []server.SyncStatus
	var failed []error
	for _, p := range pods {
		raw, err := c.ask(ctx, p.Namespace, p.Name, api.PortDebug, server.SyncPath, maxSyncz)
		var s server.SyncStatus
		if err == nil {
			err = json.Unmarshal(raw, &s)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		s.Replica = p.Name
		out = append(out, s)
	}
	return out, errors.Join(failed...)
}

// proxyLines merges what the replicas say and adds the workloads of each node, sorted by name.
func proxyLines(replicas []server.SyncStatus, pods []corev1.Pod) []proxyLine {
	type seat struct{ name, node string } // the server sees to it that the node is true: none hides the line of another one
	newest, byName := map[seat]xds.ClientStatus{}, map[seat]proxyLine{}
	proxies := map[string]proxyLine{} // of nodes
	for _, r := range replicas {
		for _, c := range r.Clients {
			name, kind := clientName(c.ID)
			if c.Pod != "" && name != "" {
				name = c.Pod // what the token proves, whatever the client says of itself
			}
			key := seat{name, c.NodeName}
			if c.ID == "" || name == "" || newest[key].Connected.After(c.Connected) {
				continue // a proxy that moved to another replica is there twice until the old stream ends
			}
			newest[key] = c
			l := proxyLine{Name: name, Cluster: c.ClusterID, Node: c.NodeName, Types: c.Types, States: states(c.Types), Istiod: r.Replica, Version: r.Version}
			byName[key] = l
			if old, ok := proxies[c.NodeName]; kind == api.ZtunnelName && (!ok || !newest[seat{old.Name, c.NodeName}].Connected.After(c.Connected)) {
				proxies[c.NodeName] = l
			}
		}
	}
	lines := make([]proxyLine, 0, len(byName)+len(pods))
	for _, l := range byName {
		lines = append(lines, l)
	}
	for i := range pods {
		p := &pods[i]
		if p.Annotations[api.AnnotationRedirection] != api.RedirectionEnabled || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		l := proxyLine{Name: p.Name + "." + p.Namespace, Node: p.Spec.NodeName, States: states(nil)}
		if via, ok := proxies[p.Spec.NodeName]; ok {
			l.Cluster, l.Types, l.States, l.Istiod, l.Version, l.Via = via.Cluster, via.Types, via.States, via.Istiod, via.Version, via.Name
		}
		lines = append(lines, l)
	}
	slices.SortFunc(lines, func(a, b proxyLine) int { return strings.Compare(a.Name, b.Name) })
	return lines
}

// clientName reads "KIND~IP~POD.NAMESPACE~DOMAIN".
func clientName(id string) (name, kind string) {
	parts := strings.Split(id, "~")
	if len(parts) != 4 {
		return id, ""
	}
	return parts[2], parts[0]
}

func states(types map[string]xds.TypeStatus) map[string]string {
	out := map[string]string{}
	for _, t := range proxyTypes {
		out[t.typ] = types[t.typ].State()
	}
	for typ, t := range types {
		out[typ] = t.State()
	}
	return out
}

// matches: POD or POD.NAMESPACE, and the flag's namespace.
func (l proxyLine) matches(wanted, namespace string) bool {
	pod, ns, _ := strings.Cut(l.Name, ".")
	return (wanted == "" || wanted == l.Name || wanted == pod) && (namespace == "" || namespace == ns)
}

// refusals are said once, by the proxy's own line.
func (l proxyLine) refusals() (out []string) {
	if l.Via != "" {
		return nil
	}
	for typ, t := range l.Types {
		if t.State() == xds.Rejected {
			out = append(out, plain(fmt.Sprintf("%s refused %s: %s", l.Name, typ, t.LastError)))
		}
	}
	slices.Sort(out)
	return out
}

// plain has no control characters: what a node says of itself is printed on the terminal of an administrator.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, text)
}

// proxyRows is the table. Every cell is one word: the documents' commands count columns.
func proxyRows(lines []proxyLine) [][]string {
	head := []string{"NAME", "CLUSTER"}
	for _, t := range proxyTypes {
		head = append(head, t.title)
	}
	rows := [][]string{append(head, "ISTIOD", "VERSION")}
	for _, l := range lines {
		row := []string{l.Name, l.Cluster}
		for _, t := range proxyTypes {
			row = append(row, l.States[t.typ])
		}
		row = append(row, l.Istiod, l.Version)
		for i := range row {
			if row[i] = strings.Join(strings.Fields(plain(row[i])), "_"); row[i] == "" {
				row[i] = none
			}
		}
		rows = append(rows, row)
	}
	return rows
}
