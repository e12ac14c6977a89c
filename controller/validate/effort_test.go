package validate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
)

// sets make files of n objects, or with n items, that refer to each other as often as they can.
var sets = map[string]func(n int) string{
	"VirtualServices of one host": func(n int) string {
		return repeat(n, func(i int) string {
			return write(network+"VirtualService", fmt.Sprint("v", i), "{hosts: [a.example], http: [{route: [{destination: {host: b, subset: x}}]}]}")
		})
	},
	"VirtualServices of one host, each for a namespace": func(n int) string {
		return repeat(n, func(i int) string {
			return write(network+"VirtualService", fmt.Sprintf("n%d/v", i), "{hosts: [a.example], exportTo: [., other], http: [{route: [{destination: {host: b}}]}]}")
		})
	},
	"ServiceEntries with wildcards": func(n int) string {
		return repeat(n, func(i int) string {
			return write(network+"ServiceEntry", fmt.Sprint("s", i), fmt.Sprintf("{hosts: ['*.h%d.example'], ports: [{number: 80, name: http, protocol: HTTP}]}", i)) +
				write(network+"VirtualService", fmt.Sprint("v", i), fmt.Sprintf("{hosts: [h%d.example], http: [{route: [{destination: {host: a.h%d.example}}]}]}", i, i))
		})
	},
	"ServiceEntries of one host": func(n int) string {
		return repeat(n, func(i int) string {
			return write(network+"ServiceEntry", fmt.Sprint("s", i), fmt.Sprintf("{hosts: [a.example], ports: [{number: 80, name: http, protocol: %s}]}", []string{"HTTP", "TCP"}[i%2]))
		})
	},
	"DestinationRules of one host": func(n int) string {
		return write("v1 Service", "a", "{selector: {app: a}, ports: [{name: http, port: 80}]}") + repeat(n, func(i int) string {
			return write(network+"DestinationRule", fmt.Sprint("d", i), "{host: a, trafficPolicy: {tls: {mode: DISABLE}}, subsets: [{name: x, labels: {version: v1}}]}") +
				write(security+"PeerAuthentication", fmt.Sprint("p", i), "{mtls: {mode: STRICT}}")
		})
	},
	"destinations at one service": func(n int) string {
		ports := repeat(n, func(i int) string { return fmt.Sprintf("{name: http-%d, port: %d}, ", i, i+1) })
		routes := repeat(n, func(int) string {
			return "{match: [{port: 1}], route: [{destination: {host: a, port: {number: 65000}}}]}, "
		})
		return write("v1 Service", "a", "{selector: {app: a}, ports: ["+ports+"]}") + write(network+"VirtualService", "a", "{hosts: [a], http: ["+routes+"]}")
	},
	"Gateways of one host": func(n int) string {
		return repeat(n, func(i int) string {
			return write(network+"Gateway", fmt.Sprint("g", i), "{selector: {a: b}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [a.example]}]}")
		})
	},
	"hosts of one Gateway": func(n int) string {
		hosts := repeat(n, func(i int) string { return fmt.Sprintf("h%d.example, ", i) })
		return write(network+"Gateway", "g", "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ["+hosts+"]}]}") +
			write(network+"VirtualService", "v", "{hosts: ["+strings.ReplaceAll(hosts, "h", "i")+"], gateways: [g], http: [{route: [{destination: {host: a}}]}]}")
	},
	"policies and pods": func(n int) string {
		return repeat(n, func(i int) string {
			sel := fmt.Sprintf("{matchLabels: {app: a%d}}", i)
			return "---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + fmt.Sprint("p", i) + ", namespace: shop, labels: {app: " + fmt.Sprint("a", i) + "}}\nspec: {containers: [{name: c, image: i}]}\n" +
				write("v1 Service", fmt.Sprint("s", i), fmt.Sprintf("{selector: {app: a%d}, ports: [{name: tcp, port: 80}]}", i)) +
				write(security+"AuthorizationPolicy", fmt.Sprint("a", i), "{selector: "+sel+", rules: [{to: [{operation: {methods: [GET]}}]}]}") +
				write(security+"PeerAuthentication", fmt.Sprint("a", i), "{selector: "+sel+", mtls: {mode: STRICT}}") +
				write(network+"Sidecar", fmt.Sprint("a", i), fmt.Sprintf("{workloadSelector: {labels: {app: a%d}}, egress: [{hosts: ['./*']}]}", i))
		})
	},
	"Sidecars of one namespace": func(n int) string {
		return repeat(n, func(i int) string {
			return write(network+"Sidecar", fmt.Sprint("a", i), "{egress: [{hosts: ['./*']}]}")
		})
	},
	"routes to other namespaces": func(n int) string {
		return repeat(n, func(i int) string {
			return write(gwapi+"HTTPRoute", fmt.Sprint("r", i), "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, namespace: far, port: 80}]}]}") +
				write("v1 Secret", fmt.Sprint("s", i), "") + write("v1 Service", fmt.Sprintf("far/s%d", i), "{ports: [{port: 80}]}")
		})
	},
}

func repeat(n int, text func(i int) string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(text(i))
	}
	return b.String()
}

