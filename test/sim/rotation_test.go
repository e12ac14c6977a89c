package sim

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/identity"
)

// rotations is a ca.RotationStore in memory, with the Store beside it. It keeps what a Secret would: text.
type rotations struct {
	*secret
	mu      sync.Mutex // protects below
	state   []byte     // nil: none
	files   [2]map[string][]byte
	request *ca.Request
	version int
}

func (r *rotations) Load(context.Context) (*ca.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == nil {
		return nil, nil
	}
	rec := &ca.Record{Version: fmt.Sprint(r.version), Signer: r.files[0], Made: r.files[1], Request: r.request}
	return rec, json.Unmarshal(r.state, rec)
}

func (r *rotations) Save(_ context.Context, rec *ca.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != nil && rec.Version != fmt.Sprint(r.version) {
		return ca.ErrConflict
	}
	r.version++
	r.files, r.request = [2]map[string][]byte{rec.Signer, rec.Made}, rec.Request
	var err error
	r.state, err = json.Marshal(rec)
	return err
}

func (r *rotations) ReplaceRoot(_ context.Context, files map[string][]byte) error {
	r.secret.mu.Lock()
	defer r.secret.mu.Unlock()
	r.data = files
	return nil
}

func (r *rotations) ask(step string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version++
	r.request = &ca.Request{Step: step, By: "operator"}
}

// everywhere grants any identity to a node's proxy.
type everywhere struct{}

func (everywhere) MayImpersonate(context.Context, ca.Caller, api.Identity) error { return nil }

// caught takes the service that an authority registers.
type caught struct {
	securityv1.IstioCertificateServiceServer
}

func (c *caught) RegisterService(_ *grpc.ServiceDesc, impl any) {
	c.IstioCertificateServiceServer = impl.(securityv1.IstioCertificateServiceServer)
}

// Issue implements identity.Issuer.
func (c *caught) Issue(ctx context.Context, r identity.Request) ([]string, error) {
	ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer zt"))
	answer, err := c.CreateCertificate(ctx, &securityv1.IstioCertificateRequest{Csr: string(r.CSR), ValidityDuration: int64(r.TTL.Seconds()),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(r.Identity.String())}}})
	return answer.GetCertChain(), err
}

// rootFile is a node's copy of the published roots, which kubelet brings late.
type rootFile struct {
	mu   sync.Mutex
	data []byte
}

func (f *rootFile) read() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.data, nil
}

func (f *rootFile) set(data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data = data
}

// TestRootRotationLosesNoHandshake: two replicas of the real authority and three nodes' real identity managers; each node
// connects to each other one every 20 s, from before a rotation until after the old root is withdrawn.
func TestRootRotationLosesNoHandshake(t *testing.T) {
	synctest.Test(t, rotateUnderHandshakes)
}

func rotateUnderHandshakes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	store := &rotations{secret: &secret{}}
	tokens, err := ca.ParseStaticTokens(strings.NewReader("zt,system:serviceaccount:istio-system:ztunnel,n1\n"))
	check(t, err)
	var replicas []*ca.Authority
	var services []*caught
	for range 2 {
		a := ca.New(ca.Config{Store: store.secret, Rotation: store, Authenticator: tokens, NodeAuthorizer: everywhere{}, Clock: clock.System(),
			Log: slog.New(slog.DiscardHandler)})
		check(t, a.Load(ctx))
		s := &caught{}
		a.Register(s)
		replicas, services = append(replicas, a), append(services, s)
	}
	check(t, replicas[0].Sync(ctx, true))
	first, err := replicas[0].RootPEM()
	check(t, err)
	var nodes []*identity.Manager
	var files []*rootFile
	var ids []api.Identity
	for i := range 3 {
		f := &rootFile{data: first}
		m, err := identity.New(identity.Config{Issuer: services[i%2], Roots: identity.NewRoots(f.read), Clock: clock.System(), RenewSettle: time.Second, RenewSpread: 10 * time.Second,
			Trust: func() identity.Trust { return identity.Trust{Domain: "cluster.local"} }})
		check(t, err)
		running.Go(func() { _ = m.Run(ctx) })
		id := api.Identity{TrustDomain: "cluster.local", Namespace: "foo", ServiceAccount: fmt.Sprint("a", i)}
		m.Watch(id)
		nodes, files, ids = append(nodes, m), append(files, f), append(ids, id)
	}
	published, handshakes := first, 0
	steps := map[int]string{10: ca.RequestRotate, 120: ca.RequestWithdraw} // 100 s, 40 min
	for step := range 180 {
		time.Sleep(20 * time.Second)
		if ask := steps[step]; ask != "" {
			store.ask(ask)
		}
		check(t, replicas[0].Sync(ctx, true))
		if step%2 == 0 {
			check(t, replicas[1].Sync(ctx, false))
		}
		now, err := replicas[0].RootPEM()
		check(t, err)
		replicas[0].Distributed(now)
		if string(now) != string(published) {
			published = now
			for i, f := range files { // the last node learns when the first has renewed
				running.Go(func() {
					select {
					case <-ctx.Done():
					case <-time.After(time.Duration(i) * 55 * time.Second):
						f.set(now)
					}
				})
			}
		}
		for i := range nodes {
			for j := range nodes {
				if err := meet(ctx, nodes[i], nodes[j], ids[i], ids[j]); err != nil {
					t.Fatalf("step %d, from node %d to node %d: %v", step, i, j, err)
				}
				handshakes++
			}
		}
	}
	old := ca.Fingerprint(first)
	for i, m := range nodes {
		_, err := m.Certificate(ctx, ids[i])
		check(t, err)
		if data, _ := files[i].read(); strings.Contains(string(data), string(first)) {
			t.Errorf("node %d still trusts the old root %s", i, old)
		}
		if list := m.Certificates()[0]; ca.Fingerprint(list.RootCerts[0].PEM) == old {
			t.Errorf("node %d still has a certificate of the old root", i)
		}
	}
	t.Logf("%d handshakes", handshakes)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// meet is one handshake, with a byte from the server to show that it is content too.
func meet(ctx context.Context, client, server *identity.Manager, from, to api.Identity) error {
	cfg, err := client.ClientTLS(ctx, from, []api.Identity{to})
	if err != nil {
		return err
	}
	if _, err := server.Fingerprint(ctx, to); err != nil {
		return err
	}
	a, b := net.Pipe()
	defer a.Close()
	served := make(chan error, 1)
	go func() {
		defer b.Close()
		s := tls.Server(b, server.ServerTLS(to))
		err := s.HandshakeContext(ctx)
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		served <- err
	}()
	c := tls.Client(a, cfg)
	if err = c.HandshakeContext(ctx); err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	_ = a.Close()
	if bad := <-served; bad != nil {
		return bad
	}
	return err
}
