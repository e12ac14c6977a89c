package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/undermesh/undermesh/cni/wire"
)

// options are the command line.
type options struct {
	nodeName      string
	kubeconfig    string // "": in the cluster
	configDir     string // directory mode
	zds           string
	cniSocket     string
	cniDigest     string
	cniBinary     string
	cniBinDir     string // "": the plugin is not installed
	cniConfDir    string
	cniLog        string
	bpfPinDir     string
	runDir        string
	cgroupRoot    string
	ztunnelCgroup string
	kubeletPort   uint
	procRoot      string
	netnsDir      string
	metricsAddr   string
	readyAddr     string
	excluded      []string
	byDefault     bool
	propagation   time.Duration
	logLevel      slog.Level
}

// parse reads flags; env gives the defaults that a DaemonSet sets by the downward API.
func parse(args []string, env func(string) string) (options, error) {
	var o options
	fs := flag.NewFlagSet("nodeagent", flag.ContinueOnError)
	fs.StringVar(&o.nodeName, "node-name", env("NODE_NAME"), "name of this node")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file; default: the service account of the pod")
	fs.StringVar(&o.configDir, "config", "", "directory of YAML instead of an API server")
	fs.StringVar(&o.zds, "zds", "/var/run/ztunnel/ztunnel.sock", "socket that ztunnel connects to")
	fs.StringVar(&o.cniSocket, "cni-socket", wire.DefaultSocket, "socket that the CNI plugin asks")
	fs.StringVar(&o.cniDigest, "cni-digest", "", "file for the CNI plugin while the agent is away; default: digest.json beside the socket")
	fs.StringVar(&o.cniBinary, "cni-binary", "/usr/local/bin/"+wire.PluginType, "the CNI plugin to install")
	fs.StringVar(&o.cniBinDir, "cni-bin-dir", "", "where the runtime looks for plugins; empty: do not install the plugin")
	fs.StringVar(&o.cniConfDir, "cni-conf-dir", "", "where the runtime looks for CNI configurations; empty: do not install the plugin")
	fs.StringVar(&o.cniLog, "cni-log", "", "file for the plugin's log lines; empty: none")
	fs.StringVar(&o.bpfPinDir, "bpf-pin-dir", "", "directory for pins, directly below the mount point of a BPF file system; default /sys/fs/bpf/undermesh")
	fs.StringVar(&o.runDir, "run-dir", "/run/undermesh", "directory for mounts of the agent's own")
	fs.StringVar(&o.cgroupRoot, "cgroup-root", "", "cgroup2 group whose processes are captured; default: the root")
	fs.StringVar(&o.ztunnelCgroup, "ztunnel-cgroup", "", "ztunnel's cgroup2 group as /proc/PID/cgroup has it; default: that of the process that connects")
	fs.UintVar(&o.kubeletPort, "kubelet-port", 10250, "port by which kubelet is found")
	fs.StringVar(&o.procRoot, "proc-root", "/proc", "the node's proc file system")
	fs.StringVar(&o.netnsDir, "netns-dir", "/var/run/netns", "where the runtime mounts network namespaces")
	fs.StringVar(&o.metricsAddr, "metrics-addr", ":15014", "address of /metrics and /pods; empty: none")
	fs.StringVar(&o.readyAddr, "ready-addr", ":8000", "address of /readyz; empty: none")
	excluded := fs.String("exclude-namespaces", "istio-system,kube-system", "namespaces that are never enrolled")
	fs.BoolVar(&o.byDefault, "enable-namespaces-by-default", false, "enrol pods without any label (SI-06)")
	fs.DurationVar(&o.propagation, "propagation", 5*time.Second, "how long other nodes have to learn that a pod leaves the mesh")
	fs.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	for _, ns := range strings.Split(*excluded, ",") {
		if ns = strings.TrimSpace(ns); ns != "" {
			o.excluded = append(o.excluded, ns)
		}
	}
	if o.cniDigest == "" {
		o.cniDigest = filepath.Join(filepath.Dir(o.cniSocket), filepath.Base(wire.DefaultDigest))
	}
	return o, o.validate(fs.Args())
}

func (o options) validate(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unknown argument %q", rest[0])
	case o.nodeName == "":
		return errors.New("--node-name or NODE_NAME is needed")
	case (o.cniBinDir == "") != (o.cniConfDir == ""):
		return errors.New("--cni-bin-dir and --cni-conf-dir go together")
	case o.kubeletPort == 0 || o.kubeletPort > 65535:
		return fmt.Errorf("--kubelet-port %d is not a port", o.kubeletPort)
	case o.kubeconfig != "" && o.configDir != "":
		return errors.New("--kubeconfig and --config exclude each other")
	}
	return nil
}
