package main

import (
	"cmp"
	"encoding/json"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
)

// ruled is the cluster with the name of the rule that counts for the caller, "" for none.
func ruled(c *clusterv3.Cluster, rule string) *clusterv3.Cluster {
	namespace, name, ok := strings.Cut(rule, "/")
	if !ok {
		return c
	}
	out := proto.CloneOf(c)
	out.Metadata = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{api.RuleMetadata: {Fields: map[string]*structpb.Value{
		api.RuleField: structpb.NewStringValue(api.RulePath(namespace, "destination-rule", name))}}}}
	return out
}

// ruleOf is whose cluster or route it is, as the table has it: NAME.NAMESPACE, "" for nobody's.
func ruleOf(m *core.Metadata, kind string) string {
	namespace, name, ok := api.RuleOf(m.GetFilterMetadata()[api.RuleMetadata].GetFields()[api.RuleField].GetStringValue(), kind)
	if !ok {
		return ""
	}
	return name + "." + namespace
}

// callTLS is one line of "proxy-config tls".
type callTLS struct {
	Service string          `json:"service"`
	Port    uint32          `json:"port"`
	Mode    string          `json:"mode"` // of DestinationRule; AUTO when none says anything
	Rule    string          `json:"destinationRule,omitempty"`
	TLS     json.RawMessage `json:"tls,omitempty"` // undermesh.v1.ClientTls
}

// tlsOf says for each port that the caller sees what its DestinationRules say of TLS.
func tlsOf(v sight) []callTLS {
	out := []callTLS{}
	v.Seen(func(s *client.Service, port uint16) {
		tls, rule := policy.CallTLS(v.Snapshot, v.Workload, s, port, "")
		line := callTLS{Service: s.GetHostname(), Port: uint32(port), Rule: rule,
			Mode: strings.TrimPrefix(tls.GetMode().String(), "MODE_")}
		if tls.GetMode() != settings.ClientTls_MODE_AUTO {
			line.TLS, _ = protojson.Marshal(tls) // it was decoded a moment ago
		}
		out = append(out, line)
	})
	return out
}

func tlsRows(all []callTLS) [][]string {
	rows := [][]string{{"SERVICE FQDN", "PORT", "MODE", "DESTINATION RULE"}}
	for _, c := range all {
		rows = append(rows, []string{c.Service, strconv.Itoa(int(c.Port)), c.Mode, cmp.Or(c.Rule, dash)})
	}
	return rows
}
