package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

const (
	maxUDP   = 1232 // what is asked for by EDNS; fits every path (DNS flag day 2020)
	maxAddrs = 64   // of one name
	maxChain = 16   // CNAMEs
)

// query asks for both families. One that fails does not hide the other; both without address is ErrNoSuchHost.
func (r *Resolver) query(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	type outcome struct {
		answer answer
		err    error
	}
	outcomes := make(chan outcome, 2)
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	var all [2]outcome
	go func() {
		a, err := r.queryType(ctx, name, types[1])
		outcomes <- outcome{a, err}
	}()
	all[0].answer, all[0].err = r.queryType(ctx, name, types[0])
	all[1] = <-outcomes
	var addrs []netip.Addr
	ttl := time.Duration(-1)
	for _, o := range all {
		if o.err != nil || len(o.answer.addrs) == 0 {
			continue
		}
		addrs = append(addrs, o.answer.addrs...)
		if ttl < 0 || o.answer.ttl < ttl {
			ttl = o.answer.ttl
		}
	}
	switch {
	case len(addrs) > 0:
		return addrs, ttl, nil
	case all[0].err != nil:
		return nil, 0, fmt.Errorf("resolve %s: %w", name, all[0].err)
	case all[1].err != nil:
		return nil, 0, fmt.Errorf("resolve %s: %w", name, all[1].err)
	}
	return nil, 0, fmt.Errorf("resolve %s: %w", name, ErrNoSuchHost)
}

// queryType asks the servers in order. That a name has no address is an answer too.
func (r *Resolver) queryType(ctx context.Context, name string, t dnsmessage.Type) (answer, error) {
	var all []error
	for _, server := range r.cfg.Servers {
		a, err := r.exchange(ctx, server, name, t)
		if err == nil {
			return a, nil
		}
		all = append(all, fmt.Errorf("ask %s: %w", server, err))
		if ctx.Err() != nil {
			break
		}
	}
	return answer{}, errors.Join(all...)
}

// exchange asks one server, over TCP when the answer is too long for UDP.
func (r *Resolver) exchange(ctx context.Context, server netip.AddrPort, name string, t dnsmessage.Type) (answer, error) {
	ctx, cancel := clock.WithTimeout(ctx, r.cfg.Clock, r.cfg.Timeout, nil)
	defer cancel()
	id := r.cfg.ID()
	question, err := pack(id, name, t)
	if err != nil {
		return answer{}, err
	}
	a, err := r.over(ctx, "udp", server, question, id, name, t)
	if errors.Is(err, errTruncated) {
		a, err = r.over(ctx, "tcp", server, question, id, name, t)
	}
	if err != nil && ctx.Err() != nil {
		return answer{}, context.Cause(ctx)
	}
	return a, err
}

func (r *Resolver) over(ctx context.Context, network string, server netip.AddrPort, question []byte, id uint16, name string, t dnsmessage.Type) (answer, error) {
	c, err := r.cfg.Dial(ctx, network, server.String())
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // a closed one needs none
	defer stop()
	if network == "tcp" {
		return overTCP(c, question, id, name, t)
	}
	if _, err := c.Write(question); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return answer{}, err
		}
		a, err := parse(buf[:n], id, name, t)
		if !errors.Is(err, errOther) { // somebody guesses, or an answer came late
			return a, err
		}
	}
}

func overTCP(c net.Conn, question []byte, id uint16, name string, t dnsmessage.Type) (answer, error) {
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...)
	if _, err := c.Write(framed); err != nil {
		return answer{}, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return answer{}, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return answer{}, err
	}
	a, err := parse(buf, id, name, t)
	if errors.Is(err, errTruncated) {
		return answer{}, errors.New("answer over TCP is truncated")
	}
	return a, err
}

func pack(id uint16, name string, t dnsmessage.Type) ([]byte, error) {
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	var opt dnsmessage.ResourceHeader
	err = errors.Join(b.StartQuestions(), b.Question(dnsmessage.Question{Name: n, Type: t, Class: dnsmessage.ClassINET}),
		b.StartAdditionals(), opt.SetEDNS0(maxUDP, dnsmessage.RCodeSuccess, false), b.OPTResource(opt, dnsmessage.OPTResource{}))
	if err != nil {
		return nil, fmt.Errorf("ask for %q: %w", name, err)
	}
	return b.Finish()
}

var (
	errOther     = errors.New("answer is to another question")
	errTruncated = errors.New("answer is truncated")
)

// answer is what a server says of a name and one family.
type answer struct {
	addrs []netip.Addr
	ttl   time.Duration // the least of the chain
}

// parse reads an answer to the question. A name that does not exist, or has no address of the family, has an empty answer.
func parse(msg []byte, id uint16, name string, t dnsmessage.Type) (answer, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.ID != id || !h.Response {
		return answer{}, errOther
	}
	q, err := p.AllQuestions()
	if err != nil || len(q) != 1 || q[0].Type != t || q[0].Class != dnsmessage.ClassINET || canonical(q[0].Name.String()) != name {
		return answer{}, errOther
	}
	switch {
	case h.Truncated:
		return answer{}, errTruncated
	case h.RCode == dnsmessage.RCodeNameError:
		return answer{}, nil
	case h.RCode != dnsmessage.RCodeSuccess:
		return answer{}, fmt.Errorf("server says %s", strings.TrimPrefix(h.RCode.String(), "RCode"))
	}
	records, err := p.AllAnswers()
	if err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	return collect(records, name), nil
}

// collect follows the chain of CNAMEs from the name; records of other names count for nothing.
func collect(records []dnsmessage.Resource, name string) answer {
	out := answer{ttl: -1}
	least := func(h dnsmessage.ResourceHeader) {
		if ttl := time.Duration(h.TTL) * time.Second; out.ttl < 0 || ttl < out.ttl {
			out.ttl = ttl
		}
	}
	for range maxChain {
		next := ""
		for _, rec := range records {
			if canonical(rec.Header.Name.String()) != name || rec.Header.Class != dnsmessage.ClassINET {
				continue
			}
			switch body := rec.Body.(type) {
			case *dnsmessage.AResource:
				out.addrs = append(out.addrs, netip.AddrFrom4(body.A))
			case *dnsmessage.AAAAResource:
				out.addrs = append(out.addrs, netip.AddrFrom16(body.AAAA).Unmap())
			case *dnsmessage.CNAMEResource:
				next = canonical(body.CNAME.String())
			default:
				continue
			}
			least(rec.Header)
			if len(out.addrs) == maxAddrs {
				return out
			}
		}
		if len(out.addrs) > 0 || next == "" {
			return out
		}
		name = next
	}
	return out
}
