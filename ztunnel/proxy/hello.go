package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/undermesh/undermesh/ztunnel/proxy/sniff"
)

const firstHello = 2 << 10 // bytes: room for the hello of every client of a mesh

// readHello reads until the ClientHello is whole and returns all that was read. The end of ctx ends it.
func readHello(ctx context.Context, c net.Conn) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }) // a closed one needs none
	b := make([]byte, 0, firstHello)
	for {
		n, err := c.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		whole, bad := sniff.WholeHello(b)
		switch {
		case bad != nil:
			stop()
			return nil, bad
		case whole && stop():
			return b, nil
		case err != nil || whole:
			stop()
			if len(b) == 0 {
				return nil, errors.New("peer sent nothing")
			}
			return nil, fmt.Errorf("read ClientHello: it ends after %d bytes", len(b))
		case len(b) == cap(b):
			b = append(make([]byte, 0, sniff.MaxHello), b...) // WholeHello refuses what fills it
		}
	}
}
