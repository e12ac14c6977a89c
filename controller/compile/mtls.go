package compile

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	securitybeta "istio.io/api/security/v1beta1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// mtls is the composed PeerAuthentication of a workload: ports only where they differ from the mode.
type mtls struct {
	mode  settings.MtlsMode
	ports map[uint32]settings.MtlsMode
}

// modeOf translates a mode; ok is false for UNSET.
func modeOf(m securitybeta.PeerAuthentication_MutualTLS_Mode) (mode settings.MtlsMode, ok bool) {
	switch m {
	case securitybeta.PeerAuthentication_MutualTLS_UNSET:
		return 0, false
	case securitybeta.PeerAuthentication_MutualTLS_DISABLE:
		return settings.MtlsMode_MTLS_DISABLE, true
	case securitybeta.PeerAuthentication_MutualTLS_PERMISSIVE:
		return settings.MtlsMode_MTLS_PERMISSIVE, true
	}
	return settings.MtlsMode_MTLS_STRICT, true // STRICT, and whatever a newer API may add
}

// composeMTLS applies mesh, namespace and workload policy in this order (MT-09, MT-10). A policy with an error is STRICT.
func (c *Compiler) composeMTLS(p *model.Pod, bound map[uint32]bool) mtls {
	mesh, namespace, workload := c.reg.PeersOf(p)
	out := mtls{mode: settings.MtlsMode_MTLS_PERMISSIVE}
	for _, pa := range []*model.PeerAuthentication{mesh, namespace, workload} {
		if pa == nil {
			continue
		}
		if validate.Worst(pa.Findings) == validate.Error {
			out.mode = settings.MtlsMode_MTLS_STRICT
		} else if m, ok := modeOf(pa.Spec.GetMtls().GetMode()); ok {
			out.mode = m
		}
	}
	if workload == nil || validate.Worst(workload.Findings) == validate.Error {
		return out
	}
	for port, setting := range workload.Spec.GetPortLevelMtls() {
		m, ok := modeOf(setting.GetMode())
		if !ok || m == out.mode || !bound[port] { // a port that no service leads to is ignored (MT-08)
			continue
		}
		if out.ports == nil {
			out.ports = map[uint32]settings.MtlsMode{}
		}
		out.ports[port] = m
	}
	return out
}

// attachSettings makes the workload name its settings, to which it adds the modes, and its strict policy, and returns both
// when they are not fixed ones.
func (c *Compiler) attachSettings(w *workloadapi.Workload, m mtls, set *settings.WorkloadSettings) []Resource {
	var shared []Resource
	strict := m.mode == settings.MtlsMode_MTLS_STRICT
	var exceptions []uint32
	for port, mode := range m.ports {
		if (mode == settings.MtlsMode_MTLS_STRICT) != strict {
			exceptions = append(exceptions, port)
		}
	}
	slices.Sort(exceptions)
	if strict || len(exceptions) > 0 {
		policy := c.strictPolicy(strict, exceptions)
		w.AuthorizationPolicies = append(w.AuthorizationPolicies, policy.Name)
		slices.Sort(w.AuthorizationPolicies)
		shared = append(shared, policy)
	}
	set.Mtls, set.PortMtls = m.mode, maps.Clone(m.ports)
	if proto.Equal(set, &settings.WorkloadSettings{}) {
		return shared // the defaults need no resource
	}
	name := contentName(set)
	w.Extensions = append(w.Extensions, extension(api.WorkloadSettingsExtension, &settings.SettingsRef{Name: name}))
	return append(shared, Resource{Type: api.WorkloadSettingsType, Name: name, Message: set})
}

// contentName is the content hash under which equal settings are one resource.
func contentName(m proto.Message) string {
	sum := sha256.Sum256(encode(m))
	return hex.EncodeToString(sum[:8])
}

// strictPolicies is the one that is always there.
func (c *Compiler) strictPolicies() []Resource { return []Resource{c.strictPolicy(true, nil)} }

// strictPolicy denies who has no principal: on every port but the exceptions, or (all false) on the exceptions alone. Its
// name says what it does, so that equal ones are one resource.
func (c *Compiler) strictPolicy(all bool, exceptions []uint32) Resource {
	match := &securityapi.Match{NotPrincipals: []*securityapi.StringMatch{
		{MatchType: &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}}}}
	name := api.StrictPolicyName
	if len(exceptions) > 0 {
		word := "_only_"
		if all {
			word = "_except_"
			match.NotDestinationPorts = exceptions
		} else {
			match.DestinationPorts = exceptions
		}
		texts := make([]string, len(exceptions))
		for i, p := range exceptions {
			texts[i] = strconv.Itoa(int(p))
		}
		list := strings.Join(texts, "_")
		if len(list) > 100 {
			list = contentName(match)
		}
		name += word + list
	}
	root := c.reg.Mesh().RootNamespace
	return Resource{Type: api.AuthorizationType, Name: root + "/" + name, Message: &securityapi.Authorization{
		Name: name, Namespace: root, Scope: securityapi.Scope_WORKLOAD_SELECTOR, Action: securityapi.Action_DENY,
		Groups: []*securityapi.Group{{Rules: []*securityapi.Rules{{Matches: []*securityapi.Match{match}}}}}}}
}
