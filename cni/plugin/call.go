package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/undermesh/undermesh/cni/wire"
)

// errAway means that no agent serves the socket: its digest decides. An agent that is there and answers late or with an
// error is not away.
var errAway = errors.New("node agent not reachable")

// call sends one command to the agent. Returns errAway if nobody accepts the connection.
func call(ctx context.Context, socket, path string, req wire.Request) (wire.Response, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return wire.Response{}, fmt.Errorf("encode request: %w", err)
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errAway, err)
		}
		return c, nil
	}}
	defer tr.CloseIdleConnections()
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return wire.Response{}, fmt.Errorf("make request: %w", err)
	}
	hr.Header.Set("Content-Type", "application/json")
	res, err := tr.RoundTrip(hr)
	if err != nil {
		return wire.Response{}, fmt.Errorf("ask node agent: %w", err)
	}
	defer res.Body.Close()
	var out wire.Response
	if err := wire.ReadJSON(res.Body, &out); err != nil {
		return out, fmt.Errorf("read the node agent's answer (%s): %w", res.Status, err)
	}
	if res.StatusCode != http.StatusOK || out.Error != "" {
		return out, fmt.Errorf("node agent: %s", out.Error)
	}
	return out, nil
}
