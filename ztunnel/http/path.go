package http

import (
	"bytes"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Paths says how the paths of requests are made canonical before they are matched (MeshConfig.pathNormalization).
type Paths uint8

// The ways.
const (
	PathsBase        Paths = iota // RFC 3986: dot segments, escapes of unreserved bytes, backslashes; Istio's default
	PathsNone                     // as they come
	PathsMerge                    // Base, and repeated slashes become one
	PathsDecodeMerge              // Merge after %2F and %5C became slashes
)

// canonical returns the path made canonical, as Envoy does it; ok is false for one that cannot be. dst is memory to use; a path
// that is canonical already is returned as it is.
func canonical(dst, path []byte, how Paths) (out []byte, ok bool) {
	if bytes.IndexByte(path, '#') >= 0 {
		return nil, false
	}
	if how == PathsNone || len(path) == 0 || path[0] != '/' {
		return path, true
	}
	end := bytes.IndexByte(path, '?')
	if end < 0 {
		end = len(path)
	}
	if plain(path[:end], how) {
		return path, true
	}
	dst = dst[:0]
	for i := 0; i < end; {
		c := path[i]
		switch {
		case c == 0:
			return nil, false
		case c == '\\':
			c = '/'
		case c == '%' && i+2 < end:
			hi, okHi := head.Unhex(path[i+1])
			lo, okLo := head.Unhex(path[i+2])
			d := hi<<4 | lo
			switch {
			case !okHi || !okLo:
			case d == 0:
				return nil, false
			case completes(dst, d):
				dst = append(dst, path[i:i+3]...)
				i += 3
				continue
			case unreserved(d), how == PathsDecodeMerge && (d == '/' || d == '\\'):
				c = d
				if d == '\\' {
					c = '/'
				}
				i += 2
			default:
				dst = append(dst, path[i:i+3]...)
				i += 3
				continue
			}
		case mustEscape(c):
			const digits = "0123456789ABCDEF"
			dst = append(dst, '%', digits[c>>4], digits[c&15])
			i++
			continue
		}
		i++
		if c == '/' {
			dst = slash(dst, how)
			continue
		}
		dst = append(dst, c)
	}
	dst, _ = resolve(dst)
	return append(dst, path[end:]...), true
}

// slash appends the slash after a segment.
func slash(dst []byte, how Paths) []byte {
	if d, ok := resolve(dst); ok || how >= PathsMerge && len(d) > 0 && d[len(d)-1] == '/' {
		return d
	}
	return append(dst, '/')
}

// resolve takes the last segment away if it is a dot segment, with that before if it has two dots. What remains ends in a slash.
func resolve(dst []byte) ([]byte, bool) {
	at := bytes.LastIndexByte(dst, '/')
	if at < 0 {
		return dst, false
	}
	switch string(dst[at+1:]) {
	case ".":
		return dst[:at+1], true
	case "..":
		if up := bytes.LastIndexByte(dst[:at], '/'); up >= 0 {
			return dst[:up+1], true
		}
		return dst[:at+1], true
	}
	return dst, false
}

// plain reports that nothing in the path could be changed.
func plain(path []byte, how Paths) bool {
	prev := byte(0)
	for _, c := range path {
		switch {
		case c == '%' || c == '\\' || mustEscape(c):
			return false
		case c == '.' && prev == '/', c == '/' && prev == '/' && how >= PathsMerge:
			return false
		}
		prev = c
	}
	return true
}

// completes reports that c after dst would make an escape of a percent sign that begins none: who decodes what is forwarded would see
// another path than was matched.
func completes(dst []byte, c byte) bool {
	n := len(dst)
	if _, hex := head.Unhex(c); !hex || n == 0 {
		return false
	}
	if dst[n-1] == '%' {
		return true
	}
	_, hex := head.Unhex(dst[n-1])
	return hex && n > 1 && dst[n-2] == '%'
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func mustEscape(c byte) bool {
	switch c {
	case '"', '<', '>', '^', '`', '{', '|', '}', ' ', 0x7f:
		return true
	}
	return c < 0x20 || c >= 0x80
}

// CanonicalPath returns a path as it is matched, false for one that is refused.
func CanonicalPath(path []byte, how Paths) ([]byte, bool) { return canonical(nil, path, how) }
