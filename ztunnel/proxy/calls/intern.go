package calls

import (
	"crypto/sha256"
	"runtime"
	"sync"
	"weak"

	"google.golang.org/protobuf/proto"
)

// interned holds what is compiled of equal messages once, while anybody has it. Safe for concurrent use.
type interned[V any] struct {
	mu  sync.Mutex // protects below
	all map[[sha256.Size]byte]weak.Pointer[V]
}

// get returns what was compiled of an equal message, or compiles m.
func (in *interned[V]) get(m proto.Message, compile func() (*V, error)) (*V, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(raw)
	if v := in.at(key); v != nil {
		return v, nil
	}
	v, err := compile()
	if err != nil {
		return nil, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.all == nil {
		in.all = map[[sha256.Size]byte]weak.Pointer[V]{}
	}
	if other := in.all[key].Value(); other != nil { // meanwhile
		return other, nil
	}
	in.all[key] = weak.Make(v)
	runtime.AddCleanup(v, in.drop, key)
	return v, nil
}

func (in *interned[V]) at(key [sha256.Size]byte) *V {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.all[key].Value()
}

// drop forgets what is gone.
func (in *interned[V]) drop(key [sha256.Size]byte) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.all[key].Value() == nil {
		delete(in.all, key)
	}
}
