package xds

import (
	"bytes"
	"fmt"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// whole is everything of a type as it was once, encoded in pieces that all clients share which start without anything. What
// changed since is sent behind it, so it serves until that is much. Without it encoding, for each client, was two thirds of
// what a thousand of them cost that join.
type whole struct {
	seq  uint64
	list []*discovery.Resource // until it is encoded

	once   sync.Once // protects below
	pieces [][]byte  // fields "resources" of a DeltaDiscoveryResponse
	err    error
}

// A whole is made anew when more than one in staleShare resources changed since, and more than staleLeast.
const (
	staleShare = 8
	staleLeast = 64
)

// wholeNow returns one that a client can start with, which then needs what came after its seq.
func (l *log) wholeNow(shortened bool, now uint64) *whole {
	i := form(shortened)
	if w := l.wholes[i]; w != nil && w.seq >= l.floor && l.fewSince(w.seq) {
		return w
	}
	l.wholes[i] = &whole{seq: now, list: l.all(shortened)}
	return l.wholes[i]
}

// fewSince reports whether little changed after the position.
func (l *log) fewSince(pos uint64) bool {
	left := max(staleLeast, (len(l.entries)-l.dead)/staleShare)
	for _, root := range []*entry{&l.live, &l.gone} {
		for e := root.prev; e != root && e.seq > pos; e = e.prev {
			if left--; left < 0 {
				return false
			}
		}
	}
	return true
}

// encoded returns the pieces; the first caller makes them, and the others wait for him.
func (w *whole) encoded() ([][]byte, error) {
	w.once.Do(func() {
		limit := pieceLimit(w.list)
		var buf []byte
		for _, r := range w.list {
			buf = protowire.AppendTag(buf, fieldResources, protowire.BytesType)
			buf = protowire.AppendVarint(buf, uint64(proto.Size(r)))
			if buf, w.err = (proto.MarshalOptions{}).MarshalAppend(buf, r); w.err != nil {
				w.err = fmt.Errorf("encode resource %q: %w", r.GetName(), w.err)
				return
			}
			if len(buf) >= limit {
				w.pieces = append(w.pieces, bytes.Clone(buf))
				buf = buf[:0]
			}
		}
		if len(buf) > 0 {
			w.pieces = append(w.pieces, bytes.Clone(buf))
		}
		w.list = nil
	})
	return w.pieces, w.err
}

// fieldResources is the number of that field of a DeltaDiscoveryResponse.
const fieldResources = 2

// raw puts encoded fields into a response. To the codec they are fields that it does not know, and passes on as they are.
func raw(r *discovery.DeltaDiscoveryResponse, fields []byte) { r.ProtoReflect().SetUnknown(fields) }
