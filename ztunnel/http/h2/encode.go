package h2

import (
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// The encoder writes indexes of the static table and literals without indexing and without Huffman code: cheapest for both
// ends, and no state that a connection holds.

// appendInteger writes v in the lower bits of a first byte (RFC 7541 §5.1).
func appendInteger(b []byte, first byte, bits uint, v int) []byte {
	most := 1<<bits - 1
	if v < most {
		return append(b, first|byte(v))
	}
	b = append(b, first|byte(most))
	for v -= most; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

func appendString[T string | []byte](b []byte, s T) []byte {
	return append(appendInteger(b, 0, 7, len(s)), s...)
}

// appendLiteral writes a field whose name is in the static table.
func appendLiteral(b []byte, name uint8, value []byte) []byte {
	return appendString(appendInteger(b, 0, 4, int(name)), value)
}

func appendStatus(b []byte, status int) []byte {
	for i := static200; i <= static500; i++ {
		v := staticTable[i][1]
		if int(v[0]-'0')*100+int(v[1]-'0')*10+int(v[2]-'0') == status {
			return append(b, 0x80|byte(i))
		}
	}
	return append(b, static200, 3, byte('0'+status/100%10), byte('0'+status/10%10), byte('0'+status%10))
}

// appendRequest writes the block of a request.
func appendRequest(b []byte, r *head.Request) []byte {
	switch string(r.Method) {
	case "GET":
		b = append(b, 0x80|staticGET)
	case "POST":
		b = append(b, 0x80|staticPOST)
	default:
		b = appendLiteral(b, staticGET, r.Method)
	}
	if string(r.Method) != "CONNECT" || r.Protocol != nil {
		switch string(r.Scheme) {
		case "http", "":
			b = append(b, 0x80|staticHTTP)
		case "https":
			b = append(b, 0x80|staticHTTPS)
		default:
			b = appendLiteral(b, staticHTTP, r.Scheme)
		}
		if string(r.Path) == "/" {
			b = append(b, 0x80|staticRoot)
		} else {
			b = appendLiteral(b, staticRoot, r.Path)
		}
	}
	if len(r.Authority) > 0 {
		b = appendLiteral(b, staticAuthority, r.Authority)
	}
	if r.Protocol != nil {
		b = append(b, 0)
		b = appendString(appendString(b, pseudoNames[pProtocol]), r.Protocol)
	}
	return appendFields(b, &r.Fields)
}

func appendResponse(b []byte, r *head.Response) []byte {
	return appendFields(appendStatus(b, r.Status), &r.Fields)
}

// appendFields writes the regular fields but those that belong to a connection of HTTP/1 (RFC 9113 §8.2.2).
func appendFields(b []byte, f *head.Fields) []byte {
	for i := range f.Len() {
		id, name, value, ok := f.At(i)
		if !ok || perConnection(id, value) {
			continue
		}
		if static := staticByID[id]; id != head.Other && static != 0 {
			b = appendLiteral(b, static, value)
			continue
		}
		if id == head.Other {
			if static := staticName(name); static != 0 {
				b = appendLiteral(b, static, value)
				continue
			}
		}
		b = appendInteger(append(b, 0), 0, 7, len(name))
		for _, c := range name {
			b = append(b, head.Lower[c])
		}
		b = appendString(b, value)
	}
	return b
}

func perConnection(id head.ID, value []byte) bool {
	switch id {
	case head.Connection, head.KeepAlive, head.ProxyConnection, head.TransferEncoding, head.Upgrade, head.HTTP2Settings, head.Host:
		return true
	case head.TE:
		return !head.EqualFold(value, "trailers")
	}
	return false
}
