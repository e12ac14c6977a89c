// Package enroll decides which pods of the node belong to the mesh and brings each there and back, live, in an order in
// which no connection is lost and none goes round the mesh.
//
// It owns one state machine a pod. What a pod's state is can be read from the kernel's pins, the pod's annotation and
// ztunnel's acknowledgement, so the agent keeps no file: after a crash every step is done again and changes nothing
// where it was done before. A pod that is captured stays captured until it was un-enrolled step by step or is gone.
package enroll

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

var (
	// ErrNotEnrolled is returned by Check for a pod of the mesh whose capture is not complete.
	ErrNotEnrolled = errors.New("pod is not captured")
	// ErrPodGone is returned by Add for a pod that the API server does not know (any more).
	ErrPodGone = errors.New("pod does not exist")
)

// PodNet is what the datapath needs to know of a pod.
type PodNet struct {
	UID        string
	Netns      *netns.NetNS
	IPs        []netip.Addr
	Exclusions Exclusions
	Probes     []Probe
}

// Datapath is the kernel side. Prepare is idempotent: for a known pod it brings addresses, exclusions and probes up to
// date and leaves links and capture as they are. It refuses another namespace than the pod's while that exists, and one
// that another pod has: only Cleanup makes room.
type Datapath interface {
	Prepare(ctx context.Context, p PodNet) (Handle, error)
	// Known lists the pods whose state is in the kernel, from this run or an earlier one, by UID.
	Known() (map[string]Handle, error)
}

// Handle is one pod in the kernel. Its methods are idempotent.
type Handle interface {
	capturer
	listening
	// Netns opens the namespace that the pod was prepared in; nil without an error when that is gone. The caller closes it.
	Netns() (*netns.NetNS, error)
	// Live is the number of connections that still need the pod's rules and routes.
	Live() (int, error)
	// Unended is the number of TCP connections in the pod's namespace whose peers do not know yet that they end.
	Unended() (int, error)
	// Cleanup takes away everything, capture first; it works when the namespace is gone.
	Cleanup(ctx context.Context) error
}

type capturer interface {
	Inbound(on bool) error
	Outbound(on bool) error
	State() (inbound, outbound bool, err error)
}

type listening interface {
	// Ensure makes the listeners that no process holds.
	Ensure() error
	// Adopt takes over listeners that ztunnel kept; the files stay the caller's.
	Adopt(files map[zdsapi.ListenerKind]*os.File) error
	// Files are the listeners that this process holds; they stay the handle's.
	Files() map[zdsapi.ListenerKind]*os.File
}

// Proxy is ztunnel, behind zds.Server.
type Proxy interface {
	Add(ctx context.Context, w zds.Workload) error
	// Del takes a pod away; deleted: its processes have ended, and its connections are to end as well, soon after it returns.
	Del(ctx context.Context, uid string, deleted bool) error
	Connected() bool
}

// Cluster is where pods come from and where their annotation goes.
type Cluster interface {
	// List returns the pods of this node and all namespaces by name; ok is false until both are known completely.
	List() (pods []*corev1.Pod, namespaces map[string]*corev1.Namespace, ok bool)
	// Watch returns a channel that receives after List changed.
	Watch() (changed <-chan struct{}, stop func())
	// Get reads pod and namespace past any cache. Returns ErrPodGone if there is no such pod.
	Get(ctx context.Context, namespace, name string) (*corev1.Pod, *corev1.Namespace, error)
	// Annotate writes or removes the redirection annotation of exactly this pod; one that is gone is no error.
	Annotate(ctx context.Context, pod *corev1.Pod, enrolled bool) error
}

// Events tells the pod's owner; see corev1.EventTypeNormal and EventTypeWarning.
type Events interface {
	Event(pod *corev1.Pod, kind, reason, message string)
}

// Config configures a Manager. Every interface is required.
type Config struct {
	Datapath Datapath
	Proxy    Proxy
	Cluster  Cluster
	Events   Events
	Log      *slog.Logger
	// FindNetns finds the namespace of a running pod by the UID in its cgroup's name; the caller closes it.
	FindNetns func(uid string, addrs []netip.Addr) (*netns.NetNS, error)
	Policy    Policy

	// Digest is the file for the plugin; "" writes none.
	Digest string
	// Propagation is the pause between the removal of the annotation and the end of outbound capture, in which the
	// other nodes learn to speak plain text to the pod; default 5 s.
	Propagation time.Duration
	// Linger bounds how long rules and routes stay for connections that were captured before; default 1 h.
	Linger time.Duration
	// BacklogLimit is how long connections wait for a ztunnel before they are reset; default 10 s.
	BacklogLimit time.Duration
	// RetryMin and RetryMax bound the pause after a failed step; defaults 200 ms and 30 s.
	RetryMin, RetryMax time.Duration
	// Poll is the pause between looks at what gives no notification; default 1 s.
	Poll time.Duration
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Propagation, 5 * time.Second}, {&c.Linger, time.Hour}, {&c.BacklogLimit, 10 * time.Second},
		{&c.RetryMin, 200 * time.Millisecond}, {&c.RetryMax, 30 * time.Second}, {&c.Poll, time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return c
}

// Step is how far a pod is. Enrolment counts up, un-enrolment has steps of its own.
type Step string

// The steps; each names what is done.
const (
	StepNone         Step = "none"         // nothing of the mesh in the pod
	StepFound        Step = "found"        // its network namespace is open
	StepPrepared     Step = "prepared"     // rules, routes, sysctls, listeners
	StepInbound      Step = "inbound"      // new connections to the pod are captured
	StepAcknowledged Step = "acknowledged" // ztunnel serves it
	StepAnnotated    Step = "annotated"    // the control plane may declare it HBONE
	StepEnrolled     Step = "enrolled"     // new connections of the pod are captured
	StepWithdrawn    Step = "withdrawn"    // un-enrolment: annotation removed, others learn of it
	StepReleased     Step = "released"     // nothing new is captured; old connections end
)

// Status is what is known of one pod.
type Status struct {
	UID, Namespace, Name string
	Step                 Step
	Since                time.Time // of Step
	Enrolled             bool      // what is wanted
	Why                  string    // it is wanted
	Err                  string    // of the last attempt, "" when it succeeded
}
