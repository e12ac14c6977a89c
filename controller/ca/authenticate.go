package ca

import (
	"context"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Caller is who a token belongs to. The pod and the node are empty when the token is bound to none.
type Caller struct {
	Namespace, ServiceAccount string
	PodName, PodUID, Node     string
}

// String is "namespace/account", "unknown" for the zero value.
func (c Caller) String() string {
	if c == (Caller{}) {
		return "unknown"
	}
	return c.Namespace + "/" + c.ServiceAccount
}

// Authenticator proves a caller by its bearer token. Any error means that the token proves nothing.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (Caller, error)
}

// ErrBadToken is returned for a token that proves no service account.
var ErrBadToken = errors.New("the token is not valid for this mesh")

const (
	accountPrefix = "system:serviceaccount:"
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

func parseUser(user string) (Caller, error) {
	rest, ok := strings.CutPrefix(user, accountPrefix)
	ns, sa, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 {
		return Caller{}, fmt.Errorf("user %q: want %sNAMESPACE:ACCOUNT", user, accountPrefix)
	}
	id := api.Identity{TrustDomain: api.DefaultTrustDomain, Namespace: ns, ServiceAccount: sa}
	if _, err := api.ParseIdentity(id.String()); err != nil {
		return Caller{}, fmt.Errorf("user %q: %w", user, err)
	}
	return Caller{Namespace: ns, ServiceAccount: sa}, nil
}

// tokenReviewer is client-go's TokenReviewInterface, as far as it is used.
type tokenReviewer interface {
	Create(ctx context.Context, r *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

const (
	reviewTTL  = 30 * time.Second // how long a revoked token may go on to work
	reviewsMax = 4096
)

// TokenReview proves callers by the Kubernetes API. Valid tokens are remembered, by hash, for 30 s; refusals are not. It
// is safe for concurrent use.
type TokenReview struct {
	api   tokenReviewer
	clock clock.Clock

	mu    sync.Mutex // protects below
	known map[[sha256.Size]byte]review
}

type review struct {
	caller  Caller
	expires time.Time
}

// NewTokenReview takes clientset.AuthenticationV1().TokenReviews().
func NewTokenReview(client tokenReviewer, c clock.Clock) *TokenReview {
	return &TokenReview{api: client, clock: c, known: map[[sha256.Size]byte]review{}}
}

// Authenticate asks for the audience istio-ca. Returns ErrBadToken if the API server does not vouch for the token.
func (t *TokenReview) Authenticate(ctx context.Context, token string) (Caller, error) {
	key, now := sha256.Sum256([]byte(token)), t.clock.Now()
	t.mu.Lock()
	r, ok := t.known[key]
	t.mu.Unlock()
	if ok && now.Before(r.expires) {
		return r.caller, nil
	}
	out, err := t.api.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{api.TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return Caller{}, fmt.Errorf("review token: %w", err)
	}
	caller, err := readReview(out.Status)
	if err != nil {
		return Caller{}, err
	}
	t.remember(key, review{caller, now.Add(reviewTTL)}, now)
	return caller, nil
}

func readReview(st authenticationv1.TokenReviewStatus) (Caller, error) {
	switch {
	case !st.Authenticated:
		return Caller{}, fmt.Errorf("review token: %w: %s", ErrBadToken, st.Error)
	case !slices.Contains(st.Audiences, api.TokenAudience):
		// An API server that knows no audiences ignores the field: such a token could be any other service's.
		return Caller{}, fmt.Errorf("review token: %w: audience %s not confirmed", ErrBadToken, api.TokenAudience)
	}
	caller, err := parseUser(st.User.Username)
	if err != nil {
		return Caller{}, fmt.Errorf("review token: %w: %w", ErrBadToken, err)
	}
	extra := func(k string) string {
		if v := st.User.Extra[k]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	caller.PodName, caller.PodUID, caller.Node = extra(extraPodName), extra(extraPodUID), extra(extraNodeName)
	return caller, nil
}

func (t *TokenReview) remember(key [sha256.Size]byte, r review, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= reviewsMax {
		for k, old := range t.known {
			if !now.Before(old.expires) {
				delete(t.known, k)
			}
		}
		if len(t.known) >= reviewsMax {
			clear(t.known)
		}
	}
	t.known[key] = r
}

// StaticTokens proves callers by a file, for the directory mode. It is immutable.
type StaticTokens struct {
	byHash map[[sha256.Size]byte]Caller
}

// ParseStaticTokens reads lines "token,user" or "token,user,node" (or "node:NAME") with user system:serviceaccount:NAMESPACE:ACCOUNT;
// lines that begin with # are comments. Its errors name the line and never quote a token.
func ParseStaticTokens(r io.Reader) (*StaticTokens, error) {
	in := csv.NewReader(r)
	in.FieldsPerRecord, in.Comment, in.TrimLeadingSpace = -1, '#', true
	out := &StaticTokens{byHash: map[[sha256.Size]byte]Caller{}}
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("parse token file: %w", err)
		}
		line, _ := in.FieldPos(0)
		if len(record) != 2 && len(record) != 3 {
			return nil, fmt.Errorf("parse token file: line %d: %d fields, want token,user[,node]", line, len(record))
		}
		token := strings.TrimSpace(record[0])
		if token == "" {
			return nil, fmt.Errorf("parse token file: line %d: token: empty", line)
		}
		caller, err := parseUser(strings.TrimSpace(record[1]))
		if err != nil {
			return nil, fmt.Errorf("parse token file: line %d: %w", line, err)
		}
		if len(record) == 3 {
			caller.Node = strings.TrimPrefix(strings.TrimSpace(record[2]), "node:")
		}
		key := sha256.Sum256([]byte(token))
		if _, twice := out.byHash[key]; twice {
			return nil, fmt.Errorf("parse token file: line %d: token: is in an earlier line too", line)
		}
		out.byHash[key] = caller
	}
}

// Authenticate returns ErrBadToken for a token that is not in the file. The look-up is by hash, so that its time tells
// nothing of the tokens.
func (s *StaticTokens) Authenticate(_ context.Context, token string) (Caller, error) {
	c, ok := s.byHash[sha256.Sum256([]byte(token))]
	if !ok {
		return Caller{}, ErrBadToken
	}
	return c, nil
}
