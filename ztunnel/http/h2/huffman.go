package h2

import "errors"

var errHuffman = errors.New("string has no valid Huffman code")

// huffmanLens are the lengths in bits of the codes of RFC 7541 Appendix B, by symbol; the last is EOS. The code is canonical:
// the lengths say all of it.
var huffmanLens = [257]uint8{
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
	30,
}

const (
	huffmanEOS = 256
	// huffmanShort is the length in bits of the codes that one look in huffman.short finds: those of nearly all text.
	huffmanShort   = 8
	huffmanLongest = 30
)

// huffmanTables decode by the canonical order. Codes are compared as the upper bits of 32.
type huffmanTables struct {
	short [1 << huffmanShort]struct{ sym, len uint8 } // by the next 8 bits; len 0: the code is longer
	syms  [257]uint16                                 // in the order of their codes
	limit [huffmanLongest + 1]uint64                  // by length: the first value that is no code of this length or a shorter one
	first [huffmanLongest + 1]uint64                  // by length: its first code
	base  [huffmanLongest + 1]int                     // by length: index into syms of its first code
}

var huffman = func() (t huffmanTables) {
	code, n := uint64(0), 0
	for l := 1; l <= huffmanLongest; l++ {
		t.first[l], t.base[l] = code, n
		for sym, sl := range huffmanLens {
			if int(sl) != l {
				continue
			}
			if l <= huffmanShort {
				for i := range uint64(1) << (huffmanShort - l) {
					at := &t.short[code>>(32-huffmanShort)+i]
					at.sym, at.len = uint8(sym), sl
				}
			}
			t.syms[n] = uint16(sym)
			n++
			code += 1 << (32 - l)
		}
		t.limit[l] = code
	}
	return t
}()

// appendHuffman appends what src is the code of.
func appendHuffman(dst, src []byte) ([]byte, error) {
	acc, bits := uint64(0), uint(0) // the bits that are not yet used are the lowest of acc
	for _, c := range src {
		acc = acc<<8 | uint64(c)
		bits += 8
		for bits >= huffmanShort {
			e := huffman.short[uint8(acc>>(bits-huffmanShort))]
			if e.len == 0 {
				if bits < huffmanLongest {
					break
				}
				sym, l := longCode(uint32(acc << (64 - bits) >> 32))
				if sym == huffmanEOS {
					return dst, errHuffman
				}
				dst = append(dst, byte(sym))
				bits -= l
				continue
			}
			dst = append(dst, e.sym)
			bits -= uint(e.len)
		}
	}
	for bits > 0 {
		next := uint32(acc<<(64-bits)>>32) | uint32(1<<32-1)>>bits // followed by ones, as padding is
		sym, l := longCode(next)
		if l > bits {
			if bits >= 8 || next != 1<<32-1 {
				return dst, errHuffman
			}
			break
		}
		if sym == huffmanEOS {
			return dst, errHuffman
		}
		dst = append(dst, byte(sym))
		bits -= l
	}
	return dst, nil
}

// longCode finds the code that next begins with. Every 32 bits begin with one.
func longCode(next uint32) (sym uint16, length uint) {
	for l := uint(5); l < huffmanLongest; l++ {
		if uint64(next) < huffman.limit[l] {
			return huffman.syms[huffman.base[l]+int((uint64(next)-huffman.first[l])>>(32-l))], l
		}
	}
	at := huffman.base[huffmanLongest] + int((uint64(next)-huffman.first[huffmanLongest])>>(32-huffmanLongest))
	return huffman.syms[at], huffmanLongest
}
