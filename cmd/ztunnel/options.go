package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// options are the flags.
type options struct {
	zdsPath            string
	xdsAddr, caAddr    string
	serverName         string
	rootPath           string
	tokenPath          string
	clusterID          string
	nodeName           string
	podName, namespace string
	instanceIP         string
	domain             string
	resolvConf         string
	adminAddr          string
	statsAddr          string
	readyAddr          string
	drainTimeout       time.Duration
	cpus               int
	level              slog.Level
}

// parse reads the flags, with the environment where a flag has a variable, and checks them.
func parse(args []string, getenv func(string) string, usage io.Writer) (options, error) {
	var o options
	env := func(name, otherwise string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return otherwise
	}
	f := flag.NewFlagSet("ztunnel", flag.ContinueOnError)
	f.SetOutput(usage)
	f.StringVar(&o.zdsPath, "zds", "/var/run/ztunnel/ztunnel.sock", "`path` of the node agent's socket")
	f.StringVar(&o.xdsAddr, "xds-addr", "", "`host:port` of the controller (default: istiod.POD-NAMESPACE.svc:15012)")
	f.StringVar(&o.caAddr, "ca-addr", "", "`host:port` of the CA (default: the controller)")
	f.StringVar(&o.serverName, "xds-server-name", "", "`name` that the controller's certificate must have (default: istiod.POD-NAMESPACE.svc)")
	f.StringVar(&o.rootPath, "xds-root", "/var/run/secrets/istio/root-cert.pem", "`path` of the roots of the mesh, PEM; read again when it changes")
	f.StringVar(&o.tokenPath, "token", "/var/run/secrets/tokens/istio-token", "`path` of the service-account token; read for each call")
	f.StringVar(&o.clusterID, "cluster-id", env("CLUSTER_ID", api.DefaultClusterID), "`name` of the cluster [CLUSTER_ID]")
	f.StringVar(&o.nodeName, "node-name", env("NODE_NAME", ""), "`name` of the Kubernetes node [NODE_NAME]")
	f.StringVar(&o.podName, "pod-name", env("POD_NAME", ""), "`name` of this pod (default: ztunnel-NODE) [POD_NAME]")
	f.StringVar(&o.namespace, "pod-namespace", env("POD_NAMESPACE", api.DefaultRootNamespace), "`namespace` of this pod [POD_NAMESPACE]")
	f.StringVar(&o.instanceIP, "instance-ip", env("INSTANCE_IP", "127.0.0.1"), "`address` of this pod [INSTANCE_IP]")
	f.StringVar(&o.domain, "cluster-domain", api.DefaultClusterDomain, "DNS `suffix` of the cluster")
	f.StringVar(&o.resolvConf, "resolv-conf", "/etc/resolv.conf", "`path` of the file with the name servers that hosts of ServiceEntries are resolved by")
	f.StringVar(&o.adminAddr, "admin-addr", fmt.Sprintf("127.0.0.1:%d", api.PortAdmin), "loopback `address` of the admin endpoints")
	f.StringVar(&o.statsAddr, "stats-addr", fmt.Sprintf(":%d", api.PortStats), "`address` of /metrics")
	f.StringVar(&o.readyAddr, "ready-addr", fmt.Sprintf(":%d", api.PortReadiness), "`address` of /healthz/ready")
	f.DurationVar(&o.drainTimeout, "drain-timeout", 25*time.Second, "how long live connections go on after SIGTERM")
	f.IntVar(&o.cpus, "cpus", 2, "CPUs that the worker uses at a time (GOMAXPROCS)")
	f.TextVar(&o.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	if f.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.serverName == "" {
		o.serverName = api.ControllerName + "." + o.namespace + ".svc"
	}
	if o.xdsAddr == "" {
		o.xdsAddr = net.JoinHostPort(api.ControllerName+"."+o.namespace+".svc", strconv.Itoa(api.PortXDS))
	}
	if o.caAddr == "" {
		o.caAddr = o.xdsAddr
	}
	if o.podName == "" {
		o.podName = "ztunnel-" + o.nodeName
	}
	return o, o.validate()
}

// validate names every flag that cannot work.
func (o options) validate() error {
	var all []error
	bad := func(flag, format string, args ...any) {
		all = append(all, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	for _, p := range []struct{ flag, path string }{{"zds", o.zdsPath}, {"xds-root", o.rootPath}, {"token", o.tokenPath}} {
		if p.path == "" {
			bad(p.flag, "a path is required")
		} else if s, err := os.Stat(p.path); err == nil && s.IsDir() {
			bad(p.flag, "%s is a directory", p.path)
		}
	}
	for _, a := range []struct {
		flag, addr string
		host       bool
	}{
		{"xds-addr", o.xdsAddr, true}, {"ca-addr", o.caAddr, true},
		{"admin-addr", o.adminAddr, true}, {"stats-addr", o.statsAddr, false}, {"ready-addr", o.readyAddr, false},
	} {
		host, port, err := net.SplitHostPort(a.addr)
		if n, bad2 := strconv.ParseUint(port, 10, 16); err != nil || bad2 != nil || (a.host && (host == "" || n == 0 && a.flag != "admin-addr")) {
			bad(a.flag, "%q is not HOST:PORT", a.addr)
		}
	}
	if host, _, err := net.SplitHostPort(o.adminAddr); err == nil && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		bad("admin-addr", "%q is not a loopback address: it can stop the proxy", o.adminAddr)
	}
	if o.nodeName == "" {
		bad("node-name", "the name of the node is required, here or as NODE_NAME")
	}
	if net.ParseIP(o.instanceIP) == nil {
		bad("instance-ip", "%q is not an address", o.instanceIP)
	}
	if o.drainTimeout < 0 {
		bad("drain-timeout", "%s is negative", o.drainTimeout)
	}
	if o.cpus < 1 {
		bad("cpus", "%d is less than 1", o.cpus)
	}
	return errors.Join(all...)
}

// nodeID is the name under which the controller knows the proxy.
func (o options) nodeID() string {
	return fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.%s", o.instanceIP, o.podName, o.namespace, o.namespace, o.domain)
}
