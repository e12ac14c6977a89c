package head

import "math"

// Field is one field as offsets into the text that it is in. Line to End is the whole line with its CRLF.
type Field struct {
	Line, NameEnd, Val, ValEnd, End uint32
	ID                              ID
	Dropped                         bool // removed
	added                           bool // it is in Fields.added
}

// Fields is a list of fields in the order of the wire. The zero value is empty; Reset makes it so again and keeps the memory.
type Fields struct {
	buf, added []byte
	list       []Field
	first      [NumIDs]int16 // index of the first field of the id that is not dropped, plus one
}

// Reset empties the list; buf is where PutLine's offsets lead. The caller must not change those bytes while the list is used.
func (f *Fields) Reset(buf []byte) {
	f.buf, f.added, f.list = buf, f.added[:0], f.list[:0]
	clear(f.first[:])
}

// Rebase tells that the text of Reset is at another place, unchanged.
func (f *Fields) Rebase(buf []byte) { f.buf = buf }

// PutLine appends a field that the text holds. The codec has checked it.
func (f *Fields) PutLine(x Field) {
	f.list = append(f.list, x)
	if x.ID != Other && f.first[x.ID] == 0 && len(f.list) < math.MaxInt16 {
		f.first[x.ID] = int16(len(f.list))
	}
}

// Len is how many fields there are, dropped ones included.
func (f *Fields) Len() int { return len(f.list) }

// At returns the i-th field; ok is false for one that was dropped. The slices are valid until the list changes.
func (f *Fields) At(i int) (id ID, name, value []byte, ok bool) {
	x := &f.list[i]
	t := f.text(x)
	return x.ID, t[x.Line:x.NameEnd], t[x.Val:x.ValEnd], !x.Dropped
}

func (f *Fields) text(x *Field) []byte {
	if x.added {
		return f.added
	}
	return f.buf
}

func (f *Fields) name(x *Field) []byte  { return f.text(x)[x.Line:x.NameEnd] }
func (f *Fields) value(x *Field) []byte { return f.text(x)[x.Val:x.ValEnd] }

// Has reports whether there is a field of the known name.
func (f *Fields) Has(id ID) bool { return f.first[id] != 0 }

// Get returns the value of the first field of the known name, nil when there is none.
func (f *Fields) Get(id ID) []byte {
	if i := f.first[id]; i != 0 {
		return f.value(&f.list[i-1])
	}
	return nil
}

// Next returns the index of the first field at or after i that has the name, which is in lower case (id is IDOf it); -1 for
// none. It walks over all of several:
//
//	for i := f.Next(0, id, name); i >= 0; i = f.Next(i+1, id, name) { … }
func (f *Fields) Next(i int, id ID, lower string) int {
	if id != Other {
		if f.first[id] == 0 {
			return -1
		}
		i = max(i, int(f.first[id])-1)
	}
	for ; i < len(f.list); i++ {
		x := &f.list[i]
		if !x.Dropped && x.ID == id && (id != Other || EqualFold(f.name(x), lower)) {
			return i
		}
	}
	return -1
}

// Value is the value of the i-th field.
func (f *Fields) Value(i int) []byte { return f.value(&f.list[i]) }

// Find returns the value of the first field of the name, which is in lower case.
func (f *Fields) Find(lower string) (value []byte, ok bool) {
	if i := f.Next(0, IDOf([]byte(lower)), lower); i >= 0 {
		return f.Value(i), true
	}
	return nil, false
}

// Add appends a field. Value and name must not be parts of the list's own text. What would end the line becomes a blank.
func (f *Fields) Add(id ID, name string, value []byte) {
	x := Field{Line: uint32(len(f.added)), ID: id, added: true}
	f.added = append(f.added, name...)
	x.NameEnd = uint32(len(f.added))
	f.added = append(f.added, ": "...)
	x.Val = uint32(len(f.added))
	f.added = append(f.added, value...)
	x.ValEnd = uint32(len(f.added))
	for i := x.Val; i < x.ValEnd; i++ {
		if c := f.added[i]; c == '\r' || c == '\n' || c == 0 {
			f.added[i] = ' '
		}
	}
	f.added = append(f.added, "\r\n"...)
	x.End = uint32(len(f.added))
	f.PutLine(x)
}

// AddString is Add for a known name.
func (f *Fields) AddString(id ID, value string) { f.Add(id, Names[id], []byte(value)) }

// Set replaces all fields of the name, which is in lower case, by one at the end.
func (f *Fields) Set(id ID, lower string, value []byte) {
	f.Del(id, lower)
	f.Add(id, lower, value)
}

// Del removes all fields of the name, which is in lower case, and reports whether there was one.
func (f *Fields) Del(id ID, lower string) bool {
	gone := false
	for i := f.Next(0, id, lower); i >= 0; i = f.Next(i+1, id, lower) {
		f.list[i].Dropped, gone = true, true
	}
	if id != Other {
		f.first[id] = 0
	}
	return gone
}

// Drop removes the i-th field.
func (f *Fields) Drop(i int) {
	x := &f.list[i]
	x.Dropped = true
	if x.ID == Other || int(f.first[x.ID]) != i+1 {
		return
	}
	f.first[x.ID] = 0
	for j := i + 1; j < len(f.list); j++ {
		if y := &f.list[j]; y.ID == x.ID && !y.Dropped {
			f.first[x.ID] = int16(j + 1)
			return
		}
	}
}

// AppendLines appends the fields as lines of HTTP/1.1, without the empty line that ends a head.
func (f *Fields) AppendLines(dst []byte) []byte {
	for i := 0; i < len(f.list); i++ {
		x := &f.list[i]
		if x.Dropped {
			continue
		}
		end := x.End
		for i+1 < len(f.list) { // a run of lines in one piece
			y := &f.list[i+1]
			if y.Dropped || y.added != x.added || y.Line != end {
				break
			}
			end = y.End
			i++
		}
		dst = append(dst, f.text(x)[x.Line:end]...)
	}
	return dst
}

// Size is how many bytes AppendLines would append.
func (f *Fields) Size() (n int) {
	for i := range f.list {
		if x := &f.list[i]; !x.Dropped {
			n += int(x.End - x.Line)
		}
	}
	return n
}
