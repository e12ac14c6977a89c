package ca

import (
	"context"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/peer"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/quota"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Caller is who a token belongs to. The pod and the node are empty when the token is bound to none.
type Caller struct {
	Namespace, ServiceAccount string
	PodName, PodUID, Node     string
	Expires                   time.Time // of the token; zero: never
}

// String is "namespace/account", "unknown" for the zero value.
func (c Caller) String() string {
	if c == (Caller{}) {
		return "unknown"
	}
	return c.Namespace + "/" + c.ServiceAccount
}

// Authenticator proves a caller by its bearer token. An error that is ErrBadToken means
// that the token proves nothing, any other that it could not be told.
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
	refusalTTL = 5 * time.Second  // how long a refused token is not asked about again
	silence    = 15 * time.Second // how long an API server that did not answer is not asked about tokens that it knew
	reviewsMax = 8192             // remembered, of each kind
	reviewsNow = 16               // under way, and as many for nodes
	reviewWait = 5 * time.Second  // for one of these

	reviewsEach = reviewsNow / 2 // of one address
	reviewsLine = 256            // and these wait
)

// TokenReview proves callers by the Kubernetes API. What was decided is remembered by hash, for 30 s a valid token, for 5 s
// a refused one, and what cannot be valid is not asked about: whoever reaches the port may send tokens. Addresses take turns,
// and nodes have a share of their own (see Reserve), in what is asked and in what is remembered.
//
// While the API server does not answer, a token that it vouched for once is good until it expires, as long as its pod is
// there by what is known: else an outage would cut off every node that reconnects. It is safe for concurrent use.
type TokenReview struct {
	clock     clock.Clock
	there     func(Caller) bool // nil: nobody is known to be
	nodes     Nodes
	strangers share
	reserved  share // of nodes

	mu      sync.Mutex // protects below
	known   map[[sha256.Size]byte]review
	proxies map[[sha256.Size]byte]review // of nodes' accounts: nobody else's token displaces one
	refused map[[sha256.Size]byte]review
	failed  time.Time // when the API server last did not answer; zero once it did
}

// share is what reviews are asked with.
type share struct {
	api   tokenReviewer
	turns *quota.Turns[netip.Addr]
}

func newShare(client tokenReviewer) share {
	return share{client, quota.NewTurns[netip.Addr](reviewsNow, reviewsEach, reviewsLine)}
}

// Nodes tells nodes from strangers, before and after their tokens are known.
type Nodes struct {
	Accounts []string              // "namespace/account"
	At       func(netip.Addr) bool // whether an address is a node's; nil: none is known
}

type review struct {
	caller  Caller
	err     error
	expires time.Time // until when it is a verdict
}

// NewTokenReview takes clientset.AuthenticationV1().TokenReviews(), of a client with a rate limit and a timeout of its own:
// what strangers cause must not hold up other requests. there says whether the pod that a token is bound to exists, by what
// was known last; with nil no token outlives its verdict.
func NewTokenReview(client tokenReviewer, c clock.Clock, there func(Caller) bool) *TokenReview {
	shared := newShare(client)
	return &TokenReview{clock: c, there: there, strangers: shared, reserved: shared,
		known: map[[sha256.Size]byte]review{}, proxies: map[[sha256.Size]byte]review{}, refused: map[[sha256.Size]byte]review{}}
}

// Reserve keeps a share for nodes: reviews of tokens that were proved to be of their accounts before, and those asked for from
// their addresses, are asked with a client of their own. It is called before the first use.
func (t *TokenReview) Reserve(client tokenReviewer, nodes Nodes) {
	t.reserved, t.nodes = newShare(client), nodes
}

// Authenticate asks for the audience istio-ca. Returns ErrBadToken if the API server does not vouch for the token, and
// another error if it could not be asked.
func (t *TokenReview) Authenticate(ctx context.Context, token string) (Caller, error) {
	ends, err := checkClaims(token, t.clock.Now())
	if err != nil {
		return Caller{}, fmt.Errorf("check token: %w: %w", ErrBadToken, err)
	}
	key := sha256.Sum256([]byte(token))
	if r, ok := t.recall(key); ok {
		return r.caller, r.err
	}
	if caller, ok := t.vouched(key); ok {
		return caller, nil
	}
	caller, err := t.ask(ctx, key, token, ends)
	if err != nil && !errors.Is(err, ErrBadToken) && ctx.Err() == nil {
		if caller, ok := t.vouched(key); ok {
			return caller, nil
		}
	}
	return caller, err
}

