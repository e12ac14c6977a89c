package server

import (
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// spyPool remembers the buffers that are out.
type spyPool struct {
	mem.BufferPool
	out map[*[]byte]int // to its capacity
}

func (p *spyPool) Get(n int) *[]byte {
	b := p.BufferPool.Get(n)
	p.out[b] = cap(*b)
	return b
}

func (p *spyPool) Put(b *[]byte) {
	delete(p.out, b)
	p.BufferPool.Put(b)
}

func TestCodec(t *testing.T) {
	own, err := mem.NewBinaryTieredBufferPool(responseBuffers...)
	if err != nil {
		t.Fatal(err)
	}
	pool := &spyPool{own, map[*[]byte]int{}}
	c := codec{encoding.GetCodecV2("proto"), pool}
	for _, size := range []int{0, 100, 5 << 10, 60 << 10, 3 << 20} {
		msg := &discovery.DeltaDiscoveryResponse{Nonce: strings.Repeat("x", size)}
		out, err := c.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		for _, held := range pool.out {
			if size == 60<<10 && held > 64<<10 {
				t.Errorf("%d bytes are encoded into %d", size, held)
			}
		}
		var back discovery.DeltaDiscoveryResponse
		if err := c.Unmarshal(out, &back); err != nil || !proto.Equal(msg, &back) {
			t.Errorf("%d bytes come back as %d, %v", size, len(back.GetNonce()), err)
		}
		out.Free()
		if len(pool.out) != 0 {
			t.Errorf("%d bytes: %d buffers are not given back", size, len(pool.out))
		}
	}
	if _, err := c.Marshal(&discovery.DeltaDiscoveryResponse{Nonce: strings.Repeat("\xff", 5<<10)}); err == nil || len(pool.out) != 0 {
		t.Errorf("text that is not UTF-8: %v, %d buffers out", err, len(pool.out))
	}
}
