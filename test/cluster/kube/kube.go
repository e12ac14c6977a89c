// Package kube asks the API server of a test cluster the few things that the harness waits for, with the administrator's
// certificate and nothing but the standard library.
package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/undermesh/undermesh/test/cluster/plan"
)

// ErrNotFound is returned for an object that does not exist (yet).
var ErrNotFound = errors.New("object not found")

// requestTimeout bounds one request; what takes longer is asked again by the caller.
const requestTimeout = 5 * time.Second

// Client is safe for concurrent use.
type Client struct {
	server string
	http   *http.Client
}

// New reads the certificates of p's state directory.
func New(p plan.Plan) (*Client, error) {
	ca, err := os.ReadFile(filepath.Join(p.PKIDir(), "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read certificate of ca: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.PKIDir(), "admin.crt"), filepath.Join(p.PKIDir(), "admin.key"))
	if err != nil {
		return nil, fmt.Errorf("read certificate of admin: %w", err)
	}
	return &Client{server: p.APIServer(), http: &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: requestTimeout,
		},
	}}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get reads path into out, which may be nil. Returns ErrNotFound if the server says 404.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.server+path, nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the API server: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("read answer of the API server: %w", err)
	}
	switch {
	case res.StatusCode == http.StatusNotFound:
		return fmt.Errorf("get %s: %w", path, ErrNotFound)
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("get %s: %s: %.200s", path, res.Status, body)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// Ready returns nil when the API server says that it is ready.
func (c *Client) Ready(ctx context.Context) error { return c.Get(ctx, "/readyz", nil) }

// ServiceAccount returns nil when the default service account of the namespace exists; pods are refused before.
func (c *Client) ServiceAccount(ctx context.Context, namespace string) error {
	return c.Get(ctx, "/api/v1/namespaces/"+namespace+"/serviceaccounts/default", nil)
}

type condition struct {
	Type, Status, Reason, Message string
}

// Nodes returns the readiness of each registered node: "" when Ready, else why not.
func (c *Client) Nodes(ctx context.Context) (map[string]string, error) {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct{ Conditions []condition }
		}
	}
	if err := c.Get(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, n := range list.Items {
		out[n.Metadata.Name] = "no condition Ready yet"
		for _, cond := range n.Status.Conditions {
			if cond.Type != "Ready" {
				continue
			}
			out[n.Metadata.Name] = cond.Reason + ": " + cond.Message
			if cond.Status == "True" {
				out[n.Metadata.Name] = ""
			}
		}
	}
	return out, nil
}
