package main

import (
	"fmt"
	"io"
)

// components is what an IstioOperator may say of components: the controller's variables (MT-20).
type components struct {
	Pilot struct {
		K8s struct {
			Env []struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			} `json:"env,omitempty"`
			Overlays []any `json:"overlays,omitempty"`
		} `json:"k8s"`
	} `json:"pilot"`
}

// pilotEnv are the variables by name. Patches of Istio's manifests do not fit ours: a warning says that they are left out.
func (c components) pilotEnv(warn io.Writer) map[string]any {
	if n := len(c.Pilot.K8s.Overlays); n > 0 {
		fmt.Fprintf(warn, "! components.pilot.k8s.overlays: %d patches of Istio's manifests are not applied; with K8S_SIGNER the rights to approve and the Secret external-ca-cert need none\n", n)
	}
	out := map[string]any{}
	for _, e := range c.Pilot.K8s.Env {
		out[e.Name] = e.Value
	}
	return out
}
