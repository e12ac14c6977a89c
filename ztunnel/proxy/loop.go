package proxy

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/undermesh/undermesh/controller/api/reason"
)

// flow is a TCP connection as the side that opened it sees it.
type flow struct{ src, dst netip.AddrPort }

// loops ends connections that the proxy of a pod made and was given back, as those of the pod's own processes: each would be
// dialled once more, until descriptors are used up. Capture leaves out what the proxy dials; this holds where it does not, say
// for an address that the pod gave to its lo. Safe for concurrent use; the zero value is empty.
type loops struct {
	mu    sync.Mutex // protects below
	own   map[flow]struct{}
	taken map[flow]context.CancelCauseFunc
}

// accepted notes an outbound connection that was accepted; release ends that. It returns false for one that the proxy itself
// made. One whose dial is noted only afterwards is killed then.
func (l *loops) accepted(f flow, kill context.CancelCauseFunc) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, own := l.own[f]; own {
		return nil, false
	}
	if l.taken == nil {
		l.taken = map[flow]context.CancelCauseFunc{}
	}
	l.taken[f] = kill
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.taken, f)
	}, true
}

// dialled notes a connection that the proxy made in the pod's namespace; release ends that.
func (l *loops) dialled(f flow) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if kill := l.taken[f]; kill != nil {
		kill(errLoop())
	}
	if l.own == nil {
		l.own = map[flow]struct{}{}
	}
	l.own[f] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.own, f)
	}
}

func errLoop() *Refusal {
	return refused(reason.Loop, errors.New("the pod's proxy made this connection itself"))
}
