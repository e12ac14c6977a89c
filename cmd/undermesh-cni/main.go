// Command undermesh-cni is the chained CNI plugin that the container runtime runs for every pod.
package main

import (
	"context"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/undermesh/undermesh/cni/plugin"
)

func main() {
	skel.PluginMainFuncs(plugin.Funcs(context.Background()), plugin.Versions(), "undermesh-cni: enrols pods in the mesh")
}
