package client

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

func withNetworks(host string, prefixes ...netip.Prefix) Resource {
	svc := &workloadapi.Service{Name: host, Namespace: "foo", Hostname: host}
	for _, p := range prefixes {
		svc.Addresses = append(svc.Addresses, &workloadapi.NetworkAddress{Address: p.Addr().AsSlice(), Length: wrapperspb.UInt32(uint32(p.Bits()))})
	}
	return Resource{Message: svc}
}

// TestNetworksAreFiledOnce: 64 hosts of an entry with 256 networks are as many networks to look through as one host is, and
// as many places to look at; all is gone with the hosts.
func TestNetworksAreFiledOnce(t *testing.T) {
	var networks []netip.Prefix
	for i := range 256 {
		networks = append(networks, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16+i%4))
	}
	networks = append(networks, networks[0])
	s := empty()
	var keys []Key
	for i := range 64 {
		host := fmt.Sprintf("h%02d", i)
		keys = append(keys, Key{api.AddressType, "foo/" + host})
		next, err := s.With(uint64(i), []Resource{withNetworks(host, networks...)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s = next; s.networks.size != 256 || len(s.lengths) != 4 || s.lengths[0] != (length{19, 64}) {
			t.Fatalf("%d hosts: %d networks, lengths %v", i+1, s.networks.size, s.lengths)
		}
	}
	visited := 0
	for list := range s.networksOf("", netip.MustParseAddr("10.3.1.1")) {
		visited += len(list)
	}
	if visited != 64 {
		t.Errorf("%d services are looked at for an address that 64 have", visited)
	}
	end, err := s.With(100, []Resource{withNetworks("h00", networks[1])}, keys[1:])
	if err != nil {
		t.Fatal(err)
	}
	if end.networks.size != 1 || len(end.lengths) != 1 || s.networks.size != 256 || s.lengths[0].count != 64 {
		t.Errorf("%d networks of lengths %v are left, the older snapshot has %d of %v", end.networks.size, end.lengths, s.networks.size, s.lengths)
	}
}

// TestNetworksAgree compares lookups after random changes with a walk over all services.
func TestNetworksAgree(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	addr := func() netip.Addr {
		if r.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{byte(r.IntN(2)), byte(r.IntN(4))})
		}
		return netip.AddrFrom16([16]byte{byte(r.IntN(2)), byte(r.IntN(4))})
	}
	s := empty()
	for g := range 300 {
		host := fmt.Sprint("h", r.IntN(12))
		var up []Resource
		var gone []Key
		if r.IntN(3) == 0 {
			gone = []Key{{api.AddressType, "foo/" + host}}
		} else {
			var list []netip.Prefix
			for range r.IntN(5) {
				list = append(list, netip.PrefixFrom(addr(), r.IntN(18)))
			}
			up = []Resource{withNetworks(host, list...)}
		}
		next, err := s.With(uint64(g), up, gone)
		if err != nil {
			t.Fatal(err)
		}
		s = next
		ip := addr()
		var want, got []string
		for bits := 32; bits >= 0; bits-- {
			for _, svc := range s.Services() {
				holds := func(k netKey) bool { return k.prefix.Bits() == bits && k.prefix.Contains(ip) }
				if slices.ContainsFunc(svc.networks, holds) {
					want = append(want, svc.GetHostname())
				}
			}
		}
		for _, svc := range s.ServicesByIP("", ip) {
			got = append(got, svc.GetHostname())
		}
		if !slices.Equal(got, want) {
			t.Fatalf("change %d, %s: got %v, want %v", g, ip, got, want)
		}
	}
}
