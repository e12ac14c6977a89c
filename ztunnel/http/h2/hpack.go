package h2

import (
	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// meta is what is known about a field by its name, and in the dynamic table by its value as well.
type meta struct {
	id     head.ID
	pseudo pseudo
	bad    bool // not legal in HTTP/2
}

func metaOf(name []byte) meta {
	if len(name) == 0 {
		return meta{bad: true}
	}
	if name[0] == ':' {
		return meta{pseudo: pseudoOf(name)}
	}
	for _, c := range name {
		if !nameBytes[c] {
			return meta{bad: true}
		}
	}
	return meta{id: head.IDOf(name)}
}

// nameBytes are the lower-case tokens of RFC 9113 §8.2.1.
var nameBytes = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz" {
		t[c] = true
	}
	return t
}()

// legalValue refuses control characters but HTAB within, and outer blanks (RFC 9113 §8.2.1).
func legalValue(v []byte) bool {
	if len(v) == 0 {
		return true
	}
	if a, b := v[0], v[len(v)-1]; a == ' ' || a == '\t' || b == ' ' || b == '\t' {
		return false
	}
	for _, c := range v {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// entry is a field of the dynamic table: the name is at off in table.buf, the value follows it.
type entry struct {
	off, name, value uint32
	meta
}

func (e *entry) size() int { return int(e.name) + int(e.value) + fieldOverhead }

const (
	fieldOverhead = 32 // bytes that a field counts for beside its text (RFC 7541 §4.1)
)

// table is the dynamic table of a decoder. Its text is in one buffer of at most twice the table's size, so that entries cost
// no allocation once it has grown.
type table struct {
	buf   []byte
	ents  []entry // oldest first
	head  int     // ents before it are evicted
	size  int
	max   int // as the peer set it; at most limit
	limit int
}

func (t *table) len() int { return len(t.ents) - t.head }

// at returns the entry of the index i, which begins with 0 for the newest.
func (t *table) at(i int) *entry { return &t.ents[len(t.ents)-1-i] }

func (t *table) text(e *entry) (name, value []byte) {
	b := t.buf[e.off : e.off+e.name+e.value]
	return b[:e.name], b[e.name:]
}

// evict makes room for n bytes.
func (t *table) evict(n int) {
	for t.head < len(t.ents) && t.size+n > t.max {
		t.size -= t.ents[t.head].size()
		t.head++
	}
	if t.head == len(t.ents) {
		t.buf, t.ents, t.head = t.buf[:0], t.ents[:0], 0
	}
}

// add appends an entry. Its text must not be the table's.
func (t *table) add(name, value []byte, m meta) {
	e := entry{name: uint32(len(name)), value: uint32(len(value)), meta: m}
	t.evict(e.size())
	if e.size() > t.max {
		return
	}
	if len(t.buf)+len(name)+len(value) > 2*t.limit || len(t.ents) == cap(t.ents) && t.head > len(t.ents)/2 {
		t.compact()
	}
	e.off = uint32(len(t.buf))
	t.buf = append(append(t.buf, name...), value...)
	t.ents = append(t.ents, e)
	t.size += e.size()
}

// compact moves what is not evicted to the beginning.
func (t *table) compact() {
	from := t.ents[t.head].off
	t.buf = t.buf[:copy(t.buf, t.buf[from:])]
	t.ents = t.ents[:copy(t.ents, t.ents[t.head:])]
	t.head = 0
	for i := range t.ents {
		t.ents[i].off -= from
	}
}

// decoder decodes the header blocks of one connection. It belongs to the goroutine that reads.
type decoder struct {
	table
	maxList   int // bytes of a list, counted as RFC 9113 §6.5.2 does
	maxFields int
}

// span is a part of a list's text.
type span struct{ from, to uint32 }

// list is a decoded header list. Its regular fields are in fields, their text and that of the pseudo fields in text.
type list struct {
	text   []byte
	fields *head.Fields
	pseudo [numPseudo]span
	seen   [numPseudo]bool
	// bad says why it is malformed; "": it is not, as far as single fields tell.
	bad string
	// large: it exceeds the limits, and what is in it is not all.
	large   bool
	regular bool // a regular field was seen
	n, size int
}

func (l *list) value(p pseudo) []byte {
	s := l.pseudo[p]
	return l.text[s.from:s.to:s.to]
}

// decode reads a whole header block into l, whose text and fields are emptied before. The error is a connection error: the
// compression state is lost.
func (d *decoder) decode(b []byte, l *list) error {
	*l = list{text: l.text[:0], fields: l.fields}
	l.fields.Reset(nil)
	begin := true
	for len(b) > 0 {
		c := b[0]
		var err error
		switch {
		case c&0x80 != 0:
			b, err = d.indexed(b, l)
		case c&0xe0 == 0x20:
			if !begin {
				return compression("table size update after a field")
			}
			if b, err = d.resize(b); err != nil {
				return err
			}
			continue
		default:
			b, err = d.literal(b, l)
		}
		if err != nil {
			return err
		}
		begin = false
	}
	l.fields.Rebase(l.text)
	return nil
}

func compression(reason string) error {
	return &frame.ConnError{Code: frame.CodeCompression, Reason: reason}
}

func (d *decoder) resize(b []byte) ([]byte, error) {
	n, b, ok := integer(b, 5)
	if !ok || n > uint64(d.limit) {
		return nil, compression("table size update is not valid")
	}
	d.max = int(n)
	d.evict(0)
	return b, nil
}

// lookup returns what an index stands for.
func (d *decoder) lookup(i uint64) (name, value []byte, m meta, ok bool) {
	if i > numStatic && i-numStatic <= uint64(d.len()) {
		e := d.at(int(i - numStatic - 1))
		name, value = d.text(e)
		return name, value, e.meta, true
	}
	return nil, nil, meta{}, false
}

// indexed reads an indexed field (RFC 7541 §6.1).
func (d *decoder) indexed(b []byte, l *list) ([]byte, error) {
	i, b, ok := integer(b, 7)
	if ok && i > 0 && i <= numStatic {
		if at := l.begin(); !l.large {
			f := &staticTable[i]
			l.text = append(append(append(l.text, f[0]...), ": "...), f[1]...)
			l.end(d, at, uint32(len(f[0])), staticMeta[i])
		}
		return b, nil
	}
	name, value, m, found := d.lookup(i)
	if !ok || !found {
		return nil, compression("index is not valid")
	}
	if at := l.begin(); !l.large {
		l.text = append(append(append(l.text, name...), ": "...), value...)
		l.end(d, at, uint32(len(name)), m)
	}
	return b, nil
}

// literal reads a literal field (RFC 7541 §6.2).
func (d *decoder) literal(b []byte, l *list) ([]byte, error) {
	bits, keep := uint(4), false
	if b[0]&0x40 != 0 {
		bits, keep = 6, true
	}
	i, b, ok := integer(b, bits)
	if !ok {
		return nil, compression("integer is not valid")
	}
	at := l.begin()
	var m meta
	switch {
	case i == 0:
		var err error
		if l.text, b, err = str(l.text, b); err != nil {
			return nil, err
		}
		m = metaOf(l.text[at:])
	case i <= numStatic:
		l.text, m = append(l.text, staticTable[i][0]...), staticMeta[i]
	default:
		name, _, known, found := d.lookup(i)
		if !found {
			return nil, compression("index is not valid")
		}
		l.text, m = append(l.text, name...), known
		if m.bad { // by its name, or by its value, which does not matter here
			m = metaOf(name)
		}
	}
	nameEnd := uint32(len(l.text))
	l.text = append(l.text, ": "...)
	val := len(l.text)
	var err error
	if l.text, b, err = str(l.text, b); err != nil {
		return nil, err
	}
	m.bad = m.bad || !legalValue(l.text[val:])
	if keep {
		d.add(l.text[at:nameEnd], l.text[val:], m)
	}
	l.end(d, at, nameEnd-at, m)
	return b, nil
}

// begin tells where the next field's text begins.
func (l *list) begin() uint32 { return uint32(len(l.text)) }

// end takes the field whose text is "name: value" from at on.
func (l *list) end(d *decoder, at, name uint32, m meta) {
	to := uint32(len(l.text))
	l.n++
	if l.size += int(to-at) - 2 + fieldOverhead; l.size > d.maxList || l.n > d.maxFields {
		l.large = true
	}
	if l.large {
		l.text = l.text[:at]
		return
	}
	val := at + name + 2
	switch {
	case m.bad:
		l.bad = "field is not legal"
	case m.pseudo == none:
		l.regular = true
		l.text = append(l.text, '\r', '\n')
		l.fields.PutLine(head.Field{Line: at, NameEnd: at + name, Val: val, ValEnd: to, End: to + 2, ID: m.id})
	case m.pseudo == pUnknown:
		l.bad = "pseudo field is unknown"
	case l.seen[m.pseudo]:
		l.bad = "pseudo field is repeated"
	case l.regular:
		l.bad = "pseudo field follows a regular one"
	default:
		l.seen[m.pseudo], l.pseudo[m.pseudo] = true, span{val, to}
	}
}

// integer reads an integer of RFC 7541 §5.1 whose first byte has it in its lower bits.
func integer(b []byte, bits uint) (v uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	most := uint64(1)<<bits - 1
	v = uint64(b[0]) & most
	b = b[1:]
	if v < most {
		return v, b, true
	}
	for shift := uint(0); shift < 63 && len(b) > 0; shift += 7 {
		c := b[0]
		b = b[1:]
		v += uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, b, true
		}
	}
	return 0, nil, false
}

// str reads a string of RFC 7541 §5.2 and appends it to dst.
func str(dst, b []byte) (out, rest []byte, err error) {
	coded := len(b) > 0 && b[0]&0x80 != 0
	n, b, ok := integer(b, 7)
	if !ok || n > uint64(len(b)) {
		return dst, nil, compression("string is cut off")
	}
	if !coded {
		return append(dst, b[:n]...), b[n:], nil
	}
	if out, err = appendHuffman(dst, b[:n]); err != nil {
		return dst, nil, compression(err.Error())
	}
	return out, b[n:], nil
}
