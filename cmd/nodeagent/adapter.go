package main

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/undermesh/undermesh/nodeagent/datapath"
	"github.com/undermesh/undermesh/nodeagent/enroll"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/server"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

// kinds maps the kernel's listeners to the names on the wire.
var kinds = map[datapath.Kind]zdsapi.ListenerKind{
	datapath.KindOutbound: zdsapi.ListenerKind_OUTBOUND,
	datapath.KindInbound:  zdsapi.ListenerKind_INBOUND,
	datapath.KindTunnel:   zdsapi.ListenerKind_TUNNEL,
	datapath.KindProbe:    zdsapi.ListenerKind_PROBE,
}

// kernel makes a Datapath what enroll needs.
type kernel struct {
	*datapath.Datapath
	hostCookie uint64
}

// Prepare implements enroll.Datapath.
func (k kernel) Prepare(ctx context.Context, p enroll.PodNet) (enroll.Handle, error) {
	pod := datapath.Pod{UID: p.UID, Netns: p.Netns, IPs: p.IPs, ExcludeOutCIDRs: p.Exclusions.OutboundPrefixes,
		IncludeOnly: p.Exclusions.IncludeOnly, IncludeOutCIDRs: p.Exclusions.IncludePrefixes,
		IncludeOutPorts: p.Exclusions.IncludeOutboundPorts, ExcludeOutPorts: p.Exclusions.ExcludeOutboundPorts,
		ExcludeInPorts: p.Exclusions.ExcludeInboundPorts}
	for _, probe := range p.Probes {
		pr := datapath.Probe{Port: probe.Port, HTTP: probe.HTTP, GRPC: probe.GRPC, TLS: probe.TLS}
		if !slices.Contains(pod.Probes, pr) { // two paths of one port
			pod.Probes = append(pod.Probes, pr)
		}
	}
	h, err := k.PreparePod(ctx, pod)
	if err != nil {
		return nil, err
	}
	return handle{h}, nil
}

// Known implements enroll.Datapath.
func (k kernel) Known() (map[string]enroll.Handle, error) {
	pods, err := k.Pods()
	out := make(map[string]enroll.Handle, len(pods))
	for _, h := range pods {
		out[h.UID()] = handle{h}
	}
	return out, err
}

// SetKubelet implements enroll.NodeRules.
func (k kernel) SetKubelet(cgroup uint64) error { return k.Datapath.SetKubelet(cgroup, k.hostCookie) }

func (k kernel) counters() (server.Counters, error) {
	s, err := k.Stats()
	return server.Counters{Reasons: s.Reasons, Events: s.Events}, err
}

func decision(d datapath.Decision) server.Decision {
	return server.Decision{Layer: d.Layer.String(), Verdict: d.Verdict.String(), Reason: d.Reason, Src: d.Src, Dst: d.Dst,
		UID: d.UID, Generation: d.Generation}
}

// handle implements enroll.Handle.
type handle struct{ h *datapath.PodHandle }

func (h handle) Inbound(on bool) error {
	if on {
		return h.h.AttachInbound()
	}
	return h.h.DetachInbound()
}

func (h handle) Outbound(on bool) error { return h.h.CaptureOutbound(on) }

func (h handle) State() (inbound, outbound bool, err error) {
	outbound, err = h.h.OutboundCaptured()
	return h.h.InboundAttached(), outbound, err
}

func (h handle) Netns() (*netns.NetNS, error) {
	ns, err := h.h.Netns()
	if errors.Is(err, datapath.ErrNetnsGone) {
		return nil, nil
	}
	return ns, err
}

func (h handle) Ensure() error { return h.h.EnsureListeners() }

func (h handle) Adopt(files map[zdsapi.ListenerKind]*os.File) error {
	mine := map[datapath.Kind]*os.File{}
	for k, name := range kinds {
		if f := files[name]; f != nil {
			mine[k] = f
		}
	}
	return h.h.SetListeners(mine)
}

func (h handle) Files() map[zdsapi.ListenerKind]*os.File {
	out := map[zdsapi.ListenerKind]*os.File{}
	for k, f := range h.h.Listeners() {
		out[kinds[k]] = f
	}
	return out
}

func (h handle) Live() (int, error) {
	n, err := h.h.LiveCaptured()
	if errors.Is(err, datapath.ErrNetnsGone) {
		return 0, nil
	}
	return n, err
}

func (h handle) Unended() (int, error) { return h.h.Unended() }

func (h handle) Cleanup(ctx context.Context) error { return h.h.Cleanup(ctx) }
