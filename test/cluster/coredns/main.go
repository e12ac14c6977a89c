// Command coredns is CoreDNS with only the plugins that the test cluster's Corefile uses: the full list would build for
// minutes and bring the SDKs of several clouds.
package main

import (
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/template"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
)

func main() {
	// The order is the order in which plugins see a query: template, the catch-all, must come after kubernetes.
	dnsserver.Directives = []string{
		"reload", "health", "ready", "log", "errors", "cache", "loadbalance", "hosts", "kubernetes", "template", "forward",
	}
	coremain.Run()
}
