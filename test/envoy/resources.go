package envoy

import (
	"fmt"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/xds"
)

// Listener makes one on a unix socket that goes by the RouteConfiguration.
func Listener(name, path, routes string) (xds.Resource, error) {
	pipe := &core.Address{Address: &core.Address_Pipe{Pipe: &core.Pipe{Path: path}}}
	last, err := anypb.New(&router.Router{})
	if err != nil {
		return xds.Resource{}, fmt.Errorf("encode router: %w", err)
	}
	manager, err := anypb.New(&hcm.HttpConnectionManager{
		StatPrefix: name,
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{RouteConfigName: routes, ConfigSource: &core.ConfigSource{
			ResourceApiVersion: core.ApiVersion_V3, ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}}},
		HttpFilters: []*hcm.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: last}}},
	})
	if err != nil {
		return xds.Resource{}, fmt.Errorf("encode connection manager: %w", err)
	}
	l := &listener.Listener{Name: name, Address: pipe, FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
		Name: "envoy.filters.network.http_connection_manager", ConfigType: &listener.Filter_TypedConfig{TypedConfig: manager}}}}}}
	return xds.Resource{Type: ListenerType, Name: name, Message: l}, nil
}

// Endpoints says that a cluster's only endpoint is a unix socket, or that it has none.
func Endpoints(cluster, path string) xds.Resource {
	return xds.Resource{Type: EndpointType, Name: cluster, Message: Assignment(cluster, path)}
}

// Assignment is that endpoint as the cluster's message has it.
func Assignment(cluster, path string) *endpoint.ClusterLoadAssignment {
	group := &endpoint.LocalityLbEndpoints{}
	if path != "" {
		group.LbEndpoints = []*endpoint.LbEndpoint{{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
			Address: &core.Address{Address: &core.Address_Pipe{Pipe: &core.Pipe{Path: path}}}}}}}
	}
	return &endpoint.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpoint.LocalityLbEndpoints{group}}
}
