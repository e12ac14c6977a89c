package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// Echo sends back what it gets, until the client ends.
func Echo(c net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// Sink reads until the client's end and answers with the number of bytes, 8 of them, big-endian.
func Sink(c net.Conn) {
	buf := make([]byte, bulkBuffer)
	var total uint64
	for {
		n, err := c.Read(buf)
		total += uint64(n)
		if err == io.EOF {
			_, _ = c.Write(binary.BigEndian.AppendUint64(nil, total)) // a client that is gone counts an error itself
			return
		}
		if err != nil {
			return
		}
	}
}

// Serve hands the connections of l to handle, each in a goroutine of its own, until ctx ends; then it closes all and waits.
func Serve(ctx context.Context, l net.Listener, handle func(net.Conn)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			handle(c)
		})
	}
}
