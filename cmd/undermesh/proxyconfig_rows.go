package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// dash stands where a table of the documents' command has nothing to say.
const dash = "-"

func clusterRows(all []*clusterv3.Cluster) [][]string {
	rows := [][]string{{"SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"}}
	for _, c := range all {
		fqdn, port, subset, direction := c.GetName(), dash, dash, dash
		if part := strings.Split(c.GetName(), "|"); len(part) == 4 {
			direction, port, subset, fqdn = part[0], part[1], cmp.Or(part[2], dash), part[3]
		}
		rows = append(rows, []string{fqdn, port, subset, direction, c.GetType().String(), ruleOf(c.GetMetadata(), "destination-rule")})
	}
	return rows
}

// shownDomains is how many domains of a virtual host stand in the table.
const shownDomains = 2

func routeRows(all []*route.RouteConfiguration) [][]string {
	rows := [][]string{{"NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"}}
	for _, rc := range all {
		for _, vh := range rc.GetVirtualHosts() {
			domains := strings.Join(vh.GetDomains()[:min(shownDomains, len(vh.GetDomains()))], ", ")
			if more := len(vh.GetDomains()) - shownDomains; more > 0 {
				domains += fmt.Sprintf(" + %d more...", more)
			}
			for _, r := range vh.GetRoutes() {
				rows = append(rows, []string{rc.GetName(), vh.GetName(), domains, matchText(r.GetMatch()), ruleOf(r.GetMetadata(), "virtual-service")})
			}
		}
	}
	return rows
}

func matchText(m *route.RouteMatch) string {
	switch p := m.GetPathSpecifier().(type) {
	case *route.RouteMatch_Prefix:
		return p.Prefix + "*"
	case *route.RouteMatch_Path:
		return p.Path
	case *route.RouteMatch_PathSeparatedPrefix:
		return p.PathSeparatedPrefix + "/*"
	case *route.RouteMatch_SafeRegex:
		return "regex " + p.SafeRegex.GetRegex()
	}
	return dash
}

func listenerRows(all []listenerState) [][]string {
	rows := [][]string{{"ADDRESSES", "PORT", "MATCH", "DESTINATION"}}
	for _, l := range all {
		rows = append(rows, []string{l.Address, strconv.Itoa(int(l.Port)), l.Match, l.Destination})
	}
	return rows
}

func endpointRows(all []endpointState) [][]string {
	rows := [][]string{{"ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"}}
	for _, e := range all {
		rows = append(rows, []string{e.Endpoint, e.Status, e.Outlier, e.Cluster})
	}
	return rows
}

func workloadRows(all []*workloadapi.Workload) [][]string {
	rows := [][]string{}
	for _, w := range all {
		protocol := "TCP"
		if w.GetTunnelProtocol() == workloadapi.TunnelProtocol_HBONE {
			protocol = "HBONE"
		}
		rows = append(rows, []string{w.GetNamespace(), w.GetName(), cmp.Or(strings.Join(hostsOf(w), ","), dash), cmp.Or(w.GetNode(), dash), waypointText(w.GetWaypoint()), protocol})
	}
	return titled([]string{"NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"}, rows)
}

// waypointText names the waypoint that a foreign control plane may have set.
func waypointText(w *workloadapi.GatewayAddress) string {
	switch {
	case w.GetHostname() != nil:
		return w.GetHostname().GetHostname()
	case w.GetAddress() != nil:
		if ip, ok := netip.AddrFromSlice(w.GetAddress().GetAddress()); ok {
			return ip.String()
		}
	}
	return "None"
}

func serviceRows(m *servedMesh, all []servedService) [][]string {
	total, healthy := map[string]int{}, map[string]int{}
	for _, w := range m.workloads {
		for key := range w.GetServices() {
			total[key]++
			if w.GetStatus() == workloadapi.WorkloadStatus_HEALTHY {
				healthy[key]++
			}
		}
	}
	rows := [][]string{}
	for _, s := range all {
		key := s.GetNamespace() + "/" + s.GetHostname()
		rows = append(rows, []string{s.GetNamespace(), s.GetName(), cmp.Or(strings.Join(vips(s.Service), ","), dash), waypointText(s.GetWaypoint()),
			fmt.Sprintf("%d/%d", healthy[key], total[key])})
	}
	return titled([]string{"NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"}, rows)
}

func policyRows(all []*securityapi.Authorization) [][]string {
	rows := [][]string{}
	for _, p := range all {
		rules := 0
		for _, g := range p.GetGroups() {
			rules += len(g.GetRules())
		}
		rows = append(rows, []string{p.GetNamespace(), p.GetName(), p.GetAction().String(), p.GetScope().String(), strconv.Itoa(rules)})
	}
	return titled([]string{"NAMESPACE", "POLICY NAME", "ACTION", "SCOPE", "RULES"}, rows)
}

// scopeRows shows what a workload sees; without a scope that is everything which is exported to its namespace.
func scopeRows(s *settings.Scope, rest string) [][]string {
	rows := [][]string{{"PORT", "HOSTS", "OUTBOUND POLICY"}}
	for _, e := range s.GetEgress() {
		port := "ALL"
		if e.GetPort() != 0 {
			port = strconv.Itoa(int(e.GetPort()))
		}
		rows = append(rows, []string{port, strings.Join(e.GetHosts(), ", "), rest})
	}
	if len(s.GetEgress()) == 0 {
		rows = append(rows, []string{"ALL", "*/*", rest})
	}
	return rows
}

// titled sorts the rows by their columns, from the first, and puts the title above.
func titled(title []string, rows [][]string) [][]string {
	slices.SortFunc(rows, slices.Compare)
	return append([][]string{title}, rows...)
}
