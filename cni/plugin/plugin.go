// Package plugin is the chained CNI plugin: it asks the node agent to enrol the pod that is being made and passes the
// previous plugin's result through unchanged.
//
// Invariants: a pod of the mesh never starts uncaptured: without the agent only pods of namespaces that the agent's
// digest calls open, or that the configuration excludes, get their network. DEL and GC succeed whatever happens.
// Nothing but the result is written to standard output.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/undermesh/undermesh/cni/wire"
)

// Versions are the CNI versions that the plugin speaks.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Conf is our entry of a conflist.
type Conf struct {
	types.PluginConf
	// Socket of the agent; default wire.DefaultSocket.
	Socket string `json:"socket,omitempty"`
	// Digest file of the agent; default wire.DefaultDigest.
	Digest string `json:"digest,omitempty"`
	// ExcludeNamespaces start without agent and digest, so that a cluster can boot.
	ExcludeNamespaces []string `json:"excludeNamespaces,omitempty"`
	// LogFile gets one JSON line a command; default none.
	LogFile string `json:"logFile,omitempty"`
	// TimeoutSeconds bounds one ADD; default 30.
	TimeoutSeconds int `json:"timeoutSeconds,omitempty"`
}

// delTimeout bounds what DEL, GC and STATUS wait for an agent that accepts and does not answer.
const delTimeout = 5 * time.Second

// k8sArgs is what the runtime says about the pod.
type k8sArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString //nolint:revive,staticcheck // the names are the runtime's
	K8S_POD_NAME               types.UnmarshallableString //nolint:revive,staticcheck
	K8S_POD_UID                types.UnmarshallableString //nolint:revive,staticcheck
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString //nolint:revive,staticcheck
}

// Funcs returns the plugin's commands for skel; ctx ends what they wait for.
func Funcs(ctx context.Context) skel.CNIFuncs {
	with := func(f func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return f(ctx, args) }
	}
	return skel.CNIFuncs{Add: with(add), Del: with(del), Check: with(check), GC: with(gc), Status: with(status)}
}

// add enrols the pod and prints the previous result.
func add(ctx context.Context, args *skel.CmdArgs) error {
	c, req, err := parse(args)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return errors.New("undermesh-cni is a chained plugin and got no prevResult: put it behind the primary plugin")
	}
	if req.IPs, err = addresses(c.PrevResult); err != nil {
		return fmt.Errorf("pod %s: read prevResult: %w", req.Pod(), err)
	}
	log, done := logger(c)
	defer done()
	if req.PodName == "" {
		log.Info("not a pod, passed through", "containerID", req.ContainerID)
		return types.PrintResult(c.PrevResult, c.CNIVersion)
	}
	start := time.Now()
	if err := admit(ctx, c, req, log); err != nil {
		log.Error("add refused", "pod", req.Pod(), "err", err, "dur", time.Since(start))
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	log.Info("add", "pod", req.Pod(), "dur", time.Since(start))
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

// admit returns nil when the pod may start.
func admit(ctx context.Context, c *Conf, req wire.Request, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.TimeoutSeconds)*time.Second)
	defer cancel()
	resp, err := call(ctx, c.Socket, wire.PathAdd, req)
	switch {
	case errors.Is(err, errAway):
		return withoutAgent(c, req, err, log)
	case err != nil:
		return fmt.Errorf("enrol pod %s: %w", req.Pod(), err)
	}
	log.Info("agent answered", "pod", req.Pod(), "enrolled", resp.Enrolled, "why", resp.Why)
	return nil
}

// withoutAgent decides by configuration and digest; it fails closed.
func withoutAgent(c *Conf, req wire.Request, away error, log *slog.Logger) error {
	if slices.Contains(c.ExcludeNamespaces, req.PodNamespace) {
		log.Warn("agent away, namespace excluded by configuration", "pod", req.Pod())
		return nil
	}
	d, err := wire.ReadDigest(c.Digest)
	if err != nil {
		return fmt.Errorf("enrol pod %s: the node agent is away (%w) and left no usable digest: %w", req.Pod(), away, err)
	}
	if d.IsOpen(req.PodNamespace) {
		log.Warn("agent away, namespace is outside the mesh", "pod", req.Pod())
		return nil
	}
	return fmt.Errorf("enrol pod %s: the node agent is away (%w) and namespace %s is not known to be outside the mesh; the pod waits",
		req.Pod(), away, req.PodNamespace)
}

