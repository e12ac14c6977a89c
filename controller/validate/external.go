package validate

import networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

// ServiceEntry checks an entry by itself. What an Error blames is left out of what is served; the rest counts.
func ServiceEntry(o *networkingv1.ServiceEntry, issues []Field) []Finding {
	c := &collector{kind: "ServiceEntry", namespace: o.Namespace, name: o.Name}
	c.fields(issues)
	serviceEntryRules(c, &o.Spec)
	return c.found
}

// WorkloadEntry checks an entry by itself.
func WorkloadEntry(o *networkingv1.WorkloadEntry, issues []Field) []Finding {
	c := &collector{kind: "WorkloadEntry", namespace: o.Namespace, name: o.Name}
	c.fields(issues)
	workloadEntryRules(c, &o.Spec)
	return c.found
}
