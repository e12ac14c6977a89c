package compile

import (
	"fmt"
	"net/netip"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// externalName is the name that a service of type ExternalName stands for.
func externalName(s *model.Service) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(s.Spec.ExternalName), ".")
	if err := validate.Host(name, false); err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", fmt.Errorf("%q is an address, which DNS takes for a name that does not exist", name)
	}
	return name, nil
}

// named is the one workload of an ExternalName service: whatever the name resolves to at the node, on the port that was asked
// for. What it resolves to in the mesh is that, with its identity and policies.
func (c *Compiler) named(s *model.Service, svc *workloadapi.Service, target string) Resource {
	ep := model.Endpoint{WorkloadEntry: &networking.WorkloadEntry{}, Host: target}
	w := c.outsider(ep, s.Namespace, s.Name, s.Name, s.Labels)
	w.Uid = c.cfg.ClusterID + "//Service/" + s.Namespace + "/" + s.Name + "/" + target
	w.TunnelProtocol, w.NetworkMode = workloadapi.TunnelProtocol_NONE, workloadapi.NetworkMode_HOST_NETWORK
	list := &workloadapi.PortList{}
	for _, p := range svc.GetPorts() {
		p.TargetPort = p.GetServicePort()
		list.Ports = append(list.Ports, &workloadapi.Port{ServicePort: p.GetServicePort(), TargetPort: p.GetServicePort()})
	}
	w.Services = map[string]*workloadapi.PortList{c.serviceKey(s): list}
	return Resource{Type: api.AddressType, Name: w.GetUid(),
		Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}}
}
