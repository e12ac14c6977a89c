package kube

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

// client returns one that asks a server which answers path with body.
func client(t *testing.T, path, body string) *Client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case path:
			_, _ = w.Write([]byte(body))
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return &Client{server: s.URL, http: s.Client()}
}

func TestNodes(t *testing.T) {
	c := client(t, "/api/v1/nodes", `{"items": [
		{"metadata": {"name": "node1"}, "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}},
		{"metadata": {"name": "node2"}, "status": {"conditions": [{"type": "DiskPressure", "status": "True"},
			{"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "no network"}]}},
		{"metadata": {"name": "node3"}}]}`)
	got, err := c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got["node1"] != "" || got["node2"] != "KubeletNotReady: no network" || got["node3"] == "" || len(got) != 3 {
		t.Errorf("got %q", got)
	}
}

func TestGetTellsMissingFromBroken(t *testing.T) {
	c := client(t, "/x", "{}")
	if err := c.Get(t.Context(), "/x", nil); err != nil {
		t.Error(err)
	}
	if err := c.Get(t.Context(), "/y", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing object: got %v", err)
	}
	if err := c.Get(t.Context(), "/broken", nil); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("broken server: got %v", err)
	}
}
