package proxy

import (
	"bufio"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/hbone"
)

// behind makes w serve port 80 of the service "foo/NAME.foo.svc" as the protocol; "" is none.
func behind(w *workloadapi.Workload, name, protocol string) []client.Resource {
	host := name + ".foo.svc.cluster.local"
	w.Services = map[string]*workloadapi.PortList{"foo/" + host: {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}}}}
	svc := &workloadapi.Service{Name: name, Namespace: "foo", Hostname: host, Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}},
		Addresses: []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr("10.96.0.1").AsSlice()}}}
	set := &settings.ServiceSettings{}
	if protocol != "" {
		set.AppProtocols = map[uint32]string{80: protocol}
	}
	config, err := anypb.New(set)
	if err != nil {
		panic(err) // a message of our own
	}
	svc.Extensions = []*workloadapi.Extension{{Name: api.ServiceSettingsExtension, Config: config}}
	return []client.Resource{{Message: w}, {Message: svc}}
}

// TestSR12ServerFirst: a server that speaks first is waited for no longer than the mesh says, and where the port is declared not at
// all.
func TestSR12ServerFirst(t *testing.T) {
	for name, c := range map[string]struct {
		protocol string
		mesh     time.Duration
		want     time.Duration // until the server's first line comes
	}{
		"undeclared":                  {"", 0, 100 * time.Millisecond},
		"undeclared, the mesh's time": {"", 30 * time.Millisecond, 30 * time.Millisecond},
		"declared tcp":                {"tcp", 0, 0},
		"declared mysql":              {"mysql", 0, 0},
	} {
		for _, to := range []string{"10.0.0.2:80", "10.0.1.1:80", "10.96.0.1:80"} {
			t.Run(name+" "+to, func(t *testing.T) {
				inWorld(t, nil, func(t *testing.T, w *world) {
					a, local, far := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "near", "10.0.0.2"), w.pod("b", "httpbin", "10.0.1.1")
					defer w.stop(a, local, far)
					local.echo()
					far.echo()
					w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)})
					w.apply(client.Resource{Message: &settings.MeshSettings{TrustDomain: "cluster.local", ProtocolDetectionTimeout: durationpb.New(c.mesh)}, Name: "mesh"})
					w.apply(behind(workload("foo", "httpbin", far.ip), "far", c.protocol)...)
					res := behind(workload("foo", "near", local.ip), "near", c.protocol)
					res[1].Message.(*workloadapi.Service).Addresses = nil
					w.apply(res...)
					synctest.Wait()
					want := c.want // the destination's node does not wait again
					begin := time.Now()
					conn := a.connect(to)
					line, err := bufio.NewReader(conn).ReadString('\n')
					if err != nil || strings.TrimSpace(line) != "10.0.0.1" {
						t.Errorf("%q, %v", line, err)
					}
					if got := time.Since(begin); got < want || got > want+50*time.Millisecond {
						t.Errorf("the server's first line came after %v, want %v", got, want)
					}
					_ = conn.Close()
				})
			})
		}
	}
}

// TestSR12DetectionKeepsBytes: what was read to see what it is arrives, whole and in order, on each path.
func TestSR12DetectionKeepsBytes(t *testing.T) {
	texts := map[string]string{
		"one byte": "x", "no HTTP": "GET key\r\n", "half a request line": "GET /half", "a broken hello": "\x16\x03\x01\x00\x05\x02\x00\x00\x00\x00",
		"half a hello": "\x16\x03\x01\x01\x00\x01\x00\x00\xf0", "nothing": "", "much": "GET /" + strings.Repeat("a", 300<<10),
	}
	for name, text := range texts {
		for _, to := range []string{"10.0.0.2:80", "10.0.1.1:80", "10.9.9.9:80"} {
			t.Run(name+" to "+to, func(t *testing.T) {
				inWorld(t, nil, func(t *testing.T, w *world) {
					a, local, far := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "near", "10.0.0.2"), w.pod("b", "httpbin", "10.0.1.1")
					stranger := &testPod{w: w, app: w.net.listen(netip.MustParseAddrPort("10.9.9.9:80"))}
					defer w.stop(a, local, far, stranger)
					for _, p := range []*testPod{local, far, stranger} {
						p.echo()
					}
					w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "near", local.ip)},
						client.Resource{Message: workload("foo", "httpbin", far.ip)})
					got, err := say(t, a.connect(to), text)
					if want := "10.0.0.1\n" + text; got != want || err != nil {
						t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
					}
				})
			})
		}
	}
}

// TestSR12SlowBytes: bytes that come one by one are looked at until the time is over, and arrive.
func TestSR12SlowBytes(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		c := a.connect("10.0.1.1:80")
		text := "GET /" + strings.Repeat("a", 20)
		go func() {
			for i := range text {
				_, _ = io.WriteString(c, text[i:i+1])
				timer := time.NewTimer(20 * time.Millisecond)
				<-timer.C
			}
			_ = c.(*memConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if string(got) != "10.0.0.1\n"+text || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// TestSR12SilenceIsNotBelievedOfWhoSpeaks: what a client's node says of its silence saves the wait for nothing and no more: bytes that
// are there are looked at.
func TestSR12SilenceIsNotBelievedOfWhoSpeaks(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", netip.MustParseAddr("10.0.0.1"))}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		sleep := w.attacker(b, account("sleep"))
		defer sleep.Close()
		for first, want := range map[string]string{"": "10.0.0.1\n", "GET / HTTP/1.1\r\nHost: b\r\n\r\n": "HTTP/1.1 502 Bad Gateway\r\n"} {
			begin := time.Now()
			s, err := sleep.Connect(w.ctx, hbone.Request{Authority: "10.0.1.1:80", First: []byte(first),
				Header: hbone.Header{{Name: clientHeader, Value: clientSilent}}})
			if err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(s).ReadString('\n')
			if line != want || err != nil || time.Since(begin) > 50*time.Millisecond {
				t.Errorf("a client that says %q is answered %q after %v, %v", first, line, time.Since(begin), err)
			}
			_ = s.Close()
		}
	})
}
