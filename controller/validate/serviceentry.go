package validate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func serviceEntryRules(c *collector, spec *networking.ServiceEntry) {
	c.must("spec", EntrySize(spec))
	c.unique(spec.GetHosts(), "spec.hosts", "host")
	for i, h := range spec.GetHosts() {
		c.must(indexed("spec.hosts", i), Host(h, true))
		if _, err := netip.ParseAddr(h); err == nil {
			c.add(Error, indexed("spec.hosts", i), "%q is an address, which is no host", h)
			c.hint("write a name here, and the address into addresses or endpoints")
		}
		if h == "*" {
			c.add(Error, indexed("spec.hosts", i), "\"*\" would take every host there is")
		}
	}
	c.exportTo(spec.GetExportTo())
	c.selector(spec.GetWorkloadSelector().GetLabels(), "spec.workloadSelector.labels")
	if spec.GetWorkloadSelector() != nil && len(spec.GetEndpoints()) > 0 {
		c.add(Error, "spec.workloadSelector", "excludes endpoints")
	}
	names := c.entryPorts(spec)
	for i, a := range spec.GetAddresses() {
		at := indexed("spec.addresses", i)
		c.must(at, blockError(a))
		if p, err := IPBlock(a); err == nil {
			c.must(at, Declarable(p))
		}
		if r := spec.GetResolution(); strings.Contains(a, "/") && r != networking.ServiceEntry_NONE && r != networking.ServiceEntry_STATIC {
			c.add(Error, at, "must be one address with resolution %s, and is a network", r)
		}
	}
	for i, e := range spec.GetEndpoints() {
		at := indexed("spec.endpoints", i)
		c.workload(e, at)
		for _, p := range sortedKeys(e.GetPorts()) {
			if !names[p] {
				c.add(Error, at+".ports."+p, "spec.ports has no port of this name")
			}
		}
	}
	c.resolution(spec)
	for i, n := range spec.GetSubjectAltNames() {
		c.must(indexed("spec.subjectAltNames", i), noBlank(n))
	}
}

// entryPorts checks the ports and returns their names.
func (c *collector) entryPorts(spec *networking.ServiceEntry) map[string]bool {
	names := map[string]bool{}
	if len(spec.GetPorts()) == 0 {
		c.add(Warning, "spec.ports", "is empty: no port of the hosts is known to the mesh")
	}
	numbers, tcp := map[uint32]int{}, false
	for i, p := range spec.GetPorts() {
		at := indexed("spec.ports", i)
		c.port(p.GetNumber(), at+".number")
		if p.GetName() != "" {
			c.must(at+".name", portName(p.GetName()))
		}
		if j, twice := numbers[p.GetNumber()]; twice {
			c.add(Error, at+".number", "%s has the number %d already", indexed("spec.ports", j), p.GetNumber())
		}
		numbers[p.GetNumber()] = i
		if p.GetTargetPort() != 0 {
			c.port(p.GetTargetPort(), at+".targetPort")
		}
		c.protocol(p.GetProtocol(), at+".protocol")
		switch strings.ToUpper(p.GetProtocol()) {
		case "":
			c.add(Info, at+".protocol", "is not set: it is found out from the first bytes")
		case "TCP", "MONGO", "MYSQL", "REDIS":
			tcp = true
		}
		if names[p.GetName()] {
			c.add(Error, at+".name", "another port has the name %q already", p.GetName())
		}
		names[p.GetName()] = true
	}
	if tcp && len(spec.GetAddresses()) == 0 && spec.GetResolution() == networking.ServiceEntry_NONE {
		c.add(Warning, "spec.addresses", "is empty: with a TCP port and resolution NONE every address on that port belongs to this entry")
		c.code(CodeEntryAddress)
	}
	return names
}

// portName checks the name of a port, in which upper case and "_" are taken too.
func portName(text string) error {
	if label1123(strings.ToLower(strings.ReplaceAll(text, "_", "-"))) != nil {
		return fmt.Errorf("%q is not the name of a port", text)
	}
	return nil
}

