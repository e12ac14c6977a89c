package compile

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// meshGateway is the name under which rules are for the calls of workloads.
const meshGateway = "mesh"

// routeRule compiles a VirtualService for its callers' nodes. One that is for gateways alone, or that is a delegate, compiles to
// nothing by itself.
func (c *Compiler) routeRule(n model.Name) ([]Resource, []validate.Finding) {
	v := c.reg.VirtualService(n)
	if v == nil {
		return nil, nil
	}
	found := slices.Clone(v.Findings)
	hosts := slices.DeleteFunc(slices.Clone(v.Hosts), func(h string) bool { return h == "" || h == "*" }) // "*" was found to be wrong
	if !v.Mesh || len(hosts) == 0 {
		return nil, found
	}
	out := &settings.RouteRule{Namespace: n.Namespace, Name: n.Name, Hosts: hosts, ExportTo: c.reg.VirtualExportTo(v),
		Created: timestamppb.New(v.CreationTimestamp.Time)}
	t := routeTranslator{c: c, rule: v}
	for i, r := range v.Spec.GetHttp() {
		t.http(r, fmt.Sprintf("spec.http[%d]", i))
	}
	for i, r := range v.Spec.GetTcp() {
		t.tcp(r, fmt.Sprintf("spec.tcp[%d]", i))
	}
	for i, r := range v.Spec.GetTls() {
		t.tls(r, fmt.Sprintf("spec.tls[%d]", i))
	}
	found = append(found, t.found...)
	if why := firstError(found); why != "" {
		out.Error = why
	} else {
		out.Http, out.Tcp, out.Tls = t.out.Http, t.out.Tcp, t.out.Tls
	}
	return []Resource{{Type: api.RouteRuleType, Name: n.String(), Message: out}}, found
}

func firstError(found []validate.Finding) string {
	for _, f := range found {
		if f.Severity == validate.Error {
			return f.Field + ": " + f.Message
		}
	}
	return ""
}

// routeTranslator turns the rules of one VirtualService into those of nodes.
type routeTranslator struct {
	c     *Compiler
	rule  *model.VirtualService
	out   settings.RouteRule
	found []validate.Finding
	bytes int  // of out.Http
	pairs int  // bytes of the conditions that were put together for delegates
	over  bool // it is more than nodes get; that was found
}

// Bounds of one VirtualService. Each condition of a rule becomes a rule of nodes with all that it does, and conditions before a
// delegate are paired with the delegate's, so that a small object could become larger than any memory.
const (
	maxRuleBytes = 4 << 20
	maxPairBytes = 64 << 20
)

// within reports whether the rules are no more than nodes get; those that are say so once, and are not carried out.
func (t *routeTranslator) within(at string) bool {
	if t.over || t.bytes <= maxRuleBytes && t.pairs <= maxPairBytes {
		return !t.over
	}
	t.over = true
	t.add(validate.Error, at, "the rules are too much with this one: one for each condition, they have more than %d MiB", maxRuleBytes>>20)
	return false
}

func (t *routeTranslator) add(s validate.Severity, field, format string, args ...any) {
	t.found = append(t.found, validate.Finding{Severity: s, Kind: string(model.KindVirtualService), Namespace: t.rule.Namespace,
		Name: t.rule.VirtualService.Name, Field: field, Message: fmt.Sprintf(format, args...)})
}

// inMesh reports whether a condition on gateways lets calls of workloads through.
func inMesh(gateways []string) bool {
	return len(gateways) == 0 || slices.Contains(gateways, meshGateway)
}

// destination names the cluster of one as seen from a namespace; the port stays open when the rule leaves it open.
func (c *Compiler) destination(d *networking.Destination, namespace string) string {
	port, host := "", c.reg.Resolve(d.GetHost(), namespace)
	if n := d.GetPort().GetNumber(); n != 0 {
		port = fmt.Sprint(n)
	}
	return "outbound|" + port + "|" + d.GetSubset() + "|" + host
}

