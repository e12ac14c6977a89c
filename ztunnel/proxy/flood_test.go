package proxy

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/controller/client"
)

// TestLongAuthorityIsNotLogged sends what no client of ours would send.
func TestLongAuthorityIsNotLogged(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		w.apply(client.Resource{Message: workload("foo", "sleep", netip.MustParseAddr("10.0.0.1"))}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		tc := w.tlsTo(b, account("sleep"))
		defer tc.Close()
		var block strings.Builder
		enc := hpack.NewEncoder(&block)
		_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
		_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: strings.Repeat("\x01", 10_000) + ":80"})
		fr := startHTTP2(t, tc)
		if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := f.(*http2.HeadersFrame); ok {
				break
			}
		}
		_ = tc.Close()
		synctest.Wait()
		for line := range strings.SplitSeq(w.log.String(), "\n") {
			if len(line) > 2000 {
				t.Errorf("log line of %d bytes: %.100s", len(line), line)
			}
		}
	})
}

// startHTTP2 is the preface of a client that is not ours.
func startHTTP2(t *testing.T, c net.Conn) *http2.Framer {
	t.Helper()
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(c, c)
	fr.SetMaxReadFrameSize(1 << 20)
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return fr
}
