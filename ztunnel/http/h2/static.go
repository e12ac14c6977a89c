package h2

import "github.com/undermesh/undermesh/ztunnel/http/head"

// pseudo tells the pseudo-header fields. none is a regular field.
type pseudo uint8

const (
	none pseudo = iota
	pMethod
	pScheme
	pAuthority
	pPath
	pProtocol
	pStatus
	pUnknown
	numPseudo
)

var pseudoNames = [numPseudo]string{pMethod: ":method", pScheme: ":scheme", pAuthority: ":authority", pPath: ":path",
	pProtocol: ":protocol", pStatus: ":status"}

func pseudoOf(name []byte) pseudo {
	for p, n := range pseudoNames {
		if n != "" && string(name) == n {
			return pseudo(p)
		}
	}
	return pUnknown
}

const numStatic = 61

// staticTable is RFC 7541 Appendix A; it begins with 1.
var staticTable = [numStatic + 1][2]string{1: {":authority", ""}, {":method", "GET"}, {":method", "POST"}, {":path", "/"},
	{":path", "/index.html"}, {":scheme", "http"}, {":scheme", "https"}, {":status", "200"}, {":status", "204"}, {":status", "206"},
	{":status", "304"}, {":status", "400"}, {":status", "404"}, {":status", "500"}, {"accept-charset", ""},
	{"accept-encoding", "gzip, deflate"}, {"accept-language", ""}, {"accept-ranges", ""}, {"accept", ""},
	{"access-control-allow-origin", ""}, {"age", ""}, {"allow", ""}, {"authorization", ""}, {"cache-control", ""},
	{"content-disposition", ""}, {"content-encoding", ""}, {"content-language", ""}, {"content-length", ""}, {"content-location", ""},
	{"content-range", ""}, {"content-type", ""}, {"cookie", ""}, {"date", ""}, {"etag", ""}, {"expect", ""}, {"expires", ""},
	{"from", ""}, {"host", ""}, {"if-match", ""}, {"if-modified-since", ""}, {"if-none-match", ""}, {"if-range", ""},
	{"if-unmodified-since", ""}, {"last-modified", ""}, {"link", ""}, {"location", ""}, {"max-forwards", ""},
	{"proxy-authenticate", ""}, {"proxy-authorization", ""}, {"range", ""}, {"referer", ""}, {"refresh", ""}, {"retry-after", ""},
	{"server", ""}, {"set-cookie", ""}, {"strict-transport-security", ""}, {"transfer-encoding", ""}, {"user-agent", ""}, {"vary", ""},
	{"via", ""}, {"www-authenticate", ""}}

// Indexes of the static table that the encoder names.
const (
	staticAuthority = 1
	staticGET       = 2
	staticPOST      = 3
	staticRoot      = 4
	staticHTTP      = 6
	staticHTTPS     = 7
	static200       = 8
	static500       = 14
)

// staticMeta is what is known about the names of the static table.
var staticMeta = func() (t [numStatic + 1]meta) {
	for i := 1; i <= numStatic; i++ {
		t[i] = metaOf([]byte(staticTable[i][0]))
	}
	return t
}()

// staticByLength lists the regular names of the static table by their length.
var staticByLength = func() (t [32][]uint8) {
	for i := static500 + 1; i <= numStatic; i++ {
		n := len(staticTable[i][0])
		t[n] = append(t[n], uint8(i))
	}
	return t
}()

// staticByID is the index of the known names in the static table; 0: not in it.
var staticByID = func() (t [head.NumIDs]uint8) {
	for id := head.Other + 1; id < head.NumIDs; id++ {
		t[id] = staticName([]byte(head.Names[id]))
	}
	return t
}()

// staticName is the index of a regular name, of any case, in the static table; 0: it is not in it.
func staticName(name []byte) uint8 {
	if len(name) >= len(staticByLength) {
		return 0
	}
	for _, i := range staticByLength[len(name)] {
		if head.EqualFold(name, staticTable[i][0]) {
			return i
		}
	}
	return 0
}
