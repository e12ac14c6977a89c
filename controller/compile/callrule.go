package compile

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// callRule compiles a DestinationRule for its callers' nodes. One that says nothing of TLS goes there too, because it takes
// the place of others.
func (c *Compiler) callRule(n model.Name) ([]Resource, []validate.Finding) {
	rule, exported := c.reg.DestinationRule(n)
	switch {
	case rule == nil:
		return nil, nil
	case rule.Host == "":
		return nil, rule.Findings
	}
	tls := ClientTLS(&rule.Spec)
	if rule.Spec.GetTrafficPolicy() != nil && tls.GetHost() == nil {
		if tls == nil {
			tls = &settings.ClientTlsPolicy{}
		}
		tls.Host = &settings.ClientTls{}
	}
	keep := c.reg.Mesh().Config.GetTcpKeepalive()
	out := &settings.CallRule{Namespace: n.Namespace, Name: n.Name, Host: rule.Host, ExportTo: exported, Selective: len(rule.Selector()) > 0,
		Created: timestamppb.New(rule.CreationTimestamp.Time), Tls: tls, Policies: callPolicies(rule.Spec.GetTrafficPolicy(), keep)}
	named := map[string]bool{}
	for _, s := range rule.Spec.GetSubsets() {
		if s.GetName() == "" || named[s.GetName()] { // of two of one name the first counts
			continue
		}
		named[s.GetName()] = true
		out.Subsets = append(out.Subsets, &settings.Subset{Name: s.GetName(), Labels: s.GetLabels(),
			Policies: callPolicies(s.GetTrafficPolicy(), keep)})
	}
	found := slices.Clone(rule.Findings)
	for _, field := range c.reg.RefusedLabels(rule) {
		found = append(found, validate.Finding{Severity: validate.Warning, Kind: string(model.KindDestinationRule), Namespace: n.Namespace, Name: n.Name,
			Field: field, Message: labelsUsedUp + ": no workload counts as having the label"})
	}
	return []Resource{{Type: api.CallRuleType, Name: n.String(), Message: out}}, found
}

// labelsUsedUp is why a label is not known of workloads.
var labelsUsedUp = fmt.Sprintf("names a label that nodes are not told: older rules use up what the namespace (%d) or the mesh (%d) may ask about",
	model.MostLabelsOf, model.MostLabels)

// callRulesFor names the rules that select the pod.
func (c *Compiler) callRulesFor(p *model.Pod) []string {
	var out []string
	for _, n := range c.reg.RulesSelecting(p.Namespace, p.Labels) {
		out = append(out, n.String())
	}
	return out
}

// refusedCalls says which connections a DestinationRule has nodes refuse, because they cannot do what it asks for: nothing
// is ever sent with less protection than was asked. "" for none, and for other objects. problem says what is wrong with a credential.
func refusedCalls(object metav1.Object, problem func(credential.Ref) string) string {
	rule, ok := object.(*networkingv1.DestinationRule)
	if !ok {
		return ""
	}
	var out []string
	note := func(field string, in *networking.ClientTLSSettings) {
		if why := refusedTLS(rule, clientTLS(in), problem); why != "" {
			out = append(out, field+"."+why)
		}
	}
	level := func(field string, p *networking.TrafficPolicy) {
		note(field+".tls", p.GetTls())
		if p.GetTunnel().GetProtocol() == "POST" {
			out = append(out, field+".tunnel.protocol is POST, by which nodes ask no proxy: use CONNECT")
		}
		for i, p := range p.GetPortLevelSettings() {
			note(fmt.Sprintf("%s.portLevelSettings[%d].tls", field, i), p.GetTls())
		}
	}
	level("spec.trafficPolicy", rule.Spec.GetTrafficPolicy())
	for i, s := range rule.Spec.GetSubsets() {
		level(fmt.Sprintf("spec.subsets[%d].trafficPolicy", i), s.GetTrafficPolicy())
	}
	if len(out) == 0 {
		return ""
	}
	return "connections are refused: " + shorten(out)
}

// refusedTLS begins with the field below tls, "" for none.
func refusedTLS(rule *networkingv1.DestinationRule, tls *settings.ClientTls, problem func(credential.Ref) string) string {
	ref, needed, err := credential.Of(rule.Namespace, tls)
	switch field := credential.File(tls); {
	case field != "":
		return field + " is a file of the workload, which nodes do not read: use credentialName with workloadSelector"
	case !needed:
	case err != nil:
		return "credentialName: " + err.Error()
	case len(rule.Spec.GetWorkloadSelector().GetMatchLabels()) == 0:
		return "credentialName is for the workloads that spec.workloadSelector selects, and there is none"
	case problem(ref) != "":
		return "credentialName: " + problem(ref)
	}
	return ""
}