func callerMatch(labels map[string]string, namespace string, port uint32) *settings.CallerMatch {
	if len(labels) == 0 && namespace == "" && port == 0 {
		return nil
	}
	return &settings.CallerMatch{Labels: labels, Namespace: namespace, Port: port}
}

func (t *routeTranslator) tcp(in *networking.TCPRoute, at string) {
	out, refused := &settings.StreamRule{Destinations: t.destinations(in.GetRoute())}, &settings.StreamRule{}
	for i, m := range in.GetMatch() {
		if !inMesh(m.GetGateways()) {
			continue
		}
		at := fmt.Sprintf("%s.match[%d]", at, i)
		match := t.stream(m.GetDestinationSubnets(), at)
		to := t.caller(match, m, at, out, refused)
		if m.GetSourceSubnet() != "" {
			match.SourceSubnet = t.subnet(m.GetSourceSubnet(), at+".sourceSubnet")
		}
		to.Matches = append(to.Matches, match)
	}
	if len(refused.GetMatches()) > 0 {
		t.out.Tcp = append(t.out.Tcp, refused)
	}
	if len(out.GetMatches()) > 0 || len(in.GetMatch()) == 0 {
		t.out.Tcp = append(t.out.Tcp, out)
	}
}

func (t *routeTranslator) tls(in *networking.TLSRoute, at string) {
	out, refused := &settings.StreamRule{Destinations: t.destinations(in.GetRoute())}, &settings.StreamRule{}
	for i, m := range in.GetMatch() {
		if !inMesh(m.GetGateways()) {
			continue
		}
		at := fmt.Sprintf("%s.match[%d]", at, i)
		match := t.stream(m.GetDestinationSubnets(), at)
		to := t.caller(match, m, at, out, refused)
		for _, name := range m.GetSniHosts() {
			match.SniHosts = append(match.SniHosts, strings.ToLower(name))
		}
		to.Matches = append(to.Matches, match)
	}
	if len(refused.GetMatches()) > 0 {
		t.out.Tls = append(t.out.Tls, refused)
	}
	if len(out.GetMatches()) > 0 {
		t.out.Tls = append(t.out.Tls, out)
	}
}

// caller fills in who must call, and returns the rule that the match belongs to: one that leads nowhere where nodes cannot judge it.
func (t *routeTranslator) caller(match *settings.StreamMatch, in interface {
	GetSourceLabels() map[string]string
	GetSourceNamespace() string
	GetPort() uint32
}, at string, out, refused *settings.StreamRule,
) *settings.StreamRule {
	labels := in.GetSourceLabels()
	if key := t.unknownLabel(labels); key != "" {
		t.add(validate.Warning, at+".sourceLabels."+key, "%s: connections that the rest of the condition takes are refused", labelsUsedUp)
		labels, out = nil, refused
	}
	match.Caller = callerMatch(labels, in.GetSourceNamespace(), in.GetPort())
	return out
}

func (t *routeTranslator) stream(subnets []string, at string) *settings.StreamMatch {
	out := &settings.StreamMatch{}
	for i, text := range subnets {
		out.DestinationSubnets = append(out.DestinationSubnets, t.subnet(text, fmt.Sprintf("%s.destinationSubnets[%d]", at, i)))
	}
	return out
}

func (t *routeTranslator) subnet(text, at string) string {
	p, err := validate.IPBlock(text)
	if err != nil {
		t.add(validate.Error, at, "%s", err)
	}
	return p.String()
}

func (t *routeTranslator) destinations(in []*networking.RouteDestination) []*settings.StreamDestination {
	var out []*settings.StreamDestination
	for _, d := range in {
		weight := uint32(max(d.GetWeight(), 0))
		if len(in) == 1 {
			weight = 1
		}
		out = append(out, &settings.StreamDestination{Cluster: t.c.destination(d.GetDestination(), t.rule.Namespace), Weight: weight})
	}
	return out
}
