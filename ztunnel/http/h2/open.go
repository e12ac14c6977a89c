package h2

import (
	"fmt"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Open opens a stream of a client; with end, the request has no body. It never waits for the peer. Without end the request
// leaves with what follows, or with Flush. Retryable accepts the error when nothing was sent.
func (c *Conn) Open(r *head.Request, end bool) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.mayOpenLocked(r); err != nil {
		return nil, fmt.Errorf("open HTTP/2 stream: %w", err)
	}
	s := c.newStream(c.nextID)
	c.nextID += 2
	c.openLocked(s)
	s.wroteHead, s.noBody = true, string(r.Method) == "HEAD"
	at := len(c.q)
	c.q = appendRequest(frame.Append(c.q, 0, frame.Headers, 0, s.id), r)
	return s, s.blockLocked(at, end)
}

func (c *Conn) mayOpenLocked(r *head.Request) error {
	if err := c.usableLocked(); err != nil {
		return err
	}
	if len(c.streams) >= c.peer.maxStreams {
		return ErrTooManyStreams
	}
	if r.Protocol != nil && !c.peer.connectProtocol {
		return ErrConnectProtocol
	}
	if limit := c.peer.maxHeaderList; limit >= 0 {
		n := int64(r.Fields.Size()+(fieldOverhead-4)*r.Fields.Len()) + // a line has four bytes beside name and value
			int64(len(r.Method)+len(r.Scheme)+len(r.Authority)+len(r.Path)+len(r.Protocol)) +
			int64(len(":method:scheme:authority:path")+4*fieldOverhead)
		if n > limit {
			return ErrHeadTooLarge
		}
	}
	return nil
}
