package sim

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/test/sim/memnet"
	"github.com/undermesh/undermesh/ztunnel/proxy"
)

// appPorts are the ports of every application.
var appPorts = []uint16{80, 81}

// pod is one pod from its creation to its end. Immutable but where noted.
type pod struct {
	w        *world
	uid      string
	ns, name string
	who      account
	app      string
	version  string // label
	ip       netip.Addr
	node     *node
	born     time.Time
	host     *memnet.Host

	// Driver only.
	out, in, tunnel *memnet.Socket // of the agent, in the pod; nil when it never was enrolled
	enrolled        bool           // the agent has told ztunnel of it
	moving          bool           // in or out of the mesh

	inbound, outbound atomic.Bool // captured
	ill               illness

	died      time.Time      // protected by world.mu; zero: it lives
	confirmed []confirmation // by time; protected by world.mu
}

// flow names a connection on the network.
type flow struct{ src, dst netip.AddrPort }

// confirmation says from when on the pod's node had a version.
type confirmation struct {
	at      time.Time
	version int
}

func (p *pod) String() string { return p.ns + "/" + p.name }

func (p *pod) model() model.Name { return model.Name{Namespace: p.ns, Name: p.name} }

// bring puts the pod on the network with its applications listening.
func (p *pod) bring() error {
	host, err := p.w.net.AddHost(p.node.name, p.ip)
	if err != nil {
		return err
	}
	p.host = host
	host.Steer, host.Capture = p.steer, p.capture
	for _, port := range appPorts {
		s, err := host.Listen(port)
		if err != nil {
			return err
		}
		serve := p.w.serveApp
		if p.w.opt.Requests {
			serve = p.w.serveHTTP
		}
		p.w.apps.Go(func() { serve(p, port, s.Open(nil)) })
	}
	return nil
}

// prepare opens the agent's listeners in the pod.
func (p *pod) prepare() (err error) {
	p.enrolled = true
	for port, s := range map[uint16]**memnet.Socket{api.PortOutbound: &p.out, api.PortInbound: &p.in, api.PortTunnel: &p.tunnel} {
		if *s, err = p.host.Listen(port); err != nil {
			return err
		}
	}
	return nil
}

// capture is the connect hook: all that the pod's processes dial goes to the outbound listener, except for ztunnel's.
func (p *pod) capture(syn memnet.SYN) *memnet.Socket {
	if !p.outbound.Load() || p.node.owns(syn.Process) {
		return nil
	}
	return p.out
}

// judged is the mark of a connection that ztunnel has judged.
const judged = 1

// steer is sk_lookup with the flow table: of what this node's ztunnel sends, the legs have been judged.
func (p *pod) steer(syn memnet.SYN) *memnet.Socket {
	s := p.in
	switch {
	case !p.inbound.Load():
		p.w.mu.Lock()
		p.w.unjudged[flow{syn.Src, syn.Dst}] = true
		p.w.mu.Unlock()
		return p.host.Socket(syn.Dst.Port())
	case syn.Dst.Port() == api.PortTunnel:
		s = p.tunnel
	case p.node.owns(syn.Process) && (syn.Mark == judged || syn.From == p.host):
		s = p.host.Socket(syn.Dst.Port())
	}
	if f := p.w.opt.Hooks.Steer; f != nil && s == p.in {
		return f(syn, s, p.host.Socket(syn.Dst.Port()))
	}
	return s
}

// sockets are what ztunnel opens in the pod.
type sockets struct {
	p    *pod
	proc *memnet.Process
}

var _ proxy.Sockets = sockets{}

// Dial implements proxy.Sockets.
func (s sockets) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := memnet.Dialer{Host: s.p.host, Process: s.proc}.Dial(ctx, to)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Leg implements proxy.Sockets.
func (s sockets) Leg(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := memnet.Dialer{Host: s.p.host, Process: s.proc, Mark: judged}.Dial(ctx, to)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Deliver implements proxy.Sockets.
func (s sockets) Deliver(ctx context.Context, client netip.Addr, to netip.AddrPort) (net.Conn, error) {
	c, err := memnet.Dialer{Host: s.p.host, Process: s.proc, Source: client, Loop: true}.Dial(ctx, to)
	if err != nil {
		return nil, err
	}
	return c, nil
}
