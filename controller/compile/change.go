package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/validate"
)

// held is a resource that nodes have.
type held struct {
	refs int // how many objects want it
	sum  digest
}

// digest stands for the content of a resource: a message of its own for each would be the larger part of what the compiler
// needs. The first bytes of a SHA-256; who could find two contents with one of them writes both himself.
type digest [16]byte

// change collects what one Apply does to the resources.
type change struct {
	c       *Compiler
	touched map[Key]bool
	before  map[Key]digest   // of what was touched and existed
	now     map[Key]Resource // what was compiled
	owners  map[owner]bool   // whose findings or resources were set
}

func (ch *change) touch(k Key) {
	if ch.touched[k] {
		return
	}
	ch.touched[k] = true
	if h, ok := ch.c.out[k]; ok {
		ch.before[k] = h.sum
	}
}

// compile sets what the object compiles to now.
func (ch *change) compile(o owner) {
	resources, findings := ch.c.resources(o)
	ch.set(o, findings, resources)
}

// set replaces what the object compiles to. Several objects may want one resource; it goes with the last of them.
func (ch *change) set(o owner, findings []validate.Finding, resources []Resource) {
	c := ch.c
	ch.owners[o] = true
	for _, f := range c.findings[o] {
		c.counts[f.Severity]--
	}
	for _, f := range findings {
		c.counts[f.Severity]++
	}
	delete(c.findings, o)
	if len(findings) > 0 {
		c.findings[o] = findings
	}
	old := c.owned[o]
	delete(c.owned, o)
	keys := make([]Key, 0, len(resources))
	for _, r := range resources {
		k := Key{r.Type, r.Name}
		ch.touch(k)
		c.out[k] = held{c.out[k].refs + 1, c.digest(r)}
		ch.now[k] = r
		keys = append(keys, k)
	}
	if len(keys) > 0 {
		c.owned[o] = keys
	}
	for _, k := range old {
		ch.touch(k)
		h := c.out[k]
		if h.refs--; h.refs == 0 {
			delete(c.out, k)
		} else {
			c.out[k] = h
		}
	}
}

// digest of a resource. One that cannot be encoded is never the same as before: who serves it finds out.
func (c *Compiler) digest(r Resource) digest {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
	if err != nil {
		c.unknown++
		return digest(binary.BigEndian.AppendUint64([]byte("unknown "), c.unknown))
	}
	raw = binary.BigEndian.AppendUint64(raw, uint64(len(raw)))
	sum := sha256.Sum256(append(raw, strings.Join(r.Aliases, "\x00")...))
	return digest(sum[:len(digest{})])
}

func (ch *change) delta() Delta {
	var d Delta
	for k := range ch.touched {
		now, exists := ch.c.out[k]
		before, existed := ch.before[k]
		switch {
		case exists && existed && now.sum == before:
		case exists:
			d.Upserts = append(d.Upserts, ch.now[k])
		case existed:
			d.Removed = append(d.Removed, k)
		}
	}
	slices.SortFunc(d.Upserts, compareResources)
	slices.SortFunc(d.Removed, func(a, b Key) int { return strings.Compare(a.Type+" "+a.Name, b.Type+" "+b.Name) })
	return d
}

func compareResources(a, b Resource) int {
	return strings.Compare(a.Type+" "+a.Name, b.Type+" "+b.Name)
}
