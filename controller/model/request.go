package model

import (
	"slices"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/undermesh/undermesh/controller/validate"
)

// requestPrefix begins the name of the policy that stands for a RequestAuthentication. No object's name has a colon.
const requestPrefix = "jwt:"

// StandIn names the policy that stands for a RequestAuthentication.
func StandIn(request Name) Name { return Name{request.Namespace, requestPrefix + request.Name} }

// StandsFor is the reverse of StandIn; ok is false for the name of a policy that stands for itself.
func StandsFor(policy Name) (request Name, ok bool) {
	name, ok := strings.CutPrefix(policy.Name, requestPrefix)
	return Name{policy.Namespace, name}, ok
}

// applyRequest puts a policy that denies in the place of a RequestAuthentication whose tokens nobody would check: without it
// requests with forged tokens would reach what trusts that they were checked.
func (r *Registry) applyRequest(e Event, d *Dirty) {
	n := StandIn(e.Name)
	r.applyPolicy(Event{Kind: KindAuthorizationPolicy, Name: n}, d)
	if e.Object == nil {
		return
	}
	request := e.Object.(*securityv1.RequestAuthentication)
	if len(request.Spec.GetJwtRules()) == 0 && len(e.Issues) == 0 {
		return // no token is looked at
	}
	p := &securityv1.AuthorizationPolicy{}
	p.Namespace, p.Name, p.Generation = n.Namespace, n.Name, request.Generation
	p.Spec.Selector, p.Spec.TargetRef, p.Spec.TargetRefs = request.Spec.GetSelector(), request.Spec.GetTargetRef(), request.Spec.GetTargetRefs()
	policy := newAuthorization(p, e.Issues)
	policy.Stands = KindRequestAuthentication
	for i := range policy.Findings {
		policy.Findings[i].Kind, policy.Findings[i].Name = string(KindRequestAuthentication), e.Name.Name
	}
	for _, f := range validate.RequestAuthentication(request) {
		told := slices.ContainsFunc(policy.Findings, func(t validate.Finding) bool { return t.Field == f.Field && t.Message == f.Message })
		if f.Severity > validate.Info && !told {
			policy.Findings = append(policy.Findings, f)
		}
	}
	policy.Findings = append(policy.Findings, validate.Finding{Severity: validate.Error, Kind: string(KindRequestAuthentication),
		Namespace: e.Name.Namespace, Name: e.Name.Name, Field: "spec.jwtRules", Unsupported: true,
		Message: "tokens are not checked yet"})
	r.addPolicy(n, policy, d)
}
