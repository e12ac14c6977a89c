package credentials

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/settings"
)

// maxRefs bounds what one call asks for.
const maxRefs = 4096

// notGiven is what a node hears of a Secret that it may not have, whether or not there is one.
const notGiven = "no DestinationRule with a workloadSelector gives it to a workload of this node"

// call is a node that has credentials.
type call struct {
	node string
	wake chan struct{} // capacity 1

	namespaces map[string]int // of what it wants; Keeper.mu

	sent map[credential.Ref]*settings.Credential // what it wants, and has; nil: nothing yet. Of the call's goroutine
}

func (c *call) poke() { poke(c.wake) }

// WatchCredentials implements credential.Server.
func (k *Keeper) WatchCredentials(s credential.ServerStream) error {
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	who, err := k.cfg.Caller(ctx)
	if err != nil {
		return err
	}
	c := &call{node: who.Node, wake: make(chan struct{}, 1), namespaces: map[string]int{}, sent: map[credential.Ref]*settings.Credential{}}
	if err := k.enter(c); err != nil {
		return err
	}
	defer k.leave(c)
	expired := make(chan struct{})
	if !who.Expires.IsZero() {
		t := k.cfg.Clock.AfterFunc(who.Expires.Sub(k.cfg.Clock.Now()), func() { close(expired) })
		defer t.Stop()
	}
	requests, failed := make(chan *settings.CredentialRequest), make(chan error, 1)
	go func() { // ends with the stream, which ends when this function returns
		for {
			req, err := s.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case req := <-requests:
			if err := k.take(c, req); err != nil {
				return err
			}
		case <-c.wake:
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-expired:
			return status.Error(codes.Unauthenticated, "the token that opened the call has ended")
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		if err := k.push(c, s); err != nil {
			return err
		}
	}
}

func (k *Keeper) enter(c *call) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open[c.node] >= k.cfg.Calls {
		return status.Errorf(codes.ResourceExhausted, "node %s has %d calls for credentials, want at most %d", c.node, k.open[c.node], k.cfg.Calls)
	}
	k.open[c.node]++
	k.calls[c] = struct{}{}
	return nil
}

func (k *Keeper) leave(c *call) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.calls, c)
	if k.open[c.node]--; k.open[c.node] == 0 {
		delete(k.open, c.node)
	}
}

// take takes in a request.
func (k *Keeper) take(c *call, req *settings.CredentialRequest) error {
	ref, err := credential.Parse(req.GetRef())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	_, has := c.sent[ref]
	switch {
	case req.GetDrop() == !has:
		return nil
	case !has && len(c.sent) >= maxRefs:
		return status.Errorf(codes.ResourceExhausted, "a call asks for more than %d credentials", maxRefs)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if has {
		delete(c.sent, ref)
		if c.namespaces[ref.Namespace]--; c.namespaces[ref.Namespace] == 0 {
			delete(c.namespaces, ref.Namespace)
		}
		return nil
	}
	c.sent[ref] = nil
	c.namespaces[ref.Namespace]++
	return nil
}

// push sends what the node has not. It is judged each time who may have it.
func (k *Keeper) push(c *call, s credential.ServerStream) error {
	for ref, sent := range c.sent {
		now := k.answer(c.node, ref)
		if now == nil || proto.Equal(now, sent) {
			continue
		}
		if err := s.Send(now); err != nil {
			return err
		}
		c.sent[ref] = now
	}
	return nil
}

// answer is what the node is told of a credential now; nil: nothing is known yet.
func (k *Keeper) answer(node string, ref credential.Ref) *settings.Credential {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ready {
		return nil
	}
	if w := k.wanted[ref]; w != nil {
		for _, labels := range w.rules {
			if k.cfg.Selects(node, ref.Namespace, labels) {
				return w.answer
			}
		}
	}
	return &settings.Credential{Ref: ref.Message(), Problem: notGiven}
}
