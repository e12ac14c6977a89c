package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// stub is a name server in memory.
type stub struct {
	mu       sync.Mutex
	records  map[string]string // name → addresses, "cname NAME", "servfail" or "" for a name without any
	ttl      uint32
	asked    int
	truncate bool // over UDP
	forge    bool // wrong answers come first
	silent   map[string]bool
	networks []string
}

func (s *stub) set(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[name] = value
}

func (s *stub) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// dial implements Config.Dial: the server's end is served until the client closes its own.
func (s *stub) dial(_ context.Context, network, address string) (net.Conn, error) {
	s.mu.Lock()
	s.networks = append(s.networks, network)
	silent := s.silent[address]
	s.mu.Unlock()
	ours, theirs := net.Pipe()
	go s.serve(network, silent, theirs)
	return ours, nil
}

func (s *stub) serve(network string, silent bool, c net.Conn) {
	defer c.Close()
	buf := make([]byte, 4096)
	for {
		n := 0
		var err error
		if network == "tcp" {
			var size [2]byte
			if _, err = io.ReadFull(c, size[:]); err == nil {
				n, err = io.ReadFull(c, buf[:binary.BigEndian.Uint16(size[:])])
			}
		} else {
			n, err = c.Read(buf)
		}
		if err != nil {
			return
		}
		if silent {
			continue
		}
		s.answer(network, c, buf[:n])
	}
}

func (s *stub) answer(network string, c net.Conn, question []byte) {
	var p dnsmessage.Parser
	h, _ := p.Start(question)
	qs, _ := p.AllQuestions()
	q := qs[0]
	s.mu.Lock()
	s.asked++
	msg := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true}, Questions: qs}
	s.fill(&msg, q)
	forge := s.forge
	msg.Truncated = s.truncate && network == "udp"
	if msg.Truncated {
		msg.Answers = nil
	}
	s.mu.Unlock()
	write := func(m dnsmessage.Message) {
		b, err := m.Pack()
		if err != nil {
			panic(err)
		}
		if network == "tcp" {
			b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
		}
		_, _ = c.Write(b) // the client may have gone
	}
	if forge {
		other := msg
		other.ID++
		other.Answers = []dnsmessage.Resource{rr(q.Name, 60, netip.MustParseAddr("203.0.113.66"))}
		write(other)
		other.ID--
		other.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("other."), Type: q.Type, Class: q.Class}}
		write(other)
	}
	write(msg)
}

func (s *stub) fill(msg *dnsmessage.Message, q dnsmessage.Question) {
	name := canonical(q.Name.String())
	for range 20 {
		value, ok := s.records[name]
		switch {
		case !ok:
			msg.RCode = dnsmessage.RCodeNameError
			return
		case value == "servfail":
			msg.RCode = dnsmessage.RCodeServerFailure
			return
		}
		next, isName := strings.CutPrefix(value, "cname ")
		n := dnsmessage.MustNewName(name + ".")
		if !isName {
			for _, text := range strings.Fields(value) {
				if a := netip.MustParseAddr(text); a.Is4() == (q.Type == dnsmessage.TypeA) {
					msg.Answers = append(msg.Answers, rr(n, s.ttl, a))
				}
			}
			return
		}
		msg.Answers = append(msg.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: n, Type: dnsmessage.TypeCNAME,
			Class: dnsmessage.ClassINET, TTL: s.ttl}, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(next + ".")}},
			rr(dnsmessage.MustNewName("bystander."), 1, netip.MustParseAddr("203.0.113.66")))
		name = next
	}
}

func rr(n dnsmessage.Name, ttl uint32, a netip.Addr) dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: ttl}
	if a.Is4() {
		h.Type = dnsmessage.TypeA
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}}
	}
	h.Type = dnsmessage.TypeAAAA
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}}
}

var one, two = netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("10.96.0.11:53")

func newResolver(t *testing.T, s *stub, change func(*Config)) *Resolver {
	t.Helper()
	id := uint16(0)
	cfg := Config{Servers: []netip.AddrPort{one, two}, Dial: s.dial, Clock: clock.System(), ID: func() uint16 { id += 7; return id }}
	if change != nil {
		change(&cfg)
	}
	var mu sync.Mutex
	inner := cfg.ID
	cfg.ID = func() uint16 { mu.Lock(); defer mu.Unlock(); return inner() }
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func lookup(t *testing.T, r *Resolver, name string) string {
	t.Helper()
	addrs, err := r.Lookup(t.Context(), name)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

func TestLookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{ttl: 30, records: map[string]string{"a.example": "192.0.2.1 192.0.2.2 2001:db8::1", "alias.example": "cname mid.example",
			"mid.example": "cname a.example", "v6.example": "2001:db8::6", "empty.example": "", "loop.example": "cname loop.example"}}
		r := newResolver(t, s, nil)
		for name, want := range map[string]string{
			"A.example.": "192.0.2.1 192.0.2.2 2001:db8::1", "alias.example": "192.0.2.1 192.0.2.2 2001:db8::1", "v6.example": "2001:db8::6",
			"empty.example": "resolve empty.example: no such host", "gone.example": "resolve gone.example: no such host",
			"loop.example": "resolve loop.example: no such host",
		} {
			if got := lookup(t, r, name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if _, err := r.Lookup(t.Context(), "gone.example"); !errors.Is(err, ErrNoSuchHost) {
			t.Errorf("not ErrNoSuchHost: %v", err)
		}
		before := s.questions()
		lookup(t, r, "a.example")
		if s.questions() != before {
			t.Error("a name whose time to live is not over was asked for again")
		}
	})
}

func TestTruncatedAnswerComesOverTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{ttl: 30, truncate: true, records: map[string]string{"a.example": "192.0.2.1"}}
		if got := lookup(t, newResolver(t, s, nil), "a.example"); got != "192.0.2.1" {
			t.Error(got)
		}
		if !slices.Contains(s.networks, "tcp") {
			t.Error("nothing was asked over TCP")
		}
	})
}

func TestForgedAnswersAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{ttl: 30, forge: true, records: map[string]string{"a.example": "192.0.2.1"}}
		if got := lookup(t, newResolver(t, s, nil), "a.example"); got != "192.0.2.1" {
			t.Error(got)
		}
	})
}

func TestSecondServerAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{ttl: 30, silent: map[string]bool{one.String(): true}, records: map[string]string{"a.example": "192.0.2.1"}}
		start := time.Now()
		if got := lookup(t, newResolver(t, s, nil), "a.example"); got != "192.0.2.1" {
			t.Error(got)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("took %s", took)
		}
		s.mu.Lock()
		s.silent[two.String()] = true
		s.mu.Unlock()
		if got := lookup(t, newResolver(t, s, nil), "a.example"); !strings.Contains(got, "10.96.0.11:53: context deadline exceeded") {
			t.Error(got)
		}
	})
}

// TestTrackedNamesFollowDNS: SR-05's "the mesh resolves the host itself": a change shows when the time to live is over, a
// server's failure changes nothing, and a name that is gone has no address.
func TestTrackedNamesFollowDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{ttl: 10, records: map[string]string{"a.example": "192.0.2.1", "b.example": "192.0.2.1"}}
		r := newResolver(t, s, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		r.Track(of("foo", "a.example", "B.example."))
		synctest.Wait()
		at := func(ip string) string { return strings.Join(r.Names(netip.MustParseAddr(ip)), " ") }
		if got := at("192.0.2.1"); got != "a.example b.example" {
			t.Errorf("192.0.2.1 is %q", got)
		}
		lookup(t, r, "a.example")
		time.Sleep(10*time.Second + time.Millisecond) // in the bubble
		synctest.Wait()
		before := s.questions()
		s.set("a.example", "192.0.2.9")
		time.Sleep(9 * time.Second)
		if got := lookup(t, r, "a.example"); got != "192.0.2.1" {
			t.Errorf("before its time is over: %q", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := lookup(t, r, "a.example"); got != "192.0.2.9" || at("192.0.2.9") != "a.example" || at("192.0.2.1") != "b.example" {
			t.Errorf("after the change: %q, %q, %q", got, at("192.0.2.9"), at("192.0.2.1"))
		}
		if n := s.questions() - before; n != 2 {
			t.Errorf("%d questions: b.example, which nobody asks for, must wait", n)
		}
		s.set("a.example", "servfail")
		time.Sleep(time.Minute)
		if got := lookup(t, r, "a.example"); got != "192.0.2.9" {
			t.Errorf("while the server fails: %q", got)
		}
		s.mu.Lock()
		delete(s.records, "a.example")
		s.mu.Unlock()
		time.Sleep(time.Minute)
		if got := lookup(t, r, "a.example"); !strings.Contains(got, "no such host") || at("192.0.2.9") != "" {
			t.Errorf("after it is gone: %q, %q", got, at("192.0.2.9"))
		}
		r.Track(of("foo"))
		if got := at("192.0.2.1"); got != "" {
			t.Errorf("a name that is not tracked any more is found: %q", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestNamesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{ttl: 30, records: map[string]string{"a.example": "192.0.2.1", "b.example": "192.0.2.2", "c.example": "192.0.2.3"}}
		r := newResolver(t, s, func(c *Config) { c.MaxNames = 2 })
		r.Track(of("foo", "c.example", "b.example", "a.example"))
		if _, err := r.Lookup(t.Context(), "c.example"); !errors.Is(err, ErrTooMany) {
			t.Errorf("got %v", err)
		}
		if got := lookup(t, r, "a.example"); got != "192.0.2.1" {
			t.Error(got)
		}
	})
}

// TestLookupsShareOneQuestion: many connections to one name make one question a family.
func TestLookupsShareOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{ttl: 30, records: map[string]string{"a.example": "192.0.2.1"}}
		r := newResolver(t, s, nil)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if addrs, err := r.Lookup(t.Context(), "a.example"); err != nil || len(addrs) != 1 {
					t.Errorf("got %v, %v", addrs, err)
				}
			})
		}
		wg.Wait()
		if s.questions() != 2 {
			t.Errorf("%d questions", s.questions())
		}
	})
}

func TestServers(t *testing.T) {
	got, err := Servers(strings.NewReader("# x\nsearch a.svc\nnameserver 10.96.0.10\nnameserver fd00::a\nnameserver 10.96.0.10\noptions ndots:5\n"))
	want := []netip.AddrPort{one, netip.MustParseAddrPort("[fd00::a]:53")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "nameserver x\n"} {
		if _, err := Servers(strings.NewReader(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	msg := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName("a.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Answers: []dnsmessage.Resource{rr(dnsmessage.MustNewName("a.example."), 5, netip.MustParseAddr("192.0.2.1"))}}
	b, err := msg.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := parse(data, 7, "a.example", dnsmessage.TypeA)
		if len(a.addrs) > maxAddrs || err != nil && len(a.addrs) > 0 {
			t.Errorf("%v, %v", a, err)
		}
	})
}

func FuzzServers(f *testing.F) {
	f.Add("nameserver 10.0.0.1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := Servers(strings.NewReader(text)); err == nil && (len(got) == 0 || len(got) > maxServers) {
			t.Errorf("%d servers", len(got))
		}
	})
}
