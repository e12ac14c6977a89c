package client

import (
	"github.com/undermesh/undermesh/controller/api"
)

// Types are what a node subscribes to, all of each, in this order.
func Types() []string {
	return []string{api.MeshSettingsType, api.ScopeType, api.WorkloadSettingsType, api.AuthorizationType, api.CallRuleType, api.RouteRuleType, api.AddressType}
}

// Understands reports whether snapshots are made of resources of the type. A controller serves others beside them, to those
// who ask.
func Understands(typ string) bool { return newMessage(typ) != nil }
