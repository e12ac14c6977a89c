package server

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/credentials"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/controller/xds"
)

// keepSecrets makes the keeper of the Secrets that DestinationRules name, if there is to be one. They leave by the door alone behind
// which callers prove who they are.
func (s *Server) keepSecrets() error {
	if s.cfg.Secrets == nil || s.ca == nil {
		return nil
	}
	source := watch.Inject(s.cfg.Source)
	s.cfg.Source = source
	k, err := credentials.New(credentials.Config{
		Get: s.cfg.Secrets, Selects: s.cfg.Index.Selects, Clock: s.cfg.Clock, Log: s.cfg.Log,
		Caller: nodeOfCall{runsOn{index: s.cfg.Index, direct: s.cfg.Authority.Direct}}.caller,
		Tell: func(ref credential.Ref, problem string, known bool) {
			e := model.Event{Kind: model.KindCredential, Name: model.NameOfCredential(ref)}
			if known {
				e.Object = model.Credential{Ref: ref, Problem: problem}
			}
			source.Put(e)
		},
	})
	if err != nil {
		return err
	}
	s.secrets, s.engine.secrets = k, k
	return nil
}

// nodeOfCall knows on which node a caller is.
type nodeOfCall struct{ runsOn }

// caller returns the node that the caller's token is bound to, by itself or by its pod.
func (n nodeOfCall) caller(ctx context.Context) (credentials.Caller, error) {
	who, ok := xds.CallerOf(ctx)
	if !ok {
		return credentials.Caller{}, status.Error(codes.Unauthenticated, "credentials are for nodes that prove who they are")
	}
	out := credentials.Caller{Node: who.Node, Expires: who.Expires}
	if out.Node == "" {
		if i := strings.LastIndexByte(who.Pod, '.'); i > 0 {
			node, err := n.nodeOf(ctx, model.Name{Namespace: who.Pod[i+1:], Name: who.Pod[:i]}, "")
			if err != nil {
				return out, status.Error(codes.Unavailable, "it cannot be told on which node the caller's pod runs")
			}
			out.Node = node
		}
	}
	if out.Node == "" {
		return out, status.Error(codes.PermissionDenied, "the caller's token is bound to no node")
	}
	return out, nil
}
