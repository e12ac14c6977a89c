package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer is the stub that Config.Names answers by.
const nameServer = "10.99.0.1"

// clusterDomain ends the names of services.
const clusterDomain = "svc.cluster.local"

// Record is what DNS has for a name: an address, or another name.
type Record struct {
	Addr  netip.Addr
	Alias string
}

// serveNames starts the stub, which ends with the test.
func (l *Lab) serveNames(names func(string) (Record, bool)) {
	l.T.Helper()
	l.names = true
	l.flags = append(l.flags, "--resolv-conf", l.resolvConf(""))
	var conn net.PacketConn
	l.must(l.fabric.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", nameServer+":53")
		return err
	}))
	done := make(chan struct{})
	l.T.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if out, err := answerName(buf[:n], names); err == nil {
				_, _ = conn.WriteTo(out, from) // who got nothing asks again
			}
		}
	}()
}

// answerName answers a question for an address of IPv4; names have no others.
func answerName(msg []byte, names func(string) (Record, bool)) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	head := dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
	var answers []dnsmessage.Resource
	name := q.Name
	for range 8 {
		rec, ok := names(strings.ToLower(strings.TrimSuffix(name.String(), ".")))
		if !ok {
			head.RCode = dnsmessage.RCodeNameError
			break
		}
		rh := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 1}
		if rec.Alias != "" {
			next, err := dnsmessage.NewName(rec.Alias + ".")
			if err != nil {
				return nil, fmt.Errorf("alias of %s: %w", name, err)
			}
			answers = append(answers, dnsmessage.Resource{Header: rh, Body: &dnsmessage.CNAMEResource{CNAME: next}})
			name = next
			continue
		}
		if q.Type == dnsmessage.TypeA {
			answers = append(answers, dnsmessage.Resource{Header: rh, Body: &dnsmessage.AResource{A: rec.Addr.As4()}})
		}
		break
	}
	out := dnsmessage.Message{Header: head, Questions: []dnsmessage.Question{q}, Answers: answers}
	return out.Pack()
}

// resolvConf writes the resolv.conf of a namespace's pods, or that of no namespace, and returns its path.
func (l *Lab) resolvConf(namespace string) string {
	l.T.Helper()
	path := filepath.Join(l.tmp, "resolv.conf")
	text := "nameserver " + nameServer + "\n"
	if namespace != "" {
		path += "." + namespace
		text += "search " + namespace + "." + clusterDomain + " " + clusterDomain + " cluster.local\noptions ndots:5\n"
	}
	if _, err := os.Stat(path); err != nil {
		l.must(os.WriteFile(path, []byte(text), 0o644))
	}
	return path
}
