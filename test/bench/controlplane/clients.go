package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// maxMessage bounds one response, as the node's client does.
const maxMessage = 200 << 20

type dialFunc = func(context.Context) (*grpc.ClientConn, error)

// dialer makes connections to the controller as the proxy of node i does: TLS 1.3 against its root, and from an address of
// its own, for the controller bounds what comes from one.
func dialer(dir, addr string) (func(i int) dialFunc, error) {
	pem, err := os.ReadFile(filepath.Join(dir, rootFile))
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("read root: no certificate in it")
	}
	creds := credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: servingName, MinVersion: tls.VersionTLS13})
	return func(i int) dialFunc {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i))}}
		return func(context.Context) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds),
				grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return from.DialContext(ctx, "tcp", addr) }))
		}
	}, nil
}

func nodeID(i int) string {
	return fmt.Sprintf("ztunnel~%s~ztunnel-%d.istio-system~istio-system.svc.cluster.local", addr(200, i+1), i)
}

// newClient is a node's own client: it decodes and keeps everything.
func newClient(i int, dial dialFunc) *client.Client {
	return client.New(client.Config{Dial: dial, NodeID: nodeID(i), NodeName: nodeName(i), Clock: clock.System(),
		Token: func(context.Context) (string, error) { return tokenOf(i), nil }, Rand: rand.New(rand.NewPCG(1, uint64(i)))})
}
