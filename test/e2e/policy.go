package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// StrictMesh and StrictNamespace are the documents' PeerAuthentications (MT-04, MT-05).
const StrictMesh = `apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
`

func StrictNamespace(ns string) string {
	return `apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: default, namespace: ` + ns + `}
spec: {mtls: {mode: STRICT}}
`
}

// RefusedAlways asks n times from a pod outside the mesh, by Service and by pod address, and wants "000" with curl's exit
// code 56 every time: the connection is accepted, then reset.
func (w *World) RefusedAlways(ctx context.Context, from, to string, n int) error {
	dst, err := w.OnePod(ctx, to, "httpbin")
	if err != nil {
		return err
	}
	for _, url := range []string{"http://httpbin." + to + ":8000/ip", "http://" + dst.Status.PodIP + ":80/ip"} {
		r, err := w.Exec(ctx, from, "sleep", fmt.Sprintf(`for i in $(seq %d); do code=$(curl -s -o /dev/null -m 10 -w '%%{http_code}' %s); echo $code $?; done | sort | uniq -c`, n, url))
		if err != nil {
			return err
		}
		got := strings.Join(strings.Fields(r.Out), " ")
		w.Say("  %s → %s: %s", from, url, got)
		if want := fmt.Sprintf("%d 000 56", n); got != want {
			return fmt.Errorf("%w: %s → %s: got %q, want %q", ErrOther, from, url, got, want)
		}
	}
	return nil
}

// TCPEcho asks tcp-echo as the documents do and reports "accepted" or "rejected".
func (w *World) TCPEcho(ctx context.Context, from, host string, port int) (string, error) {
	line := fmt.Sprintf(`echo "port %d" | nc -N -w 5 %s %d | grep "hello" && echo 'connection succeeded' || echo 'connection rejected'`, port, host, port)
	r, err := w.Exec(ctx, from, "sleep", line)
	if err != nil {
		return "", err
	}
	switch out := strings.TrimSpace(r.Out); {
	case strings.HasSuffix(out, "connection succeeded"):
		return "accepted", nil
	case out == "connection rejected":
		return "rejected", nil
	default:
		return "", fmt.Errorf("tcp-echo %s:%d from %s: %q %q", host, port, from, r.Out, r.Err)
	}
}

// EchoCase is one expectation of an authorization policy: from whom, to which port, what happens.
type EchoCase struct {
	From string
	Port int
	Want string
}

// host is the Service, or the pod's address for the port that the Service does not declare.
func (c EchoCase) host(pod *Pod) string {
	if c.Port == 9002 {
		return pod.Status.PodIP
	}
	return "tcp-echo.foo"
}

// ExpectEcho applies a policy for namespace foo, waits until every case holds, removes the policy and waits until all are
// accepted again (the control: without the policy nothing is refused).
func (w *World) ExpectEcho(ctx context.Context, policy string, cases ...EchoCase) error {
	if err := w.Apply(ctx, policy); err != nil {
		return err
	}
	err := w.echoCases(ctx, cases)
	if derr := w.Delete(ctx, policy); derr != nil {
		return derr
	}
	if err != nil {
		return err
	}
	open := make([]EchoCase, len(cases))
	for i, c := range cases {
		open[i] = EchoCase{c.From, c.Port, "accepted"}
	}
	if err := w.echoCases(ctx, open); err != nil {
		return fmt.Errorf("without the policy: %w", err)
	}
	return nil
}

func (w *World) echoCases(ctx context.Context, cases []EchoCase) error {
	pod, err := w.OnePod(ctx, "foo", "tcp-echo")
	if err != nil {
		return err
	}
	for _, c := range cases {
		host := c.host(pod)
		what := fmt.Sprintf("%s:%d from %s", host, c.Port, c.From)
		err := Until(ctx, 30*time.Second, what, func(ctx context.Context) error {
			got, err := w.TCPEcho(ctx, c.From, host, c.Port)
			if err == nil && got != c.Want {
				err = fmt.Errorf("%s is %s, want %s", what, got, c.Want)
			}
			return err
		})
		if err != nil {
			return err
		}
		w.Say("  %s: %s", what, c.Want)
	}
	return nil
}
