// Package zds carries pods from the node agent to ztunnel: protobuf messages in a SOCK_SEQPACKET Unix socket with the
// pod's network namespace, and since version 2 its in-pod listeners, as SCM_RIGHTS descriptors. The agent listens
// (Server), ztunnel connects (Client). It is a leaf that both sides import.
//
// Invariants: a message is acknowledged before the next is sent; a descriptor that arrives belongs to exactly one place
// or is closed; a truncated message ends the connection; a version 1 peer (Istio's ztunnel or Istio's agent) never sees
// a listener, a probe or an address.
package zds

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

// Bounds of the protocol.
const (
	// MaxMessageV1 is the longest message of version 1, in bytes, both ways.
	MaxMessageV1 = 1024
	// MaxMessageV2 is the longest message of version 2, in bytes, both ways.
	MaxMessageV2 = 64 << 10

	maxDescriptors = 16   // of one message; one netns and a listener of each kind, with room for kinds to come
	maxHeld        = 8192 // Held messages after a hello
	maxUID         = 256  // bytes of a pod UID
)

// ErrNoZtunnel is returned by Server.Add when no ztunnel is connected or when the last one left before it acknowledged.
var ErrNoZtunnel = errors.New("no ztunnel connection")

// errProtocol marks what a conforming peer never sends; the connection ends.
var errProtocol = errors.New("protocol violation")

// AckError is the peer's refusal of one message.
type AckError struct {
	UID     string // of the pod that the message was about; "" for none
	Message string // the peer's words
}

func (e *AckError) Error() string {
	if e.UID == "" {
		return "refused by ztunnel: " + e.Message
	}
	return fmt.Sprintf("pod %s refused by ztunnel: %s", e.UID, e.Message)
}

// Listeners are in-pod listening sockets by kind. The files are in the blocking mode in which their creator left them:
// use SyscallConn or net.FileListener, never Fd, which would change it for every holder of the socket.
type Listeners map[zdsapi.ListenerKind]*os.File

// Close closes every file. The map stays as it is.
func (l Listeners) Close() {
	for _, f := range l {
		_ = f.Close() // nothing is written to it
	}
}

// kinds returns the kinds that are present, in ascending order, so that messages are reproducible.
func (l Listeners) kinds() []zdsapi.ListenerKind {
	out := make([]zdsapi.ListenerKind, 0, len(l))
	for k := zdsapi.ListenerKind_OUTBOUND; int(k) < len(zdsapi.ListenerKind_name); k++ {
		if l[k] != nil {
			out = append(out, k)
		}
	}
	return out
}

// Workload is one pod as it travels. On the agent's side the files stay the agent's; what a Handler receives is its own.
type Workload struct {
	UID       string // Kubernetes pod UID
	Info      *zdsapi.WorkloadInfo
	Probes    []*zdsapi.Probe // version 2
	Addrs     []netip.Addr    // version 2
	Netns     *os.File
	Listeners Listeners // version 2
}

// Close closes the netns and the listeners.
func (w Workload) Close() {
	if w.Netns != nil {
		_ = w.Netns.Close() // nothing is written to it
	}
	w.Listeners.Close()
}

// bound is the longest message of a version.
func bound(v zdsapi.Version) int {
	if v == zdsapi.Version_V2 {
		return MaxMessageV2
	}
	return MaxMessageV1
}
