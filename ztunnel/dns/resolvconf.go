package dns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// maxServers is how many servers a resolv.conf may have that count (resolv.conf(5)).
const maxServers = 3

// Servers reads the name servers of a resolv.conf. Names that are resolved here are full ones, so that search domains do not
// count.
func Servers(r io.Reader) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		ip, err := netip.ParseAddr(fields[1])
		if err != nil {
			return nil, fmt.Errorf("read name servers: %q is not an address", fields[1])
		}
		server := netip.AddrPortFrom(ip.Unmap(), 53)
		if len(out) < maxServers && !slices.Contains(out, server) {
			out = append(out, server)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read name servers: %w", err)
	}
	if len(out) == 0 {
		return nil, errors.New("read name servers: there are none")
	}
	return out, nil
}
