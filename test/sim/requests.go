package sim

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/test/sim/memnet"
)

// A request carries its number, "simhttp-" and 16 hex digits, in a field; the answer repeats the digits.
const (
	requestMarker = "simhttp-"
	requestSize   = len(requestMarker) + 16
	numberHeader  = "x-sim"
	actHeader     = "x-sim-act"
	podHeader     = "x-sim-pod"
	copyHeader    = "x-sim-copy"
	userHeader    = "x-user"
)

// sniffedPort is the port of the services that declares no protocol.
const sniffedPort = 81

// abortStatus is what faults answer.
const abortStatus = 418

// request is one request of a client's process with what is known about it.
type request struct {
	question
	w      *world
	id     uint64
	to     netip.AddrPort // as dialled
	method string
	size   int    // of the body, and of the answer's
	act    string // of the application: "", a status, "reset", or a duration
	begin  time.Time

	// Protected by world.mu; final once done is set.
	captured bool // by its own pod
	plain    map[*memnet.Host]bool
	served   []*serving // without copies
	done     bool
	status   int // 0: no answer
	pod      string
	err      error
	routes   int // version of the node's VirtualServices when it began
	rules    int // of its DestinationRules
}

// serving is one application that has read a request.
type serving struct {
	pod      *pod
	status   int
	answered bool // the application has written its answer
}

func (r *request) String() string {
	return fmt.Sprintf("request %d %s %s%s (%s, %q) of %s to %s", r.id, r.method, r.authority, r.path, r.user, r.act, r.from, r.to)
}

func (r *request) doneLocked() bool { return r.done }

func (r *request) stateLocked() string { return r.String() }

// senderLocked is who p may take for the sender.
func (r *request) senderLocked(p *pod) account {
	if !r.captured || r.plain[p.host] {
		return account{}
	}
	return r.from.who
}

// requestOf finds the request that data names, nil when it is none.
func (w *world) requestOf(data []byte) *request {
	if len(data) < requestSize || string(data[:len(requestMarker)]) != requestMarker {
		return nil
	}
	id, err := strconv.ParseUint(string(data[len(requestMarker):requestSize]), 16, 64)
	if err != nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests[id]
}

// tapRequest sees all that is on the wire between two pods.
func (w *world) tapRequest(syn memnet.SYN, data []byte) {
	i := bytes.Index(data, []byte(requestMarker))
	if i < 0 {
		return
	}
	r := w.requestOf(data[i:])
	if r == nil {
		return
	}
	to := w.podOf(syn.To)
	if to == nil || !to.node.owns(syn.Process) {
		w.mu.Lock()
		r.plain[syn.To] = true
		w.mu.Unlock()
		return
	}
	w.legBegins(r, r.from, to, syn.Dst.Port())
}

// ask sends requests on one connection, each after the answer to the one before; with two at a time the second is sent at once.
func (w *world) ask(ctx context.Context, list []*request, gap time.Duration, together bool) {
	from, to := list[0].from, list[0].to
	conn, err := memnet.Dialer{Host: from.host}.Dial(ctx, to)
	if err != nil {
		w.finish(list, err)
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetLinger(0); _ = conn.Close() })
	defer stop()
	in := bufio.NewReader(conn)
	for len(list) > 0 {
		n := 1
		if together {
			n = min(2, len(list))
		}
		for _, r := range list[:n] {
			w.beginRequest(r, conn.SYN().Captured)
			if err := r.write(conn); err != nil {
				w.finish(list, err)
				return
			}
		}
		for _, r := range list[:n] {
			last, err := r.read(in)
			w.finish(list[:1], err)
			if list = list[1:]; err != nil || last {
				w.finish(list, errUnsent)
				return
			}
		}
		if gap > 0 && !pause(ctx, gap) {
			w.finish(list, context.Cause(ctx))
			return
		}
	}
}

var errUnsent = errors.New("not sent, the connection had ended")

// beginRequest notes what the client's node knows.
func (w *world) beginRequest(r *request, captured bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.begin, r.captured = time.Now(), captured
	r.routes, r.rules = r.from.node.routes.before(r.begin), r.from.node.rules.before(r.begin)
}

func (r *request) write(conn net.Conn) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n%s: %s%016x\r\n", r.method, r.path, r.authority, numberHeader, requestMarker, r.id)
	for name, value := range map[string]string{userHeader: r.user, actHeader: r.act} {
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	if r.method == http.MethodPost {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", r.size)
	}
	b.WriteString("\r\n")
	if r.method == http.MethodPost {
		_, _ = io.CopyN(&b, body(r.id, 'c'), int64(r.size)) // never fails
	}
	_, err := conn.Write(b.Bytes())
	return err
}

