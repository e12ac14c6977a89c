package telemetry

import (
	"log/slog"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// encoder appends lines in the two forms of log/slog, by JSONHandler and TextHandler. It knows what kinds of values there are, so
// that a line takes no memory of its own.
type encoder struct {
	b    []byte
	text bool
}

// begin starts a line.
func (e *encoder) begin(now time.Time, level slog.Level, message string) {
	if e.text {
		e.b = append(now.AppendFormat(append(e.b, "time="...), "2006-01-02T15:04:05.000Z07:00"), " level="...)
		e.b = append(e.b, level.String()...)
	} else {
		e.b = append(now.AppendFormat(append(e.b, `{"time":"`...), time.RFC3339Nano), `","level":"`...)
		e.b = append(append(e.b, level.String()...), '"')
	}
	e.str("msg", message)
	e.str("scope", "access")
}

func (e *encoder) end() {
	if e.text {
		e.b = append(e.b, '\n')
	} else {
		e.b = append(e.b, "}\n"...)
	}
}

// key is one of ours: it needs no quoting.
func (e *encoder) key(k string) {
	if e.text {
		e.b = append(append(append(e.b, ' '), k...), '=')
	} else {
		e.b = append(append(append(e.b, `,"`...), k...), `":`...)
	}
}

// str writes a text that is not empty.
func (e *encoder) str(k, v string) {
	if v == "" {
		return
	}
	e.key(k)
	e.value(v)
}

func (e *encoder) value(v string) {
	switch {
	case !e.text:
		e.b = appendJSON(e.b, v)
	case bare(v):
		e.b = append(e.b, v...)
	default:
		e.b = strconv.AppendQuote(e.b, v)
	}
}

func (e *encoder) num(k string, v int64) {
	e.key(k)
	e.b = strconv.AppendInt(e.b, v, 10)
}

// addr writes an address that is valid.
func (e *encoder) addr(k string, a netip.AddrPort) {
	if !a.IsValid() {
		return
	}
	if a.Addr().Zone() != "" {
		e.str(k, a.String())
		return
	}
	e.key(k)
	if e.text {
		e.b = a.AppendTo(e.b)
	} else {
		e.b = append(a.AppendTo(append(e.b, '"')), '"')
	}
}

func (e *encoder) list(k string, all []string) {
	if len(all) == 0 {
		return
	}
	e.key(k)
	if e.text {
		joined := "["
		for i, v := range all {
			if i > 0 {
				joined += " "
			}
			joined += v
		}
		e.value(joined + "]")
		return
	}
	e.b = append(e.b, '[')
	for i, v := range all {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.value(v)
	}
	e.b = append(e.b, ']')
}

const hexDigits = "0123456789abcdef"

// appendJSON appends a text as a string of JSON; what is no UTF-8 becomes the replacement character.
func appendJSON(b []byte, v string) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(v); {
		c := v[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		r, size := rune(c), 1
		if c >= utf8.RuneSelf {
			if r, size = utf8.DecodeRuneInString(v[i:]); r != utf8.RuneError && r != '\u2028' && r != '\u2029' {
				i += size
				continue
			}
		}
		b = append(b, v[from:i]...)
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', c)
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == '\r':
			b = append(b, '\\', 'r')
		case r == '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
		}
		i += size
		from = i
	}
	return append(append(b, v[from:]...), '"')
}

// bare reports whether a value stands in a line of text without quotes.
func bare(v string) bool {
	for i := 0; i < len(v); {
		c := v[i]
		if c < utf8.RuneSelf {
			if c <= ' ' || c == '"' || c == '=' || c == 0x7f {
				return false
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(v[i:])
		if r == utf8.RuneError || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return false
		}
		i += size
	}
	return v != ""
}
