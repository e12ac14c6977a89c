package validate

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	securitybeta "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
)

// policyWarnings adds to the rules of AuthorizationPolicy what only the text of the object tells.
func (c *Catalogue) policyWarnings() {
	for _, version := range []string{"v1", "v1beta1"} {
		k := c.kinds[kschema.GroupVersionKind{Group: groupSecurity, Version: version, Kind: "AuthorizationPolicy"}]
		typed := k.rules
		k.rules = func(w *walker, n *yaml.Node, obj map[string]any) {
			typed(w, n, obj)
			meta, _ := obj["metadata"].(map[string]any)
			w.dryRun(texts(meta["annotations"]))
			spec, _ := obj["spec"].(map[string]any)
			w.emptyLists(spec)
		}
	}
}

// dryRun warns of a value of the annotation that is neither yes nor no, with which the policy is enforced.
func (c *collector) dryRun(annotations map[string]string) {
	text, ok := annotations[AnnotationDryRun]
	if _, err := strconv.ParseBool(text); ok && err != nil {
		c.add(Warning, "metadata.annotations."+AnnotationDryRun, "%q is neither true nor false: the policy is enforced", text)
	}
}

// emptyLists warns of "from: []" and its like: a list without items is no condition, and no condition lets everybody match.
func (w *walker) emptyLists(spec map[string]any) {
	rules, _ := spec["rules"].([]any)
	for i, r := range rules {
		rule, _ := r.(map[string]any)
		for _, name := range []string{"from", "to", "when"} {
			if list, ok := rule[name].([]any); ok && len(list) == 0 {
				w.add(Warning, indexed("spec.rules", i)+"."+name, "has no items: it is no condition, so that everything matches it")
				w.hint("leave it out, or write what must match")
			}
		}
	}
}

func authorizationRules(c *collector, spec *securitybeta.AuthorizationPolicy) {
	p := &securityv1.AuthorizationPolicy{}
	p.Namespace, p.Name = c.namespace, c.name
	proto.Merge(&p.Spec, spec)
	c.take(AuthorizationPolicy(p, nil))
}

// policyMeaning warns of what is right as written and does nothing, or not what was meant.
func (c *collector) policyMeaning(spec *securitybeta.AuthorizationPolicy) {
	if len(spec.GetRules()) == 0 && spec.GetAction() != securitybeta.AuthorizationPolicy_ALLOW {
		c.add(Warning, "spec.rules", "is empty: a policy with action %s and no rules matches nothing", spec.GetAction())
		c.hint("for every request write rules: [{}]")
	}
	for i, rule := range spec.GetRules() {
		for j, from := range rule.GetFrom() {
			c.sourceWarnings(from.GetSource(), fmt.Sprintf("spec.rules[%d].from[%d].source", i, j))
		}
		for j, to := range rule.GetTo() {
			c.operationWarnings(to.GetOperation(), fmt.Sprintf("spec.rules[%d].to[%d].operation", i, j))
		}
		for j, when := range rule.GetWhen() {
			at := fmt.Sprintf("spec.rules[%d].when[%d]", i, j)
			if Condition(when.GetKey()) == ConditionSourcePrincipal {
				c.principals(when.GetValues(), at+".values")
				c.principals(when.GetNotValues(), at+".notValues")
			}
		}
	}
}

func (c *collector) sourceWarnings(src *securitybeta.Source, at string) {
	c.principals(src.GetPrincipals(), at+".principals")
	c.principals(src.GetNotPrincipals(), at+".notPrincipals")
	accounts := len(src.GetServiceAccounts()) + len(src.GetNotServiceAccounts())
	others := len(src.GetPrincipals()) + len(src.GetNotPrincipals()) + len(src.GetNamespaces()) + len(src.GetNotNamespaces())
	if accounts > 0 && others > 0 {
		c.add(Warning, at+".serviceAccounts", "stands beside principals or namespaces: both must match, and Istio refuses it")
	}
}

// identity is the form of the principals of the mesh.
var identity = regexp.MustCompile(`^[^/]+/ns/[^/]+/sa/[^/]+$`)

// principals warns of values that no principal of a workload has. Patterns and the identities of other meshes are not judged.
func (c *collector) principals(values []string, at string) {
	for i, v := range values {
		switch bare, scheme := strings.CutPrefix(v, "spiffe://"); {
		case scheme:
			c.add(Warning, indexed(at, i), "%q begins with spiffe://, which principals are written without: it matches nothing", v)
			c.hint("write %q", bare)
		case strings.Contains(v, "*") || identity.MatchString(v):
		case strings.HasPrefix(v, "ns/") || strings.HasPrefix(v, "sa/") || !strings.Contains(v, "/"):
			c.add(Warning, indexed(at, i), "%q is not TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, which principals of workloads are: it matches none", v)
			if strings.HasPrefix(v, "ns/") {
				c.hint("write %q", "cluster.local/"+v)
			}
		}
	}
}

func (c *collector) operationWarnings(op *securitybeta.Operation, at string) {
	for i, m := range append(op.GetMethods()[:len(op.GetMethods()):len(op.GetMethods())], op.GetNotMethods()...) {
		field := at + indexed(".methods", i)
		if i >= len(op.GetMethods()) {
			field = at + indexed(".notMethods", i-len(op.GetMethods()))
		}
		if !strings.Contains(m, "*") {
			c.method(m, field)
		}
	}
	for name, values := range map[string][]string{"paths": op.GetPaths(), "notPaths": op.GetNotPaths()} {
		for i, v := range values {
			c.path(v, at+indexed("."+name, i))
		}
	}
	for name, values := range map[string][]string{"hosts": op.GetHosts(), "notHosts": op.GetNotHosts()} {
		for i, v := range values {
			c.literal(v, at+indexed("."+name, i))
			if strings.Contains(v, "://") {
				c.add(Warning, at+indexed("."+name, i), "%q is a URL, and no Host header has one", v)
			}
		}
	}
}

// path warns of what no path of a request is.
func (c *collector) path(text, at string) {
	if strings.Contains(text, "{*}") || strings.Contains(text, "{**}") {
		parts := strings.Split(text, "/")
		for i, p := range parts {
			if strings.ContainsAny(p, "*{}") && p != "{*}" && p != "{**}" {
				c.add(Error, at, "%q: a part of a template is {*}, {**} or text, and %q is not", text, p)
				return
			}
			if p == "{**}" && strings.Contains(strings.Join(parts[i+1:], "/"), "{") {
				c.add(Error, at, "%q has a part behind {**}, which takes the rest", text)
				return
			}
		}
		return
	}
	c.literal(text, at)
	if text != "" && !strings.HasPrefix(text, "/") && !strings.HasPrefix(text, "*") {
		c.add(Warning, at, "%q does not begin with \"/\": no path matches", text)
		c.hint("write %q", "/"+text)
	}
}

// literal warns of white space, and of a * that stands for itself.
func (c *collector) literal(text, at string) {
	c.must(at, noBlank(text))
	if err := Pattern(text); err != nil && text != "" {
		c.add(Warning, at, "%s: this one matches a * only", err)
	} else if err != nil {
		c.add(Error, at, "%s", err)
	}
}
