package proxy

import (
	"sync"

	"github.com/undermesh/undermesh/controller/policy"
)

// maxTurns bounds how many ports of services one pod's turns are kept for; beyond it they begin anew.
const maxTurns = 4096

// turns leads a pod's connections to the endpoints of each port of a service in turn (SR-02). Where they begin is left to
// chance, or all clients would begin with the same endpoint. Safe for concurrent use; the zero value is empty.
type turns struct {
	mu   sync.Mutex // protects below
	next map[turnKey]uint64
}

type turnKey struct {
	service serviceName
	port    uint16 // of the service
}

// of is the policy.Rand that gives the turns of one port of a service.
func (t *turns) of(key turnKey, chance policy.Rand) policy.Rand { return turn{t, key, chance} }

type turn struct {
	of     *turns
	key    turnKey
	chance policy.Rand
}

// IntN returns each number below n once before it returns one again, as long as n stays the same. Numbers that follow each other
// lie far apart, so that the places of an endpoint with more weight than others are not taken in a row.
func (t turn) IntN(n int) int {
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	at, known := t.of.next[t.key]
	if !known {
		if at = uint64(t.chance.IntN(n)); len(t.of.next) >= maxTurns {
			clear(t.of.next)
		}
		if t.of.next == nil {
			t.of.next = map[turnKey]uint64{}
		}
	}
	t.of.next[t.key] = at + 1
	total := uint64(n)
	return int(at % total * stride(total) % total)
}

// stride is next to the golden section of n and has no divisor in common with it. n > 0, and below 2³².
func stride(n uint64) uint64 {
	s := max(1, n*618/1000)
	for gcd(s, n) != 1 {
		s++
	}
	return s
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