// ask decides about a token that nothing is remembered of.
func (t *TokenReview) ask(ctx context.Context, key [sha256.Size]byte, token string, ends time.Time) (Caller, error) {
	share, leave, err := t.enter(ctx, key)
	if err != nil {
		return Caller{}, err
	}
	defer leave()
	if r, ok := t.recall(key); ok { // decided while this one waited
		return r.caller, r.err
	}
	out, err := share.api.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{api.TokenAudience}},
	}, metav1.CreateOptions{})
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock.Now()
	if err != nil {
		if unanswered(err) && ctx.Err() == nil {
			t.failed = now
		}
		return Caller{}, fmt.Errorf("review token: %w", err)
	}
	t.failed = time.Time{}
	caller, err := readReview(out.Status)
	caller.Expires = ends
	if err != nil {
		delete(t.known, key) // an outage must not bring it back
		delete(t.proxies, key)
		remember(t.refused, key, review{err: err, expires: now.Add(refusalTTL)}, now)
		return Caller{}, err
	}
	verdicts := t.known
	if slices.Contains(t.nodes.Accounts, caller.String()) {
		verdicts = t.proxies
	}
	remember(verdicts, key, review{caller: caller, expires: now.Add(reviewTTL)}, now)
	return caller, nil
}

// unanswered tells an API server that is away, or that cannot do its work, from one that says no.
func unanswered(err error) bool {
	var said apierrors.APIStatus
	return !errors.As(err, &said) || said.Status().Code >= http.StatusInternalServerError
}

// Heard tells whether the API server answers, from somebody who asks it regularly: then nobody waits to find out.
func (t *TokenReview) Heard(answers bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = time.Time{}
	if !answers {
		t.failed = t.clock.Now()
	}
}

// vouched returns the caller of a token that was valid when the API server was asked last, if it did not answer just now and
// the caller's pod is still known.
func (t *TokenReview) vouched(key [sha256.Size]byte) (Caller, bool) {
	t.mu.Lock()
	r, ok := t.proxies[key]
	if !ok {
		r, ok = t.known[key]
	}
	now := t.clock.Now()
	ok = ok && !t.failed.IsZero() && now.Before(t.failed.Add(silence)) && now.Before(r.caller.Expires)
	t.mu.Unlock()
	if !ok || t.there == nil || !t.there(r.caller) {
		return Caller{}, false
	}
	return r.caller, true
}

// enter waits for its turn, among nodes or among strangers.
func (t *TokenReview) enter(ctx context.Context, key [sha256.Size]byte) (share, func(), error) {
	from := address(ctx)
	t.mu.Lock()
	_, node := t.proxies[key]
	t.mu.Unlock()
	s := t.strangers
	if node || t.nodes.At != nil && t.nodes.At(from) {
		s = t.reserved
	}
	ctx, cancel := clock.WithTimeout(ctx, t.clock, reviewWait, errLate)
	defer cancel()
	leave, err := s.turns.Enter(ctx, from)
	if err != nil {
		return s, nil, fmt.Errorf("review token: %w", err)
	}
	return s, leave, nil
}

var errLate = fmt.Errorf("its turn did not come for %s", reviewWait)

// address is where a call comes from; the zero value when that is no address.
func address(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	return quota.Addr(p.Addr.String())
}

func (t *TokenReview) recall(key [sha256.Size]byte) (review, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock.Now()
	for _, m := range []map[[sha256.Size]byte]review{t.proxies, t.known, t.refused} {
		if r, ok := m[key]; ok && now.Before(r.expires) {
			return r, true
		}
	}
	return review{}, false
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

// remember keeps at most reviewsMax: first those go whose token has ended, then those that are no verdict any more.
func remember(m map[[sha256.Size]byte]review, key [sha256.Size]byte, r review, now time.Time) {
	for _, over := range []func(review) bool{
		func(old review) bool { return !now.Before(old.expires) && !now.Before(old.caller.Expires) },
		func(old review) bool { return !now.Before(old.expires) },
		func(review) bool { return true },
	} {
		if len(m) < reviewsMax {
			break
		}
		maps.DeleteFunc(m, func(_ [sha256.Size]byte, old review) bool { return over(old) })
	}
	m[key] = r
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
