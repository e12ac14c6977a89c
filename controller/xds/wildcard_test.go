package xds

import (
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/undermesh/undermesh/controller/api"
)

func (f *fakeStream) unsubscribe(typ string, names ...string) {
	f.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesUnsubscribe: names}
}

// onDemand opens a stream that follows nothing yet.
func onDemand(t *testing.T, s *Server) *fakeStream {
	f := open(t, s)
	f.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}}
	f.ack(expect(t, f.next(), "Address +[] -[]"))
	return f
}

// then applies a change and takes what the client gets of it.
func then(t *testing.T, st *Store, f *fakeStream, g uint64, want string, up []Resource, rm ...Key) {
	t.Helper()
	apply(t, st, g, up, rm...)
	time.Sleep(time.Second)
	r := expect(t, f.next(), want)
	if r != nil {
		f.ack(r)
	}
	expect(t, f.next(), "nothing")
}

// TestWildcardRegained: who asked for some by name and then for all is sent what exists already, once.
func TestWildcardRegained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1"), wl("b", "10.0.0.2"), wl("c", "10.0.0.3")})
		f := onDemand(t, s)
		f.subscribe(api.AddressType, nil, "/10.0.0.1")
		f.ack(expect(t, f.next(), "Address +["+uid+"a] -[]"))
		apply(t, st, 2, nil, Key{api.AddressType, uid + "a"})
		f.subscribe(api.AddressType, nil, "*")
		f.ack(expect(t, f.next(), "Address +["+uid+"b "+uid+"c] -["+uid+"a]"))
		time.Sleep(time.Second)
		f.subscribe(api.AddressType, nil, "*")
		expect(t, f.next(), "nothing")
		then(t, st, f, 3, "Address +["+uid+"d] -[]", []Resource{wl("d", "10.0.0.4")})
	})
}

// TestWildcardLeft: who had everything and follows some by alias from now on gets the changes of these alone, removals too.
func TestWildcardLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1"), wl("b", "10.0.0.2"), wl("c", "10.0.0.3"), wl("d", "10.0.0.4")})
		f := open(t, s)
		f.subscribe(api.AddressType, nil, "*", "/10.0.0.1", "/10.0.0.3", uid+"d")
		f.ack(expect(t, f.next(), "Address +["+uid+"a "+uid+"b "+uid+"c "+uid+"d] -[]"))
		time.Sleep(time.Second)
		apply(t, st, 2, nil, Key{api.AddressType, uid + "c"}) // not told yet when the client turns
		f.unsubscribe(api.AddressType, "*")
		f.ack(expect(t, f.next(), "Address +[] -["+uid+"c]"))
		time.Sleep(time.Second)
		then(t, st, f, 3, "nothing", []Resource{wl("b", "10.0.0.2", "x")})
		then(t, st, f, 4, "nothing", nil, Key{api.AddressType, uid + "b"})
		then(t, st, f, 5, "Address +["+uid+"a] -["+uid+"d]", []Resource{wl("a", "10.0.0.1", "x")}, Key{api.AddressType, uid + "d"})
		then(t, st, f, 6, "Address +[] -["+uid+"a]", nil, Key{api.AddressType, uid + "a"})
	})
}

// TestAliasUnsubscribed: what was followed by the alias alone is not followed any more, and what is followed otherwise is.
func TestAliasUnsubscribed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1", "svc"), wl("b", "10.0.0.2", "svc"), wl("c", "10.0.0.3", "svc")})
		f := onDemand(t, s)
		f.subscribe(api.AddressType, nil, "svc", "/10.0.0.2", uid+"c")
		f.ack(expect(t, f.next(), "Address +["+uid+"b "+uid+"c "+uid+"a] -[]"))
		f.unsubscribe(api.AddressType, "svc", "never")
		expect(t, f.next(), "nothing")
		all := []Resource{wl("a", "10.0.0.1", "svc", "x"), wl("b", "10.0.0.2", "svc", "x"), wl("c", "10.0.0.3", "svc", "x")}
		then(t, st, f, 2, "Address +["+uid+"b "+uid+"c] -[]", all)
		then(t, st, f, 3, "Address +[] -["+uid+"b]", nil, Key{api.AddressType, uid + "a"}, Key{api.AddressType, uid + "b"})
	})
}

// TestAliasLost: a resource that a client asked for by an alias which it has no more is gone for that client.
func TestAliasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
		f := onDemand(t, s)
		f.subscribe(api.AddressType, nil, "/10.0.0.1")
		f.ack(expect(t, f.next(), "Address +["+uid+"a] -[]"))
		then(t, st, f, 2, "Address +[] -["+uid+"a]", []Resource{wl("a", "10.0.0.9")})
		then(t, st, f, 3, "nothing", []Resource{wl("a", "10.0.0.8")})
		then(t, st, f, 4, "Address +["+uid+"a] -[]", []Resource{wl("a", "10.0.0.1")})
	})
}

// TestOnDemandResumes: what a client holds from an earlier stream is followed further, although it does not ask for it.
func TestOnDemandResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1"), wl("b", "10.0.0.2")})
		f := open(t, s)
		f.subscribe(api.AddressType, map[string]string{uid + "a": "old"}, "/10.0.0.2")
		f.ack(expect(t, f.next(), "Address +["+uid+"a "+uid+"b] -[]"))
		then(t, st, f, 2, "Address +["+uid+"a] -[]", []Resource{wl("a", "10.0.0.9")})
		f.unsubscribe(api.AddressType, uid+"a")
		expect(t, f.next(), "nothing")
		then(t, st, f, 3, "nothing", []Resource{wl("a", "10.0.0.8")})
	})
}
