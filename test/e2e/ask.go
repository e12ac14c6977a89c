package e2e

import (
	"context"
	"encoding/json"
	"fmt"
)

// Question is a call that a pod makes N times, as the program ask of the samples reads it: an HTTP request (http, https), a gRPC
// call (grpc), a WebSocket message (ws), or a line over TCP or TLS (tcp, tls), by the scheme of the URL.
type Question struct {
	URL     string            `json:"url"`
	Method  string            `json:"method,omitempty"`
	Headers map[string]string `json:"headers,omitempty"` // Host is the authority
	Body    string            `json:"body,omitempty"`    // or message, or line
	HTTP2   bool              `json:"http2,omitempty"`
	SNI     string            `json:"sni,omitempty"`  // instead of the URL's host
	Dial    string            `json:"dial,omitempty"` // host:port instead of the URL's
	N       int               `json:"n,omitempty"`    // 1 when 0
	C       int               `json:"c,omitempty"`    // at once; 1 when 0
	Keep    bool              `json:"keep,omitempty"` // use connections again
	Timeout int               `json:"timeoutMS,omitempty"`
	Again   int               `json:"againMS,omitempty"` // send the line again after so long; the second answer counts
}

// Answer is what came back. Error is set when nothing did, or not all of it.
type Answer struct {
	Status            int
	Headers, Trailers map[string]string // names in lower case
	Proto, Body       string
	Peer              string // common name of the server's certificate
	MS                float64
	Error             string
}

// Ask has a pod of a deployment ask, and returns the answers to each question in order.
func (w *World) Ask(ctx context.Context, namespace, deployment string, questions ...Question) ([][]Answer, error) {
	in, err := json.Marshal(questions)
	if err != nil {
		return nil, fmt.Errorf("write questions: %w", err)
	}
	r, err := w.ExecIn(ctx, in, namespace, deployment, "exec ask")
	if err != nil {
		return nil, err
	}
	var out [][]Answer
	if err := json.Unmarshal([]byte(r.Out), &out); err != nil || len(out) != len(questions) {
		return nil, fmt.Errorf("parse answers of %s/%s: %w: %.200q %.200q", namespace, deployment, err, r.Out, r.Err)
	}
	return out, nil
}
