package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// askTimeout bounds one question to a pod, the forwarding included.
const askTimeout = 30 * time.Second

// ask reads a page of a port that a pod serves on its own loopback, through the API server: who may forward ports to the pod
// may read it. More than limit bytes are an error.
func (c *cluster) ask(ctx context.Context, namespace, pod string, port int, path string, limit int64) ([]byte, error) {
	return c.call(ctx, http.MethodGet, namespace, pod, port, path, limit)
}

// call is ask with a method of HTTP: other than GET it changes something.
func (c *cluster) call(ctx context.Context, method, namespace, pod string, port int, path string, limit int64) (_ []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ask pod %s/%s: %w", namespace, pod, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	transport, upgrader, err := spdy.RoundTripperFor(c.rest)
	if err != nil {
		return nil, err
	}
	to := c.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, to)
	var said strings.Builder // written by the goroutine below only
	ready := make(chan struct{})
	forward, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, ctx.Done(), ready, io.Discard, &said)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- forward.ForwardPorts() }() // ends with ctx
	select {
	case <-ready:
		raw, err := readForwarded(ctx, forward, method, path, limit)
		cancel()
		if <-done; err != nil && said.Len() > 0 {
			err = errors.Join(err, errors.New(strings.TrimSpace(said.String())))
		}
		return raw, err
	case err := <-done:
		if err == nil {
			err = ctx.Err()
		}
		return nil, err
	}
}

func readForwarded(ctx context.Context, forward *portforward.PortForwarder, method, path string, limit int64) ([]byte, error) {
	ports, err := forward.GetPorts()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d%s", ports[0].Local, path), nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(raw[:min(len(raw), 1<<10)])))
	case int64(len(raw)) > limit:
		return nil, fmt.Errorf("its answer has more than %d bytes", limit)
	}
	return raw, nil
}
