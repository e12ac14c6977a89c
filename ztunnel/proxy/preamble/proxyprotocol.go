package preamble

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// The versions of the PROXY protocol (haproxy's proxy-protocol.txt).
const (
	V1 = 1 // a line of text
	V2 = 2 // binary
)

const signature = "\r\n\r\n\x00\r\nQUIT\n"

// Of version 2: version and command, family and protocol.
const (
	cmdProxy = 0x21
	tcp4     = 0x11
	tcp6     = 0x21
)

// Header is the header of the PROXY protocol for a connection from src to dst. Of addresses of two families the one of IPv4 is
// written as one of IPv6. An unknown version, or an address that is not valid, is an error: a server that asks for the header
// would take the client's bytes for one.
func Header(version uint32, src, dst netip.AddrPort) ([]byte, error) {
	if !src.IsValid() || !dst.IsValid() {
		return nil, fmt.Errorf("write header of the PROXY protocol: from %s to %s is not a connection", src, dst)
	}
	a, b := src.Addr().Unmap().WithZone(""), dst.Addr().Unmap().WithZone("")
	v4 := a.Is4() && b.Is4()
	switch version {
	case V1:
		return text(v4, netip.AddrPortFrom(a, src.Port()), netip.AddrPortFrom(b, dst.Port())), nil
	case V2:
		out := append([]byte(signature), cmdProxy)
		if v4 {
			out = append(out, tcp4, 0, 12)
			out = append(append(out, a.AsSlice()...), b.AsSlice()...)
		} else {
			from, to := a.As16(), b.As16()
			out = append(out, tcp6, 0, 36)
			out = append(append(out, from[:]...), to[:]...)
		}
		out = binary.BigEndian.AppendUint16(out, src.Port())
		return binary.BigEndian.AppendUint16(out, dst.Port()), nil
	}
	return nil, fmt.Errorf("write header of the PROXY protocol: version %d is not known", version)
}

func text(v4 bool, src, dst netip.AddrPort) []byte {
	family, from, to := "TCP4", src.Addr(), dst.Addr()
	if !v4 {
		family, from, to = "TCP6", netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
	}
	return fmt.Appendf(nil, "PROXY %s %s %s %d %d\r\n", family, from, to, src.Port(), dst.Port())
}
