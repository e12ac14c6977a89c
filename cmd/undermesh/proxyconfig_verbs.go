package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// shown is what one verb prints: the object of -o json and yaml, and the rows of the table.
type shown struct {
	object any
	rows   [][]string
}

// podPage makes the page of a pod of what the control plane serves; keep says which lines the flags ask for.
type podPage func(m *servedMesh, v sight, keep func(field, value string) bool) (shown, error)

// proxyConfigViews are the verbs that show what is served.
func (f *frame) proxyConfigViews() []*cobra.Command {
	return []*cobra.Command{
		f.podView("cluster", []string{"clusters", "c"}, "Show the clusters that a pod may call", clusterPage, "fqdn", "port", "subset", "direction"),
		f.podView("route", []string{"routes", "r"}, "Show the routes that a pod's HTTP calls go by", routePage, "name"),
		f.podView("listener", []string{"listeners", "l"}, "Show where a pod's connections go by their destination", listenerPage, "port", "address"),
		f.podView("endpoint", []string{"endpoints", "ep"}, "Show the endpoints behind the services that a pod may call", endpointPage, "cluster", "status", "address", "port"),
		f.podView("tls", nil, "Show how a pod's connections to services are secured (DestinationRule)", tlsPage, "fqdn", "port"),
		f.podView("scope", nil, "Show what a pod sees of the mesh (Sidecar)", scopePage),
		f.podView("all", []string{"a"}, "Show clusters, listeners, routes, endpoints, TLS and scope of a pod", allPage),
		f.nodeView("workload", []string{"workloads", "w"}, "workloads", workloadPage),
		f.nodeView("service", []string{"services", "svc"}, "services", servicePage),
		f.nodeView("policy", []string{"policies", "p"}, "policies", policyPage),
	}
}

func (f *frame) viewOutput(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "output format: json, yaml or short (default: short, a table)")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		switch f.output {
		case "short":
			f.output = ""
		case "", "json", "yaml":
		default:
			return fmt.Errorf("flag -o: %q is not a format (have json, yaml, short)", f.output)
		}
		return nil
	}
}

func (f *frame) podView(name string, aliases []string, short string, show podPage, filters ...string) *cobra.Command {
	cmd := &cobra.Command{
		Use: name + " POD[.NAMESPACE]", Aliases: aliases, Short: short, Args: cobra.ExactArgs(1),
		Long: short + `.

It is composed of what the control plane serves at this moment, and read by port-forward to one of its pods, which needs that
right in its namespace.`,
	}
	values := map[string]*string{}
	for _, name := range filters {
		values[name] = cmd.Flags().String(name, "", "show only what has this "+name)
	}
	keep := func(field, value string) bool {
		want := values[field]
		return want == nil || *want == "" || strings.EqualFold(*want, value)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := f.connect()
		if err != nil {
			return err
		}
		pod, err := c.podOf(cmd.Context(), args[0], f.namespace)
		if err != nil {
			return err
		}
		m, err := c.served(cmd.Context(), f.istioNamespace)
		if err != nil {
			return err
		}
		v, err := m.sightOf(pod.Namespace, pod.Name)
		if err != nil {
			return err
		}
		if pod.Annotations[api.AnnotationRedirection] != api.RedirectionEnabled {
			fmt.Fprintf(f.err, "Warning: pod %s/%s is not in the mesh: nothing of this is applied to it\n", pod.Namespace, pod.Name)
		}
		p, err := show(m, v, keep)
		if err != nil {
			return err
		}
		return f.print(p.object, p.rows)
	}
	f.viewOutput(cmd)
	return cmd
}

// nodeView shows what the ztunnel of a pod's node holds, or without a pod what the control plane serves.
func (f *frame) nodeView(name string, aliases []string, what string, show func(m *servedMesh, namespace string) (shown, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use: name + " [POD[.NAMESPACE]]", Aliases: aliases, Args: cobra.MaximumNArgs(1),
		Short: "Show the " + what + " that a pod's node holds, or that the control plane serves",
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := f.connect()
		if err != nil {
			return err
		}
		var m *servedMesh
		namespace := f.namespace
		if len(args) == 0 {
			m, err = c.served(cmd.Context(), f.istioNamespace)
		} else {
			var pod *corev1.Pod
			if pod, err = c.podOf(cmd.Context(), args[0], f.namespace); err != nil {
				return err
			}
			namespace = "" // it said where the pod is
			m, err = c.heldOn(cmd.Context(), f.istioNamespace, pod.Spec.NodeName)
		}
		if err != nil {
			return err
		}
		p, err := show(m, namespace)
		if err != nil {
			return err
		}
		return f.print(p.object, p.rows)
	}
	f.viewOutput(cmd)
	return cmd
}

// podOf finds the pod of POD, POD.NAMESPACE, pod/POD or deployment/NAME.
func (c *cluster) podOf(ctx context.Context, arg, namespace string) (*corev1.Pod, error) {
	kind, rest, typed := strings.Cut(arg, "/")
	if typed && slices.Contains([]string{"deployment", "deployments", "deploy"}, kind) {
		name, ns := podArgument(rest, namespace)
		return c.podOfDeployment(ctx, ns, name)
	}
	name, ns := podArgument(arg, namespace)
	if strings.Contains(name, "/") {
		return nil, fmt.Errorf("%s: want POD, POD.NAMESPACE or deployment/NAME", arg)
	}
	pod, err := c.kube.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read pod %s/%s: %w", ns, name, err)
	}
	return pod, nil
}

