package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/quota"
)

// Auth says who may open a stream. Fields are required.
type Auth struct {
	Log *slog.Logger
	// Lines says which refusals are written, by address; nil: all.
	Lines *quota.Lines[netip.Addr]
	// Authenticate returns whose token it is. Its error is logged and not told to the caller.
	Authenticate func(ctx context.Context, token string) (Caller, error)
	// BadToken is in the chain of Authenticate's error when the token proves nothing; other errors are no verdict.
	BadToken error
	// Accounts are those whose streams are served, "namespace/account".
	Accounts []string
}

// Caller is who opened a stream, as the token proves it.
type Caller struct {
	Account string    // "namespace/account"
	Node    string    // where the token may be used, "" when it does not say
	Pod     string    // "name.namespace" of the pod that the token is bound to; "" when to none
	Place   string    // what the token is bound to, a node or a pod; "" when to nothing
	Expires time.Time // of the token: the stream ends then; zero: never
}

// StreamAuth refuses streams without "authorization: Bearer TOKEN" of one of the accounts: Unauthenticated without a valid
// token, PermissionDenied for another account, Unavailable if the token could not be checked.
func StreamAuth(a Auth) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		caller, err := a.admit(ss.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return next(srv, callerStream{ss, context.WithValue(ss.Context(), callerKey{}, caller)})
	}
}

func (a Auth) admit(ctx context.Context, method string) (Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	token := Bearer(md)
	if token == "" {
		return Caller{}, status.Error(codes.Unauthenticated, "no bearer token")
	}
	caller, err := a.Authenticate(ctx, token)
	switch {
	case errors.Is(err, a.BadToken):
		a.refused(ctx, method, "", err)
		return Caller{}, status.Error(codes.Unauthenticated, "the token is not valid")
	case err != nil:
		a.refused(ctx, method, "", fmt.Errorf("authenticate caller: %w", err))
		return Caller{}, status.Error(codes.Unavailable, "the token cannot be checked now")
	case !slices.Contains(a.Accounts, caller.Account):
		a.refused(ctx, method, caller.Account, errNoNode)
		return Caller{}, status.Errorf(codes.PermissionDenied, "account %s is none of a node's proxy", caller.Account)
	}
	return caller, nil
}

var errNoNode = errors.New("no account of a node")

// refused writes a few lines of each address in a while, and how many it did not write.
func (a Auth) refused(ctx context.Context, method, caller string, err error) {
	from := peerAddr(ctx)
	if left, ok := a.Lines.Take(quota.Addr(from)); ok {
		a.Log.Warn("stream refused", "method", quota.Cut(method, maxName), "peer", from, "caller", caller, "left_out", left, "err", err)
	}
}

// CallerOf returns who opened the stream of the context; false where StreamAuth did not let it in.
func CallerOf(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

type callerKey struct{}

type callerStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // the interface demands it
}

func (c callerStream) Context() context.Context { return c.ctx }

// Bearer returns the token of "authorization: Bearer TOKEN", "" if there is none.
func Bearer(md metadata.MD) string {
	for _, v := range md.Get("authorization") {
		if token, ok := strings.CutPrefix(v, "Bearer "); ok {
			return token
		}
	}
	return ""
}

func peerAddr(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
