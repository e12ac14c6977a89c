package h2

import (
	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// maxInformational is how many informational heads wait to be read; of more, the oldest go.
const maxInformational = 4

// headers handles a whole header block. Called by the goroutine that reads.
func (c *Conn) headers(h frame.Header, block []byte) error {
	self := c.rd.self
	c.rd.self = false
	c.mu.Lock()
	s := c.streams[h.ID]
	opening := s == nil && !c.client && h.ID%2 == 1 && h.ID > c.lastID
	c.mu.Unlock()
	switch {
	case self && !opening:
		if err := c.skipBlock(block); err != nil {
			return err
		}
		return c.streamError(h.ID, frame.CodeProtocol, "stream depends on itself")
	case opening:
		return c.gotRequest(h, block, self)
	case s == nil:
		return c.headersOnClosed(h, block)
	case c.client:
		return c.gotResponse(s, h, block)
	}
	return c.gotTrailers(s, h, block)
}

// skipBlock decodes a block for the sake of the compression state.
func (c *Conn) skipBlock(block []byte) error {
	m := messagePool.Get().(*message)
	defer putMessage(m)
	return c.decode(block, &m.text, &m.Fields)
}

// decode decodes a block into c.rd.list, whose text is *text and whose fields are f.
func (c *Conn) decode(block []byte, text *[]byte, f *head.Fields) error {
	l := &c.rd.list
	l.text, l.fields = *text, f
	err := c.rd.dec.decode(block, l)
	*text, l.fields = l.text, nil
	return err
}

func (c *Conn) headersOnClosed(h frame.Header, block []byte) error {
	if err := c.skipBlock(block); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closedLocked(h)
}

// gotRequest opens a stream of a server.
func (c *Conn) gotRequest(h frame.Header, block []byte, self bool) error {
	s := c.newStream(h.ID)
	s.req.Reset(nil)
	if err := c.decode(block, &s.text, &s.req.Fields); err != nil {
		return err
	}
	l := &c.rd.list
	end := h.Has(frame.EndStream)
	code, reason := frame.CodeProtocol, ""
	switch {
	case self:
		reason = "stream depends on itself"
	case l.large:
		code, reason = frame.CodeInternal, "header list is too large"
	default:
		reason = c.request(l, &s.req, end)
		s.text = l.text
	}
	c.mu.Lock()
	ignored := c.draining && h.ID > c.promised || c.dead != nil // which nothing would wake
	c.lastID = h.ID
	c.requests++
	if reason == "" && !ignored && (len(c.streams) >= c.cfg.MaxStreams || c.active >= 2*c.cfg.MaxStreams) {
		code, reason = frame.CodeRefused, "too many streams"
	}
	if reason != "" || ignored {
		s.refs = 1
		c.active++ // balances dropLocked
		s.dropLocked()
		c.mu.Unlock()
		if ignored {
			return c.rd.waste("requests after GOAWAY")
		}
		return c.refuse(h.ID, code, reason)
	}
	if s.req.Body >= 0 && string(s.req.Method) != "CONNECT" {
		s.expect = s.req.Body
	}
	s.remoteEnd = end
	c.openLocked(s)
	c.mu.Unlock()
	c.accept(s)
	return nil
}

// refuse resets a stream that no handler has seen.
func (c *Conn) refuse(id uint32, code frame.Code, reason string) error {
	c.mu.Lock()
	c.q = frame.AppendRST(c.q, id, code)
	c.goneLocked(id)
	err := c.answerLocked(13)
	c.mu.Unlock()
	c.cfg.Log.Debug("HTTP/2 request refused", "peer", peerName(c.nc), "code", code, "reason", reason)
	if err != nil {
		return err
	}
	return c.rd.waste("refused requests")
}

// fieldsOnly says why the list is not one of regular fields.
func (l *list) fieldsOnly() string {
	if l.bad != "" {
		return l.bad
	}
	for _, seen := range l.seen {
		if seen {
			return "pseudo field is out of place"
		}
	}
	return illegalFields(l.fields)
}

// gotTrailers takes what follows the body of a request.
func (c *Conn) gotTrailers(s *Stream, h frame.Header, block []byte) error {
	m := messagePool.Get().(*message)
	m.Response.Reset(nil)
	if err := c.decode(block, &m.text, &m.Fields); err != nil {
		return err
	}
	return c.trailers(s, h, m)
}

// trailers takes trailers of either role, which are in c.rd.list and m.
func (c *Conn) trailers(s *Stream, h frame.Header, m *message) error {
	l := &c.rd.list
	l.fields = &m.Fields
	reason := l.fieldsOnly()
	l.fields = nil
	code := frame.CodeProtocol
	c.mu.Lock()
	switch {
	case s.err != nil: // reset since
		c.mu.Unlock()
		putMessage(m)
		return nil
	case s.remoteEnd:
		code, reason = frame.CodeStreamClosed, "HEADERS after END_STREAM"
	case l.large:
		code, reason = frame.CodeInternal, "trailers are too large"
	case reason != "":
	case !h.Has(frame.EndStream):
		reason = "trailers without END_STREAM"
	case s.expect > 0:
		reason = "body does not have the announced length"
	}
	if reason != "" {
		c.mu.Unlock()
		putMessage(m)
		return c.streamError(h.ID, code, reason)
	}
	if m.Fields.Len() > 0 {
		s.trailers, m = m, nil
	}
	s.endReceivedLocked()
	s.rcond.Broadcast()
	over := c.drainedLocked()
	c.mu.Unlock()
	putMessage(m)
	if over {
		c.end(ErrClosed)
	}
	return nil
}

// gotResponse takes a head of a response, or its trailers.
func (c *Conn) gotResponse(s *Stream, h frame.Header, block []byte) error {
	m := messagePool.Get().(*message)
	m.Response.Reset(nil)
	if err := c.decode(block, &m.text, &m.Fields); err != nil {
		return err
	}
	c.mu.Lock()
	trailers := s.gotHead
	c.mu.Unlock()
	if trailers {
		return c.trailers(s, h, m)
	}
	end := h.Has(frame.EndStream)
	l := &c.rd.list
	l.fields = &m.Fields
	reason := response(l, &m.Response, end)
	l.fields = nil
	code := frame.CodeProtocol
	if l.large {
		code, reason = frame.CodeInternal, "header list is too large"
	}
	c.mu.Lock()
	noBody := s.noBody || m.Status == 204 || m.Status == 304
	if reason == "" && end && m.Body > 0 && !noBody {
		reason = "body does not have the announced length"
	}
	if reason != "" || s.err != nil {
		gone := s.err != nil
		c.mu.Unlock()
		putMessage(m)
		if gone {
			return nil
		}
		return c.streamError(h.ID, code, reason)
	}
	if m.Status >= 200 {
		s.gotHead, s.noBody = true, noBody
		if !noBody {
			s.expect = m.Body
		}
		if end {
			m.Body = max(m.Body, 0)
		}
	} else if len(s.heads) == maxInformational {
		putMessage(s.heads[0])
		s.heads = s.heads[:copy(s.heads, s.heads[1:])]
	}
	s.heads = append(s.heads, m)
	final := s.gotHead
	if end {
		s.endReceivedLocked()
	}
	s.rcond.Broadcast()
	over := c.drainedLocked()
	c.mu.Unlock()
	if over {
		c.end(ErrClosed)
	}
	if !final {
		return c.rd.nuisance("informational responses")
	}
	return nil
}
