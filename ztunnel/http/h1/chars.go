package h1

// class bits of a byte.
const (
	inToken     = 1 << iota // of names and methods
	inValue                 // of field values: HTAB, visible, blank, and bytes above 0x7f
	inTarget                // of a request target: visible ASCII
	inAuthority             // of an authority
)

var classes = func() (t [256]uint8) {
	for i := range t {
		c := byte(i)
		if c == '\t' || c >= 0x20 && c != 0x7f {
			t[i] |= inValue
		}
		if c > 0x20 && c < 0x7f {
			t[i] |= inTarget
		}
	}
	const alnum = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	for _, c := range []byte("!#$%&'*+-.^_`|~" + alnum) {
		t[c] |= inToken
	}
	for _, c := range []byte("-._~!$&'()*+,;=:@[]%" + alnum) {
		t[c] |= inAuthority
	}
	return t
}()

func all(b []byte, class uint8) bool {
	for _, c := range b {
		if classes[c]&class == 0 {
			return false
		}
	}
	return true
}

// known are the methods that Envoy's codec knows; it refuses others.
func known(method []byte) bool {
	switch string(method) {
	case "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE",
		"ACL", "BIND", "CHECKOUT", "COPY", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "MSEARCH",
		"NOTIFY", "PROPFIND", "PROPPATCH", "PURGE", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "UNBIND", "UNLINK",
		"UNLOCK", "UNSUBSCRIBE":
		return true
	}
	return false
}
