package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

const maxProbeHead = 8 << 10 // bytes of a probe's request line and headers

// probe carries one HTTP request that the kernel attests to come from kubelet, if the pod spec declares it or the answer to
// such a one redirected kubelet there. It is not judged by policies. The connection carries that one request: bytes after it end it.
func (s *session) probe() error {
	s.line.Direction, s.line.Path = Inbound.String(), "probe"
	s.describeInbound(s.dst, api.Identity{}, "", telemetry.NoTLS)
	head, err := s.readHead()
	if err != nil {
		return ended(s.ctx, reason.ProbeNotDeclared, err)
	}
	method, target, err := parseProbe(head)
	if err != nil {
		return refused(reason.ProbeNotDeclared, err)
	}
	asked := Probe{Port: s.dst.Port(), Method: method, Path: target}
	if !s.pod.declares(asked) && !s.pod.redirects.expects(asked, s.p.cfg.Clock.Now()) {
		return refusedf(reason.ProbeNotDeclared, "the pod declares no probe %s %q on port %d", method, target, s.dst.Port())
	}
	up, err := s.deliver(s.ctx, s.dst)
	if err != nil {
		return err
	}
	calm(up)
	s.relayed = true
	s.count()
	if _, err := up.Write(head); err != nil {
		reset(up)
		return ended(s.ctx, reason.UpstreamReset, err)
	}
	s.received.Add(int64(len(head)))
	answers := &answer{side: side{up}}
	if host, ok := asDeclared(head); ok && method == "GET" {
		answers.learn = func(head []byte) {
			if next := nextTarget(host, target, head); next != "" {
				s.pod.redirects.follow(Probe{Port: s.dst.Port(), Method: method, Path: next}, s.p.cfg.Clock.Now())
			}
		}
	}
	err = s.copyBoth(&oneRequest{side{s.client}}, answers)
	if errors.Is(err, errMoreThanProbe) {
		return refused(reason.ProbeNotDeclared, err)
	}
	return err
}

func (pod *Pod) declares(asked Probe) bool {
	for _, p := range *pod.probes.Load() {
		if p.Method == "" {
			p.Method = "GET"
		}
		if p.Path == "" {
			p.Path = "/"
		}
		if p == asked {
			return true
		}
	}
	return false
}

// readHead reads until the end of the request's head, within Config.ProbeTimeout.
func (s *session) readHead() ([]byte, error) {
	deadline := s.p.cfg.Clock.Now().Add(s.p.cfg.ProbeTimeout)
	if err := s.client.SetReadDeadline(deadline); err != nil {
		return nil, fmt.Errorf("read probe: %w", err)
	}
	var head []byte
	b := s.p.buffers.get()
	defer s.p.buffers.put(b)
	for {
		n, err := s.client.Read((*b)[:min(len(*b), maxProbeHead+1-len(head))])
		head = append(head, (*b)[:n]...)
		if end := bytes.Index(head, []byte("\r\n\r\n")); end >= 0 {
			if end+4 != len(head) {
				return nil, errors.New("read probe: bytes after the request")
			}
			return head, s.client.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return nil, fmt.Errorf("read probe: %w", err)
		}
		if len(head) > maxProbeHead {
			return nil, fmt.Errorf("read probe: head is longer than %d bytes", maxProbeHead)
		}
	}
}

// parseProbe checks a whole head, ending with an empty line, and returns method and target. It is stricter than HTTP: what
// it does not know for sure to be one request without a body is an error.
func parseProbe(head []byte) (method, target string, err error) {
	text, ok := strings.CutSuffix(string(head), "\r\n\r\n")
	if !ok {
		return "", "", errors.New("parse probe: no end of the head")
	}
	lines := strings.Split(text, "\r\n")
	method, rest, _ := strings.Cut(lines[0], " ")
	target, version, _ := strings.Cut(rest, " ")
	if !token(method) || !strings.HasPrefix(target, "/") || version != "HTTP/1.1" && version != "HTTP/1.0" || !visible(target, false) {
		return "", "", fmt.Errorf("parse probe: request line %.200q is not METHOD /PATH HTTP/1.1", lines[0])
	}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || !token(name) || !visible(value, true) {
			return "", "", fmt.Errorf("parse probe: header %.200q is malformed", line)
		}
		switch value = strings.TrimSpace(value); strings.ToLower(name) {
		case "transfer-encoding", "upgrade", "expect", "http2-settings":
			return "", "", fmt.Errorf("parse probe: header %s is not a probe's", name)
		case "content-length":
			if value != "0" {
				return "", "", errors.New("parse probe: it has a body")
			}
		}
	}
	return method, target, nil
}

func token(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	}) < 0
}

// visible refuses control characters, and blanks where they are not allowed.
func visible(s string, blanks bool) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return r < ' ' && !(blanks && r == '\t') || r == ' ' && !blanks || r == 0x7f
	}) < 0
}

// oneRequest is a client that has sent all that it may.
type oneRequest struct{ side }

var errMoreThanProbe = errors.New("client sent more than the declared probe")

// Read returns the client's end; its further bytes are an error.
func (o *oneRequest) Read(p []byte) (int, error) {
	n, err := o.Conn.Read(p)
	if n > 0 {
		return 0, errMoreThanProbe
	}
	return 0, err
}
