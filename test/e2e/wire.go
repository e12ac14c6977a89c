package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Capture is what went over the link of a node while something ran.
type Capture struct {
	// TLS13 is set when a ServerHello that selects TLS 1.3 came from port 15008.
	TLS13 bool
	// Marker counts how often the marker occurs in the packets.
	Marker int
	// Packets is the number of packets on the given ports.
	Packets int
}

// CaptureLink records node's eth0 while do runs, and looks for marker in the packets. Only traffic of the given addresses
// is recorded.
func (w *World) CaptureLink(ctx context.Context, node, host string, marker []byte, do func(context.Context) error) (*Capture, error) {
	dir, err := os.MkdirTemp("", "undermesh-capture")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "link.pcap")
	// Standard output carries the packets, so that nothing needs to be shared but a pipe.
	args := w.tool("node", strings.TrimPrefix(node, "node"), "--", "tcpdump", "-i", "eth0", "-U", "-s", "0", "-w", "-", "tcp and host "+host)
	cmd := exec.CommandContext(ctx, filepath.Join(w.Root, "bin/cluster"), args...)
	out, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	started := &watcher{want: []byte("listening on"), seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, started
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start capture: %w", err)
	}
	stop := func() error {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		return cmd.Wait()
	}
	select {
	case <-started.seen:
	case <-time.After(15 * time.Second):
		_ = stop()
		return nil, fmt.Errorf("start capture on %s: tcpdump did not start: %s", node, started.text())
	}
	doErr := do(ctx)
	err = Until(ctx, 10*time.Second, "packets in the capture", func(context.Context) error {
		if st, err := out.Stat(); err != nil || st.Size() <= 24 {
			return fmt.Errorf("nothing was captured: %s", started.text())
		}
		return nil
	})
	_ = stop()
	if err := errors.Join(doErr, err); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return inspect(b, marker), nil
}

// watcher is a writer that tells when it has seen a text.
type watcher struct {
	want []byte
	seen chan struct{}
	buf  bytes.Buffer
	done bool
}

func (s *watcher) Write(p []byte) (int, error) {
	s.buf.Write(p)
	if !s.done && bytes.Contains(s.buf.Bytes(), s.want) {
		s.done = true
		close(s.seen)
	}
	return len(p), nil
}

func (s *watcher) text() string { return strings.TrimSpace(s.buf.String()) }

// selectsTLS13 is the extension supported_versions of a ServerHello that chooses TLS 1.3 (RFC 8446 §4.2.1).
var selectsTLS13 = []byte{0x00, 0x2b, 0x00, 0x02, 0x03, 0x04}

// inspect walks the packets of a pcap file (little endian, Ethernet).
func inspect(b, marker []byte) *Capture {
	c := &Capture{Marker: bytes.Count(b, marker)}
	if len(b) < 24 {
		return c
	}
	for at := 24; at+16 <= len(b); {
		n := int(uint32(b[at+8]) | uint32(b[at+9])<<8 | uint32(b[at+10])<<16 | uint32(b[at+11])<<24)
		at += 16
		if n < 0 || at+n > len(b) {
			break
		}
		pkt := b[at : at+n]
		at += n
		c.Packets++
		if payload, sport := tcpPayload(pkt); sport == 15008 && len(payload) > 5 && payload[0] == 22 && payload[5] == 2 && bytes.Contains(payload, selectsTLS13) {
			c.TLS13 = true
		}
	}
	return c
}

// tcpPayload returns the payload and source port of an Ethernet frame with IPv4 and TCP; nil, 0 for any other.
func tcpPayload(p []byte) ([]byte, int) {
	if len(p) < 34 || p[12] != 0x08 || p[13] != 0 || p[23] != 6 {
		return nil, 0
	}
	ip := p[14:]
	ihl := int(ip[0]&15) * 4
	if len(ip) < ihl+20 {
		return nil, 0
	}
	tcp := ip[ihl:]
	off := int(tcp[12]>>4) * 4
	if len(tcp) < off {
		return nil, 0
	}
	return tcp[off:], int(tcp[0])<<8 | int(tcp[1])
}

// newMarker is 32 random bytes in hexadecimal: 64 bytes that occur nowhere else.
func newMarker() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// witness is a client that nobody has seen before: its first request cannot travel in a tunnel that is open already, so the
// capture has a handshake in it.
func witness(namespace, node string) string {
	return `apiVersion: v1
kind: Pod
metadata: {name: witness, namespace: ` + namespace + `, labels: {app: witness}}
spec:
  terminationGracePeriodSeconds: 0
  serviceAccountName: sleep
  nodeSelector: {kubernetes.io/hostname: ` + node + `}
  containers:
  - {name: main, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}
`
}

// Encrypted sends a random marker from a new pod of one namespace to another's httpbin, on another node, and says what the
// link between the nodes carried: cipher text under TLS 1.3 for pairs of the mesh, the marker in clear for a legacy pair.
func (w *World) Encrypted(ctx context.Context, from, to string, want bool) error {
	src, err := w.OnePod(ctx, from, "sleep")
	if err != nil {
		return err
	}
	dst, err := w.OnePod(ctx, to, "httpbin")
	if err != nil {
		return err
	}
	if src.Spec.NodeName == dst.Spec.NodeName {
		return fmt.Errorf("%s and %s are both on %s: nothing crosses the link", from, to, src.Spec.NodeName)
	}
	client := witness(from, src.Spec.NodeName)
	if err := w.Apply(ctx, client); err != nil {
		return err
	}
	c, err := w.markerOnLink(ctx, from, to, src.Spec.NodeName, dst.Status.PodIP)
	if derr := w.Delete(ctx, client); err == nil {
		err = derr
	}
	if err != nil {
		return err
	}
	w.Say("  %s → %s: %d packets on the link, TLS 1.3 on port 15008: %v, the 64-byte marker occurs %d times", from, to, c.Packets, c.TLS13, c.Marker)
	switch {
	case want && c.Marker != 0:
		return fmt.Errorf("the request from %s to %s crossed the link in clear", from, to)
	case want && !c.TLS13:
		return fmt.Errorf("no TLS 1.3 on port 15008 was seen between %s and %s", from, to)
	case !want && c.Marker == 0:
		return fmt.Errorf("the marker from %s to %s was not seen: the capture proves nothing", from, to)
	}
	return nil
}

// markerOnLink captures while the witness asks once.
func (w *World) markerOnLink(ctx context.Context, from, to, node, addr string) (*Capture, error) {
	if err := w.AwaitReady(ctx, from); err != nil {
		return nil, err
	}
	marker := newMarker()
	return w.CaptureLink(ctx, node, addr, []byte(marker), func(ctx context.Context) error {
		r, err := w.kubectl(ctx, nil, "exec", "-n", from, "witness", "--", "sh", "-c",
			fmt.Sprintf("curl -s -o /dev/null -m 10 -H 'X-Marker: %s' -w '%%{http_code}' http://httpbin.%s:8000/headers", marker, to))
		if err == nil && r.Out != "200" {
			err = fmt.Errorf("request from %s to %s: %q, exit code %d", from, to, r.Out, r.Code)
		}
		return err
	})
}
