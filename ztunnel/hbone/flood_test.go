package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// illegalRequests are complete HEADERS frames that no handler sees.
var illegalRequests = map[string]func(p *rawPeer, id uint32) error{
	"GET with END_STREAM": func(p *rawPeer, id uint32) error {
		return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x82}, EndHeaders: true, EndStream: true})
	},
	"GET": func(p *rawPeer, id uint32) error {
		return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x82}, EndHeaders: true})
	},
	"malformed": func(p *rawPeer, id uint32) error {
		return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x82, 0x82}, EndHeaders: true})
	},
}

// TestIllegalRequestsOfAPeerThatDoesNotRead wants the connection to end, and little to be queued, whichever limit comes
// first: that of the requests or that of the answers.
func TestIllegalRequestsOfAPeerThatDoesNotRead(t *testing.T) {
	for name, send := range illegalRequests {
		for _, streams := range []int{200, 1 << 20} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := net.Pipe() // no buffer: the server's answers are stuck
					cfg := testConfig()
					cfg.MaxStreams = streams
					done := make(chan error, 1)
					s := NewServer(b, cfg, func(context.Context, *ServerRequest) { t.Error("a handler saw it") })
					go func() { done <- s.Run(t.Context()) }()
					_, _ = io.WriteString(a, frame.Preface)
					p := newRawPeer(t, a)
					p.must(p.fr.WriteSettings())
					n, most := 0, 0
					for ; n < 200_000 && send(p, uint32(2*n+1)) == nil; n++ {
						if n%100 == 0 {
							s.c.w.mu.Lock()
							most = max(most, len(s.c.w.q))
							s.c.w.mu.Unlock()
						}
					}
					a.Close()
					var ce *frame.ConnError
					if err := <-done; !errors.As(err, &ce) || ce.Code != frame.CodeCalm {
						t.Errorf("after %d requests: %v", n, err)
					}
					if most > controlCap+1<<10 {
						t.Errorf("%d bytes were queued", most)
					}
				})
			})
		}
	}
}

// TestIllegalRequestsBetweenGoodOnes must not end a connection whose handlers do end.
func TestIllegalRequestsBetweenGoodOnes(t *testing.T) {
	cfg := testConfig()
	cfg.MaxStreams = 2
	h := func(_ context.Context, r *ServerRequest) { r.Reject(503, nil) }
	_ = againstServer(t, cfg, h, func(p *rawPeer) {
		for id := uint32(1); id < 200; id += 4 {
			p.must(illegalRequests["GET with END_STREAM"](p, id))
			if f := next[*http2.HeadersFrame](p); f.StreamID != id {
				t.Fatalf("answer to stream %d, want %d", f.StreamID, id)
			}
			p.connect(id + 2)
			if f := next[*http2.HeadersFrame](p); f.StreamID != id+2 {
				t.Fatalf("answer to stream %d, want %d", f.StreamID, id+2)
			}
		}
	})
}

// TestAuthorityLength: the longest name that DNS knows passes, one byte more does not, and errors quote a part.
func TestAuthorityLength(t *testing.T) {
	longest := strings.Repeat("a", maxAuthority-len(":65535")) + ":65535"
	if err := checkAuthority(longest); err != nil || len(longest) != 262 {
		t.Errorf("authority of %d bytes: %v", len(longest), err)
	}
	if checkAuthority("a"+longest) == nil {
		t.Errorf("an authority of %d bytes passed", len(longest)+1)
	}
	err := Request{Authority: strings.Repeat("\x01", 60_000) + ":80"}.validate()
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("error of %d bytes", len(err.Error()))
	}
	m := &message{}
	b := newBlock()
	name := ":" + strings.Repeat("\x01", 30_000)
	blk := bytes.Clone(b.encode([]HeaderField{{name, ""}, {name, ""}}, nil))
	if m, err = b.decode(blk, 128<<10); err != nil || m.malformed == "" || len(m.malformed) > 1000 {
		t.Errorf("reason of %d bytes, %v", len(m.malformed), err)
	}
}
