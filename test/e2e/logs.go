package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// AwaitLog waits for a line of a ztunnel that has all the texts, and returns it. since is in RFC 3339.
func (w *World) AwaitLog(ctx context.Context, since string, texts ...string) (found string, err error) {
	return w.awaitLine(ctx, "ztunnel", since, texts...)
}

// awaitLine is AwaitLog for any component.
func (w *World) awaitLine(ctx context.Context, app, since string, texts ...string) (found string, err error) {
	err = Until(ctx, 20*time.Second, "a line of "+app+" with "+strings.Join(texts, ", "), func(ctx context.Context) error {
		out, err := w.Kubectl(ctx, "logs", "-n", api.DefaultRootNamespace, "-l", "app="+app, "--tail=-1", "--since-time="+since)
		if err != nil {
			return err
		}
	lines:
		for line := range strings.Lines(out) {
			for _, text := range texts {
				if !strings.Contains(line, text) {
					continue lines
				}
			}
			found = strings.TrimSpace(line)
			return nil
		}
		return errors.New("there is none")
	})
	return found, err
}

// ExpectLog is AwaitLog without the line.
func (w *World) ExpectLog(ctx context.Context, since string, texts ...string) error {
	_, err := w.AwaitLog(ctx, since, texts...)
	return err
}

// ClientNamed shows the line in which the node of httpbin.bar names a client of foo.
func (w *World) ClientNamed(ctx context.Context) error {
	since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
	r, err := w.Exec(ctx, "foo", "sleep", "curl -s -o /dev/null -m 5 http://httpbin.bar:8000/ip")
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("curl from foo to httpbin.bar ended with %d", r.Code)
	}
	line, err := w.AwaitLog(ctx, since, `"src.identity":"spiffe://cluster.local/ns/foo/sa/sleep"`, `"dst.service":"httpbin.bar.svc.cluster.local"`, `"direction":"inbound"`)
	if err != nil {
		return err
	}
	w.Say("  the server's node logs: %s", line)
	return nil
}
