package sim

import (
	"context"
	"net"
	"net/netip"
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
	ip       netip.Addr
	node     *node
	enrolled bool // the agent has captured it
	born     time.Time

	host             *memnet.Host
	out, in, tunnel  *memnet.Socket // of the agent, in the pod; nil when not enrolled
	died             time.Time      // protected by world.mu; zero: it lives
	declared         int            // version that says HBONE; protected by world.mu; 0: none yet
	confirmed        []confirmation // by time; protected by world.mu
	servedBy, client int            // streams; protected by world.mu
}

// confirmation says from when on the pod's node had a version.
type confirmation struct {
	at      time.Time
	version int
}

func (p *pod) String() string { return p.ns + "/" + p.name }

func (p *pod) model() model.Name { return model.Name{Namespace: p.ns, Name: p.name} }

// bring puts the pod on the network with its applications listening, captured from its first packet when it is enrolled.
func (p *pod) bring() error {
	host, err := p.w.net.AddHost(p.node.name, p.ip)
	if err != nil {
		return err
	}
	p.host = host
	for _, port := range appPorts {
		s, err := host.Listen(port)
		if err != nil {
			return err
		}
		p.w.apps.Go(func() { p.w.serveApp(p, port, s.Open(nil)) })
	}
	if !p.enrolled {
		return nil
	}
	for port, s := range map[uint16]**memnet.Socket{api.PortOutbound: &p.out, api.PortInbound: &p.in, api.PortTunnel: &p.tunnel} {
		if *s, err = host.Listen(port); err != nil {
			return err
		}
	}
	host.Steer, host.Capture = p.steer, p.capture
	return nil
}

// capture is the connect hook: all that the pod's processes dial goes to the outbound listener, except for ztunnel's.
func (p *pod) capture(syn memnet.SYN) *memnet.Socket {
	if p.node.owns(syn.Process) {
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