// read takes the answer; last tells that the connection ends with it.
func (r *request) read(in *bufio.Reader) (last bool, err error) {
	resp, err := http.ReadResponse(in, &http.Request{Method: r.method})
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return true, err
	}
	r.w.mu.Lock()
	r.status, r.pod = resp.StatusCode, resp.Header.Get(podHeader)
	r.w.mu.Unlock()
	number := resp.Header.Get(numberHeader)
	switch want := fmt.Sprintf("%016x", r.id); {
	case number == "" && resp.StatusCode >= 400: // of the mesh
	case number != want:
		r.w.violate("mixed", "%v: the answer is that of %q: %d %v", r, number, resp.StatusCode, resp.Header)
	case resp.Header.Get(copyHeader) != "":
		r.w.violate("mixed", "%v: the answer is that of a copy: %v", r, resp.Header)
	default:
		v := verifier{want: body(r.id, 's')}
		if bad := v.check(got); bad != nil || len(got) != r.size {
			r.w.violate("mixed", "%v: the answer has %d of %d bytes: %v", r, len(got), r.size, bad)
		}
	}
	return resp.Close, nil
}

// finish ends requests of one connection.
func (w *world) finish(list []*request, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range list {
		if !r.done {
			r.done, r.err = true, err
			w.openRequests--
		}
	}
}

// serveHTTP is the application of a pod on one port: it answers each request with a body that the request's number says.
func (w *world) serveHTTP(p *pod, port uint16, l net.Listener) {
	w.accept(l, func(c *memnet.Conn) error {
		stop := context.AfterFunc(w.traffic, func() { _ = c.SetLinger(0); _ = c.Close() })
		defer stop()
		in := bufio.NewReader(c)
		for {
			if again, err := w.answer(p, port, c, in); err != nil || !again {
				return err
			}
		}
	})
}

// answer serves one request.
func (w *world) answer(p *pod, port uint16, c *memnet.Conn, in *bufio.Reader) (again bool, err error) {
	req, err := http.ReadRequest(in)
	if err != nil {
		return false, err
	}
	r := w.requestOf([]byte(req.Header.Get(numberHeader)))
	if r == nil {
		w.violate("mixed", "pod %s: %s %s%s has no number that is known: %v", p, req.Method, req.Host, req.URL, req.Header)
		return false, errors.New("unknown request")
	}
	host, _, _ := strings.Cut(req.Host, ":")
	isCopy := strings.HasSuffix(host, "-shadow")
	s := w.servedBy(r, p, port, c.SYN(), isCopy)
	got, err := io.ReadAll(req.Body)
	if err != nil {
		return false, err
	}
	v := verifier{want: body(r.id, 'c')}
	if bad := v.check(got); bad != nil || r.method == http.MethodPost && len(got) != r.size || req.Method != r.method {
		w.violate("mixed", "%v: at the server %s it is %s with %d of %d bytes: %v", r, p, req.Method, len(got), r.size, bad)
	}
	status := 200
	switch d, bad := time.ParseDuration(r.act); {
	case r.act == "reset" && !isCopy:
		return false, errQuirk
	case bad == nil && !pause(w.traffic, d):
		return false, context.Cause(w.traffic)
	case bad != nil && r.act != "" && !isCopy:
		status, _ = strconv.Atoi(r.act)
	}
	if n := p.ill.Load(); n != 0 {
		status = int(n)
	}
	if f := w.opt.Hooks.Status; f != nil {
		status = f(status)
	}
	number := r.id
	if f := w.opt.Hooks.Number; f != nil {
		number = f(number)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d Status\r\n%s: %016x\r\n%s: %s\r\nContent-Length: %d\r\n", status, numberHeader, number, podHeader, p.uid, r.size)
	if isCopy {
		fmt.Fprintf(&b, "%s: yes\r\n", copyHeader)
	}
	b.WriteString("\r\n")
	_, _ = io.CopyN(&b, body(r.id, 's'), int64(r.size)) // never fails
	w.mu.Lock()
	s.status, s.answered = status, true
	w.mu.Unlock()
	_, err = c.Write(b.Bytes())
	return true, err
}

// illness is a status that a pod answers with for a while, 0 for none.
type illness = atomic.Int32