// del tells the agent; it never fails.
func del(ctx context.Context, args *skel.CmdArgs) error {
	c, req, err := parse(args)
	if err != nil {
		return nil //nolint:nilerr // a broken configuration must not keep a pod from ending
	}
	log, done := logger(c)
	defer done()
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()
	if _, err := call(ctx, c.Socket, wire.PathDel, req); err != nil {
		log.Warn("del not delivered, the agent will find out", "pod", req.Pod(), "err", err)
		return nil
	}
	log.Info("del", "pod", req.Pod())
	return nil
}

// check asks whether the pod is captured as it should be.
func check(ctx context.Context, args *skel.CmdArgs) error {
	c, req, err := parse(args)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return errors.New("undermesh-cni CHECK got no prevResult")
	}
	if req.IPs, err = addresses(c.PrevResult); err != nil {
		return fmt.Errorf("pod %s: read prevResult: %w", req.Pod(), err)
	}
	if req.PodName == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()
	_, err = call(ctx, c.Socket, wire.PathCheck, req)
	if errors.Is(err, errAway) && slices.Contains(c.ExcludeNamespaces, req.PodNamespace) {
		return nil
	}
	return err
}

// status reports whether pods of the mesh can start.
func status(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()
	if _, err := call(ctx, c.Socket, wire.PathStatus, wire.Request{}); err != nil {
		if _, derr := wire.ReadDigest(c.Digest); errors.Is(err, errAway) && derr == nil {
			return nil // pods outside the mesh start; the node must stay ready for them
		}
		return types.NewError(50, "undermesh-cni is not available: "+err.Error(), "")
	}
	return nil
}

// gc tells the agent which containers still exist; it never fails.
func gc(ctx context.Context, args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return nil //nolint:nilerr // garbage collection of others must go on
	}
	req := wire.Request{Valid: []string{}}
	for _, a := range c.ValidAttachments {
		req.Valid = append(req.Valid, a.ContainerID)
	}
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()
	if _, err := call(ctx, c.Socket, wire.PathGC, req); err != nil {
		log, done := logger(c)
		defer done()
		log.Warn("gc not delivered", "err", err)
	}
	return nil
}

func parse(args *skel.CmdArgs) (*Conf, wire.Request, error) {
	c, err := parseConf(args.StdinData)
	if err != nil {
		return nil, wire.Request{}, err
	}
	var k k8sArgs
	k.IgnoreUnknown = true
	if err := types.LoadArgs(args.Args, &k); err != nil {
		return nil, wire.Request{}, fmt.Errorf("parse CNI_ARGS: %w", err)
	}
	return c, wire.Request{ContainerID: args.ContainerID, Netns: args.Netns, IfName: args.IfName,
		PodNamespace: string(k.K8S_POD_NAMESPACE), PodName: string(k.K8S_POD_NAME), PodUID: string(k.K8S_POD_UID)}, nil
}

// parseConf reads the configuration that the runtime gave on standard input.
func parseConf(stdin []byte) (*Conf, error) {
	c := &Conf{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, fmt.Errorf("parse plugin configuration: %w", err)
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, fmt.Errorf("parse prevResult: %w", err)
	}
	if c.Socket == "" {
		c.Socket = wire.DefaultSocket
	}
	if c.Digest == "" {
		c.Digest = wire.DefaultDigest
	}
	if c.TimeoutSeconds <= 0 {
		c.TimeoutSeconds = 30
	}
	return c, nil
}

// addresses returns the addresses of the pod's own interfaces.
func addresses(prev types.Result) ([]netip.Addr, error) {
	r, err := current.NewResultFromResult(prev)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		// An address on an interface outside the sandbox belongs to the node.
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == "" {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("address %s is not one", ip.Address.String())
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

// logger appends to the configured file; without one, or when it cannot be opened, lines are dropped: standard error
// would end up in the runtime's error text.
func logger(c *Conf) (*slog.Logger, func()) {
	var w io.Writer = io.Discard
	done := func() {}
	if c.LogFile != "" {
		if f, err := os.OpenFile(c.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			w, done = f, func() { _ = f.Close() } // nothing depends on a log line
		}
	}
	return slog.New(slog.NewJSONHandler(w, nil)), done
}