// TestEffort: twice as many objects that refer to each other take about twice the steps, and about twice as much is said.
func TestEffort(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	for name, gen := range sets {
		t.Run(name, func(t *testing.T) {
			measure := func(n int) (steps, said int) {
				s := c.NewSet(SetConfig{All: true})
				s.File(t.Context(), "f", []byte(gen(n)))
				found, err := s.Together(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range found {
					said += len(f.String())
				}
				return stepsTogether + stepsObject*len(s.order) - s.effort.left, said
			}
			steps, said := measure(200)
			steps2, said2 := measure(800)
			if steps2 > 5*steps || said2 > 6*said {
				t.Errorf("four times as many objects: %d → %d steps, %d → %d bytes", steps, steps2, said, said2)
			}
		})
	}
}

// TestLargeObjects: objects with very many fields and items are checked at once. Where each were compared with all, each of
// these would take minutes.
func TestLargeObjects(t *testing.T) {
	const n = 80_000
	c := &collector{}
	entry := &networking.ServiceEntry{Hosts: []string{"a.example"}, Resolution: networking.ServiceEntry_DNS}
	for i := range 2 * n {
		entry.Ports = append(entry.Ports, &networking.ServicePort{Number: uint32(i%65535) + 1, Name: fmt.Sprint("p", i), Protocol: "HTTP"})
	}
	serviceEntryRules(c, entry)
	if twice := slices.DeleteFunc(c.found, func(f Finding) bool { return !strings.Contains(f.Message, "has the number") }); len(twice) != 2*n-65535 {
		t.Errorf("%d ports stand twice", len(twice))
	}
	service := &networking.VirtualService{}
	hosts := newNames[bool]()
	for i := range n {
		hosts.add(fmt.Sprintf("h%d.example", i), true)
		service.Tls = append(service.Tls, &networking.TLSRoute{Match: []*networking.TLSMatchAttributes{{SniHosts: []string{fmt.Sprintf("h%d.example", n-i)}}}})
	}
	c = &collector{}
	for _, r := range service.GetTls() {
		c.tlsRoute(r, hosts, nil, "t")
	}
	if got := slices.DeleteFunc(c.found, func(f Finding) bool { return !strings.Contains(f.Message, "not among the hosts") }); len(got) != 1 {
		t.Errorf("%d names are not among the hosts", len(got))
	}
	text := head + "spec:\n  hosts: [a]\n" + repeat(n, func(i int) string { return fmt.Sprintf("  htttp%d: 1\n", i) })
	r := checkText(t, text)
	unknown := slices.DeleteFunc(r.Findings, func(f Finding) bool { return f.Message != "unknown field" })
	if len(unknown) != n || unknown[n-1].Line != n+5 || unknown[0].Hint == "" {
		t.Errorf("%d unknown fields: %v", len(unknown), unknown[:min(1, len(unknown))])
	}
	long := head + "spec:\n  ? " + strings.Repeat("k", 1<<20) + "\n  : {" + repeat(n, func(i int) string { return fmt.Sprintf("a%d: 1, ", i) }) + "}\n"
	if r := checkText(t, long); !strings.Contains(fmt.Sprint(r.Findings), "has a key of 1048576 bytes") {
		t.Error(r.Findings)
	}
}

// TestStop: a judgement ends with its context, and says so.
func TestStop(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := c.NewSet(SetConfig{All: true})
	text := []byte(sets["policies and pods"](100))
	if r := s.File(ctx, "f", text); r.Objects != 500 {
		t.Fatalf("control: %d objects", r.Objects)
	}
	cancel()
	if r := s.File(ctx, "g", text); r.Objects != 0 || r.Worst() != Error || !strings.Contains(r.Findings[0].String(), "g:1: error YAML : was not checked to its end") {
		t.Errorf("%d objects: %v", r.Objects, r.Findings)
	}
	if e := newEffort(ctx.Done(), 1<<20); !e.spend(1) || e.spend(1<<16) {
		t.Error("it goes on")
	}
	if found, err := s.Together(ctx); !errors.Is(err, context.Canceled) || len(found) > 0 {
		t.Errorf("%d findings: %v", len(found), err)
	}
}

// TestTooManyReferences: what would take minutes ends with an error, and what was found until then is right.
func TestTooManyReferences(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	const n = 8_000
	labels := "{" + repeat(200, func(i int) string { return fmt.Sprintf("l%d: x, ", i) }) + "}"
	s := c.NewSet(SetConfig{All: true})
	s.File(t.Context(), "f", []byte(write(network+"DestinationRule", "d", "{host: a.example, subsets: ["+
		repeat(n, func(i int) string { return fmt.Sprintf("{name: s%d, labels: {v: b}}, ", i) })+"]}")+
		write(network+"ServiceEntry", "s", "{hosts: [a.example], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: ["+
			repeat(n, func(int) string { return "{address: 192.0.2.1, labels: {v: a}}, " })+"]}")+
		write(network+"Sidecar", "s", "{workloadSelector: {labels: "+labels+"}, egress: [{hosts: ['./*']}]}")))
	found, err := s.Together(t.Context())
	if err == nil || !strings.Contains(err.Error(), "refer to each other in more ways") {
		t.Error(err)
	}
	for _, f := range found {
		if f.Code != CodeSubsetPods {
			t.Error(f)
		}
	}
}
