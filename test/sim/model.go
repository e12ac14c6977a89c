package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
)

// account is who a workload is; the zero value proved nothing.
type account struct{ ns, name string }

// principal is the account as policies write it.
func (a account) principal() string { return api.DefaultTrustDomain + "/ns/" + a.ns + "/sa/" + a.name }

// spiffe is the account as records write it.
func (a account) spiffe() string {
	if a == (account{}) {
		return ""
	}
	return "spiffe://" + a.principal()
}

// scope is what a policy is for: the whole mesh when ns is the root namespace, the namespace when app is empty.
type scope struct{ ns, app string }

func (s scope) covers(p *pod) bool {
	if s.app != "" {
		return s.ns == p.ns && s.app == p.app
	}
	return s.ns == api.DefaultRootNamespace || s.ns == p.ns
}

func (s scope) selector() *typebeta.WorkloadSelector {
	if s.app == "" {
		return nil
	}
	return &typebeta.WorkloadSelector{MatchLabels: map[string]string{"app": s.app}}
}

// rule matches when each list that is not empty has a match.
type rule struct {
	principals []account
	namespaces []string
	ports      []uint16
}

func (r rule) matches(port uint16, who account) bool {
	known := who != (account{})
	return (len(r.principals) == 0 || known && slices.Contains(r.principals, who)) &&
		(len(r.namespaces) == 0 || known && slices.Contains(r.namespaces, who.ns)) &&
		(len(r.ports) == 0 || slices.Contains(r.ports, port))
}

// authz is an AuthorizationPolicy; without rules it matches nothing.
type authz struct {
	scope
	deny  bool
	rules []rule
}

// peers is a PeerAuthentication.
type peers struct {
	scope
	strict bool
}

// facts are policies as they are at one moment. Immutable.
type facts struct {
	authz  map[model.Name]authz
	peers  map[model.Name]peers
	routes map[model.Name]routing
	rules  map[called]balancing
}

// strict says whether a pod refuses plain text: the narrowest scope decides.
func (f *facts) strict(p *pod) bool {
	rank, strict := -1, false
	for _, pa := range f.peers {
		r := 0
		switch {
		case !pa.covers(p):
			continue
		case pa.app != "":
			r = 2
		case pa.ns != api.DefaultRootNamespace:
			r = 1
		}
		if r > rank {
			rank, strict = r, pa.strict
		}
	}
	return strict
}

// allows judges a connection to an enrolled pod by a reading of the documents that shares no code with package policy.
func (f *facts) allows(p *pod, port uint16, who account) bool {
	if who == (account{}) && f.strict(p) {
		return false
	}
	asked, allowed := false, false
	for _, a := range f.authz {
		if !a.covers(p) {
			continue
		}
		match := slices.ContainsFunc(a.rules, func(r rule) bool { return r.matches(port, who) })
		if a.deny && match {
			return false
		}
		if !a.deny {
			asked, allowed = true, allowed || match
		}
	}
	return allowed || !asked
}

func (a authz) object(n model.Name) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name}}
	p.Spec.Selector = a.selector()
	if a.deny {
		p.Spec.Action = securitybeta.AuthorizationPolicy_DENY
	}
	for _, r := range a.rules {
		out := &securitybeta.Rule{}
		src := &securitybeta.Source{Namespaces: r.namespaces}
		for _, who := range r.principals {
			src.Principals = append(src.Principals, who.principal())
		}
		if len(src.Principals)+len(src.Namespaces) > 0 {
			out.From = []*securitybeta.Rule_From{{Source: src}}
		}
		if len(r.ports) > 0 {
			op := &securitybeta.Operation{}
			for _, port := range r.ports {
				op.Ports = append(op.Ports, strconv.Itoa(int(port)))
			}
			out.To = []*securitybeta.Rule_To{{Operation: op}}
		}
		p.Spec.Rules = append(p.Spec.Rules, out)
	}
	return p
}

func (a peers) object(n model.Name) *securityv1.PeerAuthentication {
	p := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name}}
	p.Spec.Selector = a.selector()
	mode := securitybeta.PeerAuthentication_MutualTLS_PERMISSIVE
	if a.strict {
		mode = securitybeta.PeerAuthentication_MutualTLS_STRICT
	}
	p.Spec.Mtls = &securitybeta.PeerAuthentication_MutualTLS{Mode: mode}
	return p
}

// object is the pod as the API server has it.
func (p *pod) object(annotated bool) *corev1.Pod {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.ns, Name: p.name, UID: types.UID(p.uid), Labels: map[string]string{"app": p.app, "version": p.version},
	}}
	if annotated {
		o.Annotations = map[string]string{api.AnnotationRedirection: api.RedirectionEnabled}
	}
	o.Spec = corev1.PodSpec{NodeName: p.node.name, ServiceAccountName: p.who.name}
	o.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: p.ip.String(),
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	return o
}

// service is the object of the service of an application, at vip.
func service(ns, app string, vip netip.Addr, requests bool) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: app}}
	s.Spec = corev1.ServiceSpec{ClusterIP: vip.String(), Selector: map[string]string{"app": app}}
	for _, port := range appPorts {
		name := fmt.Sprintf("tcp-%d", port)
		switch {
		case requests && port == sniffedPort:
			name = "any"
		case requests:
			name = "http"
		}
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: name, Port: int32(port)})
	}
	return s
}
