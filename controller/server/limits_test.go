package server

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	cav1 "istio.io/api/security/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// startEmpty starts a controller and returns it with the file of its root.
func startEmpty(t *testing.T) (*controller, string) {
	t.Helper()
	auth, err := ca.ParseStaticTokens(strings.NewReader(tokens))
	if err != nil {
		t.Fatal(err)
	}
	return startWith(t, auth)
}

func startWith(t *testing.T, auth ca.Authenticator) (*controller, string) {
	t.Helper()
	base := t.TempDir()
	dir, root := filepath.Join(base, "config"), filepath.Join(base, "root.pem")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := startFor(t, dir, filepath.Join(base, "ca"), nil, auth)
	c.eventually("root certificates are published", func() bool {
		data, err := os.ReadFile(root) // it is not written at once
		return err == nil && strings.HasSuffix(string(data), "END CERTIFICATE-----\n")
	})
	return c, root
}

func (c *controller) conn(root string) *grpc.ClientConn {
	c.t.Helper()
	conn, err := c.dial(root)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

func withToken(t *testing.T, token string) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// TestOnlyNodesDiscover: any pod can have a token of the audience; what is served is the whole mesh.
func TestOnlyNodesDiscover(t *testing.T) {
	c, root := startEmpty(t)
	for token, want := range map[string]codes.Code{
		"": codes.Unauthenticated, "guess": codes.Unauthenticated, "sleep": codes.PermissionDenied, "ztunnel-1": codes.OK,
	} {
		st, err := discovery.NewAggregatedDiscoveryServiceClient(c.conn(root)).DeltaAggregatedResources(withToken(t, token))
		if err != nil {
			t.Fatal(err)
		}
		// As Istio's ztunnel does it.
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType,
			Node: &core.Node{Id: "ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local"}}); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		_, err = st.Recv()
		if grpcstatus.Code(err) != want || want == codes.PermissionDenied && !strings.Contains(err.Error(), "foo/sleep") {
			t.Errorf("token %q: %v", token, err)
		}
	}
}

// TestStrangersCannotFillMemory: a unary request is read before any handler runs.
func TestStrangersCannotFillMemory(t *testing.T) {
	c, root := startEmpty(t)
	ask := func(token string, size int) error {
		_, err := cav1.NewIstioCertificateServiceClient(c.conn(root)).CreateCertificate(withToken(t, token),
			&cav1.IstioCertificateRequest{Csr: strings.Repeat("x", size)})
		return err
	}
	for name, x := range map[string]struct {
		token string
		size  int
		want  codes.Code
	}{
		"no token":             {"", 10, codes.Unauthenticated},
		"no token, large":      {"", 8 << 20, codes.Unauthenticated},
		"garbage, large":       {"guess", 8 << 20, codes.Unavailable}, // the connection ends in the middle
		"pod, large":           {"sleep", 8 << 20, codes.Unavailable},
		"pod, above the bound": {"sleep", maxUnary + 1, codes.ResourceExhausted},
		"pod, below the bound": {"sleep", maxUnary - 100, codes.InvalidArgument}, // no CSR
		"token of 64 KiB":      {strings.Repeat("x", 2*maxHeader), 10, codes.Internal},
	} {
		err := ask(x.token, x.size)
		if got := grpcstatus.Code(err); got != x.want && !(x.want == codes.Internal && got != codes.OK) {
			t.Errorf("%s: %v, want %s", name, err, x.want)
		}
	}
}

// TestNodesMaySendMuch: a stream that resumes names all that it holds, and a connection may ask for certificates for years.
func TestNodesMaySendMuch(t *testing.T) {
	c, root := startEmpty(t)
	st, err := discovery.NewAggregatedDiscoveryServiceClient(c.conn(root)).DeltaAggregatedResources(withToken(t, "ztunnel-1"))
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for i := range 4 << 10 {
		versions[strings.Repeat("n", 1000)+string(rune('a'+i%26))+time.Duration(i).String()] = "v"
	}
	if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType, InitialResourceVersions: versions}); err != nil {
		t.Fatal(err)
	}
	if r, err := st.Recv(); err != nil || len(r.GetRemovedResources()) != len(versions) {
		t.Errorf("%d removed, %v", len(r.GetRemovedResources()), err)
	}
}

func TestMeter(t *testing.T) {
	for _, x := range []struct {
		name   string
		lifted bool
		credit int64
		size   int
		ends   bool
	}{
		{"below", false, 0, allowance, false}, {"above", false, 0, allowance + 1, true},
		{"above, after finished requests", false, 100, allowance + 100, false}, {"above, admitted", true, 0, 4 * allowance, false},
	} {
		ours, theirs := net.Pipe()
		m := &meter{Conn: ours}
		m.left.Store(allowance + x.credit)
		m.lifted.Store(x.lifted)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = theirs.Write(make([]byte, x.size))
			theirs.Close()
		})
		_, err := io.Copy(io.Discard, m)
		ours.Close()
		wg.Wait()
		if (err != nil) != x.ends {
			t.Errorf("%s: %v", x.name, err)
		}
	}
}

// vault is a ca.Store whose content can be taken away.
type vault struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (v *vault) Load(context.Context) (map[string][]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.data, nil
}

func (v *vault) CreateOnce(_ context.Context, data map[string][]byte) (map[string][]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.data == nil {
		v.data = data
	}
	return v.data, nil
}

func (v *vault) swap(data map[string][]byte) map[string][]byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.data
	v.data = data
	return old
}

// TestLeaderKeepsTheRoot: its Secret is deleted; and before the first snapshot nobody gets an identity.
func TestLeaderKeepsTheRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth, err := ca.ParseStaticTokens(strings.NewReader(tokens))
		if err != nil {
			t.Fatal(err)
		}
		store, source := &vault{}, make(batches)
		s, err := New(Config{Source: source, Clock: clock.System(), Listen: net.Listen,
			Authority: &AuthorityConfig{Store: store, Authenticator: auth}})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.trustDomain(); got != api.DefaultTrustDomain {
			t.Errorf("a new root is named after %q", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		if got := s.trustDomain(); got != "" {
			t.Errorf("before the first snapshot the trust domain is %q", got)
		}
		source <- []model.Event{}
		synctest.Wait()
		if got := s.trustDomain(); got != api.DefaultTrustDomain {
			t.Errorf("after it %q", got)
		}
		first := store.swap(nil)
		time.Sleep(publishPeriod + time.Second) // of the bubble
		if now := store.swap(nil); len(first) == 0 || string(now[ca.FileCAKey]) != string(first[ca.FileCAKey]) {
			t.Error("the root is not restored")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