func (c *collector) resolution(spec *networking.ServiceEntry) {
	wild := slices.IndexFunc(spec.GetHosts(), func(h string) bool { return strings.Contains(h, "*") })
	n := len(spec.GetEndpoints())
	switch r := spec.GetResolution(); r {
	case networking.ServiceEntry_NONE:
		if n > 0 {
			c.add(Error, "spec.endpoints", "has no meaning with resolution NONE, which goes where the client wanted to go")
		}
	case networking.ServiceEntry_STATIC:
		if n == 0 && spec.GetWorkloadSelector() == nil {
			c.add(Error, "spec.endpoints", "or workloadSelector is required with resolution STATIC")
		}
		for i, e := range spec.GetEndpoints() {
			a := e.GetAddress()
			if _, err := netip.ParseAddr(a); err != nil && a != "" && !strings.HasPrefix(a, "unix://") {
				c.add(Error, indexed("spec.endpoints", i)+".address", "%q must be an IP address with resolution STATIC", a)
			}
		}
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		if wild >= 0 && n == 0 {
			c.add(Error, indexed("spec.hosts", wild), "%q cannot be resolved: with resolution %s and a wildcard, endpoints are required", spec.GetHosts()[wild], r)
		}
		if n > 1 && r == networking.ServiceEntry_DNS_ROUND_ROBIN {
			c.add(Error, "spec.endpoints", "may have one item with resolution DNS_ROUND_ROBIN")
		}
	case networking.ServiceEntry_DYNAMIC_DNS:
		for i, h := range spec.GetHosts() {
			if !strings.Contains(h, "*") {
				c.add(Error, indexed("spec.hosts", i), "%q must have a wildcard with resolution DYNAMIC_DNS", h)
				c.hint("write resolution: DNS")
			}
		}
		if n > 0 || spec.GetWorkloadSelector() != nil {
			c.add(Error, "spec.endpoints", "and workloadSelector have no meaning with resolution DYNAMIC_DNS")
		}
		if spec.GetLocation() != networking.ServiceEntry_MESH_EXTERNAL {
			c.add(Error, "spec.location", "must be MESH_EXTERNAL with resolution DYNAMIC_DNS")
		}
	}
}

func workloadEntryRules(c *collector, spec *networking.WorkloadEntry) { c.workload(spec, "spec") }

// workload checks an endpoint outside Kubernetes.
func (c *collector) workload(e *networking.WorkloadEntry, at string) {
	a := e.GetAddress()
	switch unix := strings.HasPrefix(a, "unix://"); {
	case a == "" && e.GetNetwork() == "":
		c.add(Error, at+".address", "is required, or network")
	case a == "":
	case unix && len(e.GetPorts()) > 0:
		c.add(Error, at+".ports", "has no meaning with a unix socket")
	case unix:
		if !strings.HasPrefix(a, "unix:///") && !strings.HasPrefix(a, "unix://@") {
			c.add(Error, at+".address", "%q is not an absolute path", a)
		}
	default:
		c.must(at+".address", Host(a, false))
	}
	for _, name := range sortedKeys(e.GetPorts()) {
		c.must(at+".ports."+name, portName(name))
		c.port(e.GetPorts()[name], at+".ports."+name)
	}
	c.selector(e.GetLabels(), at+".labels")
	if l := e.GetLocality(); l != "" {
		c.localityName(l, at+".locality")
	}
	if a := e.GetServiceAccount(); a != "" {
		c.must(at+".serviceAccount", AccountName(a))
	}
}

func workloadGroupRules(c *collector, spec *networking.WorkloadGroup) {
	t := spec.GetTemplate()
	if t == nil {
		c.add(Error, "spec.template", "is required")
	}
	if t.GetAddress() != "" {
		c.add(Error, "spec.template.address", "has no meaning: each member has its own")
	}
	for _, name := range sortedKeys(t.GetPorts()) {
		c.port(t.GetPorts()[name], "spec.template.ports."+name)
	}
	if len(t.GetLabels()) > 0 {
		c.add(Warning, "spec.template.labels", "belong into spec.metadata.labels")
	}
	if l := t.GetLocality(); l != "" {
		c.localityName(l, "spec.template.locality")
	}
	if a := t.GetServiceAccount(); a != "" {
		c.must("spec.template.serviceAccount", AccountName(a))
	}
	c.selector(t.GetLabels(), "spec.template.labels")
	c.selector(spec.GetMetadata().GetLabels(), "spec.metadata.labels")
	p := spec.GetProbe()
	if p == nil {
		return
	}
	for name, n := range map[string]int32{"initialDelaySeconds": p.GetInitialDelaySeconds(), "timeoutSeconds": p.GetTimeoutSeconds(),
		"periodSeconds": p.GetPeriodSeconds(), "successThreshold": p.GetSuccessThreshold(), "failureThreshold": p.GetFailureThreshold()} {
		if n < 0 {
			c.add(Error, "spec.probe."+name, "%d is negative", n)
		}
	}
	switch m := p.GetHealthCheckMethod().(type) {
	case nil:
		c.add(Error, "spec.probe", "httpGet, tcpSocket, exec or grpc is required")
	case *networking.ReadinessProbe_HttpGet:
		c.port(m.HttpGet.GetPort(), "spec.probe.httpGet.port")
		if s := m.HttpGet.GetScheme(); s != "" && s != "HTTP" && s != "HTTPS" {
			c.add(Error, "spec.probe.httpGet.scheme", "%q is neither HTTP nor HTTPS", s)
		}
		for i, h := range m.HttpGet.GetHttpHeaders() {
			c.header(h.GetName(), indexed("spec.probe.httpGet.httpHeaders", i)+".name")
		}
	case *networking.ReadinessProbe_TcpSocket:
		c.port(m.TcpSocket.GetPort(), "spec.probe.tcpSocket.port")
	case *networking.ReadinessProbe_Grpc:
		c.port(m.Grpc.GetPort(), "spec.probe.grpc.port")
	case *networking.ReadinessProbe_Exec:
		if len(m.Exec.GetCommand()) == 0 {
			c.add(Error, "spec.probe.exec.command", "is required")
		}
	}
}