func (c *cluster) podOfDeployment(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	d, err := c.kube.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read deployment %s/%s: %w", namespace, name, err)
	}
	pods, err := c.running(ctx, namespace, metav1.FormatLabelSelector(d.Spec.Selector), "")
	if err != nil {
		return nil, fmt.Errorf("find pod of deployment %s: %w", name, err)
	}
	return &pods[0], nil
}

// asJSON are messages in the JSON of protobuf.
func asJSON[M proto.Message](all []M) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(all))
	for _, m := range all {
		text, err := protojson.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
		}
		out = append(out, text)
	}
	return out, nil
}

func clusterPage(m *servedMesh, v sight, keep func(string, string) bool) (shown, error) {
	all := slices.DeleteFunc(clustersOf(v), func(c *clusterv3.Cluster) bool {
		part := strings.Split(c.GetName(), "|")
		if len(part) != 4 {
			part = []string{"", "", "", c.GetName()}
		}
		return !keep("direction", part[0]) || !keep("port", part[1]) || !keep("subset", part[2]) || !keep("fqdn", part[3])
	})
	object, err := asJSON(all)
	return shown{object, clusterRows(all)}, err
}

func routePage(m *servedMesh, v sight, keep func(string, string) bool) (shown, error) {
	all := slices.DeleteFunc(v.RouteConfigs(), func(rc *route.RouteConfiguration) bool { return !keep("name", rc.GetName()) })
	object, err := asJSON(all)
	return shown{object, routeRows(all)}, err
}

func listenerPage(m *servedMesh, v sight, keep func(string, string) bool) (shown, error) {
	all := slices.DeleteFunc(listenersOf(v), func(l listenerState) bool {
		return !keep("port", strconv.Itoa(int(l.Port))) || !keep("address", l.Address)
	})
	return shown{all, listenerRows(all)}, nil
}

func endpointPage(m *servedMesh, v sight, keep func(string, string) bool) (shown, error) {
	all := slices.DeleteFunc(endpointsOf(v), func(e endpointState) bool {
		i := strings.LastIndexByte(e.Endpoint, ':')
		return !keep("cluster", e.Cluster) || !keep("status", e.Status) || !keep("address", e.Endpoint[:i]) || !keep("port", e.Endpoint[i+1:])
	})
	return shown{all, endpointRows(all)}, nil
}

func tlsPage(m *servedMesh, v sight, keep func(string, string) bool) (shown, error) {
	all := slices.DeleteFunc(tlsOf(v), func(c callTLS) bool { return !keep("fqdn", c.Service) || !keep("port", strconv.Itoa(int(c.Port))) })
	return shown{all, tlsRows(all)}, nil
}

func scopePage(m *servedMesh, v sight, _ func(string, string) bool) (shown, error) {
	text, err := protojson.Marshal(v.View.Scope)
	if err != nil {
		return shown{}, fmt.Errorf("encode scope: %w", err)
	}
	return shown{map[string]any{"namespace": v.View.Namespace, "scope": json.RawMessage(text), "outboundPolicy": v.View.OutboundPolicy(m.mesh).String()},
		scopeRows(v.View.Scope, cmp.Or(v.View.EgressProxy(), v.View.OutboundPolicy(m.mesh).String()))}, nil
}

// allPage has the others under their names; in the table an empty line is between two.
func allPage(m *servedMesh, v sight, keep func(string, string) bool) (shown, error) {
	out := shown{}
	object := map[string]any{}
	for _, part := range []struct {
		name string
		show podPage
	}{{"clusters", clusterPage}, {"listeners", listenerPage}, {"routes", routePage}, {"endpoints", endpointPage}, {"tls", tlsPage}, {"scope", scopePage}} {
		p, err := part.show(m, v, keep)
		if err != nil {
			return shown{}, err
		}
		object[part.name] = p.object
		if len(out.rows) > 0 {
			out.rows = append(out.rows, nil)
		}
		out.rows = append(out.rows, p.rows...)
	}
	out.object = object
	return out, nil
}

func workloadPage(m *servedMesh, namespace string) (shown, error) {
	all := slices.DeleteFunc(slices.Clone(m.workloads), func(w *workloadapi.Workload) bool { return namespace != "" && w.GetNamespace() != namespace })
	object, err := asJSON(all)
	return shown{object, workloadRows(all)}, err
}

func servicePage(m *servedMesh, namespace string) (shown, error) {
	all := slices.DeleteFunc(slices.Clone(m.services), func(s servedService) bool { return namespace != "" && s.GetNamespace() != namespace })
	messages := make([]*workloadapi.Service, len(all))
	for i, s := range all {
		messages[i] = s.Service
	}
	object, err := asJSON(messages)
	return shown{object, serviceRows(m, all)}, err
}

func policyPage(m *servedMesh, namespace string) (shown, error) {
	all := slices.DeleteFunc(slices.Clone(m.policies), func(p *securityapi.Authorization) bool { return namespace != "" && p.GetNamespace() != namespace })
	object, err := asJSON(all)
	return shown{object, policyRows(all)}, err
}
