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

// VirtualService checks a rule by itself. One with an Error is not carried out: requests to its hosts are answered with it.
func VirtualService(o *networkingv1.VirtualService) []Finding {
	c := &collector{kind: "VirtualService", namespace: o.Namespace, name: o.Name}
	virtualServiceRules(c, &o.Spec)
	return c.found
}

// DestinationRule checks a rule by itself. What an Error blames is left out of what is served; the rest counts.
func DestinationRule(o *networkingv1.DestinationRule) []Finding {
	c := &collector{kind: "DestinationRule", namespace: o.Namespace, name: o.Name}
	destinationRules(c, &o.Spec)
	return c.found
}
